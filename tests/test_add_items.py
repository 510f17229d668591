"""The command that gives a trained model new items: what it says, what it writes, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import end_of_command
from safetensors.torch import load_file, save_file
from tiny import WORDS, load, save_bert, tiny_model
from transformers import AutoModel, AutoTokenizer, pipeline

from next_behavior.commands.add_items import main
from next_behavior.model import associative_memory, neighbor_lists
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.item_text import PROBE_TEXT, embed_texts
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.neighbor_lists import COUNT_UNIT, NeighborLists
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.text.reduction import fit_reduction
from next_behavior.training import catalog
from next_behavior.training.item_text import EmbeddedText, fill_text
from next_behavior.training.vocabulary import assemble

TITLES = [f"{color} {thing}" for color in WORDS[:3] for thing in WORDS[3:]]
HISTORY = [{"item": "item 0", "action": "view"}, {"item": "item 4", "action": "view"}]
NEW = "item_id,title\nfresh 1,red lip\nfresh 2,\nitem 3,another title\n"


def shop(folder: Path, encoder: str | None) -> Path:
    """A saved model with random weights and a counted memory; with an encoder it has read its items' text."""
    names = [f"item {index}" for index in range(len(TITLES))]
    tokenizer = assemble(names, ["view", "buy"], [60.0, 3600.0], num_new_items=3, max_length=6)
    tokenizer.describe_items([1] * len(names), TITLES)
    text: dict[str, Any] = {}
    if encoder is not None:
        text = {"text_size": 7, "text_encoder": encoder, "text_encoder_size": 20, "text_columns": ["title"]}
    model = tiny_model(tokenizer, hidden_size=12, **text)
    histories = [[{"item": f"item {(user + step) % len(TITLES)}"} for step in range(4)] for user in range(len(TITLES))]
    model.update_memory(**tokenizer(histories, return_tensors="pt"), pairs="all")
    if encoder is not None:
        probe, *rows = embed_texts([PROBE_TEXT, *TITLES], encoder, 64, torch.device("cpu")).numpy()
        embeddings = np.stack(rows)
        embeddings = np.pad(embeddings, ((tokenizer.first_item_id, 0), (0, 0)))
        fill_text(model, EmbeddedText(encoder, ["title"], None, embeddings, fit_reduction(embeddings, 7), probe))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "split.json").write_text("{}")
    (folder / "evaluation.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory, bert: str) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shops")
    return {"text": shop(root / "text", bert), "ids": shop(root / "ids", None)}


@pytest.fixture
def new(tmp_path: Path) -> str:
    (tmp_path / "new.csv").write_text(NEW)
    return str(tmp_path / "new.csv")


def run(model: Path, output: Path, *options: str) -> None:
    main(["--model", str(model), "--output_dir", str(output), *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answer(folder: Path) -> torch.Tensor:
    model, tokenizer = load(folder)
    return model.item_log_probabilities(**tokenizer([HISTORY], return_tensors="pt")).exp()[0]


@pytest.mark.parametrize(
    ("name", "added"),
    [("text", "added          2 (1 with text, 1 without)"), ("ids", "added          2 (the model reads no text)")],
)
def test_the_folder_loads_and_its_pipeline_names_an_added_item_with_its_title(
    shops: dict[str, Path], new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, added: str
) -> None:
    output = tmp_path / "deeper" / "today"
    run(shops[name], output, "--items", new)
    printed = capsys.readouterr().out
    assert added in printed
    assert "already known  1" in printed
    assert f"{len(TITLES) + 2} items, 0 of them retired" in printed
    assert AutoModel.from_pretrained(output, trust_remote_code=True).config.vocab_size == len(TITLES) + 2 + 7
    assert AutoTokenizer.from_pretrained(output, trust_remote_code=True).encode_item("fresh 2") == len(TITLES) + 1 + 7
    build: Any = pipeline
    predict = build("next-behavior", model=str(output), trust_remote_code=True, device="cpu")
    answers = predict({"events": HISTORY}, of="item", top_k=len(TITLES) + 2)
    titles = {row["item"]: row["title"] for row in answers}
    assert (titles["fresh 1"], titles["fresh 2"], titles["item 3"]) == ("red lip", None, TITLES[3])
    assert all(row["probability"] > 0 for row in answers if row["item"].startswith("fresh"))
    assert {"split.json"} == {path.name for path in output.glob("*")} & {"split.json", "run.json", "evaluation.json"}
    assert [path.name for path in output.parent.iterdir()] == ["today"], "nothing unfinished is left"


def test_what_the_command_writes_is_what_the_method_makes(shops: dict[str, Path], new: str, tmp_path: Path) -> None:
    run(shops["text"], tmp_path / "out", "--items", new)
    model, tokenizer = load(shops["text"])
    model.add_items(tokenizer, [{"item_id": "fresh 1", "title": "red lip"}, {"item_id": "fresh 2", "title": None}])
    expected = model.item_log_probabilities(**tokenizer([HISTORY], return_tensors="pt")).exp()[0]
    assert torch.equal(answer(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, r"other, another one \(cosine 0\.\d\d\d, not 1\); expected the one"),
        ({"hidden_size": 25}, "other, whose embeddings are of size 25, and this model reads 20; expected the one"),
    ],
)
def test_another_text_encoder_is_refused_and_nothing_changes(
    shops: dict[str, Path], tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    other = save_bert(tmp_path / "other", **changes)
    model, tokenizer = load(shops["text"])
    with pytest.raises(ValueError, match=message):
        model.add_items(tokenizer, [{"item_id": "fresh", "title": "red lip"}], text_encoder=other)
    assert len(tokenizer) == model.config.vocab_size == len(TITLES) + 7


def test_a_model_knows_its_encoder_in_another_precision_and_one_saved_before_there_was_a_probe_takes_any(
    shops: dict[str, Path], tmp_path: Path
) -> None:
    new = [{"item_id": "fresh", "title": "red lip"}]
    model, tokenizer = load(shops["text"])
    assert model.bfloat16().add_items(tokenizer, new) == [len(TITLES) + 7]

    old = shutil.copytree(shops["text"], tmp_path / "old")
    weights = load_file(old / "model.safetensors")
    del weights["bert.embeddings.item_text.probe"]
    save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = load(old)
    assert not model.bert.embeddings.item_text.probe.any()
    model.add_items(tokenizer, new, text_encoder=save_bert(tmp_path / "other", num_hidden_layers=1))


def test_retired_items_are_not_answered_and_come_back_with_the_table(
    shops: dict[str, Path], new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text("item 3\r\n\nitem 5\n", newline="")
    before = answer(shops["text"])
    run(shops["text"], tmp_path / "one", "--retire", str(gone))
    assert "retired        2" in capsys.readouterr().out
    ids = [BehaviorTokenizer.from_pretrained(tmp_path / "one").encode_item(item) for item in ("item 3", "item 5")]
    after = answer(tmp_path / "one")
    assert after[ids].tolist() == [0, 0]
    others = [index for index in range(len(before)) if index not in ids]
    torch.testing.assert_close(after[others], before[others] / before[others].sum())

    run(tmp_path / "one", tmp_path / "two", "--items", new)  # item 3 stands in it
    printed = capsys.readouterr().out
    assert "came back      1" in printed
    assert "already known  0" in printed
    assert (answer(tmp_path / "two")[ids] > 0).tolist() == [True, False]

    run(tmp_path / "one", tmp_path / "three", "--items", new, "--retire", str(gone))
    printed = capsys.readouterr().out
    assert "came back      0" in printed
    assert "retired        0 (2 more were retired already)" in printed


def test_in_place_keeps_what_else_the_folder_holds(
    shops: dict[str, Path], new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shops["text"], folder)
    for name in ("adapter", "checkpoints/last"):
        (folder / name).mkdir(parents=True)
        (folder / name / "state").write_text(name)
    before = contents(folder)
    run(folder, folder, "--items", new)
    after = contents(folder)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocabulary.tsv",
            "weights.manifest.json", "vocabulary.manifest.json",
    }  # fmt: skip
    assert "adapter/ keep the vocabulary" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "shop"]
    assert len(answer(folder)) == len(TITLES) + 2 + 7


def test_the_log_in_old_ids_goes_only_when_the_vocabulary_grows(
    shops: dict[str, Path], new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shops["ids"], folder)
    (folder / "prepared").mkdir()
    (tmp_path / "gone.txt").write_text("item 1\n")
    run(folder, folder, "--retire", str(tmp_path / "gone.txt"))
    assert (folder / "prepared").is_dir()
    assert "--events" not in capsys.readouterr().out
    run(folder, folder, "--items", new)
    assert not (folder / "prepared").exists()
    assert "publish with --events" in capsys.readouterr().out


def test_a_run_that_fails_leaves_the_folder_as_it_was(
    shops: dict[str, Path], new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shops["text"], folder)
    before = contents(folder)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(BertForNextBehavior, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space left"):
        run(folder, folder, "--items", new)
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "shop"]


def test_a_file_system_without_hard_links_is_served_by_copies(
    shops: dict[str, Path], new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shops["ids"], folder)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(catalog.os, "link", refuse)
    run(folder, folder, "--items", new)
    assert (folder / "evaluation.json").read_text() == "{}"


@pytest.mark.parametrize("added", [False, True])
def test_items_with_similar_text_stand_in_each_others_lists(
    shops: dict[str, Path], added: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(shops["text"])
    memory = model.associate_path
    mean_sum = memory.neighbors().value.sum() / (memory.item_counts > 0).sum()
    if added:
        model.add_items(
            tokenizer, [{"item_id": "fresh 1", "title": "red lip"}, {"item_id": "fresh 2", "title": "nail"}]
        )

    def lists(weight: float, of_uncounted: float) -> torch.Tensor:
        monkeypatch.setattr(neighbor_lists, "UNCOUNTED_LINK", of_uncounted)
        model.config.memory_text = weight
        memory.changed()
        found, table = memory.neighbors(), torch.zeros(model.config.vocab_size, model.config.vocab_size)
        table[found.keys >> 32, found.keys & (2**32 - 1)] = found.value
        return table

    expected, counted = lists(0.0, 0.0), lists(0.0, 0.0)
    counts = torch.nn.functional.pad(memory.item_counts, (0, 9))  # room for what was added
    for (x, y), weight in zip(memory.borrow_ids.tolist(), (memory.borrow_weights / COUNT_UNIT).tolist(), strict=True):
        strength = 0.5 if counts[[x, y]].all() else 3.0 * model.config.text_strength
        expected[x, y] += mean_sum * strength * weight
        expected[y, x] += mean_sum * strength * weight
    torch.testing.assert_close(lists(0.5, 3.0), expected)
    # A text link is no event: it stays when a training target's own event is taken out of the counts.
    x, y = ((expected > 0) & (counted == 0)).nonzero()[0].tolist()
    left, _ = memory.neighbors().leave_one_out(torch.tensor([[x]]), torch.tensor([y]))
    torch.testing.assert_close(left[0, 0], expected[x, y])


def test_counting_events_of_items_with_text_gives_the_lists_made_anew(
    shops: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(associative_memory, "FEW_PAIRS", 0)
    model, tokenizer = load(shops["text"])
    memory, first = model.associate_path, model.config.first_item_id
    model.config.memory_text = 0.5
    fresh = model.add_items(
        tokenizer, [{"item_id": "fresh 1", "title": "red lip"}, {"item_id": "fresh 2", "title": "nail"}]
    )
    for history in ([first, first + 1], [first + 1, fresh[0]], [fresh[0], fresh[1], first]):
        memory.neighbors()
        model.update_memory(torch.tensor([history]))
        found, anew = memory.neighbors(), NeighborLists(memory.config, memory.tables())
        for name in ("keys", "value", "strength", "from_text", "starts", "lengths"):
            assert torch.equal(getattr(found, name), getattr(anew, name)), name


def test_an_added_item_is_linked_to_what_behavior_made_alike_among_texts_that_are_equally_alike(
    shops: dict[str, Path],
) -> None:
    model, _ = load(shops["text"])
    memory, text = model.associate_path, model.bert.embeddings.item_text
    assert text is not None
    first = model.config.first_item_id
    new, near, far = first, first + 1, first + 2
    with torch.no_grad():
        text.vectors.zero_()
        text.unit.fill_(1.0)
        # The new text shares one component with each of the others; only the second is projected.
        text.vectors[new, :2] = text.vectors[near, 1] = text.vectors[far, 0] = 1
        text.project.weight.zero_()
        text.project.weight[0, 1] = 1.0

    def links(trained: bool) -> dict[int, int]:
        memory.borrow_ids, memory.borrow_weights = torch.zeros(1, 2).long(), torch.zeros(1).long()
        memory.borrow(text, trained=trained)
        own = memory.borrow_ids[:, 0] == new
        return dict(zip(memory.borrow_ids[own, 1].tolist(), memory.borrow_weights[own].tolist(), strict=True))

    untrained, trained = links(False), links(True)
    assert untrained[near] == untrained[far] > 0
    assert trained[near] > 10 * trained[far]


def test_an_added_item_is_named_by_the_memory_alone_too_until_it_is_counted(
    shops: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(shops["text"])
    model.config.memory_share = 0.0
    assert not model.associate_path.share().any(), "all others are counted"
    [fresh] = model.add_items(tokenizer, [{"item_id": "fresh", "title": "red lip"}])
    batch = tokenizer([HISTORY], return_tensors="pt")
    found = model.item_log_probabilities(**batch)[0].exp()
    monkeypatch.setattr(associative_memory, "UNCOUNTED_SHARE", 0.0)
    model.associate_path.changed()
    without = model.item_log_probabilities(**batch)[0].exp()
    monkeypatch.undo()
    model.associate_path.changed()
    assert found[fresh] > 1.01 * without[fresh]
    others = torch.tensor([index for index in range(tokenizer.first_item_id, fresh) if index not in batch["input_ids"]])
    factors = found[others] / without[others]
    torch.testing.assert_close(factors, factors[:1].expand_as(factors))
    assert factors[0] < 1
    shares = model.path_shares(
        **batch, item_ids=torch.tensor([[fresh]]), action_ids=torch.zeros(1, 1, dtype=torch.long)
    )
    assert shares[0, 0, 3] > 1 - without[fresh] / found[fresh], "at least what was added is associate's"
    model.update_memory(**tokenizer([[*HISTORY, {"item": "fresh"}]], return_tensors="pt"))
    assert not model.associate_path.share().any()


def test_borrowing_again_changes_nothing(shops: dict[str, Path]) -> None:
    model, tokenizer = load(shops["text"])
    model.add_items(tokenizer, [{"item_id": "fresh 1", "title": "red lip"}, {"item_id": "fresh 2", "title": "nail"}])
    memory = model.associate_path
    once = memory.borrow_ids.clone(), memory.borrow_weights.clone()
    memory.borrow(model.bert.embeddings.item_text)
    assert torch.equal(memory.borrow_ids, once[0])
    assert torch.equal(memory.borrow_weights, once[1])


def test_a_column_that_is_not_there_is_said(
    shops: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shops["text"], folder)
    config = BehaviorConfig.from_pretrained(folder)
    config.text_columns = ["title", "brand"]
    config.save_pretrained(folder)
    (tmp_path / "new.csv").write_text("item_id,title\nfresh 1,red lip\n")
    run(folder, tmp_path / "out", "--items", str(tmp_path / "new.csv"))
    assert "the table has no brand" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "NOWHERE"], "there is none"),
        (["--model", "BERT"], "a model of the type bert"),
        (["--model", "TMP"], "holds no config.json"),
        (["--retire", "NOWHERE"], "an item id on each line"),
        (["--retire", "GONE"], "does not hold"),
        (["--retire", "NOTHING"], "nothing to do"),
        (["--output_dir", "BERT"], "is there already"),
        (["--items", "ITEMS", "--text_encoder", "NOWHERE"], "which cannot be loaded"),
        (["--items", "ITEMS", "--text_encoder", "BERT", "--model", "IDS"], "reads no item text"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    shops: dict[str, Path], bert: str, new: str, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "gone.txt").write_text("no such item\n")
    (tmp_path / "nothing.txt").write_text("\n")
    places = {
        "NOWHERE": str(tmp_path / "nowhere"), "BERT": bert, "TMP": str(tmp_path), "ITEMS": new,
        "GONE": str(tmp_path / "gone.txt"), "NOTHING": str(tmp_path / "nothing.txt"), "IDS": str(shops["ids"]),
    }  # fmt: skip
    given = dict(zip(options[::2], (places[value] for value in options[1::2]), strict=True))
    if not {"--items", "--retire"} & given.keys():
        given["--items"] = new
    arguments = {"--model": str(shops["text"]), "--output_dir": str(tmp_path / "out")} | given
    before = contents(Path(arguments["--output_dir"])), sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main([part for pair in arguments.items() for part in pair])
    assert (contents(Path(arguments["--output_dir"])), sorted(tmp_path.iterdir())) == before


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    end = end_of_command("add_items.py", "--model", "nowhere", "--output_dir", "out", "--items", "new.csv")
    assert end == "add_items.py: got --model nowhere; expected the folder of a trained model: there is none"
    with pytest.raises(SystemExit):
        main(["--model", "nowhere", "--output_dir", "out"])
    assert "there is nothing to do" in capsys.readouterr().err
