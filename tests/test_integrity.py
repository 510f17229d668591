"""A damaged or mixed folder is refused in one line, and every way of saving leaves a folder that is not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from processes import reset_accelerate
from safetensors.torch import load_file, save_file
from tiny import load, tiny_model, write_events
from transformers import AutoTokenizer, Trainer, TrainingArguments

from next_behavior.commands.__main__ import main
from next_behavior.data.splits import Split
from next_behavior.model.integrity import (
    VOCABULARY_MANIFEST,
    WEIGHTS_MANIFEST,
    check_agreement,
    check_folder,
    check_memory,
    check_tables,
    read_manifest,
)
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.serving.write_bundle import write_bundle
from next_behavior.training.vocabulary import assemble

ITEMS = [f"item {index}" for index in range(12)]
ACTIONS, EDGES = ["view", "cart", "buy"], [60.0, 3600.0, 86_400.0]
HISTORY = [{"item": "item 1", "action": "view", "timestamp": 1_700_000_000}, {"item": "item 4", "action": "buy"}]
NAN_IN, OF_TEXT = "action_head.weight", "bert.embeddings.item_text.unit"
SMALL_SHARDS = "4KB"


def tokenizer_of(items: list[str], actions: list[str] = ACTIONS, edges: list[float] = EDGES) -> BehaviorTokenizer:
    tokenizer = assemble(items, actions, edges, num_new_items=3, max_length=6)
    tokenizer.describe_items([None] * len(items), [f"Title of {item}" for item in items])
    return tokenizer


def build(tokenizer: BehaviorTokenizer) -> BertForNextBehavior:
    """A model with item text and a counted memory."""
    text = {"text_size": 5, "text_encoder": "an/encoder", "text_encoder_size": 8, "text_columns": ["title"]}
    model = tiny_model(tokenizer, hidden_size=12, vocabulary_digest=tokenizer.vocabulary_digest, **text)
    with torch.no_grad():
        item_text = model.bert.embeddings.item_text
        assert item_text is not None
        item_text.components.copy_(torch.randn(8, 5))
        item_text.write(torch.arange(tokenizer.first_item_id, len(tokenizer)), torch.randn(len(ITEMS), 8))
    histories = [[{"item": f"item {(user * 5 + step) % 12}"} for step in range(4)] for user in range(12)]
    model.update_memory(**tokenizer(histories, return_tensors="pt"), pairs="all")
    model.associate_path.borrow(item_text)
    return model


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("healthy"), tokenizer_of(ITEMS)
    tokenizer.save_pretrained(folder)
    build(tokenizer).save_pretrained(folder)
    (folder / "split.json").write_text(json.dumps(Split("leave_one_out").to_dict()))
    return folder


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command writes its name into the arguments of the process, and its training settings into Accelerate."""
    reset_accelerate()
    monkeypatch.setattr(sys, "argv", ["next-behavior"])


@pytest.fixture
def shop(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "shop"))


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[tuple[str, str | None, str, int]] = [
        (f"u{user}", ITEMS[(user + step) % 12], ACTIONS[step % 3], 1_700_000_000 + 600 * step)
        for user in range(8)
        for step in range(5)
    ]
    return write_events(tmp_path_factory.mktemp("log") / "events.csv", rows)


def answers(folder: Path) -> Any:
    model, tokenizer = load(folder)
    return NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")({"events": HISTORY}, top_k=3)


# -- damages -----------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_weights(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_nan(table: torch.Tensor) -> torch.Tensor:
    table.view(-1)[1] = float("nan")
    return table


def reverse_actions(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["action_vocabulary"].reverse()
    path.write_text(json.dumps(settings))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


# What happens to the folder, and what the message says.
FILE_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda folder: flip_a_bit(folder / "model.safetensors", -9), "model.safetensors, which is not"),
    "nan": (lambda folder: change_weights(folder, NAN_IN, with_nan), "nan or inf|model.safetensors, which is not"),
    "shuffled keys": (
        lambda folder: change_weights(folder, "associate_path.pair_keys", lambda keys: keys.flip(0)),
        "pair_keys out of order|model.safetensors, which is not",
    ),
    "truncated": (truncate, r"model.safetensors with [\d,]+ bytes; expected [\d,]+"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "without model.safetensors"),
    "no titles": (lambda folder: (folder / "vocabulary.tsv").unlink(), "without vocabulary.tsv"),
    "no vocabulary": (lambda folder: (folder / "tokenizer.json").unlink(), "without tokenizer.json"),
    "a title changed": (lambda folder: flip_a_bit(folder / "vocabulary.tsv", -3), "vocabulary.tsv, which is not"),
    "actions reversed": (reverse_actions, "tokenizer_config.json with|tokenizer_config.json, which is not"),
    "no manifest any more": (
        lambda folder: (folder / WEIGHTS_MANIFEST).write_text("{"), "weights.manifest.json, which is damaged",
    ),
}  # fmt: skip
# Saved by the tokenizer itself, so that each file is what its manifest says.
MIXTURES: dict[str, tuple[BehaviorTokenizer, str]] = {
    "the tokenizer of another run": (tokenizer_of([f"thing {index}" for index in range(12)]), "are others"),
    "two items exchanged": (tokenizer_of([*ITEMS[:-2], ITEMS[-1], ITEMS[-2]]), "stand in another order"),
    "actions reversed": (tokenizer_of(ITEMS, ACTIONS[::-1]), "items, actions or times"),
    "other times": (tokenizer_of(ITEMS, edges=[60.0, 3600.0, 7200.0]), "items, actions or times"),
    "a vocabulary one longer": (tokenizer_of([*ITEMS, "one more"]), "has 20 tokens and the model 19"),
    "an action more": (tokenizer_of(ITEMS, [*ACTIONS, "search"]), "has 7 action ids and the model 6"),
}


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_the_pipeline_refuses_a_damaged_folder(shop: Path, damage: str) -> None:
    change, message = FILE_DAMAGES[damage]
    change(shop)
    with pytest.raises(ValueError, match=message) as refused:
        answers(shop)
    assert "copy the folder again, or train again" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_evaluate_refuses_a_damaged_folder_in_one_line(shop: Path, events: Path, damage: str) -> None:
    change, message = FILE_DAMAGES[damage]
    change(shop)
    with pytest.raises(SystemExit, match=message) as end:
        main(["evaluate", "--model", str(shop), "--events", str(events)])
    assert str(end.value.code).count("\n") == 0


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_tokenizer_of_another_model_is_refused_by_the_pipeline_and_where_items_are_added(
    shop: Path, mixture: str
) -> None:
    tokenizer, message = MIXTURES[mixture]
    tokenizer.save_pretrained(shop)
    check_folder(shop)  # each file is what was saved
    with pytest.raises(ValueError, match=message):
        answers(shop)
    model, loaded = load(shop)
    with pytest.raises(ValueError, match="load both from one folder"):
        model.add_items(loaded, ["fresh"])


@pytest.mark.parametrize("mixture", ["the tokenizer of another run", "a vocabulary one longer", "actions reversed"])
def test_evaluate_refuses_the_tokenizer_of_another_model(shop: Path, events: Path, mixture: str) -> None:
    MIXTURES[mixture][0].save_pretrained(shop)
    with pytest.raises(SystemExit, match=MIXTURES[mixture][1]):
        main(["evaluate", "--model", str(shop), "--events", str(events)])


@pytest.mark.parametrize("command", ["train", "add-items", "publish"])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_command_that_reads_a_model_checks_it(
    shop: Path, events: Path, tmp_path: Path, command: str, mixed: bool
) -> None:
    if mixed:
        MIXTURES["actions reversed"][0].save_pretrained(shop)
    else:
        flip_a_bit(shop / "model.safetensors", -9)
    (tmp_path / "new.csv").write_text("item_id\nfresh\n")
    arguments = {
        "train": ["--events", str(events), "--base_model", str(shop), "--output_dir", str(tmp_path / "out"), "--cpu"],
        "add-items": ["--model", str(shop), "--items", str(tmp_path / "new.csv"), "--output_dir", str(tmp_path / "o")],
        "publish": ["--model", str(shop), "--repo_id", "ana/shop", "--events", str(events), "--dry_run"],
    }
    with pytest.raises(SystemExit, match="both from one folder" if mixed else "SHA-256 differs"):
        main([command, *arguments[command]])


@pytest.mark.parametrize("mixed", [False, True])
def test_no_damaged_or_mixed_folder_is_exported(shop: Path, tmp_path: Path, mixed: bool) -> None:
    if mixed:
        MIXTURES["actions reversed"][0].save_pretrained(shop)
    else:
        flip_a_bit(shop / "model.safetensors", -9)
    with pytest.raises(ValueError, match="both from one folder" if mixed else "SHA-256 differs"):
        write_bundle(shop, tmp_path / "bundle", "now")
    assert not (tmp_path / "bundle").exists()


# -- checks at load, without a manifest --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAN_IN, with_nan, f"{NAN_IN} holds nan or inf"),
        (NAN_IN, lambda table: table.fill_(float("inf")), f"{NAN_IN} holds nan or inf"),
        (OF_TEXT, with_nan, f"{OF_TEXT} holds nan or inf"),
        ("associate_path.pair_keys", lambda keys: keys.flip(0), "pair_keys out of order"),
        ("associate_path.pair_keys", lambda keys: keys[:1].expand_as(keys), "pair_keys out of order"),
        ("associate_path.pair_keys", lambda keys: keys + (1 << 40), "items that are not counted"),
        ("associate_path.pair_counts", lambda counts: -counts, "a negative number in pair_counts"),
        ("associate_path.item_counts", lambda counts: counts - 100, "a negative number in item_counts"),
        ("associate_path.recent_counts", lambda counts: counts - (1 << 40), "a negative number in recent_counts"),
        ("associate_path.borrow_weights", lambda weights: weights - 10_000_000, "a negative number in borrow_weights"),
    ],
)
def test_a_model_with_senseless_values_does_not_load(
    shop: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    (shop / WEIGHTS_MANIFEST).unlink()
    change_weights(shop, name, change)
    with pytest.raises(ValueError, match=message):
        BertForNextBehavior.from_pretrained(shop)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("time_edges", [3600.0, 60.0], "time_edges that are not finite and ascending"),
        ("time_edges", [60.0, float("nan")], "time_edges that are not finite and ascending"),
        ("action_vocabulary", ["view", "view"], "an action twice in view, view"),
        ("num_new_items", 9, r"\[NEW_4\] at id None, not 7"),
    ],
)
def test_a_tokenizer_with_senseless_settings_does_not_load(shop: Path, setting: str, value: Any, message: str) -> None:
    path = shop / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(ValueError, match=message):
        BehaviorTokenizer.from_pretrained(shop)


def test_a_load_that_fails_names_the_damaged_file(shop: Path) -> None:
    truncate(shop)
    with pytest.raises(ValueError, match=r"model\.safetensors with"):
        BertForNextBehavior.from_pretrained(shop)
    path = shop / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"tokenizer\.json with 200 bytes"):
        AutoTokenizer.from_pretrained(shop)


def test_the_checks_of_values_take_numpy_arrays_as_a_process_without_torch_has_them() -> None:
    keys, counts = np.array([1 << 32, 2 << 32]), {"pair_counts": np.ones(2, int), "item_counts": np.ones(3, int)}
    check_memory(keys, counts, "here")
    with pytest.raises(ValueError, match="here, whose memory holds pair_keys out of order"):
        check_memory(keys[::-1], counts, "here")
    check_tables({"empty": np.zeros((0, 3)), "table": np.ones(3)}, "here")
    with pytest.raises(ValueError, match="here, in which table holds nan or inf"):
        check_tables({"table": np.array([1.0, np.inf])}, "here")


def test_a_folder_without_manifest_or_digest_loads_and_is_checked_by_its_sizes(shop: Path) -> None:
    expected = answers(shop)
    for name in (WEIGHTS_MANIFEST, VOCABULARY_MANIFEST):
        (shop / name).unlink()
    config = json.loads((shop / "config.json").read_text())
    del config["vocabulary_digest"]
    (shop / "config.json").write_text(json.dumps(config))
    assert answers(shop) == expected
    model, _ = load(shop)
    check_agreement(model.config, tokenizer_of([f"thing {index}" for index in range(12)]))
    with pytest.raises(ValueError, match="has 20 tokens and the model 19"):
        check_agreement(model.config, tokenizer_of([*ITEMS, "one more"]))


def test_a_model_of_the_hubs_cache_is_checked_too(healthy: Path, tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--ana--shop"
    snapshot, blobs = repository / "snapshots" / commit, Path(shutil.copytree(healthy, repository / "blobs"))
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in blobs.iterdir():
        os.symlink(path, snapshot / path.name)

    def ask() -> Any:
        model: Any = BertForNextBehavior.from_pretrained("ana/shop", cache_dir=tmp_path)
        tokenizer = BehaviorTokenizer.from_pretrained("ana/shop", cache_dir=tmp_path)
        assert model.manifest == snapshot / WEIGHTS_MANIFEST
        assert tokenizer.manifest == snapshot / VOCABULARY_MANIFEST
        return NextBehaviorPipeline(model=model.eval(), tokenizer=tokenizer, device="cpu")({"events": HISTORY}, top_k=3)

    assert ask() == answers(healthy)
    flip_a_bit(blobs / "model.safetensors", -9)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        ask()
    (snapshot / WEIGHTS_MANIFEST).unlink()  # a repository without one
    model: Any = BertForNextBehavior.from_pretrained("ana/shop", cache_dir=tmp_path)
    assert model.manifest is None


# -- saving ------------------------------------------------------------------------------------------------------------


def changed(model: BertForNextBehavior) -> BertForNextBehavior:
    with torch.no_grad():
        model.action_head.weight.add_(1)
    return model


def trained(model: BertForNextBehavior, tokenizer: BehaviorTokenizer, folder: Path) -> None:
    batch = tokenizer([HISTORY], return_tensors="pt")
    row = {name: channel[0] for name, channel in batch.items()}
    row |= {"labels": row["input_ids"], "action_labels": row["token_type_ids"]}
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data: Any = [row]
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    check_folder(folder / "checkpoint-1")
    assert (folder / "checkpoint-1" / WEIGHTS_MANIFEST).is_file()
    trainer.save_model()


def merged(model: BertForNextBehavior, tokenizer: BehaviorTokenizer, folder: Path) -> None:
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=r".*bert\.encoder\..*\.(query|value)"))
    adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)  # beside a model
    check_folder(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    adapted.merge_and_unload().save_pretrained(folder)


def grown(model: BertForNextBehavior, tokenizer: BehaviorTokenizer, folder: Path) -> None:
    model.add_items(tokenizer, [{"item_id": "fresh", "title": "new"}], embed=lambda texts: torch.randn(len(texts), 8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def resized(model: BertForNextBehavior, tokenizer: BehaviorTokenizer, folder: Path) -> None:
    tokenizer.add_items(["fresh", "another"], [None, None])
    model.resize_token_embeddings(len(tokenizer))
    assert model.config.vocabulary_digest is None
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def resharded(model: BertForNextBehavior, tokenizer: BehaviorTokenizer, folder: Path) -> None:
    changed(model).save_pretrained(folder, max_shard_size=SMALL_SHARDS)
    assert len(read_manifest(folder / WEIGHTS_MANIFEST)) > 3
    check_folder(folder)
    changed(model).save_pretrained(folder, max_shard_size="7KB")
    check_folder(folder)
    changed(model).save_pretrained(folder)
    assert list(read_manifest(folder / WEIGHTS_MANIFEST)) == ["model.safetensors"]


Save = Callable[[BertForNextBehavior, BehaviorTokenizer, Path], Any]
WAYS_OF_SAVING: dict[str, Save] = {
    "the model alone": lambda model, _, folder: changed(model).save_pretrained(folder),
    "the tokenizer alone": lambda _, tokenizer, folder: tokenizer.save_pretrained(folder),
    "the titles alone": lambda _, tokenizer, folder: tokenizer.save_vocabulary(str(folder)),
    "shards over one file": lambda model, _, folder: model.save_pretrained(folder, max_shard_size=SMALL_SHARDS),
    "shards, other shards, one file": resharded,
    "Trainer": trained,
    "PEFT": merged,
    "added items": grown,
    "resized": resized,
    "the pipeline": lambda model, tokenizer, folder: NextBehaviorPipeline(
        model=model, tokenizer=tokenizer, device="cpu"
    ).save_pretrained(folder),
}


@pytest.mark.parametrize("way", WAYS_OF_SAVING)
def test_every_way_of_saving_over_a_model_leaves_a_folder_that_is_taken(shop: Path, way: str) -> None:
    model, tokenizer = load(shop)
    changed(model)
    if way in ("the tokenizer alone", "the titles alone"):
        tokenizer.describe_items([2] * len(ITEMS), ["Another title"] * len(ITEMS))
    WAYS_OF_SAVING[way](model, tokenizer, shop)
    check_folder(shop)
    answers(shop)
    listed = read_manifest(shop / WEIGHTS_MANIFEST).keys() | read_manifest(shop / VOCABULARY_MANIFEST).keys()
    kept = {"tokenizer.json", "tokenizer_config.json", "vocabulary.tsv"}
    assert listed == {path.name for path in shop.glob("model*.safetensors*")} | kept
    saved, titles = load(shop)
    if way not in ("the tokenizer alone", "the titles alone"):
        for name, table in model.state_dict().items():
            if "lora" not in name and "base_layer" not in name:
                assert torch.equal(saved.state_dict()[name.replace("base_layer.", "")], table), name
    else:
        assert titles.title("item 3") == "Another title"


@pytest.mark.parametrize("who", ["the model", "the tokenizer"])
def test_who_is_saved_alone_changes_no_entry_of_the_other(shop: Path, tmp_path: Path, who: str) -> None:
    model, tokenizer = load(shop)
    mine, others = (WEIGHTS_MANIFEST, VOCABULARY_MANIFEST)[:: 1 if who == "the model" else -1]
    before = (shop / others).read_bytes()
    (model if who == "the model" else tokenizer).save_pretrained(shop)
    assert (shop / others).read_bytes() == before
    (model if who == "the model" else tokenizer).save_pretrained(tmp_path / "alone")
    assert (tmp_path / "alone" / mine).is_file()
    assert not (tmp_path / "alone" / others).exists()


def test_a_variant_has_a_manifest_of_its_own(shop: Path) -> None:
    model, _ = load(shop)
    before = (shop / WEIGHTS_MANIFEST).read_bytes()
    model.save_pretrained(shop, variant="fp16")
    assert (shop / WEIGHTS_MANIFEST).read_bytes() == before
    assert list(read_manifest(shop / "weights.manifest.fp16.json")) == ["model.fp16.safetensors"]
    loaded: Any = BertForNextBehavior.from_pretrained(shop, variant="fp16")
    assert loaded.manifest == shop / "weights.manifest.fp16.json"


def test_what_is_pushed_while_saving_holds_its_code_and_its_manifest(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load(shop)
    pushed: list[str] = []

    def upload(_: Any, folder: Any, *__: Any, **___: Any) -> None:
        check_folder(Path(folder))
        pushed.extend(path.name for path in Path(folder).iterdir())

    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
    model._upload_modified_files(shop, "ana/shop", {})
    assert {WEIGHTS_MANIFEST, "pipeline_behavior.py"} <= set(pushed)


def test_adding_items_in_place_and_evaluating_take_the_folder(shop: Path, tmp_path: Path) -> None:
    rows: list[tuple[str, str | None, str, int]] = [  # the memory has counted the first four of each user
        (f"u{user}", f"item {(user * 5 + step) % 12}", ACTIONS[0], 1_700_000_000 + 600 * step)
        for user in range(12)
        for step in range(6)
    ]
    events = write_events(tmp_path / "events.csv", rows)
    (tmp_path / "new.csv").write_text("item_id\nfresh\n")
    main(["add-items", "--model", str(shop), "--items", str(tmp_path / "new.csv"), "--output_dir", str(shop)])
    check_folder(shop)
    main(["evaluate", "--model", str(shop), "--events", str(events), "--max_targets", "8"])
    model, tokenizer = load(shop)
    assert model.config.vocabulary_digest == tokenizer.vocabulary_digest


def test_a_save_that_fails_leaves_no_manifest_of_what_was_there(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load(shop)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(shop)
    assert not (shop / WEIGHTS_MANIFEST).exists()
