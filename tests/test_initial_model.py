"""Where a run starts: with or without item text, from nothing, BERT or a trained model, with or without LoRA; and a
catalogue that grows afterwards. Every combination is saved, loaded by a stranger, and answers the same."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest
import torch
from peft import AutoPeftModelForFeatureExtraction, PeftModel
from processes import run_python, run_training
from safetensors import safe_open
from tiny import WORDS, load, save_bert, write_events
from transformers import BertModel

from next_behavior.data.sequences import Sequences
from next_behavior.data.splits import Split
from next_behavior.model.item_text import text_of_item
from next_behavior.text.item_texts import item_texts
from next_behavior.training.item_text import DEFAULT_LINKS, TEXT_LINKS, fit_text_links
from next_behavior.training.lora import LORA_TARGETS
from next_behavior.training.tokenized_log import TokenizedLog

COLOURS, THINGS = WORDS[:3], WORDS[3:]
NEW: list[dict[str, str | None]] = [
    {"item_id": "fresh 1", "title": "red lip balm"},
    {"item_id": "fresh 2", "title": "blue shoe lace"},
    {"item_id": "fresh 3", "title": None},
]
RUN = [
    *("--tokens_per_batch", "150", "--warmup_steps", "5", "--learning_rate", "0.01", "--max_epochs", "2"),
    *("--precision", "no", "--cpu", "--seed", "3", "--split", "none"),
]
SIZES = ["--hidden_size", "24", "--num_attention_heads", "3", "--num_hidden_layers", "1"]
COMBINATIONS = [
    f"{start}{text}{lora}" for start in ("new", "bert", "behaviour") for text in ("", "+text") for lora in ("", "+lora")
    if (start, lora) != ("new", "+lora") and (start, text) != ("behaviour", "")
]  # fmt: skip
HISTORY = [
    {"item": "item 3", "action": "view", "timestamp": 1_700_000_000},
    {"item": "item 4", "action": "view", "timestamp": 1_700_000_600},
]
STRANGER = """
import json, sys
from transformers import AutoModel, AutoTokenizer
folders, history = json.loads(sys.argv[1]), json.loads(sys.argv[2])
answers = {}
for folder in folders:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    batch = tokenizer([history], return_tensors="pt")
    answers[folder] = model.item_log_probabilities(**batch).exp()[0].tolist()
print(json.dumps(answers))
"""


def item_row(item: int) -> dict[str, str]:
    return {"item_id": f"item {item}", "title": f"{COLOURS[item % 3]} {THINGS[item % 7]}"}


def write_log(path: Path, first: int, last: int, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(40):
        place, clock = int(generator.integers(first, last)), 1_700_000_000 + user
        for _ in range(int(generator.integers(6, 12))):
            clock += int(generator.integers(60, 7200))
            place = first + (place + 1 - first) % (last - first)
            rows.append((f"u{user}", f"item {place}", "view" if place % 5 else "buy", clock))
    return write_events(path, rows)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("next_behavior.text.embedding_cache.HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, bert: str) -> dict[str, Path]:
    """Every combination trained for two epochs; and each again with three items more, under `NAME+added`."""
    root = tmp_path_factory.mktemp("runs")
    here, there = write_log(root / "here.csv", 0, 20, 0), write_log(root / "there.csv", 12, 30, 1)
    pl.DataFrame([item_row(item) for item in range(30)]).write_csv(root / "items.csv")
    items = ["--items", str(root / "items.csv"), "--text_encoder", bert, "--text_size", "12"]
    folders = {}
    for name in COMBINATIONS:
        start = name.split("+")[0]
        options = {
            "new": SIZES,
            "bert": ["--base_model", bert],
            "behaviour": ["--base_model", str(root / "new+text")],
        }[start]
        events = there if start == "behaviour" else here
        lora = ["--lora_r", "4"] if "+lora" in name else []
        text = items if "+text" in name else []
        folders[name] = run_training(events, root / name, *RUN, *options, *lora, *text)
        model, tokenizer = load(folders[name])
        model.add_items(tokenizer, NEW)
        folders[f"{name}+added"] = root / f"{name}+added"
        model.save_pretrained(folders[f"{name}+added"])
        tokenizer.save_pretrained(folders[f"{name}+added"])
    return folders


@pytest.fixture(scope="module")
def answers_elsewhere(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What a process that knows nothing of this repository answers from each folder."""
    folders = [str(folder) for folder in trained.values()]
    arguments = ("-I", "-c", STRANGER, json.dumps(folders), json.dumps(HISTORY))
    answers = json.loads(run_python(tmp_path_factory.mktemp("elsewhere"), *arguments).stdout)
    return {name: answers[str(folder)] for name, folder in trained.items()}


def answer(folder: Path) -> torch.Tensor:
    model, tokenizer = load(folder)
    return model.item_log_probabilities(**tokenizer([HISTORY], return_tensors="pt")).exp()[0]


def test_what_item_text_is_read_is_said_and_an_item_table_of_other_items_is_an_error(
    tmp_path: Path, bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    events = write_log(tmp_path / "log.csv", 0, 20, 0)
    run = [*RUN, *SIZES, "--items", str(tmp_path / "items.csv"), "--max_epochs", "1"]
    for titles, options, said in (
        (True, ["--text_encoder", bert], "Item text         12 of 20 items have a text, read from title\n"),
        (True, ["--text_encoder", "none"], "Item text         not read (--text_encoder none)"),
        (False, ["--text_encoder", bert], "Item text         none: no column of the item table holds text"),
    ):
        rows = [item_row(item) if titles else {"item_id": item_row(item)["item_id"], "price": 1} for item in range(12)]
        pl.DataFrame(rows).write_csv(tmp_path / "items.csv")
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        run_training(events, tmp_path / "model", *run, *options)
        assert said in capsys.readouterr().out
    pl.DataFrame([{**item_row(1), "item_id": "1.0"}]).write_csv(tmp_path / "items.csv")
    with pytest.raises(ValueError, match=r"with ids such as 1\.0, of which the log names none; it names item \d+, "):
        run_training(events, tmp_path / "other", *run, "--text_encoder", bert)


@pytest.mark.parametrize("added", ["", "+added"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_answers_the_same_in_a_clean_process(
    trained: dict[str, Path], answers_elsewhere: dict[str, list[float]], name: str, added: str
) -> None:
    here = answer(trained[name + added])
    assert here.isfinite().all()
    torch.testing.assert_close(here, torch.tensor(answers_elsewhere[name + added]), rtol=1e-5, atol=1e-8)
    assert float(here.sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_added_items_are_ranked_at_once_and_old_answers_keep_their_proportions(
    trained: dict[str, Path], name: str
) -> None:
    (model, tokenizer), (grown, larger) = load(trained[name]), load(trained[f"{name}+added"])
    ids = [larger.encode_item(row["item_id"]) for row in NEW]
    assert ids == list(range(len(tokenizer), len(tokenizer) + 3))
    after = answer(trained[f"{name}+added"])
    assert (after[ids] > 0).all()
    batch = tokenizer([HISTORY], return_tensors="pt")
    torch.testing.assert_close(grown.bert(**batch), model.bert(**batch))
    before, after = (one.bert.embeddings.item_table() for one in (model, grown))
    torch.testing.assert_close(after[: len(before)], before)
    assert larger.title("fresh 1") == "red lip balm"


@pytest.mark.parametrize("name", [name for name in COMBINATIONS if "+text" in name])
def test_the_row_of_an_added_item_is_its_projected_text(trained: dict[str, Path], name: str) -> None:
    model, tokenizer = load(trained[f"{name}+added"])
    first, without = (tokenizer.encode_item(row["item_id"]) for row in (NEW[0], NEW[2]))
    text = model.bert.embeddings.item_text
    torch.testing.assert_close(model.bert.embeddings.item_rows(torch.tensor([first])), text(torch.tensor([first])))
    assert text.vectors[first].any()
    assert not text.vectors[without].any()
    twin = tokenizer.encode_item("item 0")  # red lip as well
    other = tokenizer.encode_item("item 11")  # green nail
    likeness = torch.nn.functional.cosine_similarity(text.read(torch.tensor([twin, other])), text.read(first), dim=-1)
    assert likeness[0] > likeness[1]


def test_what_links_between_words_add_is_chosen_on_validation_events(trained: dict[str, Path]) -> None:
    for name in ("new+text", "bert+text"):
        assert load(trained[name])[0].config.memory_text in TEXT_LINKS
    assert load(trained["new"])[0].config.memory_text == 0


def test_without_time_to_choose_links_between_words_count_as_by_default(trained: dict[str, Path]) -> None:
    folder = trained["new+text"]
    model, tokenizer = load(folder)
    model.config.memory_text = 0.0
    dataset = datasets.load_from_disk(str(folder / "prepared"))
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    said = fit_text_links(model, TokenizedLog(sequences, Split("none"), 40), until=time.monotonic() - 1)
    assert said is not None
    assert "no time to choose" in said
    assert model.config.memory_text == DEFAULT_LINKS


@pytest.mark.parametrize("name", [name for name in COMBINATIONS if "+lora" in name])
def test_an_adapter_on_its_base_equals_the_merged_model_and_holds_only_itself(
    trained: dict[str, Path], name: str
) -> None:
    folder = trained[name]
    model, tokenizer = load(folder)
    batch = tokenizer([HISTORY], return_tensors="pt")
    auto = AutoPeftModelForFeatureExtraction.from_pretrained(str(folder / "adapter"), trust_remote_code=True)
    named: Any = PeftModel.from_pretrained(load(folder / "base")[0], str(folder / "adapter"))
    for adapted in (auto, named):
        inner: Any = adapted.eval().get_base_model()
        torch.testing.assert_close(
            inner.item_log_probabilities(**batch).exp(), model.item_log_probabilities(**batch).exp(),
            rtol=1e-4, atol=1e-6,
        )  # fmt: skip
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        sizes = {key: file.get_tensor(key).numel() for key in file.keys()}  # noqa: SIM118
    rows = sum(size for key, size in sizes.items() if "token" in key or "embed" in key)
    added = len(load(folder)[1]) - len(load(trained["new+text"])[1]) if name.startswith("behaviour") else 0
    assert rows <= 2 * added * model.config.hidden_size
    assert any("lora_A" in key for key in sizes)


def test_the_seed_decides_the_adapters_of_a_trained_model(trained: dict[str, Path], tmp_path: Path) -> None:
    events = write_log(tmp_path / "log.csv", 12, 30, 1)
    options = ("--base_model", str(trained["new"]), "--lora_r", "2", "--max_epochs", "1")
    first, second = (run_training(events, tmp_path / name, *RUN, *options) for name in ("first", "second"))
    weights = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]


def test_two_adapters_of_one_base_are_switched_at_run_time(trained: dict[str, Path]) -> None:
    folder = trained["bert+text+lora"]
    adapted: Any = PeftModel.from_pretrained(load(folder / "base")[0], str(folder / "adapter"), adapter_name="one")
    adapted.load_adapter(str(folder / "adapter"), adapter_name="two")
    for key, weight in adapted.named_parameters():
        if ".two." in key:
            weight.data.mul_(-3)
    batch = load(folder)[1]([HISTORY], return_tensors="pt")
    inner = adapted.eval().get_base_model()
    answers = []
    for adapter in ("one", "two", "one"):
        adapted.set_adapter(adapter)
        answers.append(inner.item_log_probabilities(**batch))
    torch.testing.assert_close(answers[0], answers[2])
    assert not torch.allclose(answers[0], answers[1], atol=1e-4)


def test_the_encoder_of_a_bert_checkpoint_is_taken_and_the_rest_reported(
    trained: dict[str, Path], bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = write_log(tmp_path / "log.csv", 0, 20, 0)
    options = ("--base_model", bert, "--learning_rate", "1e-30", "--weight_decay", "0", "--max_epochs", "1")
    model, _ = load(run_training(events, tmp_path / "out", *RUN, *options))
    source = BertModel.from_pretrained(bert)
    for name, weight in source.encoder.state_dict().items():
        torch.testing.assert_close(model.bert.encoder.state_dict()[name], weight, rtol=0, atol=1e-28)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (20, 2)
    printed = capsys.readouterr().out
    assert "new here" in printed
    assert "embeddings.word_embeddings.weight" in printed[printed.index("not used") :]


def test_a_cold_item_stands_where_the_item_with_its_text_stands(trained: dict[str, Path]) -> None:
    """The associate path: an added item named like a counted one is a neighbour of that one's neighbours."""
    model, tokenizer = load(trained["new+text+added"])
    fresh = tokenizer.encode_item("fresh 1")
    memory = model.associate_path
    lenders = memory.borrow_ids[memory.borrow_ids[:, 0] == fresh][:, 1]
    assert tokenizer.decode_item(int(lenders[0])).startswith("item")
    ids, values = memory.neighbors().rows(torch.tensor([fresh]))
    assert (values > 0).any()
    neighbour = int(ids[0, values[0].argmax()])
    back, strength = memory.neighbors().rows(torch.tensor([neighbour]))
    assert float(strength[0][back[0] == fresh].sum()) > 0
    model.update_memory(**tokenizer([[{"item": "item 3"}, {"item": "fresh 1"}]], return_tensors="pt"))
    own, counted = memory.neighbors().rows(torch.tensor([fresh]))
    assert own[0][counted[0] > 0].tolist() == [tokenizer.encode_item("item 3")], "once counted it stands for itself"


def test_a_retired_item_is_never_answered_until_it_comes_back(trained: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer = load(trained["new+text"])
    before = answer(trained["new+text"])
    item = int(before.argmax())
    name = tokenizer.decode_item(item)
    model.retire_items(tokenizer, [name])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    after = answer(tmp_path)
    assert float(after[item]) == 0
    assert float(after.sum()) == pytest.approx(1, abs=1e-4)
    model, tokenizer = load(tmp_path)
    model.add_items(tokenizer, [name])
    torch.testing.assert_close(
        model.item_log_probabilities(**tokenizer([HISTORY], return_tensors="pt")).exp()[0], before
    )
    with pytest.raises(ValueError, match="does not hold"):
        model.retire_items(tokenizer, ["no such item"])


def test_the_text_of_an_item_is_made_as_in_training() -> None:
    table = pl.DataFrame({"item_id": ["1", "2"], "title": ["Red  balm", None], "tags": [["lip", "x"], []]})
    rows = table.to_dicts()
    for columns, template in ((["title", "tags"], None), (["title"], "{title} by us")):
        expected = item_texts(table, None if template else columns, template)["text"].to_list()
        assert [text_of_item(row, columns, template) for row in rows] == expected


def test_adapters_touch_attention_in_the_encoder_alone(trained: dict[str, Path]) -> None:
    model, _ = load(trained["new+text"])
    adapted = [name for name, _ in model.named_modules() if re.fullmatch(LORA_TARGETS, name)]
    assert adapted == [f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "value")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora_r", "4"], "--base_model"),
        (["--base_model", "BERT", "--hidden_size", "8"], "brings its width"),
        (["--base_model", "/no/such/folder"], "cannot be loaded"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    options: list[str], message: str, bert: str, tmp_path: Path
) -> None:
    events = write_log(tmp_path / "log.csv", 0, 20, 0)
    options = [bert if option == "BERT" else option for option in options]
    with pytest.raises(ValueError, match=message):
        run_training(events, tmp_path / "out", *RUN, *options)


@pytest.mark.parametrize("option", [["--use_positions"], ["--convolution_size", "2"]])
def test_a_trained_model_keeps_how_it_reads_the_order_of_events(
    option: list[str], trained: dict[str, Path], tmp_path: Path
) -> None:
    events = write_log(tmp_path / "log.csv", 0, 20, 0)
    with pytest.raises(ValueError, match="use_positions=False and convolution_size=4, and keeps them"):
        run_training(events, tmp_path / "out", *RUN, "--base_model", str(trained["new"]), *option)


@torch.no_grad()
def test_the_kept_item_table_follows_every_change_of_what_it_is_made_of(trained: dict[str, Path]) -> None:
    model, tokenizer = load(trained["new+text"])
    first = model.config.first_item_id
    embeddings = model.bert.embeddings

    def fresh() -> torch.Tensor:
        return model.bert.embeddings.item_rows(torch.arange(first, model.config.vocab_size))

    def kept() -> torch.Tensor:
        return model.answer_tables(model.device).item_table

    assert kept() is kept()
    for weight in (embeddings.embed_tokens.weight, embeddings.item_text.project.weight):
        weight.mul_(1.5)
        torch.testing.assert_close(kept(), fresh())
    embeddings.item_text.vectors[first] = 5
    torch.testing.assert_close(kept(), fresh())
    model.add_items(tokenizer, ["one more"])
    torch.testing.assert_close(kept(), fresh())


def test_adding_items_that_fails_changes_neither_model_nor_tokenizer(trained: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer = load(trained["new+text"])
    size = len(tokenizer)
    wide = save_bert(tmp_path, hidden_size=24, num_attention_heads=3)
    with pytest.raises(ValueError, match="of size 24, and this model reads 20"):
        model.add_items(tokenizer, NEW, text_encoder=wide)
    with pytest.raises(ValueError, match="got embeddings of size 24; expected 20"):
        model.add_items(tokenizer, NEW, embed=lambda texts: torch.ones(len(texts), 24))
    rows = model.bert.embeddings.item_rows(torch.arange(size))
    assert (len(tokenizer), model.config.vocab_size, len(rows)) == (size, size, size)


def test_items_without_text_get_the_same_row_in_one_call_and_in_two(trained: dict[str, Path]) -> None:
    (one, first), (two, second) = load(trained["new+text"]), load(trained["new+text"])
    one.add_items(first, NEW)
    for row in NEW:
        two.add_items(second, [row])
    torch.testing.assert_close(one.bert.embeddings.item_table(), two.bert.embeddings.item_table())
