"""Membership inference: how well a training event can be told from a held-out one by the model's loss.

The attack is a threshold on the loss (Yeom et al. 2018): an event that the model finds probable is guessed to be a
training event. An AUC of 0.5 is guessing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from next_behavior.data.batches import REPEAT, target_positions
from next_behavior.data.sequences import TEST, TRAIN, Sequences
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.publishing.scores import score_targets

# Training targets and test targets that are scored, about so many of each.
MEMBERSHIP_TARGETS = 2000


def membership_inference(
    model: BertForNextBehavior, sequences: Sequences, max_length: int, seed: int = 0
) -> dict[str, Any] | None:
    """The AUC of -log p(item | history) over training targets against test targets, on items of the vocabulary.

    In a log that changes over time, held-out events are later ones, which moves the figure away from 0.5 too. With a
    split by time it is an upper bound.

    Args:
        sequences: the log in the model's token ids, with its parts.

    Returns:
        {"auc", "auc_new_items", "members", "others"}: the AUC; the same on items new to the user (None without such);
        the numbers of training and of test targets. None if there are no test events.
    """
    losses, new = [], []
    for part in (TRAIN, TEST):
        positions = target_positions(sequences, part, MEMBERSHIP_TARGETS, seed)
        named = sequences.known_items()[positions]
        scored = score_targets(model, sequences, positions[named], max_length)
        losses.append(scored.item_loss)
        new.append(scored.group != REPEAT)
    if not all(len(part) for part in losses):
        return None
    member = np.repeat([True, False], [len(part) for part in losses])
    loss, is_new = np.concatenate(losses), np.concatenate(new)
    both_kinds = len(np.unique(member[is_new])) == 2
    return {
        "auc": float(roc_auc_score(member, -loss)),
        "auc_new_items": float(roc_auc_score(member[is_new], -loss[is_new])) if both_kinds else None,
        "members": len(losses[0]),
        "others": len(losses[1]),
    }
