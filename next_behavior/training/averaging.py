"""One model from several of the same kind: the mean of their weights ("model soup", Wortsman et al. 2022).

    average = averaged([load_trained(folder) for folder in folders], names)
    fitted_on(average, log, positions)               # with the log: what is fitted on validation events
    save_average(average, tokenizer, folders, output)

It answers at the price of one model. It makes sense where the models stem from the same weights: fine-tuned from one
model, or taken from one run. The network rows of models from different random starts cancel each other, and mostly the
memory is left; their probabilities can be averaged (`evaluate --ensemble`).

The memory counts events and has no weights: it must be the same in all, and is kept. What was fitted on validation
events (temperatures, the memory's constants, the gate's scale) belongs to the weights that it was fitted with. With the
log it is fitted anew; without it the temperatures are averaged by their logarithms, and the other constants are the
first model's.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from next_behavior.data.batches import target_positions
from next_behavior.data.files import whole_folder
from next_behavior.data.known import check_known
from next_behavior.data.sequences import VALIDATION, Sequences, tokenize_log
from next_behavior.data.splits import assign_parts, recorded_split
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.calibration import fit_memory
from next_behavior.training.probability_calibration import fit_probabilities
from next_behavior.training.tokenized_log import TokenizedLog

LoadedModel = tuple[BertForNextBehavior, BehaviorTokenizer]
TEMPERATURES = ("action_temperature", "item_temperature", "time_temperature", "generate_temperature")
# Chosen on validation events after training, like the temperatures.
CHOSEN = (
    *("memory_history_decay", "memory_power", "memory_unit", "memory_share", "memory_trend", "memory_freshness"),
    *("memory_text", "action_weights", "action_bias", "time_bias", "item_set_limits", "action_set_limits"),
)
# What says nothing of the architecture: how a model was trained and where it was read from.
OF_TRAINING = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "event_dropout", "id_dropout", "text_dropout"),
    *("label_smoothing", "num_negatives", "action_loss_weight", "time_loss_weight", "classifier_dropout"),
    *("dtype", "transformers_version", "_name_or_path", "text_encoder", "vocabulary_digest"),
)


def check_alike(loaded: Sequence[LoadedModel], names: Sequence[str]) -> None:
    """Whether weights with the same place mean the same in all models.

    Raises:
        ValueError: another vocabulary or architecture, or a memory or texts that were counted or read from other data.
    """
    (whole, vocabulary), first = loaded[0], configuration(loaded[0][0])
    for (model, tokenizer), name in zip(loaded[1:], names[1:], strict=True):
        if ids_of(tokenizer) != ids_of(vocabulary):
            raise ValueError(
                f"got {names[0]} and {name}, which have different vocabularies; expected the same items, actions and "
                "times in the same order, or a row of one is averaged with another item's: train both on the same log, "
                "or average their probabilities (evaluate --ensemble)"
            )
        other = configuration(model)
        differ = [
            f"{field}: {first.get(field)} in {names[0]}, {other.get(field)} in {name}"
            for field in sorted(first.keys() | other.keys())
            if first.get(field) != other.get(field)
        ]
        if differ:
            raise ValueError(
                f"got {names[0]} and {name}, which differ in their architecture ({'; '.join(differ)}); expected the "
                "same: average their probabilities instead (evaluate --ensemble)"
            )
        tables = dict(model.named_buffers())
        for place, table in whole.named_buffers():
            if not torch.equal(table, tables[place]):
                of_memory = place.startswith("associate_path.")
                what = "memories have counted different events" if of_memory else "items have different texts"
                raise ValueError(
                    f"got {names[0]} and {name}, whose {what} ({place}); expected the same: average models as they "
                    "were trained, on the same log and items"
                )


def check_splits(folders: Sequence[Path]) -> None:
    """Raises a ValueError for models that were trained with different splits."""
    splits = {str(folder): recorded_split(folder) for folder in folders}
    if len(set(splits.values())) > 1:
        listed = "; ".join(f"{folder}: {split or 'none recorded'}" for folder, split in splits.items())
        raise ValueError(
            f"got models that were trained with different splits ({listed}); expected the same one: an average knows "
            "what any of its models was trained on, so that no event would be left to test it"
        )


def ids_of(tokenizer: BehaviorTokenizer) -> tuple[list[str], list[str], int, list[float]]:
    """What the ids of a model mean."""
    return tokenizer.item_vocabulary, tokenizer.action_vocabulary, tokenizer.first_item_id, list(tokenizer.time_edges)


def configuration(model: BertForNextBehavior) -> dict[str, Any]:
    """The fields that must be the same."""
    fields: dict[str, Any] = model.config.to_dict()
    return {name: value for name, value in fields.items() if name not in (*TEMPERATURES, *CHOSEN, *OF_TRAINING)}


@torch.no_grad()
def averaged(loaded: Sequence[LoadedModel], names: Sequence[str]) -> BertForNextBehavior:
    """A new model whose weights are the mean of the models' weights, computed in float64.

    Args:
        names: what the models are called in an error.

    Raises:
        ValueError: fewer than two models, or models that have no mean (`check_alike`).
    """
    if len(loaded) < 2:
        raise ValueError(f"got {len(loaded)} models to average; expected at least two")
    check_alike(loaded, names)
    models = [model for model, _ in loaded]
    average = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    mean = {name: mean_table([state[name] for state in states]) for name in states[0]}
    average.load_state_dict(mean)
    for name in TEMPERATURES:
        logarithms = [math.log(getattr(model.config, name)) for model in models]
        setattr(average.config, name, math.exp(sum(logarithms) / len(models)))
    average.config.item_set_limits, average.config.action_set_limits = [], []  # those of no model hold for the mean
    return average.eval()


def mean_table(tables: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of weights, in their own type; counts are equal and stay."""
    if not tables[0].is_floating_point():
        return tables[0]
    return torch.stack([table.double() for table in tables]).mean(dim=0).to(tables[0].dtype)


def validation_log(
    folder: Path, tokenizer: BehaviorTokenizer, events: pl.DataFrame, max_targets: int
) -> tuple[TokenizedLog, np.ndarray]:
    """The log in the ids of the model in a folder, under its split, and the positions of about `max_targets` validation
    events, of whole users drawn at random.

    Raises:
        ValueError: the model was trained without held-out events, or the log is another one.
    """
    split = recorded_split(folder)
    if split is None or split.how == "none":
        how = "without a recorded split" if split is None else "on its whole log"
        raise ValueError(
            f"got --events for {folder}, which was trained {how}; expected a split by time or leave_one_out, which "
            "leaves validation events: leave --events out"
        )
    check_known(events, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
    dataset = tokenize_log(assign_parts(events, split), tokenizer)
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    positions = target_positions(sequences, VALIDATION, max_targets, seed=0)
    if not len(positions):
        raise ValueError("got a log without validation events; expected the log that the models were trained on")
    return TokenizedLog(sequences, split, tokenizer.model_max_length), positions


def fitted_on(model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray) -> None:
    """Fits the gate's scale, the memory's constants and the temperatures to the validation events at `positions`, as
    the end of a training run does."""
    fit_memory(model, log, positions)
    fit_probabilities(model, log, positions)


def save_average(
    model: BertForNextBehavior,
    tokenizer: BehaviorTokenizer,
    folders: Sequence[Path],
    output: Path,
    measured: Mapping[str, float],
) -> None:
    """Writes a loadable folder, whole or not at all, with the split and the run of the first model; `run.json` names
    the models under `averaged`, with what was `measured` of them."""
    with whole_folder(output) as unfinished:
        tokenizer.save_pretrained(unfinished)
        model.save_pretrained(unfinished)
        if (folders[0] / "split.json").is_file():
            shutil.copyfile(folders[0] / "split.json", unfinished / "split.json")
        record = folders[0] / "run.json"
        run: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
        run["averaged"] = {"models": [folder.name for folder in folders], "validation_ndcg@10": dict(measured)}
        (unfinished / "run.json").write_text(json.dumps(run, indent=1))
