"""The model and the baselines on held-out events.

    result = evaluate_folder(Path("out/shop"), events_with_parts, split, None, None, seed=0)
    print(format_table(result))                      # evaluation/tables.py

Every target is ranked among the whole catalog, ties against the ranker (`ranking.py`). The baselines count the training
events of the same split (`baselines.py`).

A result is what `evaluation.json` holds. Metrics over no targets are None. It has for each ranker:

    kept, removed   {"items": {"all", "repeat", "novel", "cold", "switch": {count, recall@k, ndcg@k, mrr}}, "slices":
                    {"action", "history", "popularity": {slice: {count, recall@10, ndcg@10, mrr}}} (`slices.py`),
                    coverage and the like (`recommended.py`)}. "switch" are targets that differ from the item before
                    them. `kept` has visited_recall@10 and unvisited_recall@10, too: of repeats, and of all others.
    actions         {count, accuracy, macro_f1, log_loss, ece, recall, precision, f1, confusion, changes}. "changes" are
                    targets whose action differs from the one before them.

`*_interval` are 95 % bootstrap intervals over users. Beside the rankers stand split, part, targets, item_targets,
users, sampled, seed, items, max_length and rankers (names in order). If there is a model, `comparison` has it beside
the best baseline; several models also have `models`, `comparisons` and `pairs` (`comparison.py`). `audit` is what was
looked at for leaks (`audit.py`). `passes` is how often training saw its events, None where it is not known.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from next_behavior.data.batches import GROUP_NAMES, REPEAT, target_positions
from next_behavior.data.known import check_known
from next_behavior.data.sequences import TEST, Sequences, tokenize_log
from next_behavior.data.splits import Split, make_split, moment, recorded_split
from next_behavior.evaluation.action_baselines import BalancedActions
from next_behavior.evaluation.audit import audit_model
from next_behavior.evaluation.audit_counts import TrainingRecord, training_record
from next_behavior.evaluation.baselines import COUNTING, fit_baselines, updated_baselines
from next_behavior.evaluation.comparison import ACTIONS, Column, Result, UserSums, comparisons
from next_behavior.evaluation.dump import PredictionDump, dumping
from next_behavior.evaluation.item_neighbors import ItemNeighbors
from next_behavior.evaluation.metrics import (
    Metrics,
    action_metrics,
    beyond_any_cutoff,
    interval,
    log_losses,
    ndcg_at_k,
    ranking_metrics,
    recall_at_k,
)
from next_behavior.evaluation.probabilities import measured_probabilities
from next_behavior.evaluation.rankers import (
    BALANCED,
    MODEL,
    UPDATED,
    ActionRanker,
    ItemRanker,
    ModelRanker,
    UpdatedModelRanker,
    text_vectors,
)
from next_behavior.evaluation.ranking import KEPT, REMOVED, PredictedActions, RankedItems, predict_actions, rank_items
from next_behavior.evaluation.slices import Slices, sliced_metrics, slices_of
from next_behavior.model.integrity import check_agreement
from next_behavior.model.special_ids import FIRST_ACTION, NONE

# Metrics with intervals, and the groups of targets that have them.
INTERVAL_METRICS = {"recall@10": recall_at_k, "ndcg@10": ndcg_at_k}
INTERVAL_GROUPS = ("all", "novel")


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
    models: Sequence[str] = (MODEL,),
    dump: PredictionDump | None = None,
    progress: bool = True,
) -> Result:
    """Metrics of every ranker on the targets of one part.

    Args:
        sequences: the encoded log with its parts.
        part: VALIDATION or TEST.
        item_rankers, action_rankers: name -> ranker; a name may be in both.
        max_length: longest history, in events.
        batch_size: rows scored at once at most; fewer where the vocabulary is large.
        max_targets: about so many targets, of whole users drawn at random; None takes all.
        seed: of that draw and of the bootstrap.
        split: recorded in the result.
        actions: names in id order, the first is FIRST_ACTION's; None numbers them.
        models: the rankers that are no baselines; they are compared with the best baseline and with each other.
        dump: takes every prediction (`dump.py`).
        progress: show progress bars.

    Raises:
        ValueError: a number is too small, or the part has no targets.
    """
    check_numbers(max_length=max_length, batch_size=batch_size, max_targets=max_targets, seed=seed)
    positions, all_targets = targets_of(sequences, part, max_targets, seed), len(target_positions(sequences, part))
    with_item = positions[sequences.items[positions] != NONE]
    predicted = predict_actions(sequences, part, positions, action_rankers, max_length, batch_size, progress)
    if dump is not None:
        dump.begin(predicted.position, predicted.change, predicted.probabilities)
    ranked = rank_items(sequences, part, with_item, item_rankers, max_length, batch_size, progress, dump)
    if dump is not None:
        dump.end(list(item_rankers))
    names = action_names(sequences, actions)
    users = sequences.user_of_event()[positions]
    sums = UserSums(users)
    rows: Result = {name: {} for name in [*item_rankers, *action_rankers]}
    action_of_id = dict(enumerate(names, start=FIRST_ACTION))
    add_item_metrics(rows, sums, ranked, sequences.vocab_size)
    add_slices(rows, ranked, sequences.vocab_size, slices_of(sequences, ranked.position, action_of_id))
    add_action_metrics(rows, sums, predicted, action_of_id)
    resampled = sums.resampled(seed)
    add_intervals(rows, resampled)
    return {
        **rows,
        "rankers": list(rows),
        "split": None if split is None else split.to_dict(),
        "part": part,
        "targets": len(positions),
        "item_targets": len(with_item),
        "users": len(np.unique(users)),
        "sampled": len(positions) < all_targets,
        "all_targets": all_targets,
        "items": sequences.vocab_size - sequences.first_item_id,
        "actions": names,
        "max_length": max_length,
        "seed": seed,
        **comparisons(rows, resampled, models),
    }


def check_numbers(**numbers: int | None) -> None:
    """ValueError unless each is at least 1, a seed at least 0; None stands for nothing asked."""
    for name, number in numbers.items():
        least = 0 if name == "seed" else 1
        if number is not None and number < least:
            raise ValueError(f"got {name}={number}; expected at least {least}")


def targets_of(sequences: Sequences, part: int, max_targets: int | None, seed: int) -> np.ndarray:
    """(N,) int64: the positions of the targets of a part, or of a sample of whole users.

    Raises:
        ValueError: the part has no targets.
    """
    positions = target_positions(sequences, part, max_targets, seed)
    if not len(positions):
        raise ValueError(
            f"got no targets: no event of part {part} has an earlier event of its user. Expected some: use a later or "
            "larger log, or another --split"
        )
    return positions


def action_names(sequences: Sequences, actions: Sequence[str] | None) -> list[str]:
    """Names of the actions in id order; without names, their ids as text."""
    highest = int(max(sequences.actions.max(), FIRST_ACTION))
    return [str(action) for action in range(FIRST_ACTION, highest + 1)] if actions is None else list(actions)


def add_item_metrics(rows: Result, sums: UserSums, ranked: RankedItems, vocab_size: int) -> None:
    """Adds `kept` and `removed` to the rankers' rows, and what their intervals need to `sums`."""
    masks = {"all": np.ones(len(ranked.group), dtype=bool)}
    masks |= {name: ranked.group == group for group, name in GROUP_NAMES.items()}
    masks["switch"] = ranked.switch
    ways = {KEPT: masks["all"], REMOVED: ranked.group != REPEAT}
    for name, lists in ranked.lists.items():
        for way, accumulator in ((KEPT, lists.kept), (REMOVED, lists.removed)):
            counted = ways[way]
            ranks, users = beyond_any_cutoff(accumulator.ranks(), vocab_size), ranked.user[counted]
            groups = {group: mask[counted] for group, mask in masks.items()}
            rows[name][way] = {
                "items": {group: ranking_metrics(ranks[mask], vocab_size) for group, mask in groups.items()},
                **accumulator.list_metrics(),
            }
            if way == KEPT:
                rows[name][way] |= visited_recall(ranks, ranked.group == REPEAT, vocab_size)
            for group, mask in groups.items():
                for metric, function in INTERVAL_METRICS.items():
                    sums.add(Column(name, way, group, metric), users[mask], function(ranks[mask], 10))


def visited_recall(ranks: np.ndarray, is_repeat: np.ndarray, vocab_size: int) -> Metrics:
    """Recall@10 of the (N,) ranks of targets that the user had visited before, and of all others."""
    ways = {"visited": ranks[is_repeat], "unvisited": ranks[~is_repeat]}
    return {f"{name}_recall@10": ranking_metrics(chosen, vocab_size)["recall@10"] for name, chosen in ways.items()}


def add_slices(rows: Result, ranked: RankedItems, vocab_size: int, slices: Slices) -> None:
    """Adds `slices` to `kept` and `removed` of the rankers' rows."""
    ways = {KEPT: np.ones(len(ranked.group), dtype=bool), REMOVED: ranked.group != REPEAT}
    for name, lists in ranked.lists.items():
        for way, accumulator in ((KEPT, lists.kept), (REMOVED, lists.removed)):
            ranks, counted = accumulator.ranks(), ways[way]
            rows[name][way]["slices"] = {
                by: sliced_metrics(ranks, vocab_size, {slice: mask[counted] for slice, mask in masks.items()})
                for by, masks in slices.items()
            }


def add_action_metrics(rows: Result, sums: UserSums, predicted: PredictedActions, names: dict[int, str]) -> None:
    """Adds `actions` to the rankers' rows, and what their intervals need to `sums`; `names` by action id."""
    target, change = predicted.target, predicted.change
    for name, probabilities in predicted.probabilities.items():
        metrics: dict[str, Any] = dict(action_metrics(target, probabilities, names))
        changed = action_metrics(target[change], probabilities[change], names)
        metrics["changes"] = {key: changed[key] for key in ("count", "accuracy")}
        rows[name][ACTIONS] = metrics
        named = probabilities.argmax(axis=1)
        sums.add(Column(name, ACTIONS, None, "accuracy"), predicted.user, (named == target).astype(np.float64))
        sums.add_macro_f1(Column(name, ACTIONS, None, "macro_f1"), predicted.user, target, named)
        known = np.isin(target, list(names))
        losses = log_losses(target[known], probabilities[known][:, list(names)], list(names))
        sums.add(Column(name, ACTIONS, None, "log_loss"), predicted.user[known], losses)


def add_intervals(rows: Result, resampled: Mapping[Column, np.ndarray]) -> None:
    """Adds the `*_interval` of each resampled metric that is shown with one."""
    for (name, way, group, metric), means in resampled.items():
        if way == ACTIONS:
            rows[name][way][f"{metric}_interval"] = interval(means)
        elif group in INTERVAL_GROUPS:
            rows[name][way]["items"][group][f"{metric}_interval"] = interval(means)


# ----------------------------------------------------------------------------------------------------------------------
# The model beside the baselines
# ----------------------------------------------------------------------------------------------------------------------


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
    neighbors: ItemNeighbors | None = None,
    baselines: str = COUNTING,
    until: float = math.inf,
    memory_updates: int | None = None,
    record: TrainingRecord | None = None,
    dump: PredictionDump | None = None,
    time_edges: Sequence[float] | None = None,
    progress: bool = True,
) -> Result:
    """`evaluate` for a model (None: only the baselines) and every baseline, which are fitted here.

    Adds `baselines` to the result: the constants that each chose, and its note; `audit` (`audit.py`); and, for a model,
    what `probabilities.py` measures.

    Args:
        neighbors: the item neighbors, where they are fitted already.
        baselines: COUNTING, or ALL for those that train, too.
        until: when choosing the constants of baselines stops, by `time.monotonic`.
        memory_updates: adds the model whose memory goes on counting before each of so many blocks of targets
            (`UpdatedModelRanker`), and the baselines that count as much. The result holds the number of blocks: 1 where
            the split is not by time.
        record: what the model's folder says of its training; None where there is none.
        dump: as for `evaluate`.
        time_edges: of the tokenizer's time buckets, to measure the time head; None for a log without times.

    Raises:
        Leak: the model, or the training part of the log, knows tested events.
    """
    if memory_updates is not None and (model is None or split is None or split.how == "none" or memory_updates < 1):
        raise ValueError(
            f"got memory_updates={memory_updates} for the split {split}; expected at least 1, with a model and a split "
            "by time or leave_one_out"
        )
    audit = audit_model(model, sequences, part, split, record, actions)
    texts = None if model is None else text_vectors(model)
    items, markov = fit_baselines(sequences, FIRST_ACTION + len(actions), progress, neighbors, texts, baselines, until)
    item_rankers: dict[str, ItemRanker] = {}
    action_rankers: dict[str, ActionRanker] = {}
    if model is not None:
        item_rankers[MODEL] = action_rankers[MODEL] = ModelRanker(model)
        if any(model.config.action_weights):
            action_rankers[BALANCED] = BalancedActions(action_rankers[MODEL], np.array(model.config.action_weights))
    updated = None
    if model is not None and split is not None and memory_updates is not None:
        updated = item_rankers[UPDATED] = UpdatedModelRanker(model, sequences, part, split, memory_updates)
    counting_on = {} if updated is None or split is None else updated_baselines(items, sequences, part, split)
    result = evaluate(
        sequences,
        part,
        {**item_rankers, **items, **counting_on},
        action_rankers | markov,
        max_length=max_length,
        batch_size=batch_size,
        max_targets=max_targets,
        seed=seed,
        split=split,
        actions=actions,
        dump=dump,
        progress=progress,
    )
    result["audit"] = audit.to_dict()
    if updated is not None:
        result["memory_updates"] = updated.updates
    if model is not None:
        result["reads_text"] = model.config.text_size > 0
        positions = targets_of(sequences, part, max_targets, seed)
        result |= measured_probabilities(model, sequences, part, max_length, positions, time_edges, seed)
    fitted = {**items, **markov}
    result["baselines"] = {name: {"chosen": ranker.chosen, "note": ranker.note} for name, ranker in fitted.items()}
    return result


def split_to_evaluate(model_dir: Path, events: pl.DataFrame, asked: str | None) -> Split:
    """The split that is recorded with the model, or the one that is asked for ("time", "leave_one_out").

    A model that was trained on a whole log is tested on what came after it. Warns where the split that is recorded and
    the one that is asked for differ.

    Raises:
        ValueError: neither is there, or nothing came after the whole log that the model was trained on.
    """
    split = recorded_split(model_dir)
    until = learned_until(model_dir)
    if asked is None and split is not None and split.how == "none" and until is not None:
        newest = events["timestamp"].dt.epoch("us").max()
        if isinstance(newest, int) and newest > until:
            return Split("time", until, until)
    if asked is not None:
        other = make_split(events, asked)
        if split is not None and other != split:
            warnings.warn(
                f"--split {asked} differs from the split that the model was trained with ({split}): it may have "
                "been trained on what is tested here",
                stacklevel=2,
            )
        split = other
    if split is None or split.how == "none":
        raise ValueError(
            f"got a model {'without a recorded split' if split is None else 'trained on its whole log'}"
            f"{'' if until is None else f', until {moment(until)}'}; expected events that it was not trained on: later "
            "ones, or pass --split time or --split leave_one_out"
        )
    return split


def learned_until(model_dir: Path) -> int | None:
    """Microseconds since 1970: until when the model in a folder has learned; None where it does not say."""
    config = model_dir / "config.json"
    return json.loads(config.read_text()).get("learned_until") if config.is_file() else None


def evaluate_folder(
    model_dir: Path,
    events: pl.DataFrame,
    split: Split,
    batch_size: int | None,
    max_targets: int | None,
    seed: int,
    memory_updates: int | None = None,
    baselines: str = COUNTING,
    dump: Path | None = None,
) -> Result:
    """`evaluate_model` on the test part of `events`, which have their parts, for the model in a folder.

    Args:
        dump: a Parquet file that takes every prediction (`dump.py`).

    Raises:
        ValueError: the tokenizer is another model's, or knows no item or no action of the events; or a `Leak`.
    """
    model, tokenizer = load_folder(model_dir)
    check_known(events, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
    dataset = tokenize_log(events, tokenizer)
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    with dumping(dump, events, tokenizer.item_vocabulary, sequences) as predictions:
        result = evaluate_model(
            model,
            sequences,
            TEST,
            tokenizer.model_max_length,
            batch_size=batch_size,
            max_targets=max_targets,
            seed=seed,
            split=split,
            actions=tokenizer.action_vocabulary,
            memory_updates=memory_updates,
            baselines=baselines,
            record=training_record(model_dir),
            dump=predictions,
            time_edges=tokenizer.time_edges if tokenizer.has_time else None,
        )
    result["passes"] = recorded_passes(model_dir)
    return result


def load_folder(model_dir: Path) -> tuple[Any, Any]:
    """The model of a folder, on a GPU where there is one, and its tokenizer.

    Raises:
        ValueError: the tokenizer is another model's.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=True)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(model_dir, trust_remote_code=True, dtype=torch.float32).to(device)
    check_agreement(model.config, tokenizer)
    return model, tokenizer


def recorded_passes(model_dir: Path) -> float | None:
    """The passes over its training events that the model in a folder saw; None where its run did not record them."""
    record = model_dir / "run.json"
    return json.loads(record.read_text()).get("passes") if record.is_file() else None
