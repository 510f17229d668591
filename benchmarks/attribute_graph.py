"""TGH beside a model that reads no item text: the graph reads the items' codes of brand and category instead.

An item's vector holds a 1 for each of its codes, weighed by the code's rarity, in COMPONENTS principal components.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from next_behavior.data.events import read_events
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import TEST, Sequences, tokenize_log
from next_behavior.data.splits import Split, assign_parts
from next_behavior.evaluation.evaluator import evaluate, load_folder
from next_behavior.evaluation.transition_graph import TGH_1, TGH_2, TransitionGraph
from next_behavior.evaluation.updated_baselines import updated_copies

COMPONENTS = 256


def attribute_vectors(codes: dict[str, list[int]], items: list[str], first_item_id: int) -> np.ndarray:
    """(V, D) float32 by token id; zeros for the special ids and for items without codes."""
    entries = [(row, code) for row, item in enumerate(items) for code in set(codes.get(item, []))]
    rows, columns = np.array(entries, dtype=np.int64).reshape(-1, 2).T
    _, columns = np.unique(columns, return_inverse=True)
    rarity = np.log(len(items) / np.bincount(columns))
    shape = (len(items), int(columns.max(initial=-1)) + 1)
    matrix = sparse.csr_array((rarity[columns], (rows, columns)), shape=shape)
    size = min(COMPONENTS, *(side - 1 for side in shape))
    left, values, _ = sparse.linalg.svds(matrix, k=size, rng=np.random.default_rng(0))
    vectors = np.zeros((first_item_id + len(items), size), dtype=np.float32)
    vectors[first_item_id:] = left * values
    return vectors


def add_attribute_graph(
    result: dict[str, Any], folder: Path, events: str, attributes: Path, max_targets: int | None
) -> None:
    """Adds TGH-1 and TGH-2, also updated, to the evaluation of the model in a folder."""
    _, tokenizer = load_folder(folder)
    split = Split.from_dict(result["split"])
    log = assign_parts(read_events(events, ReadOptions()).events, split)
    sequences = Sequences.from_dataset(
        tokenize_log(log, tokenizer), vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id
    )
    table = pl.read_parquet(attributes)
    codes = {str(item): values for item, values in table.select("item_id", "attributes").iter_rows()}
    vectors = attribute_vectors(codes, tokenizer.item_vocabulary, tokenizer.first_item_id)
    graphs = {
        name: TransitionGraph(rings, vectors, math.inf).fit(sequences)
        for name, rings in (("tgh_1", TGH_1), ("tgh_2", TGH_2))
    }
    updated = updated_copies(graphs, sequences, TEST, split)
    measured = evaluate(
        sequences,
        TEST,
        {**graphs, **updated},
        {},
        max_length=tokenizer.model_max_length,
        max_targets=max_targets,
        seed=result["seed"],
        split=split,
    )
    for name in measured["rankers"]:
        result[name] = measured[name]
    result["rankers"] += measured["rankers"]
    for name, graph in graphs.items():
        result["baselines"][name] = {"chosen": graph.chosen, "note": "it reads the items' codes, which the model lacks"}
