"""What the model predicted for single events, and what happened: for calibration, results by action, and membership.

scored = score_targets(model, sequences, positions, max_length)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from tqdm import tqdm

from next_behavior.data.batches import evaluation_batches
from next_behavior.data.sequences import TEST, Sequences
from next_behavior.evaluation.metrics import pessimistic_ranks
from next_behavior.evaluation.rankers import ModelRanker
from next_behavior.evaluation.ranking import rows_per_batch
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import NONE

# The lowest log-probability that a loss is computed from, for targets that the model gives less or none.
LOWEST = -30.0
# Seconds after which what is not done shows a bar.
BAR_AFTER = 2.0


@dataclass(frozen=True)
class Scored:
    """What the model predicted for each target and what happened; every array is (N,).

    Attributes:
        action: id of the action that came.
        action_confidence, action_correct: the probability of the predicted action, and whether it was right.
        item_confidence, item_correct: the same of the first-ranked item; nan and False where the event names no item.
        item_rank, item_loss: rank of the target, and -log p(item | history) in nats; nan where there is no item.
        group: REPEAT, NOVEL, COLD or NO_ITEM.
    """

    action: np.ndarray
    action_confidence: np.ndarray
    action_correct: np.ndarray
    item_confidence: np.ndarray
    item_correct: np.ndarray
    item_rank: np.ndarray
    item_loss: np.ndarray
    group: np.ndarray


@torch.no_grad()
def score_targets(model: BertForNextBehavior, sequences: Sequences, positions: np.ndarray, max_length: int) -> Scored:
    """Scores the events at `positions` (N,) int64; seen items stay candidates. The order is not that of `positions`."""
    ranker = ModelRanker(model)
    rows: list[Scored] = []
    size = rows_per_batch(sequences.vocab_size)
    bar = tqdm(total=len(positions), desc="scoring events", unit=" events", delay=BAR_AFTER)
    for batch in evaluation_batches(sequences, TEST, max_length, size, positions=positions):
        actions = ranker.action_probabilities(batch)
        scores = ranker.scores(batch).cpu()
        target = torch.from_numpy(batch.target_item)
        named = batch.target_item != NONE
        log_probability = scores.gather(1, target.clamp(min=0)[:, None])[:, 0].clamp(min=LOWEST)
        log_probability = torch.where(target < 0, LOWEST, log_probability)
        best, first = scores.max(dim=1)
        rows.append(
            Scored(
                action=batch.target_action,
                action_confidence=actions.max(axis=1),
                action_correct=actions.argmax(axis=1) == batch.target_action,
                item_confidence=np.where(named, best.exp().numpy(), np.nan),
                item_correct=named & (first.numpy() == batch.target_item),
                item_rank=np.where(named, pessimistic_ranks(scores, batch.target_item), np.nan),
                item_loss=np.where(named, -log_probability.numpy(), np.nan),
                group=batch.group,
            )
        )
        bar.update(len(batch))
    bar.close()
    if not rows:
        nothing = np.zeros(0)
        return Scored(**{column.name: nothing for column in fields(Scored)})
    return Scored(
        **{column.name: np.concatenate([getattr(row, column.name) for row in rows]) for column in fields(Scored)}
    )
