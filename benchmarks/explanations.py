"""Whether the contributions of `explain=True` name the events that matter: deletion, insertion, stability and time.

    python -m benchmarks.explanations --model out/shop --events events.parquet --users 1000 --json explanations.json

For test users drawn at random, the history before one of their test events is asked for the next item. Its events are
put in an order of importance for the first answer. Deletion takes them out of the list in that order and follows the
probability of the answer, divided by what it was and at most 1. The mean over ten steps is the area under the curve:
low where the first events matter most. Insertion puts them into an empty list in that order: high where they suffice.

The orders, each with ties by recency:

    importance            that of `explain=True`
    contributions         those of `explain=True`
    gradients             those of `explain="integrated_gradients"`, with --gradients
    most recent first     the events backwards
    same item first       events of the answer's item, then the others, each backwards
    random                at random: the mean of a few orders

Stability is the rank correlation of the importance for an answer in this model and in a second one of the same log
(`--other_model`: another seed), whose answer need not be the same. Times are processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from next_behavior.data.events import read_events
from next_behavior.data.known import check_known
from next_behavior.data.read_options import add_event_arguments, options_from_arguments
from next_behavior.data.sequences import TEST
from next_behavior.data.splits import assign_parts
from next_behavior.evaluation.evaluator import split_to_evaluate
from next_behavior.evaluation.metrics import bootstrap_means, interval
from next_behavior.model.explaining_answers import Explainer, Given
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.ranking import Question
from next_behavior.model.tokenization_behavior import BehaviorTokenizer

OURS, LEAVE_ONE_OUT, GRADIENTS = "importance", "contributions", "gradients"
STEPS = 10
RANDOM_ORDERS = 3
MIN_EVENTS = 2


@dataclass(frozen=True)
class Asked:
    """A history and its first answer.

    Attributes:
        events: the history; given: its first answer; probability: of that answer; item: the user's id of its item.
    """

    events: list[dict[str, Any]]
    given: Given
    probability: float
    item: str


def histories(events: pl.DataFrame, users: int, most_events: int, seed: int) -> list[list[dict[str, Any]]]:
    """The newest events before a random test event of each of `users` users, drawn at random.

    Args:
        events: user_id, item_id, action, timestamp and part, in order.
    """
    draw = np.random.default_rng(seed)
    events = events.with_columns(place=pl.int_range(pl.len()).over("user_id"))
    targets = events.filter((pl.col("part") == TEST) & (pl.col("place") >= MIN_EVENTS)).select("user_id", "place")
    names = targets["user_id"].unique().sort()
    chosen = names.gather(np.sort(draw.permutation(len(names))[:users]))
    kept = events.filter(pl.col("user_id").is_in(chosen.implode()))
    places = dict(
        targets.filter(pl.col("user_id").is_in(chosen.implode())).group_by("user_id").agg("place").iter_rows()
    )
    found = []
    for (user,), rows in kept.group_by("user_id", maintain_order=True):
        target = int(draw.choice(places[user]))
        rows = rows[max(0, target - most_events) : target]
        seconds = (rows["timestamp"].dt.epoch("us") / 1e6).to_list()
        found.append(
            [
                {"item": item, "action": action, **({} if second is None else {"timestamp": second})}
                for item, action, second in zip(rows["item_id"], rows["action"], seconds, strict=True)
            ]
        )
    return found


class Asking:
    """A model that is asked for the next item, through the parts of the pipeline."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = BehaviorTokenizer.from_pretrained(folder)
        self.model = BertForNextBehavior.from_pretrained(folder)
        self.predict = NextBehaviorPipeline(model=self.model, tokenizer=self.tokenizer, device="cpu")
        with torch.no_grad():
            tables = self.model.answer_tables(torch.device("cpu"))
        question = Question("item", 1, None, False, None)
        self.explainer = Explainer(self.model, self.tokenizer.reader, tables, self.tokenizer.model_max_length, question)

    def first_answer(self, events: list[dict[str, Any]], item: str | None = None) -> Asked | None:
        """The first answer, or that which names `item`; None where this model cannot answer it."""
        if item is None:
            (answer,) = self.predict({"events": events}, of="item", top_k=1)
            item, probability = answer["item"], answer["probability"]
        else:
            probability = float("nan")
        read = self.explainer.read(events)
        index = read.seen.get(item, self.tokenizer.encode_item(item))
        new_items = self.tokenizer.reader.new_items(events, self.tokenizer.model_max_length)
        given = Given(events, [index], [0], new_items, [])
        if not np.isfinite(probability):
            probability = float(self.explainer.probabilities([events], [given])[0][0])
        return Asked(events, given, probability, item) if probability > 0 else None

    def explained(self, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
        """Contributions and importance, (n,) each."""
        ((contributions, importance),) = self.explainer.leave_one_out([asked.given], [[asked.probability]])
        return contributions[0], importance[0]

    def gradients(self, asked: Asked) -> np.ndarray:
        return self.explainer.integrated_gradients([asked.given])[0][0]


def orders_of(asked: Asked, scores: dict[str, np.ndarray], draw: np.random.Generator) -> dict[str, np.ndarray]:
    """The places of the events, the most important first, in every order; several at random."""
    count = len(asked.events)
    recency = np.arange(count)
    same = np.array([event["item"] == asked.item for event in asked.events])
    orders = {name: np.lexsort((-recency, -score)) for name, score in scores.items()}
    orders["most recent first"] = recency[::-1]
    orders["same item first"] = np.lexsort((-recency, ~same))
    for number in range(RANDOM_ORDERS):
        orders[f"random {number}"] = draw.permutation(count)
    return orders


def kept_in_steps(order: np.ndarray, deletion: bool) -> list[np.ndarray]:
    """The places that are left after each of the steps, in their own order."""
    counts = np.round(np.linspace(0, len(order), STEPS + 1)[1:]).astype(int)
    return [np.sort(order[count:] if deletion else order[:count]) for count in counts]


def areas(asking: Asking, asked: Asked, orders: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """{order: (deletion, insertion)}: the mean over the steps of the share of its probability that the answer keeps."""
    kept = [
        places for order in orders.values() for deletion in (True, False) for places in kept_in_steps(order, deletion)
    ]
    distinct = {places.tobytes(): places for places in kept}
    lists = [[asked.events[place] for place in places] for places in distinct.values()]
    found = asking.explainer.probabilities(lists, [asked.given] * len(lists))
    share = {key: min(1.0, float(one[0]) / asked.probability) for key, one in zip(distinct, found, strict=True)}
    curves = np.array([share[places.tobytes()] for places in kept]).reshape(len(orders), 2, STEPS).mean(axis=2)
    return {
        name: (float(deletion), float(insertion)) for name, (deletion, insertion) in zip(orders, curves, strict=True)
    }


def measured(
    asking: Asking, other: Asking | None, lists: list[list[dict[str, Any]]], gradients: bool
) -> dict[str, Any]:
    """Everything that is measured, as JSON."""
    draw = np.random.default_rng(0)
    users: dict[str, list[tuple[float, float]]] = {}
    milliseconds, plain_milliseconds, correlations = [], [], []
    for events in tqdm(lists, desc="users", unit=" users"):
        begin = time.process_time()
        asked = asking.first_answer(events)
        plain_milliseconds.append(1000 * (time.process_time() - begin))
        assert asked is not None
        begin = time.process_time()
        contributions, importance = asking.explained(asked)
        scores = {OURS: importance, LEAVE_ONE_OUT: contributions}
        milliseconds.append(1000 * (time.process_time() - begin))
        if gradients:
            scores[GRADIENTS] = asking.gradients(asked)
        found = areas(asking, asked, orders_of(asked, scores, draw))
        at_random = np.mean([found.pop(f"random {number}") for number in range(RANDOM_ORDERS)], axis=0)
        for name, pair in {**found, "random": tuple(at_random)}.items():
            users.setdefault(name, []).append(pair)
        again = None if other is None else other.first_answer(events, asked.item)
        if other is not None and again is not None and len(events) > 2:
            pair = (importance, other.explained(again)[1])
            if all(np.ptp(one) > 0 for one in pair):
                correlations.append(float(spearmanr(*pair).statistic))
    result: dict[str, Any] = {"users": len(lists), "events": summary([len(events) for events in lists])}
    result["milliseconds"] = {"answer": summary(plain_milliseconds), "explanation": summary(milliseconds)}
    for side, what in enumerate(("deletion", "insertion")):
        values = {name: np.array([pair[side] for pair in pairs]) for name, pairs in users.items()}
        sign = 1 if what == "deletion" else -1
        result[what] = {name: with_interval(one) for name, one in values.items()}
        result[f"importance_better_on_{what}_by"] = {
            name: with_interval(sign * (one - values[OURS])) for name, one in values.items() if name != OURS
        }
    if other is not None:
        result["stability"] = {"users": len(correlations), **summary(correlations)}
    return result


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}


def with_interval(values: np.ndarray) -> dict[str, Any]:
    means = bootstrap_means(values[:, None], np.ones((len(values), 1)), seed=0)
    return {"mean": float(values.mean()), "interval": interval(means[:, 0])}


def as_text(result: dict[str, Any]) -> str:
    """The result as a table."""
    head = ("order", "deletion (lower is better)", "importance better by", "insertion (higher is better)")
    lines = [f"| {' | '.join((*head, head[2]))} |", "|:--|:--|:--|:--|:--|"]
    for name in result["deletion"]:
        cells = [name]
        for what in ("deletion", "insertion"):
            cells.append(cell(result[what][name]))
            cells.append("" if name == OURS else cell(result[f"importance_better_on_{what}_by"][name]))
        lines.append(f"| {' | '.join(cells)} |")
    took = result["milliseconds"]
    lines.append(
        f"\n{result['users']} users, {result['events']['median']:.0f} events (median). An explanation takes "
        f"{took['explanation']['median']:.0f} ms (median; {took['explanation']['p95']:.0f} at the 95th percentile), an "
        f"answer {took['answer']['median']:.0f} ms."
    )
    if "stability" in result:
        lines.append(f"Rank correlation with another model: {result['stability']['median']:.2f} (median).")
    return "\n".join(lines)


def cell(value: dict[str, Any]) -> str:
    low, high = value["interval"]
    return f"{value['mean']:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="folder of a trained model")
    parser.add_argument("--other_model", type=Path, help="another one of the same log, for stability")
    parser.add_argument("--events", required=True, help="the log")
    parser.add_argument("--users", type=int, default=1000, help="test users (default 1000)")
    parser.add_argument("--most_events", type=int, default=50, help="newest events of a history (default 50)")
    parser.add_argument("--gradients", action="store_true", help="measure integrated gradients, too: slow")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of users")
    parser.add_argument("--json", type=Path, help="write the result here")
    add_event_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    asking = Asking(args.model)
    log = read_events(args.events, options_from_arguments(args)).events
    check_known(log, asking.tokenizer.item_vocabulary, asking.tokenizer.action_vocabulary)
    events = assign_parts(log, split_to_evaluate(args.model, log, None))
    other = None if args.other_model is None else Asking(args.other_model)
    result = measured(asking, other, histories(events, args.users, args.most_events, args.seed), args.gradients)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1))
    print(as_text(result))


if __name__ == "__main__":
    main()
