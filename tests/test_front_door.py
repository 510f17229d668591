"""`import next_behavior`: light, and enough for AutoModel to load a folder without its remote code."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_python
from tiny import tiny_model

import next_behavior
from next_behavior.training.vocabulary import assemble

ROOT = Path(__file__).resolve().parent.parent

LOADS = """
import sys
import next_behavior
heavy = {"torch", "transformers", "polars", "datasets"} & set(sys.modules)
assert not heavy, f"import next_behavior imports {heavy}"
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
assert type(model) is next_behavior.BertForNextBehavior
assert type(tokenizer) is next_behavior.BehaviorTokenizer
assert type(model.config) is next_behavior.BehaviorConfig
"""


def test_importing_the_package_is_light_and_registers_its_classes_once_transformers_is_there(tmp_path: Path) -> None:
    tokenizer = assemble(["84", "7"], ["view"], [60.0], num_new_items=2, max_length=6)
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run_python(tmp_path, "-c", LOADS, str(tmp_path / "model"), environment={"PYTHONPATH": str(ROOT)})


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'BertForNextBehaviour'"):
        next_behavior.BertForNextBehaviour  # noqa: B018
