"""From the distribution to ranked answers: the questions of `predict`, and which path named each answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .answer_tables import AnswerTables
from .answers import check_options
from .configuration_behavior import BehaviorConfig
from .coverage import limit_for, set_sizes
from .encoder import Events
from .histories import is_whole
from .mixture import TINY, ItemHead, NamedItems
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
        action: the answer is given that this action comes next; None for any.
        exclude_seen: leave out the history's items.
        allowed: (N,) int64, the only items that are ranked; None for all.
        left_out: (B, N) int64, items that are not ranked for a row, filled with PAD; None for none.
        balanced: rank actions by their weighted probabilities.
        limit: of the prediction set that is asked for, which takes the place of `top_k`; None for no set.
    """

    of: str
    top_k: int
    action: int | None
    exclude_seen: bool
    allowed: torch.Tensor | None
    left_out: torch.Tensor | None = None
    balanced: bool = False
    limit: float | None = None

    def rows(self, chosen: torch.Tensor) -> Question:
        return self if self.left_out is None else replace(self, left_out=self.left_out[chosen])


def check_question(
    config: BehaviorConfig,
    top_k: int,
    of: str,
    action: int | None,
    exclude_seen: bool,
    restricted: bool,
    balanced: bool,
    coverage: float | None = None,
) -> float | None:
    """The limit of the prediction set that `coverage` asks for, None without one.

    Args:
        restricted: `allowed_items` are named.

    Raises:
        ValueError: the question cannot be answered.
    """
    restricted = restricted or action is not None or exclude_seen
    check_options(top_k, of, restricted, balanced, bool(config.action_weights))
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
    if coverage is None:
        return None
    limits = config.action_set_limits if of == "action" else config.item_set_limits
    return limit_for(coverage, of, restricted or balanced, limits)


def filled(ids: list[list[int]] | None, device: torch.device) -> torch.Tensor | None:
    """(B, N) int64 of the ids of each row, filled with PAD."""
    if ids is None:
        return None
    most = max(len(row) for row in ids)
    return torch.tensor([row + [PAD] * (most - len(row)) for row in ids], dtype=torch.long, device=device)


def checked_items(
    vocab_size: int, allowed_items: torch.Tensor | list[int] | None, device: torch.device
) -> torch.Tensor | None:
    """`allowed_items` as (N,) int64 on the device; ValueError unless they are item ids."""
    if allowed_items is None:
        return None
    allowed = torch.as_tensor(allowed_items, device=device, dtype=torch.long)
    if allowed.numel() and (allowed.min() < FIRST_NEW or allowed.max() >= vocab_size):
        raise ValueError(
            f"allowed_items must be item ids from {FIRST_NEW} to {vocab_size - 1}, got "
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


def rank(scores: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best k candidates of each row, (B, k) scores and columns, of scores (B, N), below 0 for no candidate; and
    where a row has fewer, with column 0 and score 0. k is at most the largest number of candidates a row has."""
    best, chosen = scores.topk(min(top_k, scores.shape[1]), dim=1)
    missing = best < 0
    if missing.any():
        most = max(1, int((~missing).sum(dim=1).max()))
        best, chosen, missing = best[:, :most], chosen[:, :most], missing[:, :most]
        best, chosen = best.masked_fill(missing, 0), chosen.masked_fill(missing, 0)
    return best, chosen, missing


def within_limit(answers: RankedBehaviors, limit: float) -> RankedBehaviors:
    """The prediction sets, of the ranked answers with all candidates."""
    assert answers.item_ids is not None
    assert answers.action_ids is not None
    assert answers.probabilities is not None
    sizes = torch.from_numpy(set_sizes(answers.probabilities.cpu().numpy(), limit)).to(answers.item_ids.device)
    most = max(1, int(sizes.max()))
    beyond = torch.arange(most, device=sizes.device) >= sizes[:, None]
    tables = (answers.item_ids, answers.action_ids, answers.probabilities)
    return RankedBehaviors(*(table[:, :most].masked_fill(beyond, 0) for table in tables))


def rank_actions(config: BehaviorConfig, action_probabilities: torch.Tensor, question: Question) -> RankedBehaviors:
    """The best actions of (B, A) calibrated probabilities; a balanced question ranks by weighted ones."""
    score, top_k = action_probabilities, question.top_k if question.limit is None else config.num_actions
    if question.balanced:
        score = score * torch.tensor(config.action_weights, device=score.device).exp()
    specials = torch.arange(config.num_actions, device=score.device) < FIRST_ACTION
    _, chosen, _ = rank(score.masked_fill(specials, -1), top_k)
    ranked = RankedBehaviors(torch.zeros_like(chosen), chosen, action_probabilities.gather(1, chosen))
    return ranked if question.limit is None else within_limit(ranked, question.limit)


@dataclass(frozen=True)
class ItemAnswers:
    """What the item head says after B histories.

    Attributes:
        named: by path, for the actions (Q,).
        items: (B, Q, V) float32 p(item | history, action).
        by_action: (B, A) float32 p(action | history).
        actions: (Q,) int64.
    """

    named: NamedItems
    items: torch.Tensor
    by_action: torch.Tensor
    actions: torch.Tensor

    @classmethod
    def of(
        cls,
        head: ItemHead,
        hidden: torch.Tensor,
        events: Events,
        by_action: torch.Tensor,
        actions: torch.Tensor,
        tables: AnswerTables,
    ) -> ItemAnswers:
        """From the states (B, T, H) of the events."""
        named = head.named_items(hidden, events, actions.expand(len(hidden), -1), tables)
        return cls(named, named.probabilities(head.config, events.items, tables), by_action, actions)

    def marginal(self) -> torch.Tensor:
        """(B, V) p(item | history, the event names an item); the actions are all there are."""
        total = (self.by_action[:, None, FIRST_ACTION:] @ self.items)[:, 0]
        total = total.index_fill(1, torch.tensor([NONE], device=total.device), 0)
        return total / total.sum(dim=-1, keepdim=True).clamp(min=TINY)


def candidates_of(events: Events, question: Question, tables: AnswerTables) -> torch.Tensor:
    """(B, V) bool: the ids that may be named after the events: items of the vocabulary that are not retired, and the
    [NEW_j] of the history."""
    items = events.items
    is_new = (items >= FIRST_NEW) & (items < tables.first_item_id)
    nameable = tables.nameable.expand(len(items), -1).scatter(1, items, tables.nameable[items] | is_new)
    if question.allowed is not None:
        only = torch.zeros_like(tables.nameable)
        only[question.allowed] = True
        nameable &= only
    if question.exclude_seen:
        nameable.scatter_(1, items, False)
    if question.left_out is not None:
        nameable.scatter_(1, question.left_out, False)
    return nameable


def over_actions(question: Question) -> bool:
    """Whether an answer is an item whichever the action."""
    return question.of == "item" and question.action is None


def asked_of(
    answers: ItemAnswers, events: Events, question: Question, tables: AnswerTables
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a question about items or pairs: (B, Q, V) what is ranked, Q = 1 over actions; (B, V) bool candidates; and
    (B, 1) the sum over the candidates, which probabilities are divided by."""
    if over_actions(question):
        joint = answers.marginal()[:, None, :]
    elif question.action is not None:
        joint = answers.items
    else:
        joint = answers.items * answers.by_action[:, answers.actions, None]
    candidates = candidates_of(events, question, tables)
    if question.of == "pair":
        candidates[:, NONE] = tables.without_item[answers.actions].any()
    return joint, candidates, (joint.sum(dim=1) * candidates).sum(dim=1, keepdim=True).clamp(min=TINY)


def probabilities_of(
    answers: ItemAnswers,
    events: Events,
    question: Question,
    tables: AnswerTables,
    item_ids: torch.Tensor,
    action_ids: torch.Tensor,
) -> torch.Tensor:
    """(B, k) float32: the probabilities of answers (B, k) int64 as `rank_items` would give them; 0 for what is no
    candidate."""
    joint, candidates, total = asked_of(answers, events, question, tables)
    named = joint.gather(2, item_ids[:, None, :].expand(-1, joint.shape[1], -1))  # (B, Q, k)
    if not over_actions(question):
        named = named * (answers.actions[:, None] == action_ids[:, None, :])
    return named.sum(dim=1) * candidates.gather(1, item_ids) / total


def rank_items(answers: ItemAnswers, events: Events, question: Question, tables: AnswerTables) -> RankedBehaviors:
    """The best items, or pairs of action and item, of one chunk of rows."""
    actions = answers.actions
    joint, candidates, total = asked_of(answers, events, question, tables)
    without = tables.without_item[actions]
    # The best k pairs are among those of the k items whose best pair is best.
    top_k = question.top_k if question.limit is None else candidates.shape[1]
    most, item_ids, _ = rank(joint.amax(dim=1).masked_fill_(~candidates, -1), top_k)  # (B, n)
    if over_actions(question):
        ranked = RankedBehaviors(item_ids, torch.zeros_like(item_ids), most / total)
        return ranked if question.limit is None else within_limit(ranked, question.limit)
    pairs = joint.gather(2, item_ids[:, None, :].expand(-1, joint.shape[1], -1))  # (B, Q, n)
    none = item_ids[:, None, :] == NONE
    pairs = pairs.masked_fill((item_ids[:, None, :] == PAD) | none & ~without[:, None], -1)
    best, chosen, missing = rank(pairs.flatten(1), question.top_k)  # (B, k)
    width = item_ids.shape[1]
    item_ids = item_ids.gather(1, chosen % width).masked_fill(missing, PAD)
    return RankedBehaviors(item_ids, actions[chosen // width].masked_fill(missing, PAD), best / total)


def shares_of_paths(
    answers: ItemAnswers, events: Events, item_ids: torch.Tensor, action_ids: torch.Tensor, tables: AnswerTables
) -> torch.Tensor:
    """(B, k, 4) float32: how p(item | history, action) of the answers (B, k) is made up of the paths; see
    `BertForNextBehavior.path_shares`."""
    parts = answers.named.by_path(tables.first_item_id, events.items, item_ids)  # (B, Q, k, 4)
    actions = answers.actions
    weight = answers.items.gather(2, item_ids[:, None, :].expand(-1, len(actions), -1))  # (B, Q, k)
    if len(actions) > 1:  # a given action counts, however improbable it is
        weight = weight * answers.by_action[:, actions, None]
    action_ids = action_ids[:, None, :]  # (B, 1, k)
    weight = weight * ((action_ids == PAD) | (actions[:, None] == action_ids))
    joint = (weight[..., None] * parts / parts.sum(dim=-1, keepdim=True).clamp(min=TINY)).sum(dim=1)  # (B, k, 4)
    return joint / joint.sum(dim=-1, keepdim=True).clamp(min=TINY)


def stacked(answers: list[RankedBehaviors]) -> RankedBehaviors:
    """The answers of all chunks, filled to the same k with id 0 and probability 0."""
    if len(answers) == 1:
        return answers[0]
    tables = [chunk.to_tuple() for chunk in answers]
    width = max(table.shape[1] for chunk in tables for table in chunk)
    filled = [[F.pad(table, (0, width - table.shape[1])) for table in chunk] for chunk in tables]
    return RankedBehaviors(*(torch.cat(chunks) for chunks in zip(*filled, strict=True)))
