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


# Children of one process that has imported torch, because that takes longest.
EACH_FIRST = """
import os, sys
import torch
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        __import__(f"next_behavior.model.{name}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_model_files_can_be_imported_before_transformers(tmp_path: Path) -> None:
    names = ("configuration_behavior", "item_text", "tokenization_behavior")
    run_python(tmp_path, "-c", EACH_FIRST, *names, environment={"PYTHONPATH": str(ROOT)})


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'BertForNextBehaviour'"):
        next_behavior.BertForNextBehaviour  # noqa: B018
