"""From the distribution to ranked answers: the questions of `predict`, and which path named each answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .configuration_behavior import BehaviorConfig
from .encoder import Events
from .histories import is_whole
from .mixture import TINY, ItemHead
from .special_ids import FIRST_ACTION, FIRST_NEW, NONE, PAD

# Scores held at once when ranking: passes over 16 MiB that stay in a processor's caches take two thirds of the time of
# those over 64.
MAX_RANKED_ELEMENTS = 2**22


@dataclass
class RankedBehaviors(ModelOutput):
    """The k most probable answers of each row, best first; rows with fewer are filled with id 0, probability 0.

    Attributes:
        item_ids, action_ids: (B, k) int64; 0 where the question was not about them, item 2 ([NONE]) for an action
            without an item.
        probabilities: (B, k) float32.
    """

    item_ids: torch.Tensor | None = None
    action_ids: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None


@dataclass(frozen=True)
class Question:
    """What is asked of each history.

    Attributes:
        of: "pair", "item" or "action".
        top_k: answers at most.
        actions: (Q,) int64, the actions that may come next.
        action_given: whether the answer is given that `actions`, one, comes next.
        exclude_seen: leave out the history's items.
        allowed: (N,) int64, the only items that are ranked; None for all.
    """

    of: str
    top_k: int
    actions: torch.Tensor
    action_given: bool
    exclude_seen: bool
    allowed: torch.Tensor | None


def check_question(
    config: BehaviorConfig,
    top_k: int,
    of: str,
    action: int | None,
    exclude_seen: bool,
    restricted: bool,
    balanced: bool,
) -> None:
    """ValueError for a question that cannot be answered; `restricted` says that `allowed_items` are named."""
    if of not in ("pair", "item", "action"):
        raise ValueError(f'of={of!r} is not a question: use "pair", "item" or "action".')
    if not is_whole(top_k) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r:.80} ({type(top_k).__name__}), expected a whole number of at least 1.")
    if action is not None and not is_whole(action):
        raise ValueError(
            f"action is {action!r:.80} ({type(action).__name__}), expected an action id: use "
            "tokenizer.encode_action(name)."
        )
    if action is not None and not FIRST_ACTION <= action < config.num_actions:
        raise ValueError(
            f"action={action} is not an action id, expected {FIRST_ACTION} to {config.num_actions - 1}: "
            "use tokenizer.encode_action(name)."
        )
    if of == "action" and (action is not None or exclude_seen or restricted):
        raise ValueError('of="action" ranks actions: action, exclude_seen and allowed_items do not apply to it.')
    if balanced and of != "action":
        raise ValueError(f'balanced=True ranks actions, got of="{of}": use of="action".')
    if balanced and not config.action_weights:
        raise ValueError(
            "balanced=True needs config.action_weights, and this model has none: its training had no validation "
            "events, or one action."
        )


def checked_items(
    config: BehaviorConfig, allowed_items: torch.Tensor | list[int] | None, device: torch.device
) -> torch.Tensor | None:
    """`allowed_items` as (N,) int64 on the device; ValueError unless they are item ids."""
    if allowed_items is None:
        return None
    allowed = torch.as_tensor(allowed_items, device=device, dtype=torch.long)
    if allowed.numel() and (allowed.min() < FIRST_NEW or allowed.max() >= config.vocab_size):
        raise ValueError(
            f"allowed_items must be item ids from {FIRST_NEW} to {config.vocab_size - 1}, got "
            f"{allowed.tolist()[:10]}: use tokenizer.encode_item(item)."
        )
    return allowed


def check_finite(answers: RankedBehaviors) -> RankedBehaviors:
    """The answers; ValueError if a probability is not finite."""
    assert answers.probabilities is not None
    if not answers.probabilities.isfinite().all():
        raise ValueError(
            "got a probability that is not finite, expected numbers from 0 to 1: the weights or the memory of this "
            "model are damaged, or were trained with too high a learning rate. Load a good copy."
        )
    return answers


def real_actions(config: BehaviorConfig, device: torch.device) -> torch.Tensor:
    """(A - 3,) int64: the actions that can come next."""
    return torch.arange(FIRST_ACTION, config.num_actions, device=device)


def chunks(count: int, actions: int, vocab_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The rows of a batch of `count`, in parts whose scores stay within MAX_RANKED_ELEMENTS."""
    return torch.arange(count, device=device).split(max(1, MAX_RANKED_ELEMENTS // (actions * vocab_size)))


def rank(probabilities: torch.Tensor, candidates: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k candidates of each row, (B, k) probabilities and columns; columns 0 and probability 0 where a row
    has fewer. k is at most the largest number of candidates a row has."""
    k = min(top_k, max(1, int(candidates.sum(dim=1).max())))
    best, chosen = probabilities.masked_fill(~candidates, -1).topk(k, dim=1)
    missing = best < 0
    return best.masked_fill(missing, 0), chosen.masked_fill(missing, 0)


def rank_actions(
    config: BehaviorConfig, action_probabilities: torch.Tensor, top_k: int, balanced: bool
) -> RankedBehaviors:
    """The best actions of (B, A) calibrated probabilities; `balanced` ranks by weighted ones."""
    score = action_probabilities
    if balanced:
        score = score * torch.tensor(config.action_weights, device=score.device).exp()
    candidates = torch.arange(config.num_actions, device=score.device) >= FIRST_ACTION
    _, chosen = rank(score, candidates.expand_as(score), top_k)
    return RankedBehaviors(torch.zeros_like(chosen), chosen, action_probabilities.gather(1, chosen))


def item_marginal(
    head: ItemHead, hidden: torch.Tensor, events: Events, action_probabilities: torch.Tensor
) -> torch.Tensor:
    """(B, V) p(item | history, the event names an item), all actions for a few rows at a time.

    Args:
        hidden: (B, T, H) states of the events; action_probabilities: (B, A).
    """
    vocab_size, actions = head.config.vocab_size, real_actions(head.config, hidden.device)
    total = hidden.new_empty((len(hidden), vocab_size), dtype=torch.float32)
    for part in chunks(len(hidden), len(actions), vocab_size, hidden.device):
        named = head.named_items(hidden[part], events.rows(part), actions.expand(len(part), -1))
        items = named.probabilities(head.config, events.items[part])  # (b, Q, V)
        total[part] = (action_probabilities[part, None, FIRST_ACTION:] @ items)[:, 0]
    total[:, NONE] = 0
    return total.div_(total.sum(dim=-1, keepdim=True).clamp(min=TINY))


def candidates_of(config: BehaviorConfig, items: torch.Tensor, question: Question) -> torch.Tensor:
    """(B, V) bool: the ids that may be named after histories with the items (B, T): items of the vocabulary that are
    not retired, and the [NEW_j] of the history."""
    nameable = torch.zeros((len(items), config.vocab_size), dtype=torch.bool, device=items.device)
    nameable[:, config.first_item_id :] = True
    nameable.scatter_(1, items, True)
    if question.allowed is not None:
        only = torch.zeros(config.vocab_size, dtype=torch.bool, device=items.device)
        only[question.allowed] = True
        nameable &= only
    if question.exclude_seen:
        nameable.scatter_(1, items, False)
    nameable[:, :FIRST_NEW] = False
    nameable[:, config.retired_items] = False
    return nameable


def rank_items(
    head: ItemHead, hidden: torch.Tensor, events: Events, action_probabilities: torch.Tensor, question: Question
) -> RankedBehaviors:
    """The best items, or pairs of action and item, of one chunk of rows; arguments as for `item_marginal`."""
    config, actions = head.config, question.actions
    over_actions = question.of == "item" and not question.action_given
    if over_actions:
        joint = item_marginal(head, hidden, events, action_probabilities)[:, None, :]  # (B, 1, V)
    else:
        named = head.named_items(hidden, events, actions.expand(len(hidden), -1))
        items = named.probabilities(config, events.items)
        joint = items if question.action_given else items * action_probabilities[:, actions, None]  # (B, Q, V)
    candidates = candidates_of(config, events.items, question)[:, None, :].expand_as(joint).clone()
    if question.of == "pair":
        without = torch.tensor(config.actions_without_item, dtype=torch.long, device=hidden.device)
        candidates[:, :, NONE] = torch.isin(actions, without)
    joint = joint.masked_fill(~candidates, 0)
    joint = joint / joint.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(joint.dtype).tiny)
    best, chosen = rank(joint.flatten(1), candidates.flatten(1), question.top_k)  # (B, k) over Q * V
    item_ids = chosen % config.vocab_size
    if over_actions:
        return RankedBehaviors(item_ids, torch.zeros_like(item_ids), best)
    return RankedBehaviors(item_ids, actions[chosen // config.vocab_size].masked_fill(item_ids == PAD, PAD), best)


def shares_of_paths(
    head: ItemHead,
    hidden: torch.Tensor,
    events: Events,
    action_probabilities: torch.Tensor,
    item_ids: torch.Tensor,
    action_ids: torch.Tensor,
) -> torch.Tensor:
    """(B, k, 4) float32: how p(item | history, action) of the answers (B, k) is made up of the paths; see
    `BertForNextBehavior.path_shares`."""
    actions = real_actions(head.config, hidden.device)
    shares = []
    for row in torch.arange(len(hidden), device=hidden.device).split(1):  # (Q, V) numbers are held
        named = head.named_items(hidden[row], events.rows(row), actions[None])
        parts = named.by_path(head.config.first_item_id, events.items[row], item_ids[row])[0]  # (Q, k, 4)
        weight = named.probabilities(head.config, events.items[row])[0][:, item_ids[row][0]]  # (Q, k)
        weight = weight * action_probabilities[row, FIRST_ACTION:].T
        weight = weight * ((action_ids[row] == PAD) | (actions[:, None] == action_ids[row]))
        joint = (weight[..., None] * parts / parts.sum(dim=-1, keepdim=True).clamp(min=TINY)).sum(dim=0)  # (k, 4)
        shares.append(joint / joint.sum(dim=-1, keepdim=True).clamp(min=TINY))
    return torch.stack(shares)


def stacked(answers: list[RankedBehaviors]) -> RankedBehaviors:
    """The answers of all chunks, filled to the same k with id 0 and probability 0."""
    tables = [chunk.to_tuple() for chunk in answers]
    width = max(table.shape[1] for chunk in tables for table in chunk)
    filled = [[F.pad(table, (0, width - table.shape[1])) for table in chunk] for chunk in tables]
    return RankedBehaviors(*(torch.cat(chunks) for chunks in zip(*filled, strict=True)))
