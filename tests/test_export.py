"""A saved model is exported once, beside it, and its bundle answers in a process without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from golden import ANSWERS, HISTORIES, QUESTIONS
from processes import run_python

from next_behavior.commands import export as command
from next_behavior.serving.bundle import CONSTANTS, open_bundle
from next_behavior.serving.export import bundle_for
from next_behavior.serving.golden import difference_between
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.torch_predictor import TorchPredictor

WITHOUT_TORCH = """
import json, sys, time, warnings
begin = time.monotonic()
from pathlib import Path
from next_behavior.serving.export import bundle_for
from next_behavior.serving.predictor import Predictor
predictor = Predictor.load(bundle_for("model"))
took = time.monotonic() - begin
heavy = [name for name in ("torch", "transformers", "polars", "datasets") if name in sys.modules]
assert not heavy, heavy
warnings.simplefilter("ignore")
histories, questions = json.loads(sys.argv[1]), json.loads(sys.argv[2])
explained = [predictor.answer(history, explain=True, top_k=3) for history in histories]
assert all(len(each["contributions"]) == len(history) for history, one in zip(histories, explained) for each in one)
assert "torch" not in sys.modules
print("ANSWERS", json.dumps([[predictor.answer(history, **each) for history in histories] for each in questions]))
"""


def test_a_bundle_answers_in_a_process_without_torch_as_the_model_did(exported: Path) -> None:
    asked, here = (json.dumps(HISTORIES), json.dumps(QUESTIONS)), {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = run_python(exported.parent, "-c", WITHOUT_TORCH, *asked, environment=here, anew=True)
    found = json.loads(done.stdout.split("ANSWERS ")[1])
    wanted = json.loads(ANSWERS.read_text())["answers"]["pipeline"]
    for question, answers, expected in zip(QUESTIONS, found, wanted, strict=True):
        for one, other in zip(answers, expected, strict=True):
            assert difference_between(one, other) is None, question


def test_it_is_made_once_and_anew_for_a_changed_model(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    bundle = bundle_for(exported, say=said.append)
    assert bundle.parent == exported / "serving"
    assert not said, "it was there"
    command.main(["--model", str(exported)])
    assert capsys.readouterr().out.strip() == str(bundle)
    changed = tmp_path / "changed"
    shutil.copytree(exported, changed)
    text = (changed / "config.json").read_text()
    (changed / "config.json").write_text(text.replace('"vocab_size":', '"vocab_size" :'))
    shutil.rmtree(changed / "serving")
    (changed / "tokenizer.json").unlink()
    with pytest.raises((ValueError, OSError), match=r"tokenizer\.json"):
        bundle_for(changed)


@pytest.mark.parametrize("name", ["item_table.npy", "network.onnx", "tokenizer.json"])
def test_a_damaged_bundle_is_refused(exported: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_for(exported), copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        open_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        Predictor.load(copy)


def test_a_bundle_of_another_version_is_refused(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_for(exported), copy)
    values = json.loads((copy / CONSTANTS).read_text())
    (copy / CONSTANTS).write_text(json.dumps({**values, "more": 1}))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest[CONSTANTS]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="another version"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["nowhere/at/all/x", "/nowhere"])
def test_what_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected the folder of a trained model or a Hub id"):
        bundle_for(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        bundle_for(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        bundle_for(tmp_path)


def test_torch_answers_counts_and_remembers_as_the_bundle_does(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    in_torch, bundle = TorchPredictor.load(folder), Predictor.load(bundle_for(exported))
    assert in_torch.info == bundle.info
    assert in_torch.vocabulary_line("i4") == bundle.vocabulary_line("i4") is not None
    assert in_torch.vocabulary_line("nowhere") is bundle.vocabulary_line("nowhere") is None
    assert in_torch.vocabulary.text == bundle.vocabulary.text
    history = [{"item": "i1", "action": "view"}, {"item": "i4", "action": "buy"}]
    questions: list[dict[str, Any]] = [{"top_k": 3}, {"of": "item", "exclude_seen": True}, {"top_k": 3}]

    def answered(predictor: Any) -> Any:
        return predictor.answers([predictor.ask(history, **options) for options in questions])

    for one, other in zip(answered(in_torch), answered(bundle), strict=True):
        assert difference_between(one, other) is None
    before = answered(in_torch)
    assert in_torch.count(history) == bundle.count(history)
    assert in_torch.count([history[0]] * 2).pairs == []
    after = answered(in_torch)
    assert difference_between(after[0], before[0]) is not None
    for one, other in zip(after, answered(bundle), strict=True):
        assert difference_between(one, other) is None
    in_torch.snapshot(tmp_path / "memory.npz")
    bundle.snapshot(tmp_path / "other.npz")
    in_torch.count(history)
    in_torch.restore(tmp_path / "memory.npz")
    assert difference_between(answered(in_torch)[0], after[0]) is None
    with pytest.raises(ValueError, match="another model or engine"):
        in_torch.restore(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="another model or engine"):
        bundle.restore(tmp_path / "memory.npz")
