"""The model and the baselines on held-out events: a table, and JSON.

    python evaluate_behavior.py --model out/shop --events events.parquet
    python evaluate_behavior.py --model out/shop --events events.parquet --json evaluation.json
    python evaluate_behavior.py --model out/beauty --events beauty.parquet --split leave_one_out --max_targets 5000
    python evaluate_behavior.py --model out/shop --events events.parquet --update_memory

The split that is recorded with the model is used unless `--split` names another. Every target is ranked among the whole
catalogue, ties against the ranker, once with the items that the user has seen as candidates (kept) and once without
(removed; then only targets that are new to the user count). Batches stream: a score matrix of about 8 MB is the most
that is held. The baselines count the training events of the same split. `--update_memory` adds the model as it would be
served, when its memory goes on counting what happened before the targets, without training.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from next_behavior.data.batches import GROUP_NAMES, REPEAT, EvaluationBatch, evaluation_batches, target_positions
from next_behavior.data.events import add_event_arguments, options_from_arguments, read_events
from next_behavior.data.sequences import TEST, TRAIN, Sequences, encode_events
from next_behavior.data.splits import Split, assign_parts, make_split
from next_behavior.evaluation.baselines import (
    ActionRanker,
    BalancedActions,
    ItemNeighbours,
    ItemRanker,
    fit_baselines,
    training_item_counts,
)
from next_behavior.evaluation.metrics import (
    LIST_LENGTH,
    ItemPopularity,
    RankingAccumulator,
    action_metrics,
    bootstrap_means,
    interval,
    ndcg_at_k,
    pessimistic_ranks,
    ranking_metrics,
    recall_at_k,
)
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW, NONE

MODEL = "model"
# The same model while its memory goes on counting: `--update_memory`.
UPDATED = "model, memory updated"
# The same model naming actions by its `action_weights`.
BALANCED = "model, balanced"
MEMORY_UPDATES = 100
# Scores held at once (8 MiB of float32: larger matrices leave a processor's caches), and rows at most.
MAX_SCORES, MAX_ROWS = 2**21, 256
ACTION_ROWS = 512
# Metrics with intervals, and the groups of targets that have them.
INTERVAL_METRICS = {"recall@10": recall_at_k, "ndcg@10": ndcg_at_k}
INTERVAL_GROUPS = ("all", "novel")
# Where the model is compared with the best baseline; a lower log-loss is better.
COMPARED = [
    ("kept", "all", "recall@10"),
    ("kept", "all", "ndcg@10"),
    ("kept", "repeat", "ndcg@10"),
    ("kept", "novel", "ndcg@10"),
    ("removed", "all", "recall@10"),
    ("removed", "all", "ndcg@10"),
    ("actions", None, "accuracy"),
    ("actions", None, "macro_f1"),
    ("actions", None, "log_loss"),
]

Result = dict[str, Any]


class ModelRanker:
    """A trained model as a ranker beside the baselines; leaves the model in evaluation mode.

    Args:
        model: a `BertForNextBehavior`, on any device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()

    def tensors(self, batch: EvaluationBatch) -> dict[str, torch.Tensor]:
        """The batch's channels for the model: (B, T) int64 each, on its device."""
        channels = {
            "input_ids": batch.input_ids,
            "token_type_ids": batch.token_type_ids,
            "time_gap_ids": batch.time_gap_ids,
            "attention_mask": batch.attention_mask,
        }
        return {name: torch.from_numpy(array).to(self.model.device) for name, array in channels.items()}

    @torch.no_grad()
    def scores(self, batch: EvaluationBatch) -> torch.Tensor:
        """(B, V) float32: log p(item | history, the next event names an item)."""
        scores = self.model.item_log_probabilities(**self.tensors(batch)).float()
        scores[:, :FIRST_NEW] = -torch.inf
        return scores

    @torch.no_grad()
    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        """(B, A) float64, rows sum to one."""
        size = self.model.config.num_actions
        ranked = self.model.predict(**self.tensors(batch), top_k=size, of="action")
        probabilities = torch.zeros((len(batch), size), dtype=torch.float64)
        probabilities.scatter_(1, ranked.action_ids.cpu(), ranked.probabilities.double().cpu())
        probabilities[:, :FIRST_ACTION] = 0
        return (probabilities / probabilities.sum(dim=1, keepdim=True)).numpy()


class UpdatedModelRanker(ModelRanker):
    """A copy of a model whose memory counts what happened before the targets, without training: what calling
    `update_memory` for every new event would count, in a few steps.

    In a split by time the targets are ranked in blocks of time, and the memory has counted all events of all users
    before the moment a block begins. In leave-one-out it has counted the parts between training and `part` (every
    user's validation event), and nothing of `part`.

    Args:
        model: a `BertForNextBehavior` whose memory has counted the training events; it is left as it is.
        sequences, part: the log, and the part that is ranked.
        split: how the log is split.
        updates: blocks that a split by time is ranked in.
    """

    def __init__(self, model: PreTrainedModel, sequences: Sequences, part: int, split: Split, updates: int) -> None:
        super().__init__(copy.deepcopy(model))
        self.memory: Any = self.model.associate_path
        self._trained: Any = model.associate_path
        by_time = split.how == "time"
        self.updates = updates if by_time else 1
        self._by_time, self._times = by_time, sequences.timestamps
        # As in training, runs of one item count once and events without a known item are passed over.
        self._items, self._users, self._positions = sequences.runs(np.ones(len(sequences.items), dtype=bool))
        parts = sequences.parts[self._positions]
        self._new = np.flatnonzero((parts > TRAIN) & (by_time | (parts < part)))  # runs that training did not count

    def blocks(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """`positions` block by block; when a block is yielded, the memory has counted what precedes it."""
        self.memory.load_tables(self._trained)
        if not len(positions):
            return
        new = self._new[np.argsort(self._times[self._positions[self._new]], kind="stable")]
        if not self._by_time:
            self.memory.count_events(self._items, self._users, new)
            yield positions
            return
        new_times = self._times[self._positions[new]]
        ordered = positions[np.argsort(self._times[positions], kind="stable")]
        counted = 0
        for block in np.array_split(ordered, min(self.updates, len(ordered))):
            before = int(np.searchsorted(new_times, self._times[block[0]], side="left"))
            self.memory.count_events(self._items, self._users, new[counted:before])
            counted = before
            yield block


# ----------------------------------------------------------------------------------------------------------------------
# Scoring
# ----------------------------------------------------------------------------------------------------------------------


def rows_per_batch(vocab_size: int, batch_size: int | None = None) -> int:
    """Targets scored at once: as many as a score matrix of 8 MiB has room for, at most `batch_size`."""
    most = MAX_ROWS if batch_size is None else batch_size
    return int(np.clip(MAX_SCORES // vocab_size, 1, most))


def best_ids(scores: torch.Tensor, k: int = LIST_LENGTH) -> np.ndarray:
    """(B, k) int64: the ids with the highest scores, -1 where a row has fewer candidates."""
    best, ids = scores.topk(min(k, scores.shape[1]), dim=1)
    return ids.masked_fill(best == -torch.inf, -1).cpu().numpy()


def remove_seen(scores: torch.Tensor, seen: Sequence[np.ndarray]) -> None:
    """Makes each row's seen ids no candidates, in place."""
    rows = np.repeat(np.arange(len(seen)), [len(ids) for ids in seen])
    ids = np.concatenate(seen) if len(seen) else np.zeros(0, dtype=np.int64)
    index = (torch.from_numpy(rows).to(scores.device), torch.from_numpy(ids).to(scores.device))
    scores[index] = -torch.inf


def last_items(batch: EvaluationBatch) -> np.ndarray:
    """(B,) int64: the last item that each history names, -2 where it names none."""
    named = batch.input_ids >= FIRST_NEW
    column = named.shape[1] - 1 - named[:, ::-1].argmax(axis=1)
    return np.where(named.any(axis=1), batch.input_ids[np.arange(len(batch)), column], -2)


def rank_items(
    sequences: Sequences,
    part: int,
    positions: np.ndarray,
    rankers: Mapping[str, ItemRanker],
    max_length: int,
    batch_size: int | None,
    progress: bool,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, RankingAccumulator]]]:
    """Ranks the targets at `positions`, in blocks of time if the memory is updated between them.

    Returns:
        What all rankers share, (N,) each: user, group, switch (the target is not the item before it); and for every
        ranker an accumulator "kept", of all targets in that order, and "removed", of those that are not repeats.
    """
    popularity = ItemPopularity.from_counts(training_item_counts(sequences), sequences.first_item_id)
    found = {name: {way: RankingAccumulator(popularity) for way in ("kept", "removed")} for name in rankers}
    shared: dict[str, list[np.ndarray]] = {"user": [], "group": [], "switch": []}
    rows = rows_per_batch(sequences.vocab_size, batch_size)
    updated = rankers.get(UPDATED)
    blocks = updated.blocks(positions) if isinstance(updated, UpdatedModelRanker) else [positions]
    batches = (evaluation_batches(sequences, part, max_length, rows, positions=block) for block in blocks)
    with tqdm(total=len(positions), unit=" targets", desc="ranking items", disable=not progress) as bar:
        for batch in chain.from_iterable(batches):
            shared["user"].append(batch.user)
            shared["group"].append(batch.group)
            shared["switch"].append(batch.target_item != last_items(batch))
            unseen = np.flatnonzero(batch.group != REPEAT)
            for name, ranker in rankers.items():
                scores = torch.as_tensor(ranker.scores(batch))
                ranks = pessimistic_ranks(scores, batch.target_item)
                found[name]["kept"].add(ranks, batch.target_item, best_ids(scores))
                if not len(unseen):
                    continue
                remove_seen(scores, batch.seen)
                # Copying a row costs as much as ranking it.
                chosen, kept = (scores, unseen) if 2 * len(unseen) > len(batch) else (scores[unseen], slice(None))
                targets = batch.target_item if chosen is scores else batch.target_item[unseen]
                found[name]["removed"].add(
                    pessimistic_ranks(chosen, targets)[kept], targets[kept], best_ids(chosen)[kept]
                )
            bar.update(len(batch))
    empty = {"user": np.int64, "group": np.int8, "switch": np.bool_}
    return {
        name: np.concatenate(parts) if parts else np.zeros(0, dtype=empty[name]) for name, parts in shared.items()
    }, found


def rank_actions(
    sequences: Sequences,
    part: int,
    positions: np.ndarray,
    rankers: Mapping[str, ActionRanker],
    max_length: int,
    batch_size: int | None,
    progress: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Action probabilities for the targets at `positions`: what all rankers share, (N,) each (user, target, change:
    the action differs from the one before), and (N, A) float64 for every ranker."""
    shared: dict[str, list[np.ndarray]] = {"user": [], "target": [], "change": []}
    found: dict[str, list[np.ndarray]] = {name: [] for name in rankers}
    rows = ACTION_ROWS if batch_size is None else batch_size
    with tqdm(total=len(positions), unit=" targets", desc="predicting actions", disable=not progress) as bar:
        for batch in evaluation_batches(sequences, part, max_length, rows, positions=positions):
            shared["user"].append(batch.user)
            shared["target"].append(batch.target_action)
            shared["change"].append(batch.target_action != batch.token_type_ids[:, -1])
            for name, ranker in rankers.items():
                found[name].append(ranker.action_probabilities(batch))
            bar.update(len(batch))
    return (
        {name: np.concatenate(parts) for name, parts in shared.items()},
        {name: np.concatenate(parts) for name, parts in found.items()},
    )


# ----------------------------------------------------------------------------------------------------------------------
# Summing up
# ----------------------------------------------------------------------------------------------------------------------


class UserSums:
    """Columns of per-user sums and counts, for the bootstrap over users."""

    def __init__(self, users: np.ndarray) -> None:
        self._users = np.unique(users)
        self._sums: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._names: list[tuple[Any, ...]] = []

    def add(self, name: tuple[Any, ...], users: np.ndarray, values: np.ndarray) -> None:
        index = np.searchsorted(self._users, users)
        self._names.append(name)
        self._sums.append(np.bincount(index, weights=values, minlength=len(self._users)))
        self._counts.append(np.bincount(index, minlength=len(self._users)))

    def resampled(self, seed: int) -> dict[tuple[Any, ...], np.ndarray]:
        """The (R,) resampled means of every column."""
        if not self._names:
            return {}
        means = bootstrap_means(np.stack(self._sums, axis=1), np.stack(self._counts, axis=1), seed=seed)
        return {name: means[:, column] for column, name in enumerate(self._names)}


def group_masks(shared: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(N,) bool for each group of targets."""
    masks = {"all": np.ones(len(shared["group"]), dtype=bool)}
    masks |= {name: shared["group"] == group for group, name in GROUP_NAMES.items()}
    return masks | {"switch": shared["switch"]}


def evaluate(
    sequences: Sequences,
    part: int,
    item_rankers: Mapping[str, ItemRanker],
    action_rankers: Mapping[str, ActionRanker],
    *,
    max_length: int,
    batch_size: int | None = None,
    max_targets: int | None = None,
    seed: int = 0,
    split: Split | None = None,
    actions: Sequence[str] | None = None,
    progress: bool = True,
) -> Result:
    """Metrics of every ranker on the targets of one part.

    Args:
        sequences: the encoded log with its parts.
        part: 1 validation, 2 test.
        item_rankers, action_rankers: name -> ranker; a name may be in both.
        max_length: longest history, in events.
        batch_size: rows scored at once at most; fewer where the vocabulary is large.
        max_targets: about so many targets, of whole users drawn at random; None takes all.
        seed: of that draw and of the bootstrap.
        split: recorded in the result.
        actions: names in id order, the first has id 3; None numbers them.
        progress: show progress bars.

    Returns:
        JSON-able. For each ranker `kept` and `removed`: {"items": {"all", "repeat", "novel", "cold", "switch": {count,
        recall@k, ndcg@k, mrr}}, coverage and the like}, and `actions`: {count, accuracy, macro_f1, log_loss, ece,
        recall, changes}. "switch" are targets that differ from the item before them, "changes" likewise for actions.
        Beside the rankers: split, part, targets, item_targets, users, sampled, seed, items, max_length, rankers (names
        in order) and, if there is a ranker called "model", `comparison` with the best baseline. Metrics over no targets
        are None. `*_interval` are 95 % bootstrap intervals over users.

    Raises:
        ValueError: the part has no targets.
    """
    every = target_positions(sequences, part)
    positions = every if max_targets is None else target_positions(sequences, part, max_targets, seed)
    if not len(positions):
        raise ValueError(
            f"got no targets: no event of part {part} has an earlier event of its user. Expected some: use a later or "
            "larger log, or another --split"
        )
    with_item = positions[sequences.items[positions] != NONE]
    shared, lists = rank_items(sequences, part, with_item, item_rankers, max_length, batch_size, progress)
    shared_actions, probabilities = rank_actions(
        sequences, part, positions, action_rankers, max_length, batch_size, progress
    )
    highest = int(max(sequences.actions.max(), FIRST_ACTION))
    names = [str(action) for action in range(FIRST_ACTION, highest + 1)] if actions is None else list(actions)
    action_names = dict(enumerate(names, start=FIRST_ACTION))

    masks = group_masks(shared)
    unseen = shared["group"] != REPEAT
    sums = UserSums(sequences.user_of_event()[positions])
    rows: Result = {}
    for name, accumulators in lists.items():
        rows[name] = {}
        for way, accumulator in accumulators.items():
            counted = unseen if way == "removed" else np.ones(len(unseen), dtype=bool)
            ranks, users = accumulator.ranks(), shared["user"][counted]
            groups = {group: mask[counted] for group, mask in masks.items()}
            rows[name][way] = {
                "items": {group: ranking_metrics(ranks[mask], sequences.vocab_size) for group, mask in groups.items()},
                **accumulator.list_metrics(),
            }
            for group, mask in groups.items():
                for metric, function in INTERVAL_METRICS.items():
                    sums.add((name, way, group, metric), users[mask], function(ranks[mask], 10))
    for name, values in probabilities.items():
        target, change = shared_actions["target"], shared_actions["change"]
        metrics: dict[str, Any] = dict(action_metrics(target, values, action_names))
        changed = action_metrics(target[change], values[change], action_names)
        metrics["changes"] = {key: changed[key] for key in ("count", "accuracy")}
        rows.setdefault(name, {})["actions"] = metrics
        correct = (values.argmax(axis=1) == target).astype(np.float64)
        sums.add((name, "actions", None, "accuracy"), shared_actions["user"], correct)

    resampled = sums.resampled(seed)
    for (name, way, group, metric), means in resampled.items():
        if way == "actions":
            rows[name][way][f"{metric}_interval"] = interval(means)
        elif group in INTERVAL_GROUPS:
            rows[name][way]["items"][group][f"{metric}_interval"] = interval(means)
    result: Result = {
        **rows,
        "rankers": list(rows),
        "split": None if split is None else split.to_dict(),
        "part": part,
        "targets": len(positions),
        "item_targets": len(with_item),
        "users": len(np.unique(sequences.user_of_event()[positions])),
        "sampled": len(positions) < len(every),
        "all_targets": len(every),
        "items": sequences.vocab_size - sequences.first_item_id,
        "actions": names,
        "max_length": max_length,
        "seed": seed,
    }
    if MODEL in rows:
        result["comparison"] = compare(rows, resampled)
    return result


def value_of(row: Result, way: str, group: str | None, metric: str) -> float | None:
    """One metric of a ranker's row, None if it has none."""
    if way not in row:
        return None
    found = row[way]["items"][group][metric] if group is not None else row[way][metric]
    return None if found is None else float(found)


def compare(rows: Result, resampled: Mapping[tuple[Any, ...], np.ndarray]) -> list[Result]:
    """For each of `COMPARED`: the model's value, the best baseline and its value, the difference (positive: the model
    is better), its paired 95 % interval where it was resampled, and whether the model beats it."""
    comparison = []
    for way, group, metric in COMPARED:
        values = {name: value_of(row, way, group, metric) for name, row in rows.items()}
        known = {name: value for name, value in values.items() if value is not None}
        others = [name for name in known if name not in (MODEL, UPDATED, BALANCED)]
        if MODEL not in known or not others:
            continue
        # Macro-F1 is what the balanced answers are for, of the model and of its baseline.
        ours = BALANCED if metric == "macro_f1" and BALANCED in known else MODEL
        sign = -1.0 if metric == "log_loss" else 1.0
        best = max(others, key=lambda name: sign * known[name])
        difference = sign * (known[ours] - known[best])
        pair = [resampled.get((name, way, group, metric)) for name in (ours, best)]
        comparison.append(
            {
                "where": way,
                "group": group,
                "metric": metric,
                "ranker": ours,
                "model": known[ours],
                "best_baseline": best,
                "best": known[best],
                "difference": difference,
                "difference_interval": None if pair[0] is None or pair[1] is None else interval(pair[0] - pair[1]),
                "beats": difference > 0,
            }
        )
    return comparison


def evaluate_model(
    model: PreTrainedModel | None,
    sequences: Sequences,
    part: int,
    max_length: int,
    *,
    batch_size: int | None = None,
    max_targets: int | None = None,
    seed: int = 0,
    split: Split | None = None,
    actions: Sequence[str],
    neighbours: ItemNeighbours | None = None,
    memory_updates: int | None = None,
    progress: bool = True,
) -> Result:
    """`evaluate` for a model (None: only the baselines) beside every baseline, which are fitted here; adds `baselines`:
    the constants that each chose and its note.

    With `memory_updates` there is one more ranker, the model whose memory goes on counting before each of so many
    blocks of targets (see `UpdatedModelRanker`), and `memory_updates` is in the result: 1 where the split is not by
    time.
    """
    if memory_updates is not None and (model is None or split is None or split.how == "none" or memory_updates < 1):
        raise ValueError(
            f"got memory_updates={memory_updates} for the split {split}; expected at least 1, with a model and a split "
            "by time or leave_one_out"
        )
    items, markov = fit_baselines(sequences, FIRST_ACTION + len(actions), progress, neighbours)
    item_rankers: dict[str, ItemRanker] = {}
    action_rankers: dict[str, ActionRanker] = {}
    if model is not None:
        item_rankers[MODEL] = action_rankers[MODEL] = ModelRanker(model)
        if any(model.config.action_weights):
            action_rankers[BALANCED] = BalancedActions(action_rankers[MODEL], np.array(model.config.action_weights))
    updated = None
    if model is not None and split is not None and memory_updates is not None:
        updated = item_rankers[UPDATED] = UpdatedModelRanker(model, sequences, part, split, memory_updates)
    result = evaluate(
        sequences,
        part,
        item_rankers | items,
        action_rankers | markov,
        max_length=max_length,
        batch_size=batch_size,
        max_targets=max_targets,
        seed=seed,
        split=split,
        actions=actions,
        progress=progress,
    )
    if updated is not None:
        result["memory_updates"] = updated.updates
    fitted = {**items, **markov}
    result["baselines"] = {name: {"chosen": ranker.chosen, "note": ranker.note} for name, ranker in fitted.items()}
    return result


# ----------------------------------------------------------------------------------------------------------------------
# The table
# ----------------------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 4) -> str:
    """The value as text without its leading zero, a dash for None.

    >>> number(0.0553), number(-0.25, 2), number(1.0, 3), number(None)
    ('.0553', '-.25', '1.000', '–')
    >>> number(-0.00001)
    '.0000'
    """
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table, the first column to the left, the others to the right.

    >>> print(table(["ranker", "NDCG@10"], [["model", ".06"]]))
    | ranker | NDCG@10 |
    |:-------|--------:|
    | model  |     .06 |
    """
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join([cells[0].ljust(widths[0]), *others])} |"

    rule = "|".join([":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(header), f"|{rule}|", *(line(row) for row in rows)])


def marked(values: Sequence[float | None], lower: bool = False, digits: int = 4) -> list[str]:
    """The numbers of a column as text, the best in bold where they differ."""
    known = [value for value in values if value is not None]
    best = (min if lower else max)(known) if len(set(known)) > 1 else None
    return [f"**{number(v, digits)}**" if v is not None and v == best else number(v, digits) for v in values]


def with_interval(metrics: Mapping[str, Any], metric: str) -> str:
    found = metrics.get(f"{metric}_interval")
    return "–" if found is None else f"{number(found[0])}–{number(found[1])}"


def items_table(result: Result, way: str) -> str:
    """The item metrics of all rankers, seen items kept or removed."""
    names = [name for name in result["rankers"] if way in result[name]]
    groups = {name: result[name][way]["items"] for name in names}
    shown = ("repeat", "novel", "cold", "switch") if way == "kept" else ("novel", "cold")
    columns = [
        ("Recall@10", marked([groups[name]["all"]["recall@10"] for name in names])),
        ("NDCG@10", marked([groups[name]["all"]["ndcg@10"] for name in names])),
        ("95 %", [with_interval(groups[name]["all"], "ndcg@10") for name in names]),
        ("MRR", marked([groups[name]["all"]["mrr"] for name in names])),
    ]
    for group in shown:
        if groups[names[0]][group]["count"]:
            columns.append((f"NDCG {group}", marked([groups[name][group]["ndcg@10"] for name in names])))
    columns += [
        ("coverage", [number(result[name][way][f"coverage@{LIST_LENGTH}"], 3) for name in names]),
        ("novelty", [number(result[name][way][f"novelty@{LIST_LENGTH}"], 1) for name in names]),
        ("popularity bias", [number(result[name][way][f"popularity_bias@{LIST_LENGTH}"], 2) for name in names]),
    ]
    rows = zip([name.replace("_", " ") for name in names], *(cells for _, cells in columns), strict=True)
    return table(["next item", *(title for title, _ in columns)], [list(row) for row in rows])


def actions_table(result: Result) -> str:
    """The action metrics of all rankers that have them."""
    names = [name for name in result["rankers"] if "actions" in result[name]]
    metrics = [result[name]["actions"] for name in names]
    columns = [
        ("accuracy", marked([row["accuracy"] for row in metrics])),
        ("95 %", [with_interval(row, "accuracy") for row in metrics]),
        ("macro-F1", marked([row["macro_f1"] for row in metrics])),
        ("log-loss", marked([row["log_loss"] for row in metrics], lower=True)),
        ("ECE", marked([row["ece"] for row in metrics], lower=True)),
        ("accuracy at changes", marked([row["changes"]["accuracy"] for row in metrics])),
    ]
    rows = zip([name.replace("_", " ") for name in names], *(cells for _, cells in columns), strict=True)
    text = table(["next action", *(title for title, _ in columns)], [list(row) for row in rows])
    occurring = list(metrics[0]["recall"])
    recalls = [
        [name.replace("_", " "), *(number(row["recall"][action], 3) for action in occurring)]
        for name, row in zip(names, metrics, strict=True)
    ]
    return text + "\n\n" + table(["recall of", *(action.replace("|", "\\|") for action in occurring)], recalls)


def describe_split(result: Result) -> str:
    split = "not recorded" if result["split"] is None else str(Split.from_dict(result["split"]))
    what = {0: "training", 1: "validation", 2: "test"}[result["part"]]
    drawn = (
        f"a sample of {result['targets']:,} of {result['all_targets']:,} {what} targets (whole users, seed "
        f"{result['seed']})"
        if result["sampled"]
        else f"all {result['targets']:,} {what} targets"
    )
    lines = [f"Split: {split}; {drawn} of {result['users']:,} users; {result['items']:,} items in the catalogue."]
    first = next((result[name] for name in result["rankers"] if "kept" in result[name]), None)
    if first is not None:
        groups = {group: metrics["count"] for group, metrics in first["kept"]["items"].items()}
        lines.append(
            f"{result['item_targets']:,} targets name an item: {groups['repeat']:,} repeat one of the user's own, "
            f"{groups['novel']:,} are new to the user, {groups['cold']:,} are cold (absent from training)."
        )
    return "\n".join(lines)


def verdict(result: Result) -> str:
    """One line per comparison of the model with the best baseline, those it loses marked."""
    lines = []
    for row in result["comparison"]:
        if row["where"] == "actions" and len(result["actions"]) == 1:
            continue
        where = "next action" if row["group"] is None else f"{row['group']} targets, seen items {row['where']}"
        low_high = row["difference_interval"]
        doubt = "" if low_high is None else f" [{low_high[0]:+.4f}, {low_high[1]:+.4f}]"
        unclear = low_high is not None and low_high[0] <= 0 <= low_high[1]
        beats = "beats" if row["beats"] else "**does not beat**"
        ours, best = row.get("ranker", MODEL), row["best_baseline"].replace("_", " ")
        lines.append(
            f"- {row['metric']}, {where}: the {ours} {beats} {best}: "
            f"{number(row['model'])} against {number(row['best'])}, difference {row['difference']:+.4f}{doubt}"
            f"{'; not certain, the interval holds 0' if unclear else ''}"
        )
    return "\n".join(lines)


def format_table(result: Result) -> str:
    """What `evaluate` found as text that reads in a terminal and renders as Markdown."""
    parts = [describe_split(result)]
    for way, title in (("kept", "Seen items kept"), ("removed", "Seen items removed, targets new to the user")):
        if any(way in result[name] for name in result["rankers"]):
            counts = next(result[name][way]["items"] for name in result["rankers"] if way in result[name])
            if counts["all"]["count"]:
                parts.append(f"{title} ({counts['all']['count']:,} targets)\n\n{items_table(result, way)}")
    if len(result["actions"]) == 1:
        parts.append(f"The log has one action, {result['actions'][0]}: there is nothing to predict.")
    elif any("actions" in result[name] for name in result["rankers"]):
        parts.append(actions_table(result))
    if "comparison" in result:
        parts.append(f"The model against the best baseline:\n\n{verdict(result)}")
    notes = [
        f"- {name.replace('_', ' ')}: {entry['note']}"
        for name, entry in result.get("baselines", {}).items()
        if entry["note"]
    ]
    if any(name.endswith("balanced") for name in result["rankers"]):
        notes.insert(
            0,
            "- balanced: the action named is the best after weights that were fitted on validation events for "
            "macro-F1, so that rare actions are named too; its probabilities are not calibrated",
        )
    if UPDATED in result:
        counted = (
            f"before each of {result['memory_updates']} blocks of targets in time order its memory counted all earlier "
            "events"
            if result["split"]["how"] == "time"
            else "its memory counted every user's events between training and the target"
        )
        notes.insert(0, f"- {UPDATED}: {counted}, without training; the other rankers count training events only")
    if notes:
        parts.append("Notes:\n\n" + "\n".join(notes))
    parts.append(
        "The whole catalogue is ranked, ties against the ranker; intervals by bootstrap over users. NDCG columns are "
        "NDCG@10; switch: the target is not the item before it; coverage, novelty (bits) and popularity bias of the "
        "first ten."
    )
    return "\n\n".join(parts) + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------


def recorded_split(model_dir: Path) -> Split | None:
    """The split in `split.json` beside the model, None if there is none."""
    path = model_dir / "split.json"
    return Split.from_dict(json.loads(path.read_text())) if path.exists() else None


def write_whole(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--events", required=True, help="event log: .csv, .csv.gz, .parquet or a folder of them")
    parser.add_argument("--split", choices=["time", "leave_one_out"], help="default: the one recorded with the model")
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--max_targets", type=int, help="about so many targets, of whole users drawn at random")
    parser.add_argument("--batch_size", type=int, help="rows scored at once at most")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the bootstrap")
    parser.add_argument(
        "--update_memory",
        action="store_true",
        help="rank the model once more while its memory counts the events before the targets, without training",
    )
    parser.add_argument(
        "--memory_updates",
        type=int,
        default=MEMORY_UPDATES,
        help="blocks of time between which that memory counts; leave_one_out has one",
    )
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    for name in ("max_targets", "batch_size", "memory_updates"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: expected at least 1")
    if not Path(args.model).is_dir():
        raise FileNotFoundError(f"got --model {args.model}; expected the folder of a trained model")

    log = read_events(args.events, options_from_arguments(args))
    print(log.report)
    split = recorded_split(Path(args.model))
    if args.split is not None:
        asked = make_split(log.events, args.split)
        if split is not None and asked != split:
            warnings.warn(
                f"--split {args.split} differs from the split that the model was trained with ({split}): it may have "
                "been trained on what is tested here",
                stacklevel=1,
            )
        split = asked
    if split is None or split.how == "none":
        raise ValueError(
            f"got a model {'without a recorded split' if split is None else 'trained on its whole log'}; expected a "
            "split to evaluate on: pass --split time or --split leave_one_out, with events that it was not trained on"
        )
    result = evaluate_folder(
        Path(args.model),
        assign_parts(log.events, split),
        split,
        args.batch_size,
        args.max_targets,
        args.seed,
        memory_updates=args.memory_updates if args.update_memory else None,
    )
    print(format_table(result))
    if args.json is not None:
        write_whole(Path(args.json), json.dumps(result, indent=1, allow_nan=False))


def tokenize_log(events: Any, tokenizer: Any) -> Any:
    """`encode_events` of a Polars frame with the vocabulary of a `BehaviorTokenizer`: a `datasets.Dataset`."""
    return encode_events(
        events,
        item_vocabulary=tokenizer.item_vocabulary,
        first_item_id=tokenizer.first_item_id,
        action_vocabulary=tokenizer.action_vocabulary,
        time_edges=tokenizer.time_edges,
    )


def evaluate_folder(
    model_dir: Path,
    events: Any,
    split: Split,
    batch_size: int | None,
    max_targets: int | None,
    seed: int,
    memory_updates: int | None = None,
) -> Result:
    """`evaluate_model` on the test part of `events` (a Polars frame with parts) for the model in a folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=True)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(model_dir, trust_remote_code=True, dtype=torch.float32).to(device)
    dataset = tokenize_log(events, tokenizer)
    return evaluate_model(
        model,
        Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id),
        TEST,
        tokenizer.model_max_length,
        batch_size=batch_size,
        max_targets=max_targets,
        seed=seed,
        split=split,
        actions=tokenizer.action_vocabulary,
        memory_updates=memory_updates,
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"evaluate_behavior.py: {error}")
