"""How well a model predicts validation events: what decides which weights are kept, and what calibration compares."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from next_behavior.data.batches import evaluation_batches
from next_behavior.data.sequences import VALIDATION, Sequences
from next_behavior.evaluation.metrics import ndcg_at_k, pessimistic_ranks
from next_behavior.evaluation.rankers import ModelRanker
from next_behavior.evaluation.ranking import MAX_ROWS, rows_per_batch
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION, NONE
from next_behavior.training.tokenized_log import TokenizedLog

LEAST_PROBABILITY = 1e-12


def mean_ndcg(
    ranker: ModelRanker, sequences: Sequences, part: int, max_length: int, blocks: Iterable[np.ndarray]
) -> float:
    """NDCG@10 of the next item over the events of `part` at the positions of `blocks`."""
    rows, ranks = rows_per_batch(sequences.vocab_size), []
    for positions in blocks:
        for batch in evaluation_batches(sequences, part, max_length, rows, positions=positions):
            has_item = batch.target_item != NONE
            ranks.append(pessimistic_ranks(ranker.scores(batch), batch.target_item)[has_item])
    return float(np.mean(ndcg_at_k(np.concatenate(ranks), 10)))


def validation_ndcg(model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray) -> float:
    """NDCG@10 of the next item over the validation events at `positions`; full catalog, seen items kept."""
    return mean_ndcg(ModelRanker(model), log.sequences, VALIDATION, log.max_length, [positions])


def action_log_loss(model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray) -> float:
    """Mean of -log p(action | history) over the validation events at `positions`; 0 for a log of one action."""
    ranker, total, count = ModelRanker(model), 0.0, 0
    if model.config.num_actions == FIRST_ACTION + 1:
        return total
    for batch in evaluation_batches(log.sequences, VALIDATION, log.max_length, MAX_ROWS, positions=positions):
        known = batch.target_action >= FIRST_ACTION
        given = ranker.action_probabilities(batch)[known, batch.target_action[known]]
        total, count = total - float(np.log(given.clip(min=LEAST_PROBABILITY)).sum()), count + int(known.sum())
    return total / max(1, count)
