"""The example scripts, run as anyone would: models come from a Hub and go to it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import polars as pl
import pytest
import torch
from hub_server import HubServer
from processes import run_python
from safetensors.torch import load as load_tensors
from tiny import load, tiny_model

from next_behavior.model.configuration_behavior import CODE_FILES, BehaviorConfig
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.vocabulary import assemble

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ITEMS = ["007", "84", "chair", "9", "12"]
SIZES = (
    *("vocab_size", "num_new_items", "num_actions", "num_time_gaps", "hidden_size", "num_attention_heads"),
    *("num_hidden_layers", "intermediate_size", "max_position_embeddings"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights, and its tokenizer."""
    tokenizer = assemble(ITEMS, ["view", "buy"], [60.0, 3600.0], num_new_items=3, max_length=6)
    tokenizer.describe_items([1] * len(ITEMS), [None] * len(ITEMS))
    path = tmp_path_factory.mktemp("model")
    tiny_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


PUSH = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("ana/base", private=True)
HfApi().upload_folder(repo_id="ana/base", folder_path=sys.argv[1])
"""


@pytest.fixture(scope="module")
def base(hub: HubServer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model on the Hub."""
    run(hub, tmp_path_factory.mktemp("pusher"), "-c", PUSH, str(folder))
    return "ana/base"


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """A log of known items, an unknown one and a user with a single event."""
    lines = [
        f"u{user},{ITEMS[(user + step) % 5]},view,{1_700_000_000 + 600 * step}"
        for user in range(6)
        for step in range(7)
    ]
    path = tmp_path / "events.csv"
    path.write_text(
        "\n".join(["user_id,item_id,action,timestamp", *lines, "u1,new,buy,1700009000", "u9,84,buy,5"]) + "\n"
    )
    return path


def run(hub: HubServer, home: Path, *command: str, status: int = 0) -> CompletedProcess[str]:
    return run_python(home, "-I", *command, environment=hub.environment(home / "cache"), status=status)


def test_a_dataset_is_predicted_by_a_model_of_the_hub(
    hub: HubServer, base: str, folder: Path, events: Path, tmp_path: Path
) -> None:
    run(hub, tmp_path, str(EXAMPLES / "batch_predict.py"), base, str(events), "next.parquet")
    found = pl.read_parquet(tmp_path / "next.parquet")
    assert found.columns == ["user_id", "item", "probability"]
    model, tokenizer = load(folder)
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    log = pl.read_csv(events, schema_overrides={"item_id": pl.String}).sort("timestamp", maintain_order=True)
    for user, items, probabilities in found.iter_rows():
        own = log.filter(user_id=user).select("action", "timestamp", item="item_id").to_dicts()
        answers = predict({"events": own}, of="item", top_k=10)
        assert items == [answer["item"] for answer in answers]
        assert probabilities == pytest.approx([answer["probability"] for answer in answers], abs=1e-5)
    assert set(found["user_id"]) == {*(f"u{user}" for user in range(6)), "u9"}


STRANGER = """
import json, sys
from transformers import pipeline
for model in sys.argv[1:]:
    predict = pipeline("next-behavior", model=model, trust_remote_code=True)
    print(json.dumps(predict({"events": [{"item": "84", "action": "view"}]}, top_k=3)))
"""


def test_a_finetuned_model_is_pushed_whole_and_answers_a_stranger(
    hub: HubServer, folder: Path, events: Path, tmp_path: Path
) -> None:
    script = str(EXAMPLES / "finetune_with_trainer.py")
    run(hub, tmp_path, script, str(folder), str(events), "out", "--push_to_hub", "ana/finetuned")
    pushed = set(hub.files("ana/finetuned"))
    assert {*CODE_FILES, "config.json", "model.safetensors", "tokenizer.json", "vocabulary.tsv", "README.md"} <= pushed
    assert hub.repositories()["models/ana/finetuned"]["private"]
    assert str(folder) not in hub.read("ana/finetuned", "README.md").decode()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    answers, local = run(hub, stranger, "-c", STRANGER, "ana/finetuned", str(tmp_path / "out")).stdout.splitlines()
    assert json.loads(answers) == json.loads(local)


def test_an_adapter_is_pushed_alone_and_names_its_base_by_its_id(
    hub: HubServer, base: str, folder: Path, events: Path, tmp_path: Path
) -> None:
    script = str(EXAMPLES / "lora_with_peft.py")
    done = run(hub, tmp_path, script, base, str(events), "out", "--push_to_hub", "ana/adapter")
    assert "loaded again, differs by 0.0e+00" in done.stdout
    assert set(hub.files("ana/adapter")) - {".gitattributes"} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert json.loads(hub.read("ana/adapter", "adapter_config.json"))["base_model_name_or_path"] == base
    assert "base_model: ana/base" in hub.read("ana/adapter", "README.md").decode()
    weights: dict[str, Any] = load_tensors(hub.read("ana/adapter", "adapter_model.safetensors"))
    assert all(".encoder." in name and "lora_" in name for name in weights)
    assert any(weight.abs().sum() > 0 for name, weight in weights.items() if "lora_B" in name), "it was trained"


def test_an_adapter_of_a_folder_is_not_pushed(hub: HubServer, folder: Path, events: Path, tmp_path: Path) -> None:
    script = str(EXAMPLES / "lora_with_peft.py")
    done = run(hub, tmp_path, script, str(folder), str(events), "out", "--push_to_hub", "ana/lost", status=2)
    assert "expected its Hub id: publish the base first" in done.stderr
    assert "models/ana/lost" not in hub.repositories()


OTHER_BACKBONE = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
sys.path = [folder for folder in sys.path if folder != sys.argv[3]]
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
batch = tokenizer(json.loads(sys.argv[2]), return_tensors="pt")
print(json.dumps([type(model).__name__, model.item_log_probabilities(**batch).exp().tolist()]))
"""


def test_another_backbone_trains_keeps_the_future_out_and_is_loaded_by_a_stranger(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    backbone: Any = importlib.import_module("gpt2_backbone")
    tokenizer = BehaviorTokenizer.from_pretrained(folder)
    config = BehaviorConfig.from_pretrained(folder).to_dict()
    torch.manual_seed(0)
    model = backbone.Gpt2ForNextBehavior(
        backbone.Gpt2BehaviorConfig(**{name: config[name] for name in SIZES}, hidden_dropout_prob=0.0)
    )
    histories = [
        [{"item": ITEMS[(user + step) % 5], "action": "view", "timestamp": 600 * step} for step in range(3 + user % 3)]
        for user in range(5)
    ]
    batch = tokenizer(histories, return_tensors="pt")
    model.update_memory(**batch, pairs="all")
    inputs = {name: ids[:, :-1] for name, ids in batch.items()}
    labels = {
        "labels": batch["input_ids"][:, 1:].masked_fill(inputs["attention_mask"] == 0, -100),
        "action_labels": batch["token_type_ids"][:, 1:].masked_fill(inputs["attention_mask"] == 0, -100),
    }
    inputs = {name: ids[2:3] for name, ids in inputs.items()}
    labels = {name: ids[2:3] for name, ids in labels.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**inputs, **labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(weight.grad is not None for name, weight in model.named_parameters() if ".decoder." in name)

    model.eval()
    changed = {name: ids.clone() for name, ids in batch.items()}
    changed["input_ids"][:, -1] = tokenizer.encode_item("12")
    assert torch.equal(model.bert(**changed)[:, :-1], model.bert(**batch)[:, :-1])
    alone = tokenizer(histories[:1], return_tensors="pt")
    together = model.item_log_probabilities(**batch).exp()
    torch.testing.assert_close(model.item_log_probabilities(**alone).exp(), together[:1])

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    arguments = (str(tmp_path), json.dumps(histories), str(EXAMPLES.parent))
    kind, answers = json.loads(run_python(tmp_path, "-I", "-c", OTHER_BACKBONE, *arguments).stdout)
    assert kind == "Gpt2ForNextBehavior"
    torch.testing.assert_close(torch.tensor(answers), together)
