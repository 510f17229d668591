"""`import next_behavior`: light, and enough for AutoModel to load a folder without its remote code."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_python
from tiny import tiny_model

import next_behavior
from next_behavior.training.vocabulary import assemble

ROOT = Path(__file__).resolve().parent.parent

LIGHT = """
import sys
import next_behavior
heavy = {"torch", "transformers", "polars", "datasets"} & set(sys.modules)
assert not heavy, f"import next_behavior imports {heavy}"
"""
LOADS = """
import sys
import next_behavior
assert "transformers" not in sys.modules
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
assert type(model) is next_behavior.BertForNextBehavior
assert type(tokenizer) is next_behavior.BehaviorTokenizer
assert type(model.config) is next_behavior.BehaviorConfig
"""


def test_importing_the_package_is_light_and_registers_its_classes_once_transformers_is_there(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT)}
    run_python(tmp_path, "-c", LIGHT, environment=environment, anew=True)
    tokenizer = assemble(["84", "7"], ["view"], [60.0], num_new_items=2, max_length=6)
    tokenizer.describe_items([1, 1], [None, None])
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run_python(tmp_path, "-c", LOADS, str(tmp_path / "model"), environment=environment)


@pytest.mark.parametrize("name", ["configuration_behavior", "item_text", "tokenization_behavior"])
def test_model_files_can_be_imported_before_transformers(name: str, tmp_path: Path) -> None:
    code = f"import sys; assert 'transformers' not in sys.modules; import next_behavior.model.{name}"
    run_python(tmp_path, "-c", code, environment={"PYTHONPATH": str(ROOT)})


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'BertForNextBehaviour'"):
        next_behavior.BertForNextBehaviour  # noqa: B018
