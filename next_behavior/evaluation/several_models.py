"""Several models on the same targets, beside the baselines once; and the average of their probabilities.

    split = common_split([Path("out/a"), Path("out/b")], events, asked=None)
    result = evaluate_folders([Path("out/a"), Path("out/b")], assign_parts(events, split), split, ensemble=True)
    print(format_table(result))                      # evaluation/tables.py

A result is what `evaluate` returns (`evaluator.py`). The models' rows are called after their folders. `folders` holds
for each where it lies, the passes that it saw, and how many items of the shared catalog it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import path
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from next_behavior.data.known import check_known
from next_behavior.data.sequences import TEST
from next_behavior.data.shown import shown
from next_behavior.data.splits import Split, recorded_split
from next_behavior.evaluation.action_baselines import BalancedActions
from next_behavior.evaluation.audit import audit_model
from next_behavior.evaluation.audit_counts import training_record
from next_behavior.evaluation.baselines import COUNTING, fit_baselines
from next_behavior.evaluation.comparison import Result
from next_behavior.evaluation.dump import dumping
from next_behavior.evaluation.evaluator import evaluate, load_folder, recorded_passes, split_to_evaluate
from next_behavior.evaluation.leaks import Audit, Leak
from next_behavior.evaluation.rankers import ENSEMBLE, ActionRanker, ItemRanker, ModelRanker, balanced, text_vectors
from next_behavior.evaluation.shared_catalog import Ensemble, SharedCatalog, SharedRanker, log_in_ids
from next_behavior.model.special_ids import FIRST_ACTION


def names_of(folders: Sequence[Path]) -> list[str]:
    """What the models' rows are called: as many of the last parts of their paths as tell them apart.

    >>> names_of([Path("out/shop"), Path("out/toys")]), names_of([Path("a/shop"), Path("b/shop")])
    (['model shop', 'model toys'], ['model a/shop', 'model b/shop'])
    """
    whole = [Path(path.abspath(folder)).parts for folder in folders]
    for depth in range(1, max(map(len, whole)) + 1):
        # A bar would end the cell of a Markdown table.
        names = [shown("/".join(parts[-depth:])).replace("|", "-") for parts in whole]
        if len(set(names)) == len(names):
            return [f"model {name}" for name in names]
    raise ValueError(f"got the models {', '.join(map(str, folders))}; expected different ones, each once")


def common_split(folders: Sequence[Path], events: pl.DataFrame, asked: str | None) -> Split:
    """The split that all models were trained with, or the one that is asked for; it warns where that differs. Of
    different splits by time it is the last one: what it tests, no model has seen.

    Raises:
        ValueError: the models were trained with different splits and none is asked for, or as `split_to_evaluate`.
    """
    recorded = {str(folder): recorded_split(folder) for folder in folders}
    splits = [split_to_evaluate(folder, events, asked) for folder in folders]  # each may warn
    if all(split.how == "time" for split in splits):
        return max(splits, key=lambda split: split.test_cut or 0)
    if asked is None and len(set(splits)) > 1:
        listed = "; ".join(f"{folder}: {split or 'none recorded'}" for folder, split in recorded.items())
        raise ValueError(
            f"got models that were trained with different splits ({listed}); expected the same one, or a model may "
            "have been trained on what is tested: train them alike, or pass --split: the evaluation stops if one was"
        )
    return splits[0]


def evaluate_folders(
    folders: Sequence[Path],
    events: pl.DataFrame,
    split: Split,
    *,
    ensemble: bool = False,
    batch_size: int | None = None,
    max_targets: int | None = None,
    seed: int = 0,
    baselines: str = COUNTING,
    dump: Path | None = None,
    progress: bool = True,
) -> Result:
    """Every model and every baseline on the test part of `events`, which have their parts.

    Args:
        ensemble: adds a row, the mean of the models' probabilities.
        baselines: COUNTING, or ALL for those that train, too. TGH is left out: each model has texts of its own.
        dump: a Parquet file that takes every prediction (`dump.py`).

    Raises:
        ValueError: a tokenizer is another model's, or knows no item or no action of the events; or a `Leak`.
    """
    names = names_of(folders)
    loaded = [load_folder(folder) for folder in folders]
    audits = [audit_folder(folder, *parts, events, split) for folder, parts in zip(folders, loaded, strict=True)]
    shared = SharedCatalog.of([tokenizer for _, tokenizer in loaded])
    sequences = log_in_ids(events, shared)
    members, item_rankers, action_rankers = rankers_of(names, loaded, shared, events)
    models = names
    if ensemble:
        item_rankers[ENSEMBLE] = action_rankers[ENSEMBLE] = Ensemble(members)
        models = [*names, ENSEMBLE]
    # Baselines that read text have that of the first model that does.
    texts = next(
        (member.moved_rows(vectors) for member, (model, _) in zip(members, loaded, strict=True)
         if (vectors := text_vectors(model)) is not None),
        None,
    )  # fmt: skip
    num_actions = FIRST_ACTION + len(shared.action_vocabulary)
    items, markov = fit_baselines(sequences, num_actions, progress, texts=texts, which=baselines)
    with dumping(dump, events, shared.item_vocabulary, sequences) as predictions:
        result = evaluate(
            sequences,
            TEST,
            item_rankers | items,
            action_rankers | markov,
            max_length=shared.model_max_length,
            batch_size=batch_size,
            max_targets=max_targets,
            seed=seed,
            split=split,
            actions=shared.action_vocabulary,
            models=models,
            dump=predictions,
            progress=progress,
        )
    fitted = {**items, **markov}
    result["baselines"] = {name: {"chosen": ranker.chosen, "note": ranker.note} for name, ranker in fitted.items()}
    result["folders"] = {
        name: {
            "folder": str(folder),
            "passes": recorded_passes(folder),
            "known_items": len(tokenizer.item_vocabulary),
            "known_actions": len(tokenizer.action_vocabulary),
            "audit": audit.to_dict(),
        }
        for name, folder, (_, tokenizer), audit in zip(names, folders, loaded, audits, strict=True)
    }
    return result


def rankers_of(
    names: Sequence[str], loaded: Sequence[tuple[Any, Any]], shared: SharedCatalog, events: pl.DataFrame
) -> tuple[list[SharedRanker], dict[str, ItemRanker], dict[str, ActionRanker]]:
    """The models as rankers in the shared catalog: in their order, and by name, the balanced ones of actions too."""
    members = []
    item_rankers: dict[str, ItemRanker] = {}
    action_rankers: dict[str, ActionRanker] = {}
    for name, (model, tokenizer) in zip(names, loaded, strict=True):
        own = ModelRanker(model)
        member = SharedRanker(own, own, tokenizer, shared, events, TEST)
        item_rankers[name] = action_rankers[name] = member
        members.append(member)
        if any(model.config.action_weights):
            weighted = BalancedActions(own, np.array(model.config.action_weights))
            action_rankers[balanced(name)] = SharedRanker(own, weighted, tokenizer, shared, events, TEST)
    return members, item_rankers, action_rankers


def audit_folder(folder: Path, model: Any, tokenizer: Any, events: pl.DataFrame, split: Split) -> Audit:
    """`check_known` and `audit_model` for one of several models, which a message names."""
    try:
        check_known(events, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
        own = log_in_ids(events, tokenizer)
        return audit_model(model, own, TEST, split, training_record(folder), tokenizer.action_vocabulary)
    except Leak as leak:
        raise Leak(f"--model {folder}: {leak}") from leak
    except ValueError as error:
        raise ValueError(f"--model {folder}: {error}") from error
