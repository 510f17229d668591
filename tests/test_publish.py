"""publish.py over real HTTP: what is sent, who can load it, and what a failure leaves behind.

The Hub is the one of tests/hub_server.py. Strangers are processes of their own, with an empty cache, in another folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from golden import ARCHIVE
from golden import write_log as golden_log
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard, constants
from processes import fork_checks_of_publishing, run_python, run_training
from tiny import WORDS, load, save_bert, write_events

from next_behavior.commands import add_items, publish
from next_behavior.data.read_options import ReadOptions
from next_behavior.model.configuration_behavior import CODE_FILES
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.publishing import check
from next_behavior.publishing.adapter import stage_adapter
from next_behavior.publishing.check import (
    Answers,
    answers_in_a_clean_process,
    check_answers,
    check_same_with_its_own_code,
    check_sent,
    golden_answers,
    golden_histories,
)
from next_behavior.publishing.hub import SendError, content_ids, folder_files, send
from next_behavior.publishing.privacy import without_rare
from next_behavior.publishing.publication import load_publication
from next_behavior.publishing.record import Record, command_of
from next_behavior.publishing.staging import check_no_local_names

ROOT = Path(__file__).resolve().parent.parent
MODEL_ID, DATASET_ID = "ana/shop", "ana/shop-sequences"
MODEL_FILES = {
    *CODE_FILES,
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocabulary.tsv"),
    *("weights.manifest.json", "vocabulary.manifest.json"),
    *("README.md", "requirements.txt", "split.json", "evaluation.json", "evaluation.md"),
    *("plots/results.png", "plots/calibration.png"),
}
SMALL = [
    *("--hidden_size", "24", "--num_attention_heads", "3", "--num_hidden_layers", "1", "--max_epochs", "2"),
    *("--tokens_per_batch", "200", "--warmup_steps", "5", "--learning_rate", "0.01", "--precision", "no", "--cpu"),
]


def write_log(folder: Path) -> Path:
    """Forty users go round thirty items; every one also touches an item that nobody else has."""
    generator = np.random.default_rng(1)
    rows = []
    for user in range(40):
        clock, place = 1_700_000_000 + int(generator.integers(86_400)), int(generator.integers(30))
        for step in range(10):
            clock += int(generator.integers(60, 7200))
            place = (place + 1) % 30
            name = f"only for {user}" if step == 3 else f"item {place}"
            rows.append((f"customer-{user}", name, "buy" if place % 5 == 0 else "view", clock))
    items = [{"item_id": "item 3", "title": "call +49 30 1234567"}, {"item_id": "item 4", "title": "Lamp"}]
    pl.DataFrame(items).write_csv(folder / "items.csv")
    return write_events(folder / "events.csv", rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, evaluated and saved as users do it."""
    folder = tmp_path_factory.mktemp("shop")
    return run_training(write_log(folder), folder / "model", *SMALL)


@pytest.fixture
def online(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """This process talks to the loopback Hub, logged in, and does not wait between attempts."""
    for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET", "HF_HUB_DOWNLOAD_TIMEOUT", "NO_PROXY"):
        monkeypatch.setenv(name, hub.environment(Path())[name])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="module")
def published(hub: HubServer, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The model and its sequences on the Hub, sent by a process of its own: what it printed and what it sent."""
    home = tmp_path_factory.mktemp("publisher")
    done = run_python(
        home, str(ROOT / "publish.py"), "--model", str(trained), "--repo_id", MODEL_ID, "--tag", "v1",
        "--push_dataset", "--output", str(home / "staged"), "--license", "apache-2.0", "--data_name", "Round trips",
        environment=hub.environment(home),
    )  # fmt: skip
    return {"said": done.stdout + done.stderr, "staged": home / "staged", "requests": hub.requests()}


@pytest.fixture(scope="module")
def golden(published: dict[str, Any]) -> tuple[list[Any], Answers]:
    """Histories, and what the published files answer to them here."""
    model, tokenizer = load(published["staged"])
    histories = golden_histories(tokenizer)
    return histories, golden_answers(model, tokenizer, histories)


@pytest.fixture(autouse=True)
def forked_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean processes of a test are forked; the process of the fixture `published` starts its own anew."""
    fork_checks_of_publishing(monkeypatch)


def skip_the_clean_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not what is tested: it takes seconds."""
    monkeypatch.setattr(check, "answers_in_a_clean_process", lambda *_: {})


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_exactly_the_files_that_belong_are_sent_in_one_private_commit(
    hub: HubServer, published: dict[str, Any]
) -> None:
    assert set(hub.files(MODEL_ID)) == MODEL_FILES
    there = hub.repositories()[f"models/{MODEL_ID}"]
    assert there == {"private": True, "commits": 2, "branches": ["main"], "tags": ["v1"]}  # the first is empty
    for name in CODE_FILES:
        assert hub.read(MODEL_ID, name) == (ROOT / "next_behavior" / "model" / name).read_bytes()
    staged = {name: content_ids(path)[1] for name, path in folder_files(published["staged"]).items()}
    assert hub.files(MODEL_ID) == staged
    commits = [line for line in published["requests"] if f"/api/models/{MODEL_ID}/commit/" in line]
    assert commits == [f"POST /api/models/{MODEL_ID}/commit/main 200"]


def test_neither_the_token_nor_a_user_is_anywhere_in_what_is_sent_or_said(
    hub: HubServer, published: dict[str, Any]
) -> None:
    assert hub.token not in published["said"]
    for kind, repo in (("model", MODEL_ID), ("dataset", DATASET_ID)):
        for name in hub.files(repo, kind):
            content = hub.read(repo, name, kind)
            assert hub.token.encode() not in content
            assert b"customer-" not in content, name
            assert b"only for" not in content, name
            assert str(ROOT).encode() not in content, name


def test_a_second_run_with_nothing_changed_sends_nothing(
    hub: HubServer,
    published: dict[str, Any],
    trained: Path,
    online: HfApi,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_the_clean_process(monkeypatch)
    before = hub.repositories()
    hub.requests()
    publish.main(
        ["--model", str(trained), "--repo_id", MODEL_ID, "--tag", "v1", "--push_dataset", "--license", "apache-2.0",
         "--data_name", "Round trips"]
    )  # fmt: skip
    assert capsys.readouterr().out.count("Nothing has changed since commit") == 2
    writes = [line for line in hub.requests() if not line.startswith(("GET", "HEAD"))]
    assert {line.rsplit(" ", 1)[0] for line in writes} == {"POST /api/repos/create"}
    assert hub.repositories() == before


@pytest.mark.parametrize("name", ["kept", "kept-dataset", "kept-text-encoder"])
def test_a_kept_copy_overwrites_no_other_folder(name: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").write_text("of another model")
    with pytest.raises(ValueError, match=f"{name} is there already; expected a new or an empty folder"):
        publish.main(["--model", str(trained), "--repo_id", "ana/a", "--dry_run", "--output", str(tmp_path / "kept")])


def test_a_dry_run_shows_files_and_sizes_needs_no_token_and_asks_nobody(
    hub: HubServer, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_the_clean_process(monkeypatch)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.requests()
    publish.main(["--model", str(trained), "--repo_id", "ana/dry", "--dry_run", "--min_item_users", "1",
                  "--events", str(trained.parent / "events.csv")])  # fmt: skip
    said = capsys.readouterr().out
    assert "Removed 0 of 64 items" in said
    assert all(re.search(rf"[\d,]+  {re.escape(name)}\n", said) for name in MODEL_FILES)
    assert "Dry run: nothing was sent." in said
    assert hub.requests() == []


def test_items_that_were_added_and_never_touched_are_published(trained: Path, tmp_path: Path) -> None:
    """A catalog says nothing about users; the forty items with one user are still removed."""
    shop = shutil.copytree(trained, tmp_path / "shop", ignore=shutil.ignore_patterns("prepared", "checkpoints"))
    (tmp_path / "new.csv").write_text("item_id,title\nfresh,Reading lamp\n")
    add_items.main(["--model", str(shop), "--items", str(tmp_path / "new.csv"), "--output_dir", str(shop)])
    events = str(trained.parent / "events.csv")
    split = Record.read(shop).split
    with_added = load_publication(shop, split, events, ReadOptions())
    published, _ = without_rare(with_added, split.how, min_item_users=5, min_pair_users=2)
    kept = published.tokenizer.item_vocabulary
    assert "fresh" in kept
    assert not [name for name in kept if name.startswith("only for")]


# -- who can load it ---------------------------------------------------------------------------------------------------


def test_a_stranger_loads_it_by_its_id_and_again_offline_with_identical_answers(
    hub: HubServer, golden: tuple[list[Any], Answers], tmp_path: Path
) -> None:
    histories, expected = golden
    for offline in (False, True):
        hub.requests()
        # The first download of the weights breaks off half-way.
        with hub.fault("GET", "/resolve/.*/model.safetensors", "drop", times=1):
            found = answers_in_a_clean_process(MODEL_ID, histories, hub.environment(tmp_path, offline=offline))
        assert set(found) == {"pipeline", "model", "handler"}
        check_answers(found, expected, MODEL_ID)
        downloads = [line.split()[-1] for line in hub.requests() if re.match("GET .*/model.safetensors", line)]
        assert downloads == ([] if offline else ["0", "200"])
    one_off = {way: [answers[:1] for answers in rows] for way, rows in expected.items()}
    with pytest.raises(ValueError, match="golden history 0"):
        check_answers(found, one_off, MODEL_ID)


STREAM_AND_TRAIN = """
import datasets, sys
from next_behavior.commands.train import main
from next_behavior.data.events import read_events

rows = list(datasets.load_dataset("ana/shop-sequences", split="train", streaming=True))
print(len(rows), sorted(rows[0]))
events = read_events("ana/shop-sequences").events
print(events.height, events["user_id"].n_unique(), events["item_id"].str.starts_with("unknown").sum())
main(["--events", "ana/shop-sequences", "--output_dir", sys.argv[1], "--split", "none", *sys.argv[2:]])
"""


def test_the_sequences_stream_and_train_a_model_again(
    hub: HubServer,
    published: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = {**hub.environment(tmp_path), "PYTHONPATH": str(ROOT)}
    options = (str(tmp_path / "again"), *SMALL, "--max_epochs", "1")
    done = run_python(tmp_path, "-c", STREAM_AND_TRAIN, *options, environment=environment)
    columns = ["action", "input_ids", "item_id", "part", "time_gap_ids", "timestamp", "token_type_ids", "user_id"]
    assert done.stdout.splitlines()[:2] == [f"40 {columns}", "400 40 40"]
    assert (tmp_path / "again" / "model.safetensors").is_file()
    run_record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert f" --events {DATASET_ID} " in str(command_of(run_record))

    skip_the_clean_process(monkeypatch)  # what was trained on everything is published too
    kept = tmp_path / "kept"
    publish.main(["--model", str(tmp_path / "again"), "--repo_id", "ana/all", "--dry_run", "--output", str(kept)])
    assert "Removed 40 of 70 items" in capsys.readouterr().out
    assert set(folder_files(kept)) == MODEL_FILES - {
        *("split.json", "evaluation.json", "evaluation.md", "plots/results.png", "plots/calibration.png")
    }
    assert ModelCard.load(kept / "README.md").data.to_dict()["datasets"] == [DATASET_ID]


def test_an_adapter_is_published_with_its_base_named_by_hub_id(
    hub: HubServer, published: dict[str, Any], online: HfApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    base = published["staged"]
    model = get_peft_model(
        BertForNextBehavior.from_pretrained(base),
        LoraConfig(task_type="FEATURE_EXTRACTION", r=4, target_modules=["query", "value"], init_lora_weights=False),
    )
    model.save_pretrained(str(tmp_path / "lora"))
    options = ["--model", str(tmp_path / "lora"), "--repo_id", "ana/shop-lora"]
    with pytest.raises(ValueError, match=r"a folder; expected the Hub id of its base.*--base_repo_id"):
        publish.main(options)
    with pytest.raises(ValueError, match="--text_encoder for an adapter; expected it for the base"):
        publish.main([*options, "--text_encoder", "here"])
    with pytest.raises(ValueError, match="--base_repo_id for a model that is no adapter; expected none"):
        publish.main(["--model", str(base), "--repo_id", "ana/shop", "--base_repo_id", MODEL_ID])
    publish.main([*options, "--base_repo_id", MODEL_ID])
    assert set(hub.files("ana/shop-lora")) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert json.loads(hub.read("ana/shop-lora", "adapter_config.json"))["base_model_name_or_path"] == MODEL_ID
    card = ModelCard(hub.read("ana/shop-lora", "README.md").decode())
    assert card.data.to_dict() | {"base_model": MODEL_ID, "library_name": "peft"} == card.data.to_dict()
    assert str(tmp_path) not in str(card)
    assert "note:" not in capsys.readouterr().out  # the same answers as with the local base
    assert "No results were recorded beside its folder" in str(card)
    check_snippets(hub, tmp_path)


def test_an_adapter_with_rows_of_added_items_needs_the_very_vocabulary_of_its_base(
    hub: HubServer, published: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    """The published base has lost the rare items, and rows are known by their number."""
    from peft import LoraConfig, get_peft_model

    rows = {"embed_tokens": [70, 71]}
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query"], trainable_token_indices=rows)
    shutil.copyfile(trained / "evaluation.json", tmp_path / "evaluation.json")
    get_peft_model(BertForNextBehavior.from_pretrained(trained), config).save_pretrained(str(tmp_path / "adapter"))
    failed = run_python(
        tmp_path, str(ROOT / "publish.py"), "--model", str(tmp_path / "adapter"), "--repo_id", "ana/rows",
        "--base_repo_id", MODEL_ID,
        environment=hub.environment(tmp_path / "home"), status=1,
    )  # fmt: skip
    assert "publish the base with --min_item_users 1, or the merged model" in failed.stderr
    assert "ana/rows" not in hub.repositories()

    stage_adapter(tmp_path / "adapter", "ana/rows", MODEL_ID, None, tmp_path / "staged")
    # The results that lie beside the adapter are in its card.
    assert "Against the best of the baselines" in (tmp_path / "staged" / "README.md").read_text()


def check_snippets(hub: HubServer, home: Path) -> None:
    """Runs the code of both cards as it stands there; the model's prints what its card says it prints."""
    cards = [hub.read(repo, "README.md").decode() for repo in (MODEL_ID, "ana/shop-lora")]
    snippets = [re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0] for card in cards]
    printed = re.findall(r"```text\n(.*?)```", cards[0], flags=re.DOTALL)[0]
    code = "\n".join([*snippets, "print(ranked.probabilities.shape)"])
    done = run_python(home, "-I", "-c", code, environment=hub.environment(home / "home"))
    assert done.stdout == f"{printed}torch.Size([1, 5])\n"


# -- what a failure leaves ---------------------------------------------------------------------------------------------

INFO, PREUPLOAD, COMMIT, LFS = "^/api/models/ana/box$", "/preupload/", "/commit/", "^/lfs/[0-9a-f]+$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small and a large file; the remote of `before` has the large one in an older version. The content is new in
    every test, so that the server has seen none of it."""
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "model.safetensors").write_bytes(os.urandom(100_000))
    (tmp_path / "folder" / "sub" / "new.txt").write_text("new\n")
    return tmp_path / "folder"


@pytest.fixture
def before(hub: HubServer, online: HfApi, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the repository ana/box holds before a failing call of `send`; it is deleted afterwards."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.safetensors").write_bytes(b"old weights")
    send(online, tmp_path / "old", "ana/box", message="old")
    yield hub.files("ana/box")
    online.delete_repo("ana/box")


@pytest.mark.parametrize(
    ("method", "path", "kind", "message"),
    [
        ("GET", INFO, "401", "the token is wrong, or has expired: run `hf auth login`"),
        ("POST", PREUPLOAD, "404", "ana/box or something in it was not found: check --repo_id"),
        ("POST", PREUPLOAD, "429", "the Hub asks for fewer requests: wait some minutes"),
        ("PUT", LFS, "500", "a fault on its side: try again later"),
        ("PUT", LFS, "drop", "failed .*: check the network"),
        ("PUT", LFS, "corrupt", "was corrupted on its way"),
        ("POST", COMMIT, "500", "a fault on its side: try again later"),
        ("POST", COMMIT, "401", "the token is wrong, or has expired"),
        ("POST", COMMIT, "drop", "failed .*: check the network"),
    ],
)
def test_a_failed_upload_is_explained_leaves_the_remote_as_it_was_and_can_be_resumed(
    hub: HubServer, online: HfApi, folder: Path, before: dict[str, str],
    method: str, path: str, kind: str, message: str,
) -> None:  # fmt: skip
    with hub.fault(method, path, kind), pytest.raises(SendError, match=message) as failure:
        send(online, folder, "ana/box", message="new")
    assert hub.files("ana/box") == before
    assert hub.token not in str(failure.value)
    told = "Nothing was sent." if path == INFO else "is as it was .*Run the same command again"
    assert re.search(told, str(failure.value), flags=re.DOTALL)
    hub.requests()
    assert send(online, folder, "ana/box", message="new").changed == ["model.safetensors", "sub/new.txt"]
    again = any(line.startswith("PUT /lfs/") for line in hub.requests())
    assert again is (path != COMMIT)  # a large file that has arrived is not sent twice
    assert set(hub.files("ana/box")) == {"model.safetensors", "sub/new.txt"}


def test_faults_that_pass_are_waited_out(hub: HubServer, online: HfApi, folder: Path, before: dict[str, str]) -> None:
    with hub.fault("PUT", LFS, "500", times=2), hub.fault("POST", PREUPLOAD, "429", times=1):
        assert send(online, folder, "ana/box", message="new").changed
    assert set(hub.files("ana/box")) == {"model.safetensors", "sub/new.txt"}


def test_a_commit_whose_answer_was_lost_counts_as_sent(
    hub: HubServer, online: HfApi, folder: Path, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = online.create_commit

    def commit_and_lose(*arguments: Any, **options: Any) -> Any:
        commit(*arguments, **options)
        raise SendError("the connection broke")

    monkeypatch.setattr(online, "create_commit", commit_and_lose)
    sent = send(online, folder, "ana/box", message="new")
    assert set(hub.files("ana/box", revision=sent.commit)) == {"model.safetensors", "sub/new.txt"}


def test_a_download_that_is_corrupted_or_refused_is_found_by_verify(
    hub: HubServer,
    published: dict[str, Any],
    golden: tuple[list[Any], Answers],
    online: HfApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = "model.safetensors of ana/shop came back with another content"
    with hub.fault("GET", "/resolve/.*/model.safetensors", "corrupt"), pytest.raises(SendError, match=message):
        check_sent(MODEL_ID, "main", hub.token, published["staged"], *golden)

    def refuse(*_: Any) -> Answers:
        raise ValueError("ana/shop does not load in a clean process")

    monkeypatch.setattr(check, "answers_in_a_clean_process", refuse)
    with pytest.raises(SendError, match="sent, but ana/shop does not load in a clean process"):
        check_sent(MODEL_ID, "main", hub.token, published["staged"], *golden)


def test_a_folder_that_does_not_load_is_not_sent(hub: HubServer, published: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(published["staged"], tmp_path / "broken")
    (tmp_path / "broken" / "pipeline_behavior.py").write_text("raise ImportError('broken on purpose')")
    with pytest.raises(ValueError, match=r"does not load in a clean process[\s\S]*broken on purpose"):
        answers_in_a_clean_process(str(tmp_path / "broken"), [[]], hub.environment(tmp_path, offline=True))


def test_a_folder_of_another_version_is_published_only_if_it_answers_the_same(
    published: dict[str, Any], golden: tuple[list[Any], Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(published["staged"], tmp_path / "old")
    with (tmp_path / "old" / "modeling_behavior.py").open("a") as code:
        code.write("# as it was once\n")
    model, tokenizer = load(tmp_path / "old")
    found = golden[1]
    monkeypatch.setattr(check, "answers_in_a_clean_process", lambda *_: found)
    assert check_same_with_its_own_code(tmp_path / "old", model, tokenizer) == ["modeling_behavior.py"]
    assert check_same_with_its_own_code(published["staged"], model, tokenizer) == []
    found = {way: rows[::-1] for way, rows in found.items()}
    with pytest.raises(ValueError, match=r"other versions of modeling_behavior.py, which answer differently"):
        check_same_with_its_own_code(tmp_path / "old", model, tokenizer)


def test_a_folder_saved_before_the_code_was_cut_is_checked_by_its_own_code_and_published_with_todays(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    loaded: list[Path] = []

    def load_in_a_clean_process(source: str, *_: Any) -> Answers:
        loaded.append(Path(source))
        return {}

    monkeypatch.setattr(check, "answers_in_a_clean_process", load_in_a_clean_process)
    events, _ = golden_log(tmp_path)
    publish.main(
        ["--model", str(tmp_path / "model"), "--repo_id", "ana/old", "--events", str(events), "--min_item_users", "1",
         "--min_pair_users", "1", "--text_encoder", bert, "--dry_run", "--output", str(tmp_path / "staged")]
    )  # fmt: skip
    assert "holds modeling_behavior.py" in capsys.readouterr().out
    assert loaded[0] == tmp_path / "model"
    for name in CODE_FILES:
        assert (tmp_path / "staged" / name).read_bytes() == (ROOT / "next_behavior" / "model" / name).read_bytes()


def test_a_folder_of_this_machine_is_named_and_not_sent(published: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(published["staged"], tmp_path / "named")
    check_no_local_names(tmp_path / "named", tmp_path / "model")
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    for name, value, message in (
        ("note", str(tmp_path / "model"), "in config.json; expected no name of this machine"),
    ):
        (tmp_path / "named" / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(ValueError, match=message):
            check_no_local_names(tmp_path / "named", tmp_path / "model")


def test_a_text_encoder_that_is_a_folder_here_gets_a_repository_of_its_own_from_which_strangers_add_items(
    hub: HubServer, online: HfApi, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    skip_the_clean_process(monkeypatch)
    encoder = shutil.copytree(bert, tmp_path / "encoder")
    (encoder / "optimizer.bin").write_bytes(b"not needed")
    events = write_log(tmp_path)
    titles = [{"item_id": f"item {row}", "title": f"{WORDS[row % 6]} {WORDS[row // 6]}"} for row in range(30)]
    pl.DataFrame(titles).write_csv(tmp_path / "items.csv")
    monkeypatch.chdir(tmp_path)
    model = run_training(events, tmp_path / "model", *SMALL, "--items", str(tmp_path / "items.csv"),
                         "--text_encoder", os.path.relpath(encoder), "--max_epochs", "1")  # fmt: skip
    assert json.loads((model / "config.json").read_text())["text_encoder"] == str(encoder)
    expected = BertForNextBehavior.from_pretrained(model)
    options = ["--model", str(model), "--repo_id", "ana/words", "--min_item_users", "1", "--tag", "v1"]

    publish.main([*options, "--output", str(tmp_path / "staged")])
    (encoder_id,) = (name.removeprefix("models/") for name in hub.repositories() if "text-encoder" in name)
    assert re.fullmatch(r"ana/words-text-encoder-[0-9a-f]{8}", encoder_id)
    assert set(hub.files(encoder_id)) == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert hub.repositories()[f"models/{encoder_id}"]["private"]
    assert json.loads(hub.read("ana/words", "config.json"))["text_encoder"] == encoder_id
    assert f"embedded by `{encoder_id.split('/')[1]}`" in hub.read("ana/words", "README.md").decode()
    for repo in ("ana/words", encoder_id):
        assert not [name for name in hub.files(repo) if str(tmp_path).encode() in hub.read(repo, name)]
    assert (tmp_path / "staged-text-encoder" / "model.safetensors").exists()
    publish.main(options)
    assert capsys.readouterr().out.count("Nothing has changed since commit") == 2

    # The stranger has neither the folder nor this checkout, and runs what the encoder's card says.
    new = [{"item_id": "new", "title": "red comb"}]
    snippet = re.findall(r"```python\n(.*?)```", hub.read(encoder_id, "README.md").decode(), flags=re.DOTALL)[0]
    code = f"""{snippet}
assert embeddings.shape == (2, 20) and torch.allclose(embeddings.norm(dim=-1), torch.ones(2))
import sys
name, folder = sys.argv[1:]
tokenizer, model = (auto.from_pretrained(name, trust_remote_code=True) for auto in (AutoTokenizer, AutoModel))
model.add_items(tokenizer, {new!r})
model.save_pretrained(folder)
"""
    home, grown = tmp_path / "home", tmp_path / "grown"
    run_python(tmp_path, "-I", "-c", code, "ana/words", str(grown), environment=hub.environment(home))
    (added,) = expected.add_items(load(model)[1], new)
    there = BertForNextBehavior.from_pretrained(grown)
    rows = [one.bert.embeddings.item_rows(torch.tensor([added])) for one in (there, expected)]
    torch.testing.assert_close(*rows)

    moved = encoder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="or gone; expected the encoder that it was trained with"):
        publish.main(options)
    publish.main([*options, "--text_encoder", str(moved)])
    assert capsys.readouterr().out.count("Nothing has changed since commit") == 2
    other = save_bert(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"other, another one .*; expected the one that this model was trained with"):
        publish.main([*options, "--text_encoder", str(other)])


def test_files_of_others_are_left_alone_and_named(hub: HubServer, online: HfApi, folder: Path, tmp_path: Path) -> None:
    send(online, folder, "ana/mine", message="first")
    shutil.rmtree(folder / "sub")
    sent = send(online, folder, "ana/mine", message="second")
    assert (sent.changed, sent.others) == ([], ["sub/new.txt"])
    assert "sub/new.txt" in hub.files("ana/mine")


def test_a_branch_is_made_where_asked_and_a_tag_is_never_moved(hub: HubServer, online: HfApi, folder: Path) -> None:
    first = send(online, folder, "ana/tags", message="first", tag="v1", revision="trial")
    assert hub.files("ana/tags") == {}
    assert set(hub.files("ana/tags", revision="v1")) == {"model.safetensors", "sub/new.txt"}
    (folder / "sub" / "new.txt").write_text("newer\n")
    with pytest.raises(SendError, match=rf"the tag v1 of ana/tags names commit {first.commit[:8]}"):
        send(online, folder, "ana/tags", message="second", tag="v1", revision="trial")


def test_a_public_repository_is_not_written_to_unasked(hub: HubServer, online: HfApi, folder: Path) -> None:
    send(online, folder, "ana/open", message="first", private=False)
    (folder / "sub" / "new.txt").write_text("newer\n")
    with pytest.raises(SendError, match="exists and is public; expected a private repository: pass --public"):
        send(online, folder, "ana/open", message="second")
    assert send(online, folder, "ana/open", message="second", private=False).changed == ["sub/new.txt"]


def test_without_a_token_nothing_is_begun(
    hub: HubServer, online: HfApi, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.requests()
    with pytest.raises(SendError, match="got no Hub token; expected one with write access: run `hf auth login`"):
        publish.main(["--model", str(trained), "--repo_id", "ana/none"])
    assert hub.requests() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repo_id", "shop"], "got --repo_id shop; expected USER/NAME"),
        (["--repo_id", "ana/shop", "--min_item_users", "0"], "got --min_item_users 0; expected at least 1"),
    ],
)
def test_options_that_cannot_work_are_named(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        publish.parse(["--model", "here", *options])
    assert message in capsys.readouterr().err


def test_without_a_connection_only_a_dry_run_works() -> None:
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set; expected a connection: unset it, or use --dry_run"):
        publish.main(["--model", "here", "--repo_id", "ana/shop"])


def test_a_folder_without_a_model_or_a_log_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without a config.json"):
        publish.main(["--model", str(tmp_path), "--repo_id", "ana/x", "--dry_run"])
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("prepared", "checkpoints"))
    with pytest.raises(ValueError, match=r"without its prepared/ folder; expected the training log.*--events"):
        publish.main(["--model", str(bare), "--repo_id", "ana/x", "--dry_run"])
