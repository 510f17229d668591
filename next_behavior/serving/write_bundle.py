"""Writes the bundle of a saved model. It imports torch and the ONNX exporter, so `export.py` runs it on its own:

python -m next_behavior.serving.write_bundle MODEL BUNDLE REVISION
"""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from next_behavior.data.files import whole_folder
from next_behavior.model.associative_memory import AssociativeMemory
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.integrity import check_agreement, check_folder
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.neighbor_lists import COUNT_UNIT
from next_behavior.model.pair_tables import LOW
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.repeat_path import BIAS_SCALE
from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.model.vocabulary import VOCABULARY_FILE
from next_behavior.serving.bundle import (
    GOLDEN,
    ITEM_COLUMNS,
    ITEM_TABLE,
    NETWORK,
    POINTER_ARRAYS,
    TEXT_ARRAYS,
    Constants,
    open_bundle,
    write_constants,
    write_manifest,
)
from next_behavior.serving.golden import check_golden
from next_behavior.serving.network import INPUTS, OUTPUTS, ServedNetwork
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.top import BLOCK
from next_behavior.serving.training_record import training_record

# Counts below this are stored in 32 bits.
SMALL_COUNT = 2**30
# The histories that are asked about at every start: how many of each length.
GOLDEN_LENGTHS = (1, 2, 7, 19)
MINUTE, DAY = 60, 86_400


def write_bundle(model_folder: Path, place: Path, revision: str) -> None:
    """Exports the model of a folder to a bundle at `place`, and checks that it answers as the model does.

    Raises:
        ValueError: it does not, or the folder is damaged.
    """
    check_folder(model_folder)
    # Eager attention is exported as fewer operations.
    model = BertForNextBehavior.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = BehaviorTokenizer.from_pretrained(model_folder)
    check_agreement(model.config, tokenizer)
    with whole_folder(place) as folder:
        folder.mkdir(parents=True)
        export_network(model, folder / NETWORK)
        write_tables(model, tokenizer, folder, revision, training_record(model_folder).actions)
        for name in ("tokenizer.json", VOCABULARY_FILE):
            shutil.copyfile(model_folder / name, folder / name)
        (folder / GOLDEN).write_text(json.dumps(golden_answers(model, tokenizer)), encoding="utf-8")
        write_manifest(folder)
        check_golden(Predictor(open_bundle(folder)).answers_to, folder / GOLDEN)


def write_tables(
    model: BertForNextBehavior,
    tokenizer: BehaviorTokenizer,
    folder: Path,
    revision: str,
    training_actions: dict[str, int] | None = None,
) -> None:
    """Writes what is no network and no file of the model's folder."""
    rows = item_table(model)
    items = rows[model.config.first_item_id :]
    longest_row = float(np.linalg.norm(items, axis=1).max())
    write_constants(folder, constants_of(model.config, tokenizer, revision, training_actions, longest_row))
    np.save(folder / ITEM_TABLE, rows)
    np.save(folder / ITEM_COLUMNS, filled_columns(items))
    tables = {**memory_arrays(model.associate_path), **pointer_arrays(model), **text_arrays(model)}
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table)


def constants_of(
    config: BehaviorConfig,
    tokenizer: BehaviorTokenizer,
    revision: str,
    training_actions: dict[str, int] | None,
    longest_row: float,
) -> Constants:
    values: dict[str, Any] = {
        "revision": revision,
        "max_events": min(tokenizer.model_max_length, config.max_position_embeddings),
        "actions": tokenizer.action_vocabulary,
        "time_edges": tokenizer.time_edges,
        "has_time": tokenizer.has_time,
        "longest_row": longest_row,
        "training_actions": training_actions,
    }
    if len(tokenizer) != config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: not of one run."
        )
    from_config = {each.name: getattr(config, each.name) for each in fields(Constants) if each.name not in values}
    return Constants(**values, **from_config)


def export_network(model: BertForNextBehavior, path: Path) -> None:
    """Writes encoder and heads as ONNX, for any number of histories and any length."""
    batch, length, config = 2, min(7, model.config.max_position_embeddings), model.config
    channels = [torch.ones(batch, length, dtype=torch.long) for _ in INPUTS[1:-1]]
    rows = torch.zeros(batch, length, config.hidden_size)
    bias = torch.zeros(batch, 1, length, length)
    grows = torch.export.Dim.DYNAMIC
    dynamic = [{0: grows, 1: grows}] * (len(INPUTS) - 1)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            ServedNetwork(model).eval(),
            (rows, *channels, bias),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=[*dynamic, {0: grows, 2: grows, 3: grows}],
            dynamo=True,
            verbose=False,
        )
        assert program is not None, "dynamo=True gives a program"
        program.save(path, external_data=False)


@torch.no_grad()
def item_table(model: BertForNextBehavior) -> np.ndarray:
    """(V, H) float32: the rows of all tokens, item text included."""
    ids = torch.arange(model.config.vocab_size, device=model.device)
    return model.bert.embeddings.item_rows(ids).float().cpu().numpy()


def filled_columns(rows: np.ndarray) -> np.ndarray:
    """(H, N) float32: rows as columns, and columns of zeros up to a whole number of blocks."""
    return np.ascontiguousarray(np.pad(rows, ((0, -len(rows) % BLOCK), (0, 0))).T)


def memory_arrays(memory: AssociativeMemory) -> dict[str, np.ndarray]:
    """The tables of a memory as `bundle.MEMORY_ARRAYS` has them."""
    keys, counts = memory.pair_keys.cpu().numpy(), memory.pair_counts.cpu().numpy()
    mirrored = ((keys & LOW) << 32) + (keys >> 32)
    both = np.union1d(keys, mirrored)
    forward, backward = np.zeros(len(both), np.int64), np.zeros(len(both), np.int64)
    forward[np.searchsorted(both, keys)] = counts
    backward[np.searchsorted(both, mirrored)] = counts
    exact = np.int32 if counts.max(initial=0) < SMALL_COUNT else np.int64
    size = memory.config.vocab_size
    return {
        "row_starts": np.searchsorted(both, np.arange(size + 1) << 32),
        "neighbors": (both & LOW).astype(np.int32),
        "forward": forward.astype(exact),
        "backward": backward.astype(exact),
        "item_counts": memory.item_counts.cpu().numpy(),
        "recent": memory.recent_counts.cpu().numpy() / memory.config.memory_recent_unit,
        "link_ids": memory.borrow_ids.cpu().numpy().astype(np.int32),
        "link_weights": (memory.borrow_weights.cpu().numpy() / COUNT_UNIT).astype(np.float32),
    }


@torch.no_grad()
def pointer_arrays(model: BertForNextBehavior) -> dict[str, np.ndarray]:
    """The biases of the repeat path as `bundle.POINTER_ARRAYS` has them."""
    path = model.repeat_path
    tables = (path.action_bias.weight, path.recency_bias.weight, path.count_bias.weight, path.done_bias.weight)
    arrays = [BIAS_SCALE * table[FIRST_ACTION:].float().numpy() for table in (*tables, path.gap_bias)]
    return dict(zip(POINTER_ARRAYS, arrays, strict=True))


def text_arrays(model: BertForNextBehavior) -> dict[str, np.ndarray]:
    """The texts of the items as `bundle.TEXT_ARRAYS` has them."""
    item_text = model.bert.embeddings.item_text
    if item_text is None:
        arrays: list[np.ndarray] = [np.zeros((model.config.vocab_size, 0), np.int8), np.zeros(0, np.float32)]
    else:
        arrays = [item_text.vectors.cpu().numpy(), item_text.unit.float().cpu().numpy()]
    return dict(zip(TEXT_ARRAYS, arrays, strict=True))


def golden_answers(model: BertForNextBehavior, tokenizer: BehaviorTokenizer) -> dict[str, Any]:
    """Histories of the model's own items and actions, questions, and the pipeline's answers to them."""
    draw = random.Random(0)
    items, actions = tokenizer.item_vocabulary, tokenizer.action_vocabulary
    histories: list[list[dict[str, Any]]] = [[], [{"item": "[not in any catalog]", "action": actions[0]}]]
    for length in (*GOLDEN_LENGTHS, tokenizer.model_max_length + 2):
        known = [draw.choice(items) for _ in range(max(1, length * 2 // 3))]
        clock, history = 1_700_000_000, []
        for _ in range(length):
            clock += draw.choice((MINUTE, 20 * MINUTE, DAY, 9 * DAY))
            event = {"item": draw.choice(known), "action": draw.choice(actions), "timestamp": clock}
            if draw.random() < 0.1:
                event["item"] = f"[new {draw.randrange(3)}]"
            history.append(event)
        histories.append(history)
    some = draw.sample(items, min(len(items), 20))
    questions: list[dict[str, Any]] = [
        {"top_k": 10},
        {"top_k": 20, "of": "item", "exclude_seen": True},
        {"top_k": 10, "of": "item", "action": actions[-1], "paths": True},
        {"top_k": 5, "paths": True, "exclude_seen": True},
        {"top_k": 5, "of": "item", "allowed_items": some},
        {"top_k": 5, "of": "action"},
    ]
    if model.config.action_weights:
        questions.append({"top_k": 5, "of": "action", "balanced": True})
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer)
    asked = [{"events": history} for history in histories]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = [pipeline(asked, **question) for question in questions]
    return {"histories": histories, "questions": questions, "answers": answers}


if __name__ == "__main__":
    try:
        write_bundle(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(str(error))
