"""What stays out of a published model, what that leaves as it was, and the figures about it."""

from __future__ import annotations

import copy
import io
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny import tiny_model

from next_behavior.data.events import read_events
from next_behavior.data.sequences import TEST, TRAIN, Sequences, tokenize_log
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.publishing.dataset import as_rows
from next_behavior.publishing.measures import by_action
from next_behavior.publishing.membership import membership_inference
from next_behavior.publishing.privacy import (
    Privacy,
    learned_events,
    look_for_people,
    personal_traces,
    users_per_item,
    users_per_pair,
)
from next_behavior.publishing.publication import Publication, read_item_facts
from next_behavior.publishing.publish import check_enough_left
from next_behavior.publishing.scores import score_targets
from next_behavior.publishing.shrink import check_tables, shrink
from next_behavior.training.vocabulary import build_tokenizer

# Users and the items they touch in order; "x" and "y" have one user each, a and b follow each other for three users.
HISTORIES = {"u1": "abcab", "u2": "abxc", "u3": "yabb", "u4": "cd", "u5": "dc"}
MORE = {"u1": "c", "u2": "a"}  # later events, which test


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Publication:
    """A model of random weights that has counted its log, as `publish` reads it."""
    rows = [
        (user, item, "view" if step % 2 else "buy", 1_700_000_000 + 1000 * part + 10 * step, part)
        for part, histories in ((TRAIN, HISTORIES), (TEST, MORE))
        for user, items in histories.items()
        for step, item in enumerate(items)
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "action", "timestamp", "part"], orient="row")
    events = read_events(frame.drop("part")).events
    cut = 1_700_000_500 * 1_000_000
    events = events.with_columns(
        pl.when(pl.col("timestamp").dt.epoch("us") > cut).then(TEST).otherwise(TRAIN).cast(pl.Int8).alias("part")
    )
    titles = pl.DataFrame({"item_id": ["a", "x"], "title": ["Apple", "Xylophone"]})
    tokenizer = build_tokenizer(events.filter(pl.col("part") == TRAIN), titles, num_new_items=3, max_length=7)
    model = tiny_model(tokenizer, memory_distance=2)
    histories = [[{"item": item} for item in items] for items in HISTORIES.values()]
    model.update_memory(**tokenizer(histories, return_tensors="pt"), pairs="all")
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    dataset = tokenize_log(events, tokenizer)
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    return Publication(model, tokenizer, read_item_facts(folder / "vocabulary.tsv"), sequences)


def without(trained: Publication, *items: str) -> Publication:
    keep = np.ones(len(trained.tokenizer), dtype=bool)
    keep[[trained.tokenizer.encode_item(item) for item in items]] = False
    return shrink(trained, keep, np.ones(len(trained.model.associate_path.pair_keys), dtype=bool))


def pairs(published: Publication) -> dict[tuple[str | None, str | None], int]:
    """The memory's pairs of item ids, with their counts."""
    memory, name = published.model.associate_path, published.tokenizer.decode_item
    keys = [(name(key >> 32), name(key & (2**32 - 1))) for key in memory.pair_keys.tolist()]
    return dict(zip(keys, memory.pair_counts.tolist(), strict=True))


def test_users_of_items_and_of_pairs_are_counted_in_what_was_learned(trained: Publication) -> None:
    learned = learned_events(trained.sequences, "time")
    users = users_per_item(trained.sequences, learned)
    by_name = {item: users[trained.tokenizer.encode_item(item)] for item in "abcdxy"}
    assert by_name == {"a": 3, "b": 3, "c": 4, "d": 2, "x": 1, "y": 1}
    keys = trained.model.associate_path.pair_keys.numpy()
    shared = users_per_pair(trained.sequences, learned, keys, distance=2)
    found = dict(zip(pairs(trained), shared.tolist(), strict=True))
    assert found[("a", "b")] == 3
    assert found[("c", "d")] == 1
    assert found[("a", "x")] == 1
    assert ("x", "a") not in found
    assert min(found.values()) >= 1  # every pair that was counted is somebody's
    assert learned_events(trained.sequences, "none").all()


def test_a_removed_item_is_nowhere_and_the_others_keep_their_rows_counts_and_titles(trained: Publication) -> None:
    published = without(trained, "x", "y")
    tokenizer, model = published.tokenizer, published.model
    assert tokenizer.item_vocabulary == [item for item in trained.tokenizer.item_vocabulary if item not in "xy"]
    assert model.config.vocab_size == len(tokenizer) == len(trained.tokenizer) - 2
    assert tokenizer.title("a") == "Apple"
    assert published.item_facts == [
        fact
        for item, fact in zip(trained.tokenizer.item_vocabulary, trained.item_facts, strict=True)
        if item not in "xy"
    ]
    for item in tokenizer.item_vocabulary:
        old, new = trained.tokenizer.encode_item(item), tokenizer.encode_item(item)
        tables = [one.bert.embeddings for one in (model, trained.model)]
        rows = [table.item_rows(torch.tensor(index)) for table, index in zip(tables, (new, old), strict=True)]
        assert torch.equal(*rows)
        assert model.associate_path.item_counts[new] == trained.model.associate_path.item_counts[old]
    kept = {names: count for names, count in pairs(trained).items() if not {"x", "y"} & set(names)}
    assert pairs(published) == kept
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert bool((model.associate_path.pair_keys.diff() > 0).all())


def test_answers_are_what_they_were_but_for_what_is_gone(trained: Publication) -> None:
    """Without counts, which the removed item's neighbors feel, the odds of all other items stay."""
    bare = Publication(copy.deepcopy(trained.model), trained.tokenizer, trained.item_facts, trained.sequences)
    memory = bare.model.associate_path
    memory.pair_keys, memory.pair_counts = memory.pair_keys[:0], memory.pair_counts[:0]
    memory.changed()
    published = without(bare, "x")
    history = [{"item": "a", "action": "view"}, {"item": "d", "action": "buy"}]
    odds = []
    for one in (bare, published):
        batch = one.tokenizer([history], return_tensors="pt")
        ranked = one.model.predict(**batch, of="item", top_k=100, action=3)
        assert ranked.item_ids is not None
        assert ranked.probabilities is not None
        rows = zip(ranked.item_ids[0].tolist(), ranked.probabilities[0].tolist(), strict=True)
        odds.append({one.tokenizer.decode_item(item): probability for item, probability in rows})
    assert odds[1].keys() == odds[0].keys() - {"x"}
    new = {item: odds[0][item] / odds[0]["c"] for item in ("c", "b", "y")}
    assert {item: odds[1][item] / odds[1]["c"] for item in new} == pytest.approx(new, rel=1e-4)


def test_a_removed_item_in_a_history_is_an_unknown_one_and_unknown_ones_stay_apart(trained: Publication) -> None:
    published = without(trained, "x", "y")
    before, after = trained.sequences, published.sequences
    assert after.vocab_size == len(published.tokenizer)
    for old, new in zip(before.items.tolist(), after.items.tolist(), strict=True):
        name = trained.tokenizer.decode_item(old)
        if name in ("x", "y"):
            assert new >= after.vocab_size
        else:
            assert published.tokenizer.decode_item(new) == name
    unknown = after.items[after.items >= after.vocab_size]
    assert len(unknown) == len(set(unknown.tolist())) == 2


def test_pairs_go_alone_where_only_pairs_are_to_go(trained: Publication) -> None:
    keys = trained.model.associate_path.pair_keys.numpy()
    shared = users_per_pair(trained.sequences, learned_events(trained.sequences, "time"), keys, distance=2)
    published = shrink(trained, np.ones(len(trained.tokenizer), dtype=bool), shared >= 3)
    assert set(pairs(published)) == {("a", "b")}
    assert published.tokenizer.item_vocabulary == trained.tokenizer.item_vocabulary
    assert published.model.config.memory_size == 1


def test_nothing_left_and_tables_nobody_knows_are_refused(trained: Publication) -> None:
    nothing = np.zeros(len(trained.tokenizer), dtype=bool)
    with pytest.raises(ValueError, match=r"none of 6 items is left.*lower --min_item_users"):
        shrink(trained, nothing, np.ones(len(trained.model.associate_path.pair_keys), dtype=bool))
    stranger = copy.deepcopy(trained.model)
    stranger.register_buffer("prices", torch.zeros(len(trained.tokenizer), 2))
    with pytest.raises(ValueError, match=r"'prices'.*--min_item_users 1"):
        check_tables(stranger)


def test_a_published_model_is_saved_and_loaded_like_any_other(trained: Publication, tmp_path: Path) -> None:
    published = without(trained, "y")
    published.model.save_pretrained(tmp_path)
    published.tokenizer.save_pretrained(tmp_path)
    loaded = BertForNextBehavior.from_pretrained(tmp_path).eval()
    batch = published.tokenizer([[{"item": "a"}, {"item": "b"}]], return_tensors="pt")
    answers = [model.predict(**batch).to_tuple() for model in (loaded, published.model)]
    assert all(torch.equal(*field) for field in zip(*answers, strict=True))
    assert len(read_item_facts(tmp_path / "vocabulary.tsv")) == len(published.tokenizer.item_vocabulary)


def test_membership_is_half_for_a_model_that_knows_nothing_and_high_for_one_that_has_counted() -> None:
    """Forty users, each with a chain of items of their own that goes on in the test part."""
    generator = np.random.default_rng(0)
    users, length, first = 40, 8, 7
    vocab = first + 60
    items = generator.integers(first, vocab, users * length).astype(np.int32)
    parts = np.tile(np.array([TRAIN] * (length // 2) + [TEST] * (length // 2), dtype=np.int8), users)
    sequences = Sequences(
        offsets=np.arange(0, users * length + 1, length), items=items,
        actions=np.full(len(items), 3, dtype=np.int16), time_gaps=np.ones(len(items), dtype=np.int16),
        timestamps=np.full(len(items), -1), parts=parts, user_ids=[str(user) for user in range(users)],
        vocab_size=vocab, first_item_id=first,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForNextBehavior(
        BehaviorConfig(
            vocab_size=vocab, num_new_items=3, num_actions=4, num_time_gaps=3, hidden_size=12, num_attention_heads=2,
            num_hidden_layers=1, intermediate_size=20, max_position_embeddings=8, memory_power=2.0,
        )
    ).eval()  # fmt: skip
    ignorant = membership_inference(model, sequences, 8)
    training = parts == TRAIN
    model.associate_path.count(
        torch.from_numpy(items[training].astype(np.int64)), torch.from_numpy(sequences.user_of_event()[training])
    )
    counted = membership_inference(model, sequences, 8)
    assert ignorant is not None
    assert counted is not None
    assert ignorant["members"] == users * 3
    assert ignorant["auc"] == pytest.approx(0.5, abs=0.1)
    assert counted["auc"] > 0.9


def test_items_that_look_like_personal_data_are_warned_of(trained: Publication) -> None:
    titles: list[tuple[int | None, str | None]] = [(1, None)] * len(trained.item_facts)
    titles[0] = (1, "write to jo@example.org")
    with pytest.warns(
        UserWarning, match=r"1 items look like personal data \(e-mail address\).*do you want them public"
    ):
        privacy = look_for_people(trained, replace(trained, item_facts=titles), Privacy(1, 1))
    assert privacy.traces == {"e-mail address": [trained.tokenizer.item_vocabulary[0]]}
    assert privacy.membership is not None
    assert privacy.to_dict()["traces"] == {"e-mail address": 1}


def test_scores_of_targets_are_those_of_the_model(trained: Publication) -> None:
    sequences = trained.sequences
    positions = np.flatnonzero(sequences.parts == TEST)
    scored = score_targets(trained.model, sequences, positions, 7)
    history = [{"item": item, "action": action, "timestamp": 1_700_000_000 + 10 * step}
               for step, (item, action) in enumerate(zip("abxc", ["buy", "view"] * 2, strict=True))]  # fmt: skip
    log_probability = trained.model.item_log_probabilities(**trained.tokenizer([history], return_tensors="pt"))
    expected = -float(log_probability[0, trained.tokenizer.encode_item("a")])
    assert min(abs(scored.item_loss - expected)) < 1e-5
    assert set(by_action(scored, trained.tokenizer.action_vocabulary)) == {"buy"}


def test_rows_of_the_data_set_hold_the_events_and_no_user(trained: Publication) -> None:
    published = without(trained, "x", "y")
    rows = as_rows(published, "day")
    assert rows["user_id"].to_list() == list(range(5))
    assert rows.equals(as_rows(published, "day"))  # the same log gives the same rows
    histories = sorted("".join(item or "-" for item in row if len(item) == 1) for row in rows["item_id"].to_list())
    assert histories == sorted(["abcabc", "abca", "abb", "cd", "dc"])
    unknown = [item for row in rows["item_id"].to_list() for item in row if item.startswith("unknown")]
    assert len(set(unknown)) == 2
    assert all(moment % 86_400_000_000 == 0 for row in rows["timestamp"].to_list() for moment in row)
    exact = [moment for row in as_rows(published, "exact")["timestamp"].to_list() for moment in row]
    assert sorted(exact) == sorted(trained.sequences.timestamps.tolist())
    again = read_events(rows).events
    assert again.height == len(trained.sequences.items)


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 2**20, "a." * 2**19, "@" * 2**20, "a@" * 2**19, "+1 " * 2**18, "+1" + " " * 2**20, "1-" * 2**19),
        *("(12) 1" * 2**17, "(12) 1" + "- " * 2**19, "www." * 2**18),
    ],
    ids=lambda text: f"{text[:12]}...",
)
def test_a_megabyte_of_text_is_searched_in_a_second(text: str) -> None:
    started = time.process_time()
    personal_traces([(text, text)])
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("removed", "little"), [({}, False), ({"items": 85, "events": 10}, False), ({"items": 95, "events": 10}, True),
                            ({"items": 60, "events": 970}, True)]
)  # fmt: skip
def test_nearly_nothing_left_is_said_with_the_shares_and_asks_for_yes(
    removed: dict[str, int], little: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: dict[str, Any] = {f"removed_{name}": count for name, count in removed.items()}
    privacy = Privacy(5, 2, items=100, pairs=40, events=1000, **gone)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal: nobody is asked
    check_enough_left(privacy, little_is_fine=True)
    if not little:
        check_enough_left(privacy, little_is_fine=False)
        return
    with pytest.raises(ValueError, match=r"\d+ of 100 items \(\d+\.0 %\), .* pass --yes to publish it all the same"):
        check_enough_left(privacy, little_is_fine=False)


@pytest.mark.parametrize(("answer", "published"), [("y", True), ("", False), ("no", False)])
def test_on_a_terminal_a_person_decides(answer: str, published: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr("sys.stdout", Terminal())
    with nullcontext() if published else pytest.raises(ValueError, match="Nothing was sent"):
        check_enough_left(Privacy(5, 2, items=100, removed_items=99), little_is_fine=False)
