"""BehaviorTokenizer and tokenizer_build: ids are exact, files travel, bad input is answered."""

from __future__ import annotations

import datetime
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from transformers import AutoTokenizer, DataCollatorWithPadding

from next_behavior.commands.tokenize import main
from next_behavior.model import histories
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.vocabulary import TIME_LADDER, assemble, build_tokenizer

ROOT = Path(__file__).resolve().parent.parent
UNK, NONE, START, NEW_1, NEW_2 = 1, 2, 3, 4, 5
CHANNELS = ["input_ids", "token_type_ids", "time_gap_ids", "attention_mask"]


def events_frame(rows: list[tuple[str, str | None, str, int | None]]) -> pl.DataFrame:
    """Rows of (user, item, action, seconds), sorted by user and time, as the frame that `read_events` gives."""
    frame = pl.DataFrame(
        rows,
        schema={"user_id": pl.String, "item_id": pl.String, "action": pl.String, "seconds": pl.Int64},
        orient="row",
    ).with_row_index("row")
    timestamp = (pl.col("seconds") * 1_000_000).cast(pl.Datetime("us", "UTC"))
    return frame.select("user_id", "item_id", "action", timestamp.alias("timestamp"), pl.col("row").cast(pl.Int64))


EVENTS = events_frame(
    [
        ("anna", "84", "view", 0),
        ("anna", "84", "view", 30),
        ("anna", "7", "buy", 100),
        ("anna", None, "search", 4000),
        ("ben", "84", "view", 0),
        ("ben", "007", "view", 60),
        ("ben", "7", "cart", 3 * 86400),
    ]
)
TITLES = pl.DataFrame({"item_id": ["84", "7"], "title": ["Garden\tchair\\\nblue", None]})


@pytest.fixture(scope="module")
def tokenizer() -> BehaviorTokenizer:
    return build_tokenizer(EVENTS, TITLES, num_new_items=2, max_length=6)


@pytest.fixture(scope="module")
def saved(tokenizer: BehaviorTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    return folder


def views(*items: object) -> list[dict[str, Any]]:
    return [{"item": item, "action": "view"} for item in items]


# -- the vocabulary ----------------------------------------------------------------------------------------------------


def test_items_and_actions_are_numbered_by_frequency_then_name(tokenizer: BehaviorTokenizer) -> None:
    assert tokenizer.first_item_id == 4 + 2
    assert tokenizer.item_vocabulary == ["84", "7", "007"]
    assert tokenizer.action_vocabulary == ["view", "buy", "cart", "search"]
    assert len(tokenizer) == tokenizer.first_item_id + 3
    assert tokenizer.num_actions == 3 + 4


def test_the_same_events_in_any_row_order_give_the_same_files(tmp_path: Path) -> None:
    shuffled = EVENTS.sample(fraction=1.0, shuffle=True, seed=3).sort("user_id", "timestamp")
    for name, events in (("one", EVENTS), ("two", shuffled)):
        build_tokenizer(events, TITLES).save_pretrained(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocabulary.tsv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_min_item_count_leaves_rare_items_out() -> None:
    assert build_tokenizer(EVENTS, min_item_count=2).item_vocabulary == ["84", "7"]
    with pytest.raises(ValueError, match="min_item_count=9"):
        build_tokenizer(EVENTS, min_item_count=9)


def test_a_log_of_searches_alone_has_an_empty_item_vocabulary() -> None:
    tokenizer = build_tokenizer(EVENTS.with_columns(pl.lit(None, dtype=pl.String).alias("item_id")))
    assert len(tokenizer) == tokenizer.first_item_id


def test_time_edges_are_readable_and_follow_the_log(tokenizer: BehaviorTokenizer) -> None:
    # The gaps of EVENTS are 30, 70, 3900, 60 and 259140 seconds.
    assert tokenizer.has_time
    assert tokenizer.time_edges[0] == 30
    assert tokenizer.time_edges[-1] == 2 * 86400
    assert set(tokenizer.time_edges) <= set(TIME_LADDER)
    assert tokenizer.num_time_gaps == len(tokenizer.time_edges) + 3
    coarse = build_tokenizer(EVENTS, num_time_buckets=4).time_edges
    assert len(coarse) == 3
    assert set(coarse) <= set(tokenizer.time_edges)


def test_a_log_of_dates_gets_no_edges_below_a_day() -> None:
    days = events_frame([("u", "a", "view", 86400 * day) for day in (0, 0, 1, 3, 40)])
    assert build_tokenizer(days).time_edges == [86400.0 * day for day in (1, 2, 3, 5, 7, 14, 21, 30)]


def test_a_log_without_timestamps_has_no_time() -> None:
    tokenizer = build_tokenizer(EVENTS.with_columns(pl.lit(None, dtype=pl.Datetime("us", "UTC")).alias("timestamp")))
    assert not tokenizer.has_time
    assert tokenizer.time_edges == []
    assert tokenizer.num_time_gaps == 3
    history = [{"item": "84", "timestamp": 0}, {"item": "84", "timestamp": 10**6}]
    assert tokenizer(history)["time_gap_ids"] == [[1, 1]]


@pytest.mark.parametrize(
    ("events", "items", "message"),
    [
        (EVENTS.drop("action"), None, "action is missing"),
        (EVENTS.clear(), None, "no rows"),
        (EVENTS, TITLES.drop("title"), "title is missing"),
    ],
)
def test_build_refuses_frames_it_cannot_use(events: pl.DataFrame, items: pl.DataFrame | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tokenizer(events, items)


# -- items -------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8, unique=True))
def test_any_text_is_an_item_and_comes_back_exactly(items: list[str]) -> None:
    tokenizer = assemble(items, ["view"], [], num_new_items=2, max_length=9)
    ids = [tokenizer.encode_item(item) for item in items]
    assert ids == list(range(tokenizer.first_item_id, len(tokenizer)))
    assert [tokenizer.decode_item(index) for index in ids] == items
    assert tokenizer(views(*items))["input_ids"] == [ids]
    assert tokenizer.item_vocabulary == items


SPOOFS = ["[PAD]", "[UNK]", "[NONE]", "[START]", "[NEW_1]", "[NEW_2]", "\\[PAD]", "\\", "[", ""]


def test_an_item_named_like_a_special_token_is_an_ordinary_item() -> None:
    known = assemble(SPOOFS, ["view"], [], num_new_items=2, max_length=99)
    assert [known.decode_item(index) for index in known(views(*SPOOFS))["input_ids"][0]] == SPOOFS
    assert min(known(views(*SPOOFS))["input_ids"][0]) == known.first_item_id
    unknown = assemble(["84"], ["view"], [], num_new_items=len(SPOOFS), max_length=99)
    assert unknown(views(*SPOOFS[:-1]))["input_ids"][0] == list(range(4, 4 + len(SPOOFS) - 1))
    assert unknown.new_items(views(*SPOOFS[:-1])) == SPOOFS[:-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text()), max_size=6))
def test_any_title_comes_back_exactly_from_the_table(pairs: list[tuple[str, str]]) -> None:
    titles = {item: title.encode("utf-8", "ignore").decode() for item, title in pairs}
    tokenizer = assemble(list(titles), ["view"], [], num_new_items=2, max_length=9)
    tokenizer.describe_items([1] * len(titles), list(titles.values()))
    assert {item: tokenizer.title(item) or "" for item in titles} == titles


def test_whole_numbers_are_items_by_their_digits(tokenizer: BehaviorTokenizer) -> None:
    history = views(84, np.int64(7), np.str_("007"), 7)
    assert tokenizer(history)["input_ids"] == tokenizer(views("84", "7", "007", "7"))["input_ids"]
    assert tokenizer.encode_item(84) == tokenizer.encode_item("84")


def test_special_ids_have_no_item(tokenizer: BehaviorTokenizer) -> None:
    assert [tokenizer.decode_item(index) for index in range(tokenizer.first_item_id)] == [None] * 6
    assert tokenizer.encode_item("nowhere") == UNK
    for beyond in (-1, len(tokenizer)):
        with pytest.raises(ValueError, match="does not exist"):
            tokenizer.decode_item(beyond)


@pytest.mark.filterwarnings("ignore:a history has the action 'wish'")
def test_an_unknown_action_is_an_error_as_a_question_and_an_id_in_a_history(tokenizer: BehaviorTokenizer) -> None:
    assert [tokenizer.decode_action(tokenizer.encode_action(name)) for name in tokenizer.action_vocabulary] == [
        "view",
        "buy",
        "cart",
        "search",
    ]
    with pytest.raises(ValueError, match=r"'wish' is unknown.*'view', 'buy', 'cart', 'search'"):
        tokenizer.encode_action("wish")
    history = [{"item": "84", "action": "wish"}, {"item": "84"}, {"item": "84", "action": "buy"}]
    assert tokenizer(history)["token_type_ids"] == [[1, 1, 4]]


def test_an_action_left_out_is_the_only_action_of_the_log() -> None:
    tokenizer = build_tokenizer(EVENTS.with_columns(pl.lit("interact").alias("action")))
    assert tokenizer([{"item": "84"}, {"item": "84", "action": None}])["token_type_ids"] == [[3, 3]]


# -- histories ---------------------------------------------------------------------------------------------------------


def test_a_worked_example(tokenizer: BehaviorTokenizer) -> None:
    history: list[dict[str, Any]] = [
        {"item": "84", "action": "view", "timestamp": 1_700_000_000},
        {"item": "gone", "action": "view", "timestamp": 1_700_000_045.5},
        {"action": "search", "timestamp": 1_700_000_045.5},
        {"item": "gone", "action": "buy"},
        {"item": "7", "action": "buy", "timestamp": 1_700_086_445},
    ]
    batch = tokenizer([history, views("7")], return_tensors="pt")
    assert list(batch) == CHANNELS
    assert all(batch[name].dtype == torch.int64 and batch[name].shape == (2, 5) for name in CHANNELS)
    assert batch["input_ids"].tolist() == [[6, NEW_1, NONE, NEW_1, 7], [0, 0, 0, 0, 7]]
    assert batch["token_type_ids"].tolist() == [[3, 3, 6, 4, 4], [0, 0, 0, 0, 3]]
    # Edges 30, 60, ...: 45.5 s lies in the second bucket, 0 s in the first; an event without a time has no gap.
    assert batch["time_gap_ids"].tolist() == [[1, 3, 2, 1, 1], [0, 0, 0, 0, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_an_empty_history_is_the_start_token(tokenizer: BehaviorTokenizer) -> None:
    for batch in (tokenizer([]), tokenizer([[]])):
        assert [batch[name] for name in CHANNELS] == [[[START]], [[2]], [[1]], [[1]]]


def test_unknown_items_stay_apart_and_are_numbered_after_truncation(tokenizer: BehaviorTokenizer) -> None:
    history = views("x", "y", "x", "z", "y", "84")
    assert tokenizer(history)["input_ids"] == [[NEW_1, NEW_2, NEW_1, UNK, NEW_2, 6]]
    assert tokenizer.new_items(history) == ["x", "y"]
    assert tokenizer(history, max_length=3)["input_ids"] == [[NEW_1, NEW_2, 6]]
    assert tokenizer.new_items(history, max_length=3) == ["z", "y"]
    assert tokenizer.new_items([]) == []


def test_the_newest_events_are_kept_and_their_gaps_are_taken_before_that(tokenizer: BehaviorTokenizer) -> None:
    history = [{"item": "84", "timestamp": 100 * step} for step in range(9)]
    whole = tokenizer(history, truncation=False)
    cut = tokenizer(history)
    assert len(whole["input_ids"][0]) == 9
    assert len(cut["input_ids"][0]) == tokenizer.model_max_length == 6
    for name in CHANNELS:
        assert cut[name][0] == whole[name][0][-6:]
        assert tokenizer(history, max_length=1)[name][0] == whole[name][0][-1:]
    assert cut["time_gap_ids"][0][0] > 1


def test_padding_can_be_longest_fixed_or_absent(tokenizer: BehaviorTokenizer) -> None:
    histories = [views("84"), views("84", "7")]
    assert [len(row) for row in tokenizer(histories)["input_ids"]] == [2, 2]
    assert [len(row) for row in tokenizer(histories, padding="max_length")["attention_mask"]] == [6, 6]
    assert [len(row) for row in tokenizer(histories, padding=False)["time_gap_ids"]] == [1, 2]
    assert tokenizer(histories, return_tensors="np")["input_ids"].tolist() == tokenizer(histories)["input_ids"]
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(histories, padding=False, return_tensors="pt")


@pytest.mark.parametrize(
    "moment",
    [
        1_700_000_000.25,
        np.float64(1_700_000_000.25),
        "2023-11-14T22:13:20.250000Z",
        "2023-11-14 23:13:20.250000+01:00",
        datetime.datetime(2023, 11, 14, 22, 13, 20, 250000),
        datetime.datetime(2023, 11, 14, 22, 13, 20, 250000, tzinfo=datetime.timezone.utc),
        np.datetime64("2023-11-14T22:13:20.250"),
        1_700_000_000_250,
        "1700000000.25",
        "1700000000250",
        " 2023-11-14 22:13:20,25 UTC ",
        "2023-11-14 23:13:20.25 +01",
    ],
)
def test_timestamps_may_be_numbers_datetimes_or_text(moment: Any) -> None:
    assert histories.as_seconds(moment) == 1_700_000_000.25


def test_a_gap_on_an_edge_lies_above_it_and_one_backwards_in_time_counts_as_zero(tokenizer: BehaviorTokenizer) -> None:
    history = [{"item": "84", "timestamp": moment} for moment in (0, 30, 59.999, 0)]
    assert tokenizer(history)["time_gap_ids"] == [[1, 3, 2, 2]]


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ("84", "got str, expected a history"),
        ({"events": []}, "got dict.*pass the list"),
        (["84", "7"], "a list that holds '84'"),
        ([[{"item": "84"}], "7"], "a list that holds '7'"),
        ([{"itme": "84"}], "event 0 of history 0 has the key 'itme'.*did you mean 'item'"),
        ([[], [{"item": "84"}, {"item": "84", "price": 3}]], "event 1 of history 1 has the key 'price'"),
        ([{}], "at least one of the keys"),
        ([{"item": "84"}, "7"], "event 1 of history 0 is '7'"),
        ([[{"item": "84"}], [{"item": 84.0}]], "history 1: item is 84.0"),
        ([{"item": True}], "item is True"),
        ([{"action": ["buy"]}], "action is"),
        ([{"timestamp": 20_240_501_083_000}], "a date in digits alone"),
        ([{"timestamp": "20240501"}], "write 2024-05-17"),
        ([{"timestamp": "yesterday"}], "'yesterday', expected ISO text"),
        ([{"timestamp": float("nan")}], "timestamp is nan"),
        ([{"timestamp": True}], "timestamp is True"),
    ],
)
def test_bad_input_is_named(tokenizer: BehaviorTokenizer, histories: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer(histories)


def test_bad_options_are_named(tokenizer: BehaviorTokenizer) -> None:
    for options, message in (
        ({"max_length": 0}, "max_length is 0"),
        ({"padding": "right"}, "padding is 'right'"),
        ({"return_tensors": "tf"}, "return_tensors is 'tf'"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer(views("84"), **options)
    with pytest.raises(TypeError, match="max_lenght"):
        tokenizer(views("84"), max_lenght=3)  # type: ignore[call-arg]


def test_a_lone_surrogate_is_an_unknown_item(tokenizer: BehaviorTokenizer) -> None:
    assert tokenizer(views(json.loads('"\\ud83d"')))["input_ids"] == [[NEW_1]]


# -- what transformers does with it ------------------------------------------------------------------------------------


def test_pad_pads_every_channel_and_the_labels(tokenizer: BehaviorTokenizer) -> None:
    rows = []
    for history in (views("84"), views("7", "x", "84")):
        row = {name: values[0] for name, values in tokenizer(history).items()}
        rows.append(
            {
                **row,
                "labels": [7] * len(history),
                "action_labels": [3] * len(history),
                "time_labels": [2] * len(history),
            }
        )
    batch = DataCollatorWithPadding(tokenizer)([dict(row) for row in rows])
    together = tokenizer([views("84"), views("7", "x", "84")], return_tensors="pt")
    for name in CHANNELS:
        assert torch.equal(batch[name], together[name])
    assert batch["labels"].tolist() == [[-100, -100, 7], [7, 7, 7]]
    assert batch["action_labels"].tolist() == [[-100, -100, 3], [3, 3, 3]]
    assert batch["time_labels"].tolist() == [[-100, -100, 2], [2, 2, 2]]
    right = tokenizer.pad([dict(row) for row in rows], padding_side="right")
    assert right["time_gap_ids"][0] == [1, 0, 0]
    assert right["labels"][0] == [7, -100, -100]


def test_decode_is_readable(tokenizer: BehaviorTokenizer) -> None:
    batch = tokenizer([views("84", None, "x"), []])
    assert tokenizer.decode(batch["input_ids"]) == ["84 [NONE] [NEW_1]", "[PAD] [PAD] [START]"]
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "84 [NEW_1]"


def test_pickle_keeps_ids_and_titles(tokenizer: BehaviorTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    history = views("84", "x", "7")
    assert copy(history) == tokenizer(history)
    assert copy.title("84") == tokenizer.title("84")


def test_titles_survive_saving_loading_and_saving_again(saved: Path, tmp_path: Path) -> None:
    loaded = BehaviorTokenizer.from_pretrained(saved)
    loaded.save_pretrained(tmp_path / "again")  # before any title was read
    again = BehaviorTokenizer.from_pretrained(tmp_path / "again")
    again.save_pretrained(tmp_path / "again")  # into its own folder
    assert again.title("84") == again.title(84) == "Garden\tchair\\\nblue"
    again.save_pretrained(tmp_path / "third")  # after a title was read
    assert [again.title(item) for item in ("7", "007", "nowhere")] == [None, None, None]
    for folder in ("again", "third"):
        for file in ("vocabulary.tsv", "tokenizer.json", "tokenization_behavior.py"):
            assert (tmp_path / folder / file).read_bytes() == (saved / file).read_bytes()


def test_the_vocabulary_table_is_readable(saved: Path) -> None:
    assert (saved / "vocabulary.tsv").read_text().splitlines() == [
        "id\titem\tcount\ttitle",
        "6\t84\t3\tGarden\\tchair\\\\\\nblue",
        "7\t7\t2\t",
        "8\t007\t1\t",
    ]


def test_a_lost_table_is_warned_of_and_written_without_titles(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "moved")
    loaded = BehaviorTokenizer.from_pretrained(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")
    with pytest.warns(UserWarning, match="no counts and titles"):
        loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "vocabulary.tsv").read_text().splitlines()[1] == "6\t84\t\t"


def test_saved_files_name_no_folder_of_this_machine(saved: Path, tmp_path: Path) -> None:
    BehaviorTokenizer.from_pretrained(saved).save_pretrained(tmp_path)
    assert str(saved) not in (tmp_path / "tokenizer_config.json").read_text()


REMOTE = """
import sys
from transformers import AutoTokenizer
source, target = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
assert type(tokenizer).__module__.startswith("transformers_modules"), type(tokenizer)
tokenizer.save_pretrained(target)
tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=True)
batch = tokenizer([[{"item": "84", "action": "view"}, {"item": "x", "action": "buy"}], []], return_tensors="pt")
print([batch[name].tolist() for name in batch], repr(tokenizer.title("84")))
"""

INSTALLED = """
import sys
from transformers import AutoTokenizer
from next_behavior.model import tokenization_behavior
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert type(tokenizer) is tokenization_behavior.BehaviorTokenizer
print(tokenizer([{"item": "84"}])["input_ids"])
"""


def test_a_clean_process_elsewhere_loads_it_as_remote_code(
    tokenizer: BehaviorTokenizer, saved: Path, tmp_path: Path
) -> None:
    done = run_python(tmp_path, "-I", "-c", REMOTE, str(saved), str(tmp_path / "target"))
    batch = tokenizer([[{"item": "84", "action": "view"}, {"item": "x", "action": "buy"}], []])
    assert done.stdout == f"{[batch[name] for name in batch]} {tokenizer.title('84')!r}\n"
    for file in ("vocabulary.tsv", "tokenizer.json", "tokenization_behavior.py"):
        assert (tmp_path / "target" / file).read_bytes() == (saved / file).read_bytes()


def test_importing_the_module_makes_trust_unnecessary(saved: Path, tmp_path: Path) -> None:
    done = run_python(tmp_path, "-c", INSTALLED, str(saved), environment={"PYTHONPATH": str(ROOT)})
    assert done.stdout == "[[6]]\n"


def test_loading_does_not_parse_the_vocabulary_twice(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = json.load

    def recorded(file: TextIO, **options: object) -> object:
        read.append(file.name)
        return original(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(json, "load", recorded)
    AutoTokenizer.from_pretrained(saved)
    assert any(name.endswith("tokenizer_config.json") for name in read)
    assert not any(name.endswith("tokenizer.json") for name in read)


def test_the_command_builds_a_tokenizer_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EVENTS.drop("row").write_parquet(tmp_path / "events.parquet")
    TITLES.write_parquet(tmp_path / "items.parquet")
    events, items, output = (str(tmp_path / name) for name in ("events.parquet", "items.parquet", "out"))
    main([events, "--output", output, "--items", items, "--num_new_items", "5", "--max_length", "7"])
    loaded = BehaviorTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.item_vocabulary == ["84", "7", "007"]
    assert (loaded.num_new_items, loaded.model_max_length) == (5, 7)
    assert loaded.title("84") == "Garden\tchair\\\nblue"
    assert "AutoTokenizer.from_pretrained" in capsys.readouterr().out
