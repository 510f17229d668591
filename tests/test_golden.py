"""A saved model answers as it did when it was saved, by its own code and by today's, and the same training gives it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import ANSWERS, ARCHIVE, answers_of, train, write_log
from processes import run_python
from safetensors.torch import load_file
from tiny import load

from next_behavior.model.associative_memory import RECENT_UNIT
from next_behavior.model.neighbor_lists import COUNT_UNIT
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline

# Answers of one model differ in the last digits from processor to processor; weights that were trained there, in more:
# Adam makes a whole step of the rounding in a gradient near zero.
ANSWER_TOLERANCE, WEIGHT_TOLERANCE = 1e-6, 3e-3

OWN_CODE = """
import json, sys
sys.path.append(sys.argv[1])
from transformers import AutoModel, AutoTokenizer, pipeline
from golden import answers_of
model = AutoModel.from_pretrained("model", trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained("model", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
predict = pipeline("next-behavior", model="model", trust_remote_code=True)
print("ANSWERS " + json.dumps(answers_of(model, tokenizer, predict)))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that was saved before the code was cut into rooms."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "model"


def expected() -> dict[str, Any]:
    return json.loads(ANSWERS.read_text())["answers"]


def check(found: Any, wanted: Any, where: str = "") -> None:
    """Ids and names are equal, numbers within the tolerance."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for name in wanted:
            check(found[name], wanted[name], f"{where}.{name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            check(one, other, f"{where}[{place}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=ANSWER_TOLERANCE, rel=1e-5), where
    else:
        assert found == wanted, where


@pytest.mark.filterwarnings("ignore:a history has the action 'cart'")
def test_todays_code_answers_for_a_folder_saved_before_as_it_did_then(saved: Path) -> None:
    model, tokenizer = load(saved)
    check(answers_of(model, tokenizer, NextBehaviorPipeline(model=model, tokenizer=tokenizer)), expected())


def test_a_folder_saved_before_answers_by_its_own_code_in_a_clean_process(saved: Path) -> None:
    done = run_python(saved.parent, "-I", "-c", OWN_CODE, str(Path(__file__).parent))
    printed = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    check(json.loads(printed[-1].removeprefix("ANSWERS ")), expected())


def test_the_same_training_gives_the_same_weights_memory_and_tokenizer(saved: Path, bert: str, tmp_path: Path) -> None:
    events, items = write_log(tmp_path)
    folder = train(events, items, bert, tmp_path / "model")
    for name in ("vocabulary.tsv", "tokenizer.json", "split.json"):
        assert (folder / name).read_bytes() == (saved / name).read_bytes(), name
    weights, before = load_file(folder / "model.safetensors"), load_file(saved / "model.safetensors")
    assert weights.keys() == before.keys()
    for name, table in before.items():
        if name == "associate_path.recent_counts":  # in units of 1 / 1024 then
            torch.testing.assert_close(weights[name] / RECENT_UNIT, table / COUNT_UNIT, atol=1e-3, rtol=0)
        elif table.dtype == torch.int64:  # counts
            assert torch.equal(weights[name], table), name
        else:
            apart = (weights[name].float() - table.float()).abs().max() if table.numel() else torch.zeros(())
            assert apart <= (1 if table.dtype == torch.int8 else WEIGHT_TOLERANCE), name
