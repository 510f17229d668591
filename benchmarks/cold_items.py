"""Items that training never saw: a split that makes some, and how well words alone find them.

    python -m benchmarks.cold_items --events interactions.parquet --items items.parquet --training_events OUT.parquet
    python train_accelerate.py --events OUT.parquet --items items.parquet --split none --output_dir MODEL
    python -m benchmarks.cold_items --events interactions.parquet --items items.parquet --model MODEL

A tenth of the items, drawn by seed, is taken out of every event but each user's last, as if they were born after
training. The last events are the targets: cold where they name such an item, warm otherwise. Histories hold what was
left; everything the user really had before, taken out or not, is no candidate. The baseline ranks the full catalog
by the cosine between an item's text and the mean of the history's texts; its best form ranks by a decayed mean: how
long a history, how fast decaying and which embeddings is chosen on the last but one events that name another tenth of
the items. What new items cost the others is seen beside the model that does not have them.

Whatever else scores the catalog is measured on the same targets:

    split = cold_split(events, seed=0)
    train(split.events)                                    # user_id, item_id, ..., part: 0 train, 1 validation
    results = evaluate_cold(split, score)                  # score(histories, users) -> (B, len(split.catalog))
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from next_behavior.data.events import read_events
from next_behavior.data.items import read_items
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION
from next_behavior.data.splits import Split, assign_parts
from next_behavior.evaluation.metrics import ndcg_at_k, pessimistic_ranks, recall_at_k
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.text.embedding_cache import cached_embeddings
from next_behavior.text.encoders import default_encoder, load_encoder
from next_behavior.text.item_texts import item_texts

BATCH = 256
LENGTHS = (1, 2, 3, 5, 10, 50)
DECAYS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.15)

# Histories (item ids, oldest first) and their users -> (B, N) scores in the order of the catalog.
Score = Callable[[list[list[str]], list[str]], np.ndarray]


@dataclass(frozen=True)
class Targets:
    """N next items to be found.

    Attributes:
        users, items: N ids.
        histories: N lists of the user's earlier items without the cold ones, oldest first, none empty.
        seen: N lists of all the user's earlier items.
    """

    users: list[str]
    items: list[str]
    histories: list[list[str]]
    seen: list[list[str]]


@dataclass(frozen=True)
class ColdSplit:
    """A log with new items.

    Attributes:
        events: what may be learnt from, without any event of a cold item; the columns of the log and part Int8: 0
            train, 1 validation (each user's last but one event).
        catalog: all item ids, sorted.
        cold_items: those that `events` never names, sorted.
        cold, warm: the users' last events.
        choice: last but one events that name one of another tenth of the items, to choose settings on.
    """

    events: pl.DataFrame
    catalog: list[str]
    cold_items: list[str]
    cold: Targets
    warm: Targets
    choice: Targets


def cold_split(events: pl.DataFrame, share: float = 0.1, seed: int = 0) -> ColdSplit:
    """Takes a share of the items out of a log.

    Args:
        events: user_id and item_id Strings, a user's events together and in order, as `read_events` gives them; events
            without an item are left out.

    Raises:
        ValueError: a share that leaves no cold or no warm item, or no user with three events.
    """
    events = events.filter(pl.col("item_id").is_not_null())
    catalog = sorted(events["item_id"].unique().to_list())
    drawn = round(share * len(catalog))
    if not 0 < drawn <= len(catalog) // 2:
        raise ValueError(f"got share={share} of {len(catalog):,} items; expected at least one item and at most half")
    order = np.random.default_rng(seed).permutation(len(catalog))
    cold = {catalog[row] for row in order[:drawn]}
    chosen_on = {catalog[row] for row in order[drawn : 2 * drawn]}
    parts = assign_parts(events, Split("leave_one_out"))
    if not (parts["part"] == TEST).any():
        raise ValueError("got no user with three events; expected some, of which the last is tested")
    groups: dict[str, Targets] = {name: Targets([], [], [], []) for name in ("cold", "warm", "choice")}
    for (user,), rows in parts.group_by("user_id", maintain_order=True):
        items, part = rows["item_id"].to_list(), rows["part"].to_list()
        for place in range(len(items)):
            history = [item for item in items[:place] if item not in cold]
            if part[place] == TRAIN or not history:
                continue
            if part[place] == TEST:
                targets = groups["cold" if items[place] in cold else "warm"]
            elif items[place] in chosen_on:
                targets = groups["choice"]
            else:
                continue
            targets.users.append(str(user))
            targets.items.append(items[place])
            targets.histories.append(history)
            targets.seen.append(items[:place])
    kept = parts.filter(~pl.col("item_id").is_in(sorted(cold)) & pl.col("part").is_in([TRAIN, VALIDATION]))
    return ColdSplit(kept, catalog, sorted(cold), groups["cold"], groups["warm"], groups["choice"])


@dataclass(frozen=True)
class Result:
    """Means over `count` targets, full catalog, seen items removed, ties against the ranker."""

    count: int
    recall: float
    ndcg: float


def rank_targets(targets: Targets, catalog: Sequence[str], score: Score, progress: bool = False) -> Result:
    """Recall@10 and NDCG@10 of a scorer."""
    column = {item: place for place, item in enumerate(catalog)}
    ranks = []
    starts = range(0, len(targets.items), BATCH)
    for start in tqdm(starts, desc="ranking", unit="batch", disable=not progress):
        rows = slice(start, start + BATCH)
        scores = np.array(score(targets.histories[rows], targets.users[rows]), dtype=np.float32)  # a copy
        if scores.shape[1] != len(catalog):
            raise ValueError(
                f"got {scores.shape[1]:,} scores a history; expected one for each of {len(catalog):,} items"
            )
        for row, seen in enumerate(targets.seen[rows]):
            scores[row, [column[item] for item in seen if item != targets.items[start + row]]] = -np.inf
        ranks.append(pessimistic_ranks(scores, np.array([column[item] for item in targets.items[rows]])))
    found = np.concatenate(ranks) if ranks else np.array([], dtype=np.int64)
    if not len(found):
        return Result(0, float("nan"), float("nan"))
    return Result(len(found), float(recall_at_k(found, 10).mean()), float(ndcg_at_k(found, 10).mean()))


def evaluate_cold(split: ColdSplit, score: Score, progress: bool = False) -> dict[str, Result]:
    """A scorer on the targets `cold` and `warm`."""
    return {
        "cold": rank_targets(split.cold, split.catalog, score, progress),
        "warm": rank_targets(split.warm, split.catalog, score, progress),
    }


# ----------------------------------------------------------------------------------------------------------------------
# The words alone
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextScore:
    """Cosine between an item's text and the decayed mean of a history's texts.

    Attributes:
        rows: item id -> row of `embeddings`.
        embeddings: (N, D) float32 of length one, in the order of the catalog; zeros for an item without text.
        length: events from the end that count.
        decay: the k-th from the end weighs decay^k.
    """

    rows: dict[str, int]
    embeddings: np.ndarray
    length: int
    decay: float

    def __call__(self, histories: list[list[str]], users: list[str]) -> np.ndarray:
        means = np.zeros((len(histories), self.embeddings.shape[1]), dtype=np.float32)
        for row, history in enumerate(histories):
            recent = [self.rows[item] for item in history[: -self.length - 1 : -1]]
            means[row] = self.decay ** np.arange(len(recent)) @ self.embeddings[recent]
        return unit_rows(means) @ self.embeddings.T


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    """(N, D) float32 with rows at length one; zeros stay."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return (matrix / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def best_text_score(split: ColdSplit, embeddings: np.ndarray) -> tuple[TextScore, str, Result]:
    """The form of the baseline that is best on `split.choice` by NDCG@10.

    Args:
        embeddings: (N, D), rows in the order of `split.catalog`.

    Returns:
        The scorer, what was chosen, and what it reached there.
    """
    rows = {item: place for place, item in enumerate(split.catalog)}
    plain = embeddings.astype(np.float32)
    has_text = plain.any(axis=1)
    centred = plain - plain[has_text].mean(0)
    centred[~has_text] = 0
    forms = {"plain": unit_rows(plain), "centred": unit_rows(centred)}
    best: tuple[TextScore, str, Result] | None = None
    grid = [*itertools.product(forms, LENGTHS, DECAYS)]
    for form, length, decay in tqdm(grid, desc="choosing the text baseline", unit="form"):
        if length == 1 and decay < 1:  # one event has one mean
            continue
        score = TextScore(rows, forms[form], length, decay)
        result = rank_targets(split.choice, split.catalog, score)
        if best is None or result.ndcg > best[2].ndcg:
            best = score, f"{form} embeddings, the last {length} events, decay {decay:g}", result
    assert best is not None
    return best


# ----------------------------------------------------------------------------------------------------------------------
# The model
# ----------------------------------------------------------------------------------------------------------------------


class ModelScore:
    """A trained model that has been given the cold items without training: p(item | history).

    Args:
        folder: of a model trained on `split.events`.
        rows: the catalog's items with their text columns; none, and the model stays as it was trained.
        text_strength: instead of the model's own.
    """

    def __init__(
        self, folder: str, rows: list[dict[str, Any]], catalog: Sequence[str], text_strength: float | None = None
    ) -> None:
        self.model = BertForNextBehavior.from_pretrained(folder).eval()
        self.tokenizer = BehaviorTokenizer.from_pretrained(folder)
        if text_strength is not None:
            self.model.config.text_strength = text_strength
        if rows:
            self.model.add_items(self.tokenizer, rows)
        self.ids = torch.tensor([self.tokenizer.encode_item(item) for item in catalog])  # [UNK] has probability 0

    def __call__(self, histories: list[list[str]], users: list[str]) -> np.ndarray:
        batch = self.tokenizer([[{"item": item} for item in history] for history in histories], return_tensors="pt")
        return self.model.item_log_probabilities(**batch)[:, self.ids].exp().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", required=True, help="event log")
    parser.add_argument("--items", required=True, help="item table with text columns")
    parser.add_argument("--encoder", help="text encoder (default: the installed MiniLM)")
    parser.add_argument("--share", type=float, default=0.1, help="share of the items that is taken out (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument("--model", help="folder of a model trained on the training events, ranked beside the words")
    parser.add_argument(
        "--text_strength", type=float, nargs="+", default=[None], help="of the added items (default: the model's own)"
    )
    parser.add_argument("--training_events", help="write the events that may be learnt from here, as Parquet")
    args = parser.parse_args()
    split = cold_split(read_events(args.events).events, args.share, args.seed)
    if args.training_events:
        path = Path(args.training_events)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        columns = ["user_id", "item_id", "action", "timestamp"]
        if split.events["timestamp"].null_count() == split.events.height:
            columns.remove("timestamp")  # the order of rows is what such a log has
        split.events.sort("row").select(columns).write_parquet(part)
        os.replace(part, path)
    texts = pl.DataFrame({"item_id": split.catalog}).join(
        item_texts(read_items(args.items)), on="item_id", how="left", maintain_order="left"
    )
    encoder = load_encoder(args.encoder or default_encoder())
    embeddings = cached_embeddings(texts["text"].to_list(), encoder)
    score, chosen, reached = best_text_score(split, embeddings)
    print(
        f"{len(split.catalog):,} items, {len(split.cold_items):,} of them cold; {split.events.height:,} events to "
        f"learn from\ntext only: {chosen} (NDCG@10 {reached.ndcg:.4f} on {reached.count:,} targets it was chosen on)\n"
    )
    mean = TextScore(score.rows, unit_rows(embeddings.astype(np.float32)), max(LENGTHS), 1.0)
    scores: dict[str, Score] = {"text only, mean history": mean, "text only, best form": score}
    if args.model:
        rows = pl.DataFrame({"item_id": split.catalog}).join(read_items(args.items), on="item_id", how="left")
        scores["model without the cold items"] = ModelScore(args.model, [], split.catalog)
        for strength in args.text_strength:
            name = "model" if strength is None else f"model, text_strength {strength:g}"
            scores[name] = ModelScore(args.model, rows.to_dicts(), split.catalog, strength)
    print("| ranker | targets | count | Recall@10 | NDCG@10 |\n|:--|:--|--:|--:|--:|")
    for ranker, scored in scores.items():
        for name, result in evaluate_cold(split, scored, progress=True).items():
            print(f"| {ranker} | {name} | {result.count:,} | {result.recall:.4f} | {result.ndcg:.4f} |")


if __name__ == "__main__":
    main()
