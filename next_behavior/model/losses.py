"""The losses: cross-entropy of actions and times, and -log p(item | history, action) over the paths.

In training the network answers for new items alone, without the memory. Trained on top of the memory, with each
target's own counts left out, it predicts held-out events worse (benchmarks/ablations.md). On held-out events the loss
is that of the whole mixture, and every target is predicted by the counts of all other events.

References: sampled softmax (Jean et al. 2015), with the correction of the uniform proposal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .encoder import Events
from .mixture import ItemHead, actions_without_item, seen_items
from .ranking import MAX_RANKED_ELEMENTS
from .repeat_path import MASKED
from .special_ids import FIRST_NEW, IGNORED, NONE, UNKNOWN_ACTION

if torch.distributed.is_available():  # not in every build of torch
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

# Logits of the training softmax that are kept for the backward pass: 2**24 floats are 64 MiB; more are computed again.
MAX_KEPT_ELEMENTS = 2**24
# Logits that are worked on at once, 28 MiB of floats: memory of over 32 MiB goes back to the system at once, and asking
# for its pages again took a fifth of a training step (benchmarks/README.md).
MAX_BLOCK_ELEMENTS = 7 * 2**20
ALIGNED_ELEMENTS = 16  # 64 bytes of floats


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy of (..., C) logits over labels (...) int64, -100 ignored."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def item_loss(
    head: ItemHead,
    hidden: torch.Tensor,
    events: Events,
    labels: torch.Tensor,
    action_labels: torch.Tensor,
    training: bool,
) -> torch.Tensor:
    """The sum over the labeled positions of -log p(item | history, action).

    Args:
        hidden: (B, T, H) states of the events; labels, action_labels: (B, T) int64, -100 ignored.
        training: whether the weights are being trained on these events.
    """
    actions = action_labels.masked_fill(action_labels == IGNORED, UNKNOWN_ACTION)
    query = head.query(hidden, actions)  # (B, T, H)
    index = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    nameable = (events.items >= FIRST_NEW) & (events.mask != 0)

    scored = labels != IGNORED
    repeated = repeated_log_probability(head, query, actions, hidden, events, labels, nameable)[scored]
    target, action, query = labels[scored], actions[scored], query[scored]  # (N,), (N,), (N, H)
    can_repeat = (nameable.cumsum(dim=1) > 0)[scored]
    without = actions_without_item(head.config, action.device)[action]
    gate = head.gate_logits(query, without, can_repeat).log_softmax(dim=-1)  # (N, 3)
    is_new = (target >= head.config.first_item_id) & (repeated <= MASKED / 2)
    # Scores over the catalog are computed for what needs them alone.
    if training:
        log_probability = training_log_probability(head, query[is_new], target[is_new])
    else:
        past = index[:, None, :] <= index[:, :, None]  # (B, T, T)
        history = (events.items[:, None, :] * past)[scored][is_new]  # (n, T)
        recent = head.memory.recent_items(events.items, events.mask, index)[scored][is_new]  # (n, K)
        log_probability = held_out_log_probability(head, query[is_new], target[is_new], history, recent)
    nothing = torch.full_like(repeated, MASKED)
    generated = nothing.masked_scatter(is_new, log_probability)
    named = gate + torch.stack([nothing.masked_fill(target == NONE, 0), repeated, generated], dim=-1)  # (N, 3)
    # What no path can name is no training signal.
    return -torch.logsumexp(named, dim=-1).masked_fill(named.amax(dim=-1) <= MASKED / 2, 0).sum()


def repeated_log_probability(
    head: ItemHead,
    query: torch.Tensor,
    actions: torch.Tensor,
    hidden: torch.Tensor,
    events: Events,
    labels: torch.Tensor,
    nameable: torch.Tensor,
) -> torch.Tensor:
    """(B, T) float32 log p(label | an event is repeated), MASKED where the label repeats none.

    The pointer is computed for the histories with a repeat alone. Its gradients are zeros where there is none, not
    missing: processes that share a step would wait for each other.

    Args:
        query: (B, T, H); actions, labels: (B, T) int64; nameable: (B, T) bool, the events that can be repeated.
    """
    position = torch.arange(labels.shape[1], device=labels.device)
    same = (events.items[:, None, :] == labels[:, :, None]) & nameable[:, None, :]  # (B, T, T)
    rows = (same & (position <= position[:, None])).any(dim=-1).any(dim=-1)
    index = position.expand(int(rows.sum()), -1)
    pointer = head.repeat_path(query[rows], actions[rows], index, hidden[rows], events.rows(rows))
    repeated = pointer.masked_fill(~same[rows], MASKED).logsumexp(dim=-1)
    nothing = torch.full(labels.shape, MASKED, dtype=repeated.dtype, device=labels.device)
    return nothing.masked_scatter(rows[:, None], repeated)


def training_log_probability(head: ItemHead, query: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(N,) log p(target | generate) for queries (N, H) and the ids of items (N,) int64, smoothed over the items by
    `label_smoothing`.

    The normalizer counts all items, those of the history too: they are few. Or it is estimated from `num_negatives`
    shared uniform negatives.
    """
    first, size = head.config.first_item_id, head.config.vocab_size
    target_score = (query * head.item_rows(target)).sum(dim=-1).float()
    if 0 < head.config.num_negatives < size - first:
        negatives = torch.randint(first, size, (head.config.num_negatives,), device=query.device)
        scores = (query @ head.item_rows(negatives).T).float()  # (N, M)
        scores = scores.masked_fill(negatives == target[:, None], MASKED)
        correction = torch.log(torch.tensor((size - first - 1) / head.config.num_negatives))
        normalizer = torch.logaddexp(target_score, scores.logsumexp(dim=-1) + correction)
        # Masked are the few that are the target.
        mean_score = scores.masked_fill(scores <= MASKED, 0).mean(dim=-1)
    elif (shards := head.item_shards()) is not None:
        normalizer, mean_score = sharded_scores(query, shards, first)
    else:
        device_type = query.device.type
        low = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype
        table = head.item_table()
        normalizer = LinearLogSumExp.apply(query, table, low)
        mean_score = (query @ table.mean(dim=0)).float()
    smoothing = head.config.label_smoothing
    return (1 - smoothing) * target_score + smoothing * mean_score - normalizer


def sharded_scores(query: torch.Tensor, rows: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The logsumexp and the mean, (N,) float32 each, of the scores of all items for queries (N, H), the same in all
    processes, from rows (V, H) of all ids that are divided among them. Each computes the logits of its rows."""
    assert isinstance(rows, DTensor)
    mesh = rows.device_mesh
    is_item = (torch.arange(len(rows), device=query.device) >= first).float()[None]
    is_item = distribute_tensor(is_item, mesh, [Shard(1)], src_data_rank=None)  # (1, V)
    logits = (DTensor.from_local(query, mesh, [Replicate()]) @ rows.T).float()
    logits = logits + is_item.log()  # (N, V), -inf for special ids
    largest = everywhere(logits.detach().amax(dim=-1, keepdim=True))
    sums = everywhere((logits - largest).exp().sum(dim=-1, keepdim=True))  # (N, 1)
    mean = everywhere((is_item @ rows) / (len(rows) - first))  # (1, H)
    return (sums.to_local().log() + largest.to_local())[:, 0], (query @ mean.to_local()[0]).float()


def everywhere(tensor: torch.Tensor) -> DTensor:
    """What processes hold in parts, whole in each."""
    assert isinstance(tensor, DTensor)
    return tensor.redistribute(placements=[Replicate()])


def held_out_log_probability(
    head: ItemHead, query: torch.Tensor, target: torch.Tensor, history: torch.Tensor, recent: torch.Tensor
) -> torch.Tensor:
    """(N,) log p(target | the item is new) by generate and associate, without the counts of the target's own event.

    Args:
        query: (N, H); target: (N,) int64, ids of items; history: (N, T) int64, the items before; recent: (N, K) int64.
    """
    config, memory, table = head.config, head.memory, head.item_table()
    first = config.first_item_id
    left, rescale = memory.neighbors().leave_one_out(recent, target)  # (N, K), (N, K)
    own = (left * memory.weights(recent)).sum(dim=-1)  # (N,)
    # How much the target's own event still adds to recent popularity is not known: at most all of it.
    share = memory.share() if memory.share().any() else None
    trend, own_trend = memory.trend(), memory.trend(less=1.0)[(target - first).clamp(min=0)]  # (V - first,), (N,)
    parts = []
    for rows in torch.arange(len(query), device=query.device).split(max(1, MAX_RANKED_ELEMENTS // len(table))):
        seen, column = seen_items(history[rows], config.vocab_size), target[rows, None] - first
        logits = (query[rows] / config.generate_temperature @ table.T).float()  # (n, V - first)
        scores = memory.score(recent[rows], seen, rescale[rows])[:, first:].scatter(1, column, own[rows, None])
        new = head.new_items(
            logits.masked_fill(seen[:, first:], MASKED)[:, None],
            scores,
            trend.expand_as(scores).scatter(1, column, own_trend[rows, None]),
            share,
        )
        parts.append(new.log_probability()[:, 0].gather(1, column)[:, 0])
    return torch.cat(parts) if parts else query.new_zeros(0, dtype=torch.float32)


class LinearLogSumExp(torch.autograd.Function):
    """logsumexp(query @ rows.T, dim=-1) for queries (N, H) and rows (V, H), in float32.

    Works on MAX_BLOCK_ELEMENTS logits at a time and in `dtype` (bfloat16 under autocast). The normalizer is read off
    the softmax at its largest entry, so that one fused kernel passes over the logits; that costs a relative error of
    2**-9 in bfloat16, as much as the logits themselves have. Up to MAX_KEPT_ELEMENTS are kept for the backward pass,
    more are computed again: memory stays bounded for any catalog.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.size, ctx.dtypes = len(rows), (query.dtype, rows.dtype)
        ctx.block = max(1, MAX_BLOCK_ELEMENTS // ctx.size)
        # Rows of logits that begin at odd addresses take a matrix product half as long again.
        query_low, rows_low = query.to(dtype), F.pad(rows.to(dtype), (0, 0, 0, -ctx.size % ALIGNED_ELEMENTS))
        log_sums, kept = [], []
        for block in query_low.split(ctx.block):
            logits = padded_logits(block, rows_low, ctx.size)  # (n, V and a few)
            largest = logits.amax(dim=-1).float()
            weight = softmax(logits)
            log_sums.append(largest - weight.amax(dim=-1).float().log())
            if len(query) * ctx.size <= MAX_KEPT_ELEMENTS:
                kept.append(weight)
        ctx.save_for_backward(query_low, rows_low, *kept)
        return torch.cat(log_sums)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        query, rows, *kept = ctx.saved_tensors
        gradient = gradients[0][:, None]  # (N, 1)
        scaled = (query * gradient).to(query.dtype)
        query_gradient = torch.empty(query.shape, dtype=torch.float32, device=query.device)
        rows_gradient = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        for number, begin in enumerate(range(0, query.shape[0], ctx.block)):
            part = slice(begin, begin + ctx.block)
            weight = kept[number] if kept else softmax(padded_logits(query[part], rows, ctx.size))
            query_gradient[part] = (weight @ rows) * gradient[part]
            rows_gradient += weight.T @ scaled[part]
        return query_gradient.to(ctx.dtypes[0]), rows_gradient[: ctx.size].to(ctx.dtypes[1]), None


def padded_logits(query: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
    """query @ rows.T, -inf from column `size` on."""
    logits = query @ rows.T
    logits[:, size:] = -torch.inf
    return logits


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in the dtype of `logits` under autocast too, and on a CPU in their place."""
    return torch.softmax(logits, dim=-1, out=logits if logits.device.type == "cpu" else torch.empty_like(logits))
