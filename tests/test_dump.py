"""Every number of an evaluation is computed once more, from its dumped predictions and the log, with plain means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny import tiny_model, write_events

from next_behavior.commands.evaluate import main
from next_behavior.data.events import read_events
from next_behavior.data.sequences import TEST, TRAIN
from next_behavior.data.splits import assign_parts, make_split
from next_behavior.training.vocabulary import build_tokenizer

MAX_LENGTH = 6


def write_log(path: Path) -> Path:
    """Thirty users with views, purchases and searches; late in the log come new items and an action of their own."""
    generator = np.random.default_rng(4)
    rows: list[tuple[str, str | None, str, int]] = []
    for user in range(30):
        item = int(generator.integers(16))
        for step in range(12):
            kind = generator.random()
            name: str | None = f"i{item}" if step < 9 or kind < 0.7 else f"new{int(generator.integers(3))}"
            action = "buy" if kind < 0.25 else "gift" if step > 10 and kind > 0.8 else "view"
            if 0.5 < kind < 0.6:
                name, action = None, "search"
            rows.append((f"u{user}", name, action, 1_700_000_000 + 600 * step + user))
            item = (item + int(generator.integers(0, 3))) % 16
    return write_events(path, rows)


class Dumped:
    """The result of an evaluation beside its dumped predictions and the log."""

    def __init__(self, folder: Path) -> None:
        events = read_events(str(write_log(folder / "events.csv"))).events
        split = make_split(events, "time")
        self.events = assign_parts(events, split)
        train = self.events.filter(pl.col("part") == TRAIN)
        tokenizer = build_tokenizer(train, num_new_items=3, max_length=MAX_LENGTH)
        tokenizer.save_pretrained(folder)
        model = tiny_model(
            tokenizer,
            actions_without_item=[tokenizer.encode_action("search")],
            action_weights=[0.0, 0.0, 0.0, 0.0, 1.5, 0.7],
        )
        model.save_pretrained(folder)
        (folder / "split.json").write_text(json.dumps(split.to_dict()))
        main([
            "--model", str(folder), "--events", str(folder / "events.csv"), "--json", str(folder / "result.json"),
            "--dump", str(folder / "dump.parquet"), "--update_memory", "--memory_updates", "3", "--batch_size", "7",
        ])  # fmt: skip
        self.result = json.loads((folder / "result.json").read_text())
        self.rows = pl.read_parquet(folder / "dump.parquet")
        self.catalog = tokenizer.item_vocabulary
        counts = dict(train["item_id"].drop_nulls().value_counts().iter_rows())
        self.count: Callable[[str | None], int] = lambda item: counts.get(item, 0)
        users, items = self.events["user_id"].to_list(), self.events["item_id"].to_list()
        self.first = {user: users.index(user) for user in users}
        self.history = [items[self.first[user] : place] for place, user in enumerate(users)]

    def of(self, ranker: str) -> list[dict[str, Any]]:
        return self.rows.filter(pl.col("ranker") == ranker).sort("position").to_dicts()


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Dumped:
    return Dumped(tmp_path_factory.mktemp("dumped"))


def mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def same(ours: Any, theirs: Any) -> bool:
    """Equal within 1e-6, in dicts and lists as well; every key of the first must be in the second."""
    if isinstance(ours, dict):
        wrong = [key for key, value in ours.items() if key not in theirs or not same(value, theirs[key])]
        assert not wrong, {key: (ours[key], theirs.get(key)) for key in wrong}
        return True
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(same(one, two) for one, two in zip(ours, theirs, strict=True))
    return ours is theirs is None or (ours is not None and theirs is not None and abs(ours - theirs) <= 1e-6)


def ranking(ranks: list[int | None], cutoffs: tuple[int, ...] = (1, 5, 10, 20)) -> dict[str, Any]:
    found = [np.inf if rank is None else rank for rank in ranks]
    recall = {f"recall@{k}": mean([rank <= k for rank in found]) for k in cutoffs}
    ndcg = {f"ndcg@{k}": mean([1 / np.log2(rank + 1) if rank <= k else 0 for rank in found]) for k in cutoffs}
    return {"count": len(found), **recall, **ndcg, "mrr": mean([1 / rank for rank in found])}


def group_of(dumped: Dumped, row: dict[str, Any]) -> str:
    if row["item"] in dumped.history[row["position"]]:
        return "repeat"
    return "novel" if row["item"] in dumped.catalog else "cold"


def decile_of(dumped: Dumped, item: str) -> str:
    trained = sorted(dumped.count(one) for one in dumped.catalog)
    count = dumped.count(item)
    if not count:
        return "untrained"
    middle = (sum(one < count for one in trained) + sum(one <= count for one in trained)) / 2
    return str(min(10, 1 + int(10 * middle / len(trained))))


def length_of(dumped: Dumped, row: dict[str, Any]) -> str:
    length = row["position"] - dumped.first[row["user_id"]]
    return next(
        name for name, most in (("1", 1), ("2-4", 4), ("5-9", 9), ("10-49", 49), ("50+", 9999)) if length <= most
    )


def of_lists(dumped: Dumped, rows: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """What the lists hold besides the target."""
    lists = [row[f"top_{way}"] for row in rows]
    sizes, total = sorted(dumped.count(item) for item in dumped.catalog), sum(map(dumped.count, dumped.catalog))
    number = len(dumped.catalog)

    def percentile(item: str) -> float:
        count = dumped.count(item)
        below, up_to = (sum(one < count for one in sizes), sum(one <= count for one in sizes))
        return (below + up_to) / 2 / number if item in dumped.catalog else 0.0

    def average(value: Callable[[str], float]) -> float | None:
        return mean([np.mean([value(item) for item in one]) for one in lists if one])

    listed = sorted(sum(item in one for one in lists) for item in dumped.catalog)
    pairs = sum(abs(a - b) for a in listed for b in listed)
    targets = mean([percentile(row["item"]) for row in rows if row["item"] in dumped.catalog])
    histories = [{item for item in dumped.history[row["position"]] if item is not None} for row in rows]
    popularity = average(dumped.count)
    before = mean([np.mean([dumped.count(item) for item in history]) for history in histories if history])
    again = [item in history for one, history in zip(lists, histories, strict=True) for item in one]
    level = average(percentile)
    return {
        **{
            f"coverage@{k}": len({item for one in lists for item in one[:k]} & set(dumped.catalog)) / number
            for k in (1, 5, 10)
        },
        "gini@10": pairs / (2 * number * sum(listed)) if sum(listed) else None,
        "novelty@10": average(lambda item: -np.log2((dumped.count(item) + 1) / (total + number))),
        "popularity_percentile@10": level,
        "popularity_bias@10": None if level is None or targets is None else level - targets,
        "popularity@10": popularity,
        "history_popularity": before,
        "popularity_lift@10": None if popularity is None or not before else popularity / before - 1,
        "repeat_share@10": mean(again),
    }


def of_actions(names: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    targets = [row["action"] if row["action"] in names else "unknown" for row in rows]
    guesses = [names[int(np.argmax(row["probabilities"]))] for row in rows]
    pairs = list(zip(targets, guesses, strict=True))
    came = [name for name in names if name in targets]

    def f1(name: str) -> float:
        return 2 * pairs.count((name, name)) / (targets.count(name) + guesses.count(name))

    known = [(row, target, guess) for row, (target, guess) in zip(rows, pairs, strict=True) if target != "unknown"]
    losses = [-np.log(max(row["probabilities"][names.index(target)], np.finfo(float).eps)) for row, target, _ in known]
    bins: dict[int, list[float]] = {}
    for row, target, guess in known:
        confidence = max(row["probabilities"])
        bins.setdefault(max(0, int(np.ceil(confidence * 15)) - 1), []).append((target == guess) - confidence)
    changed = [target == guess for row, (target, guess) in zip(rows, pairs, strict=True) if row["change"]]
    return {
        "count": len(rows),
        "accuracy": mean([target == guess for target, guess in pairs]),
        "macro_f1": mean([f1(name) for name in sorted(set(targets))]),
        "log_loss": mean(losses),
        "ece": sum(abs(sum(gaps)) for gaps in bins.values()) / len(known),
        "recall": {name: pairs.count((name, name)) / targets.count(name) for name in came},
        "precision": {
            name: pairs.count((name, name)) / guesses.count(name) if name in guesses else None for name in came
        },
        "f1": {name: f1(name) for name in came},
        "confusion": {
            name: {guess: pairs.count((name, guess)) for guess in names if (name, guess) in pairs} for name in came
        },
        "unknown": targets.count("unknown"),
        "changes": {"count": len(changed), "accuracy": mean(changed)},
    }


def item_rankers(dumped: Dumped) -> list[str]:
    return [name for name in dumped.result["rankers"] if "kept" in dumped.result[name]]


def test_there_is_one_row_for_each_target_and_ranker(dumped: Dumped) -> None:
    result, rows = dumped.result, dumped.rows
    tested = dumped.events.with_row_index("position").filter(pl.col("part") == TEST)["position"].to_list()
    assert len(tested) == result["targets"] > result["item_targets"] > 20
    with_item = rows["item"].drop_nulls().len()
    assert len(rows) > with_item
    for name in result["rankers"]:
        places = [row["position"] for row in dumped.of(name)]
        whole = "actions" in result[name]
        assert places == tested if whole else len(places) == result["item_targets"]
    for row in rows.to_dicts():
        event = dumped.events.row(row["position"], named=True)
        assert (row["user_id"], row["item"], row["action"]) == (event["user_id"], event["item_id"], event["action"])
        assert row["time"] == event["timestamp"]
    assert {row["item"] for row in rows.to_dicts()} > {"new0", "new1", "new2", None}
    assert any("new" in item for one in rows["top_kept"].drop_nulls() for item in one), "a [NEW_j] is the user's id"


def test_groups_switches_and_changes_are_those_of_the_log(dumped: Dumped) -> None:
    actions = dumped.events["action"].to_list()
    for row in dumped.of("model"):
        known = {"view", "buy", "search"}
        now, before = (action if action in known else "?" for action in (row["action"], actions[row["position"] - 1]))
        assert row["change"] == (now != before)
        if row["item"] is not None:
            assert row["group"] == group_of(dumped, row)
            named = [item for item in dumped.history[row["position"]][-MAX_LENGTH:] if item is not None]
            assert row["switch"] == (row["item"] != named[-1])


def test_ranks_and_lists_agree(dumped: Dumped) -> None:
    for row in dumped.rows.filter(pl.col("rank_kept").is_not_null()).to_dicts():
        for way in ("kept", "removed"):
            rank, top = row[f"rank_{way}"], row[f"top_{way}"]
            # Ties count against the target: it may stand earlier in the list than its rank says, and never later.
            if rank is not None and rank <= len(top):
                assert row["item"] in top[:rank], (row["ranker"], way)
        assert not set(row["top_removed"]) & set(dumped.history[row["position"]])
        assert (row["rank_removed"] is None) == (row["group"] == "repeat")


def test_every_number_of_the_items_is_computed_again(dumped: Dumped) -> None:
    for name in item_rankers(dumped):
        for way in ("kept", "removed"):
            rows = [row for row in dumped.of(name) if row["item"] is not None]
            rows = [row for row in rows if way == "kept" or row["group"] != "repeat"]
            groups = {"all": rows, "switch": [row for row in rows if row["switch"]]}
            groups |= {group: [row for row in rows if row["group"] == group] for group in ("repeat", "novel", "cold")}
            ranks = {group: [row[f"rank_{way}"] for row in chosen] for group, chosen in groups.items()}
            slices: dict[str, dict[str, list[int | None]]] = {"action": {}, "history": {}, "popularity": {}}
            for row in rows:
                where = (row["action"], length_of(dumped, row), decile_of(dumped, row["item"]))
                for by, slice in zip(slices, where, strict=True):
                    if by != "action" or slice in dumped.result["actions"]:
                        slices[by].setdefault(slice, []).append(row[f"rank_{way}"])
            kept = ("count", "recall@10", "ndcg@10", "mrr")
            expected: dict[str, Any] = {
                "items": {group: ranking(chosen) for group, chosen in ranks.items()},
                "slices": {
                    by: {slice: {key: ranking(chosen)[key] for key in kept} for slice, chosen in found.items()}
                    for by, found in slices.items()
                },
                **of_lists(dumped, rows, way),
            }
            if way == "kept":
                unvisited = [row["rank_kept"] for row in rows if row["group"] != "repeat"]
                expected["visited_recall@10"] = ranking(ranks["repeat"])["recall@10"]
                expected["unvisited_recall@10"] = ranking(unvisited)["recall@10"]
            assert same(expected, dumped.result[name][way]), (name, way)
            others = {by: sum(row["count"] for row in dumped.result[name][way]["slices"][by].values()) for by in slices}
            assert others == {by: sum(map(len, found.values())) for by, found in slices.items()}


def test_every_number_of_the_actions_is_computed_again(dumped: Dumped) -> None:
    named = [name for name in dumped.result["rankers"] if "actions" in dumped.result[name]]
    assert {"model", "model, balanced", "last_action_markov"} <= set(named)
    for name in named:
        rows = [row for row in dumped.of(name) if row["probabilities"] is not None]
        assert same(of_actions(dumped.result["actions"], rows), dumped.result[name]["actions"]), name
    assert dumped.result["model"]["actions"]["unknown"] > 0


def test_every_interval_is_computed_again(dumped: Dumped) -> None:
    everyone = sorted({row["user_id"] for row in dumped.of("model")}, key=dumped.first.__getitem__)
    drawn = np.random.default_rng(0).integers(len(everyone), size=(1000, len(everyone)))

    def means(name: str, value: Callable[[dict[str, Any]], float | None]) -> np.ndarray:
        values: dict[str, list[float]] = {user: [] for user in everyone}
        for row in dumped.of(name):
            one = value(row)
            if one is not None:
                values[row["user_id"]].append(one)
        total = np.array([sum(values[user]) for user in everyone])[drawn].sum(axis=1)
        number = np.array([len(values[user]) for user in everyone])[drawn].sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    def ends(values: np.ndarray) -> list[float]:
        return [float(end) for end in np.nanquantile(values, [0.025, 0.975])]

    def of_row(where: str, group: str | None, metric: str) -> Callable[[dict[str, Any]], float | None]:
        names = dumped.result["actions"]

        def value(row: dict[str, Any]) -> float | None:
            if where == "actions":
                if metric == "accuracy":
                    return float(names[int(np.argmax(row["probabilities"]))] == row["action"])
                return None if row["action"] not in names else -np.log(row["probabilities"][names.index(row["action"])])
            if row["item"] is None or (where == "removed" and row["group"] == "repeat"):
                return None
            if group not in ("all", row["group"]):
                return None
            return float(ranking([row[f"rank_{where}"]])[metric])

        return value

    def macro_f1(name: str) -> np.ndarray:
        names, counts = dumped.result["actions"], dict[str, dict[str, list[int]]]()
        rows = [row for row in dumped.of(name) if row["probabilities"] is not None]
        for action in {row["action"] for row in rows}:
            counts[action] = {user: [0, 0] for user in everyone}  # hits; targets and guesses
            for row in rows:
                is_target, is_guess = row["action"] == action, names[int(np.argmax(row["probabilities"]))] == action
                counts[action][row["user_id"]][0] += is_target and is_guess
                counts[action][row["user_id"]][1] += is_target + is_guess
        found = []
        targets = [{row["action"] for row in rows if row["user_id"] == user} for user in everyone]
        for users in drawn:
            came = set().union(*(targets[user] for user in users))
            sums = [np.sum([counts[action][everyone[user]] for user in users], axis=0) for action in came]
            found.append(np.mean([2 * hits / both for hits, both in sums]) if came else np.nan)
        return np.array(found)

    for name in item_rankers(dumped):
        for group in ("all", "novel"):
            for metric in ("recall@10", "ndcg@10"):
                row = dumped.result[name]["kept"]["items"][group]
                assert same(ends(means(name, of_row("kept", group, metric))), row[f"{metric}_interval"])
    compared = [row for row in dumped.result["comparison"] if row["difference_interval"] is not None]
    assert {row["metric"] for row in compared} == {"recall@10", "ndcg@10", "accuracy", "macro_f1", "log_loss"}
    by_action = {name: macro_f1(name) for name in ("model, balanced", "last_action_markov")}
    for name, found in by_action.items():
        assert same(ends(found), dumped.result[name]["actions"]["macro_f1_interval"]), name
    for row in compared:
        if row["metric"] == "macro_f1":
            found = by_action[row["ranker"]] - macro_f1(row["best_baseline"])
            assert same(ends(found), row["difference_interval"]), row
            continue
        value = of_row(row["where"], row["group"], row["metric"])
        sign = -1 if row["metric"] == "log_loss" else 1
        difference = sign * (means(row["ranker"], value) - means(row["best_baseline"], value))
        assert same(ends(difference), row["difference_interval"]), row
        assert row["difference"] == pytest.approx(sign * (row["model"] - row["best"]), abs=1e-9)
