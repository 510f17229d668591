"""From a batch of histories to one state per event: the event embedding and the causal `BertEncoder`.

The embedding is BERT's own sum with one more term: item + action + time since the event before, + position where asked
for. A short convolution adds what the few events before were.

References: BERT (Devlin et al. 2019); next-item transformers (Kang and McAuley 2018); short convolutions before
attention (Poli et al. 2023, Allen-Zhu 2025).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.masking_utils import create_causal_mask
from transformers.models.bert.modeling_bert import BertEncoder

from .configuration_behavior import BehaviorConfig
from .item_text import ItemText
from .special_ids import NO_GAP, PAD, UNK, UNKNOWN_ACTION

if torch.distributed.is_available():  # not in every build of torch
    from torch.distributed.tensor import DTensor

# What a batch calls the channels of `Events`, in their order.
CHANNELS = ("input_ids", "token_type_ids", "time_gap_ids", "attention_mask")


class Events(NamedTuple):
    """Histories as the model reads them, (B, T) int64 each: items, actions, times since the event before, and 1 where
    there is an event."""

    items: torch.Tensor
    actions: torch.Tensor
    time_gaps: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def complete(
        cls,
        config: BehaviorConfig,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        time_gap_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> Events:
        """A batch with the channels that were left out filled in: unknown actions, no gap known, no padding.

        Raises:
            ValueError: the channels are no whole numbers of one shape, or histories are too long for the model.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (batch, events).")
        if input_ids.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"histories of {input_ids.shape[1]} events, but this model holds {config.max_position_embeddings}: let "
                "the tokenizer truncate (it does, unless max_length is raised)."
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        actions = torch.full_like(input_ids, UNKNOWN_ACTION) * mask if token_type_ids is None else token_type_ids
        time_gaps = torch.full_like(input_ids, NO_GAP) * mask if time_gap_ids is None else time_gap_ids
        channels = (input_ids, actions, time_gaps, mask)
        for name, channel in zip(CHANNELS, channels, strict=True):
            if channel.is_floating_point() or channel.shape != input_ids.shape:
                raise ValueError(
                    f"{name} has shape {tuple(channel.shape)} and type {channel.dtype}, expected whole numbers in the "
                    f"shape of input_ids, {tuple(input_ids.shape)}: pass what the tokenizer returns."
                )
        return cls(*(channel.long() for channel in channels))

    def rows(self, chosen: torch.Tensor) -> Events:
        return Events(*(channel[chosen] for channel in self))


class ShortConvolution(nn.Module):
    """Adds to each event a weighted sum of itself and the few before it, with weights of its own for every channel.

    Attention must learn from few events that the latest ones matter most, and in which order they came; this knows.
    """

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.convolution_size, config.hidden_size))

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """(B, T, H) to (B, T, H); an event reads its past alone."""
        mixed = embedded
        for steps, weight in enumerate(self.weight):
            mixed = mixed + F.pad(embedded, (0, 0, steps, 0))[:, : embedded.shape[1]] * weight
        return mixed


class BehaviorEmbeddings(nn.Module):
    """item + action + time gap + position, short convolution, LayerNorm, dropout: BERT's sum with two more terms."""

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=PAD)
        self.position_embeddings: nn.Embedding | None = None
        if config.use_positions:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.action_embeddings = nn.Embedding(config.num_actions, config.hidden_size, padding_idx=PAD)
        self.time_gap_embeddings = nn.Embedding(config.num_time_gaps, config.hidden_size, padding_idx=PAD)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.item_text: ItemText | None = ItemText(config) if config.text_size else None
        self.convolution: ShortConvolution | None = ShortConvolution(config) if config.convolution_size else None

    def item_rows(self, item_ids: torch.Tensor) -> torch.Tensor:
        """id row + projected text, (..., H), for ids (...) int64."""
        # Trainer's neftune_noise_alpha adds noise to rows of batches, (B, T, H).
        rows = self.embed_tokens(item_ids) if item_ids.ndim > 1 else self.embed_tokens(item_ids[None])[0]
        if self.item_text is None:
            return rows
        if self.training:
            known = torch.rand(self.config.vocab_size, device=rows.device) >= self.config.id_dropout
            rows = rows * known[item_ids][..., None]
        return rows + self.item_text(item_ids)

    def item_table(self, device: torch.device | None = None) -> torch.Tensor:
        """(V - first, H): the rows of all items, on `device`, that of the weights if they lie on one."""
        first, size = self.config.first_item_id, self.config.vocab_size
        if self.item_text is None and type(self.embed_tokens) is nn.Embedding and not self.embed_tokens.weight.is_meta:
            return self.embed_tokens.weight[first:size]  # no copy
        # Not of `weight`, which an adapter or a quantized module may lack and an offloaded one leaves empty.
        return self.item_rows(torch.arange(first, size, device=device or self.LayerNorm.weight.device))

    def item_shards(self) -> torch.Tensor | None:
        """(V, H), a `DTensor`: the rows of all ids without their text, where they are divided among processes."""
        weight = self.embed_tokens.weight
        return weight if torch.distributed.is_available() and isinstance(weight, DTensor) else None

    def table_sources(self) -> tuple[torch.Tensor, ...] | None:
        """The tensors that `item_table` is made of; None where a change of them would not be seen."""
        if self.training or type(self.embed_tokens) is not nn.Embedding:
            return None
        sources = [self.embed_tokens.weight]
        if self.item_text is not None:
            if type(self.item_text.project) is not nn.Linear and [*self.item_text.project.parameters()]:
                return None  # an adapter; a quantized projection has no parameters and stays as it is
            sources += [*self.item_text.project.parameters(), self.item_text.vectors, self.item_text.unit]
        if any(source.is_meta or source.is_inference() for source in sources):  # the latter do not count their changes
            return None
        return tuple(sources)

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        time_gap_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """(B, T, H) for channels of (B, T) each."""
        if self.training and self.config.event_dropout:
            dropped = torch.rand(input_ids.shape, device=input_ids.device) < self.config.event_dropout
            input_ids = input_ids.masked_fill(dropped, UNK)
        return self.of_rows(self.item_rows(input_ids), token_type_ids, time_gap_ids, attention_mask)

    def of_rows(
        self,
        item_rows: torch.Tensor,
        token_type_ids: torch.Tensor,
        time_gap_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """(B, T, H) where the rows of the items are looked up already, (B, T, H)."""
        return self.of_sums(self.sums(item_rows, token_type_ids, time_gap_ids), attention_mask)

    def sums(self, item_rows: torch.Tensor, token_type_ids: torch.Tensor, time_gap_ids: torch.Tensor) -> torch.Tensor:
        """(B, T, H): what each event says, wherever it stands."""
        return item_rows + self.action_embeddings(token_type_ids) + self.time_gap_embeddings(time_gap_ids)

    def of_sums(self, embedded: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T, H) from `sums`: position, short convolution, LayerNorm and dropout."""
        if self.position_embeddings is not None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
            embedded = embedded + self.position_embeddings(position_ids)
        if self.convolution is not None:
            embedded = self.convolution(embedded * attention_mask[..., None])
        return self.dropout(self.LayerNorm(embedded))


class BehaviorEncoder(nn.Module):
    """Embeddings and `BertEncoder`, under the names that BERT checkpoints use."""

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BehaviorEmbeddings(config)
        self.encoder = BertEncoder(config)

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        time_gap_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        return self.states(self.embeddings(input_ids, token_type_ids, time_gap_ids, attention_mask), attention_mask)

    def states(self, embedded: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T, H) from event embeddings (B, T, H)."""
        if not self.training and self.config._attn_implementation == "sdpa":
            # What `create_causal_mask` makes, in a tenth of the time, and the same for every batch.
            length = attention_mask.shape[1]
            place = torch.arange(length, device=attention_mask.device)
            mask = (place <= place[:, None]) & attention_mask[:, None, None, :].bool() | (place == place[:, None])
            return self.encoder(embedded, attention_mask=mask, use_cache=False).last_hidden_state
        mask = create_causal_mask(self.config, embedded, attention_mask, None)
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.ndim == 4:
            # Padding reads itself: where a position reads nothing, cuDNN's attention answers with gradients of nan.
            mask = mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        return self.encoder(embedded, attention_mask=mask, use_cache=False).last_hidden_state


def last_index(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B,) int64: the last attended position of each row of (B, T)."""
    length = attention_mask.shape[1]
    positions = torch.arange(1, length + 1, device=attention_mask.device)
    last = (attention_mask.bool() * positions).amax(dim=1) - 1
    return last.clamp(min=0)


def last_hidden(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, H): the hidden state (B, T, H) at each row's last attended position."""
    return state_at(hidden, last_index(attention_mask)[:, None])[:, 0]


def state_at(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, Q, H): the hidden states (B, T, H) at the positions (B, Q) int64."""
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
