"""BertForNextBehavior: which action a user takes next, on which item, and how soon.

One position per event. The event embedding is BERT's own sum with one more term: item + action + position + time since
the event before. The encoder is transformers' `BertEncoder`, causal. The head is a joint distribution,

    p(action, item | history) = p(action | history) * p(item | history, action),

whose item factor mixes several ways to name an item, weighted by a gate that reads the history and the action:

    none      the action comes without an item (a search, a login): the token [NONE]
    generate  softmax over the item table, which is tied to the input embeddings
    repeat    a pointer over the user's own events, also at items the vocabulary does not know ([NEW_1], [NEW_2] ...)

This file is pushed to the Hub byte for byte and imports torch and transformers alone.

    model = AutoModel.from_pretrained(DIR, trust_remote_code=True)
    ranked = model.predict(**tokenizer([history], return_tensors="pt"), top_k=10, of="pair")

References: BERT (Devlin et al. 2019); next-item transformers (Kang & McAuley 2018); pointer mixtures (Merity et al.
2017, See et al. 2017); p(action) * p(item | action) as in MBGen (Liu et al. 2024).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer, BertSelfAttention
from transformers.utils import ModelOutput, cached_file
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

PAD, UNK, NONE, START, FIRST_NEW = 0, 1, 2, 3, 4
UNKNOWN_ACTION, FIRST_ACTION = 1, 3
FIRST_GAP = 2
IGNORED = -100

GATE_NONE, GATE_GENERATE, GATE_REPEAT = range(3)
GATE_SIZE = 3

# exp(MASKED) is zero in every float type, and unlike -inf it never turns a gradient into nan.
MASKED = -1e4
EXACT_DISTANCES = 16
NUM_DISTANCES = 32
# Rows x candidates held at once when ranking: 2**24 floats are 64 MiB.
MAX_CHUNK_ELEMENTS = 2**24

CODE_FILES = ("modeling_behavior.py", "tokenization_behavior.py", "pipeline_behavior.py", "handler.py")
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
        action_loss_weight, time_loss_weight: weights beside the item loss.
        num_negatives: shared uniform negatives of the training softmax; 0 trains on the full softmax.
        format_version: version of the file layout, for readers of later releases.
    """

    model_type = "bert-next-behavior"

    vocab_size: int = 68
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
    action_loss_weight: float = 1.0
    time_loss_weight: float = 0.1
    num_negatives: int = 0
    format_version: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # A BERT checkpoint's config says is_decoder=False; with it the encoder would see the future.
        self.is_decoder = True
        self.use_cache = False
        self.tie_word_embeddings = True
        self.type_vocab_size = self.num_actions
        self.actions_without_item = list(self.actions_without_item or [])
        self.auto_map = {**AUTO_MAP, **(self.auto_map if "auto_map" in self.__dict__ and self.auto_map else {})}
        self.custom_pipelines = CUSTOM_PIPELINES
        if self.vocab_size < self.first_item_id:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but {self.first_item_id} rows are reserved for special tokens and "
                f"num_new_items={self.num_new_items}: set vocab_size=len(tokenizer)."
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
        path_logits: (B, A, 3) log-weight of the paths none, generate, repeat; None with labels.
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


# ----------------------------------------------------------------------------------------------------------------------
# Event embedding and encoder
# ----------------------------------------------------------------------------------------------------------------------


class BehaviorEmbeddings(nn.Module):
    """item + action + position + time gap, LayerNorm, dropout: BERT's sum with one more term."""

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=PAD)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.action_embeddings = nn.Embedding(config.num_actions, config.hidden_size, padding_idx=PAD)
        self.time_gap_embeddings = nn.Embedding(config.num_time_gaps, config.hidden_size, padding_idx=PAD)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        time_gap_ids: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> torch.Tensor:
        embedded = (
            self.embed_tokens(input_ids)
            + self.action_embeddings(token_type_ids)
            + self.position_embeddings(position_ids)
            + self.time_gap_embeddings(time_gap_ids)
        )  # (B, T, H)
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
        position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        embedded = self.embeddings(input_ids, token_type_ids, time_gap_ids, position_ids)  # (B, T, H)
        mask = create_causal_mask(
            config=self.config, inputs_embeds=embedded, attention_mask=attention_mask, cache=None
        )
        return self.encoder(embedded, attention_mask=mask, use_cache=False).last_hidden_state


# ----------------------------------------------------------------------------------------------------------------------
# Ways to name an item
# ----------------------------------------------------------------------------------------------------------------------


class ItemQuery(nn.Module):
    """What is looked for, given the history and the action: BERT's prediction transform with the action added."""

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.target_action = nn.Embedding(config.num_actions, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor, action_ids: torch.Tensor) -> torch.Tensor:
        """hidden (..., H) and action_ids (...) int64 to queries (..., H)."""
        return self.LayerNorm(F.gelu(self.dense(hidden) + self.target_action(action_ids)))


class RepeatPath(nn.Module):
    """A pointer over the user's own events.

    The score of event j for a query is a dot product plus three learned biases, each for the target action: how far
    back the event lies, which action it was, and how often its item has had the target action already (an item that
    is in the cart is rarely put there again).
    """

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.num_actions = config.num_actions
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.distance_bias = nn.Embedding(config.num_actions, NUM_DISTANCES)
        self.action_bias = nn.Embedding(config.num_actions, config.num_actions)
        self.done_bias = nn.Embedding(config.num_actions, 3)

    def forward(
        self,
        query: torch.Tensor,
        target_action: torch.Tensor,
        query_index: torch.Tensor,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Log-weights of the events.

        Args:
            query: (B, Q, H); target_action: (B, Q) int64; query_index: (B, Q) int64, the position asked from.
            hidden: (B, T, H); input_ids, token_type_ids, attention_mask: (B, T) int64.

        Returns:
            (B, Q, T) float32, log-softmax over the events up to the query's position that name an item that can be
            named; MASKED everywhere if there is none.
        """
        length = hidden.shape[1]
        scores = self.query(query) @ self.key(hidden).transpose(1, 2) / hidden.shape[-1] ** 0.5  # (B, Q, T)
        event_index = torch.arange(length, device=hidden.device)
        distance = query_index[:, :, None] - event_index  # (B, Q, T)
        can_name = ((input_ids >= FIRST_NEW) & (attention_mask != 0))[:, None, :] & (distance >= 0)  # (B, Q, T)

        bias = self.distance_bias(target_action).gather(2, distance_bucket(distance))  # (B, Q, T)
        was_action = F.one_hot(token_type_ids, self.num_actions).to(hidden.dtype)  # (B, T, A)
        bias = bias + self.action_bias(target_action) @ was_action.transpose(1, 2)
        with torch.no_grad():
            same_item = (input_ids[:, :, None] == input_ids[:, None, :]).float()  # (B, T, T)
            had_action = (token_type_ids[:, None, :] == target_action[:, :, None]) & (distance >= 0)  # (B, Q, T)
            times_done = had_action.float() @ same_item  # (B, Q, T): events k with item k == item j and that action
        done = self.done_bias(target_action)[:, :, None, :]  # (B, Q, 1, 3)
        bias = bias + torch.where(times_done < 0.5, done[..., 0], torch.where(times_done < 1.5, done[..., 1], done[..., 2]))
        scores = (scores + bias).float().masked_fill(~can_name, MASKED)
        return scores.log_softmax(dim=-1).masked_fill(~can_name, MASKED)


def distance_bucket(distance: torch.Tensor) -> torch.Tensor:
    """Exact below 16 events, then three buckets an octave; int64 of the same shape."""
    log_bucket = EXACT_DISTANCES + 3 * torch.log2(distance.clamp(min=1).float() / EXACT_DISTANCES)
    return torch.where(distance < EXACT_DISTANCES, distance, log_bucket.long()).clamp(0, NUM_DISTANCES - 1)


class LinearLogSumExp(torch.autograd.Function):
    """logsumexp(query @ rows.T) in chunks of rows of `query`: never more than MAX_CHUNK_ELEMENTS logits at once."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        query_low, rows_low = query.to(dtype), rows.to(dtype)
        chunk = max(1, MAX_CHUNK_ELEMENTS // rows.shape[0])
        log_sums = [(part @ rows_low.T).float().logsumexp(dim=-1) for part in query_low.split(chunk)]
        log_sum = torch.cat(log_sums)
        ctx.save_for_backward(query_low, rows_low, log_sum)
        ctx.dtypes = query.dtype, rows.dtype
        return log_sum

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        query, rows, log_sum = ctx.saved_tensors
        chunk = max(1, MAX_CHUNK_ELEMENTS // rows.shape[0])
        query_gradient = torch.empty_like(query)
        rows_gradient = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        for begin in range(0, query.shape[0], chunk):
            part = slice(begin, begin + chunk)
            weight = (query[part] @ rows.T).float().sub_(log_sum[part, None]).exp_()  # (N, V)
            weight = weight.mul_(gradients[0][part, None]).to(query.dtype)
            query_gradient[part] = weight @ rows
            rows_gradient += weight.T @ query[part]
        return query_gradient.to(ctx.dtypes[0]), rows_gradient.to(ctx.dtypes[1]), None


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
    _tied_weights_keys = {"lm_head.weight": "bert.embeddings.embed_tokens.weight"}
    _can_record_outputs = {"hidden_states": BertLayer, "attentions": BertSelfAttention}

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__(config)
        self.bert = BehaviorEncoder(config)
        self.item_query = ItemQuery(config)
        self.repeat_path = RepeatPath(config)
        self.path_gate = nn.Linear(config.hidden_size, GATE_SIZE)
        self.action_head = nn.Linear(config.hidden_size, config.num_actions)
        self.time_head = nn.Linear(config.hidden_size, config.num_time_gaps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RepeatPath):
            # Before anything is learned, the pointer prefers recent events.
            prior = -torch.log1p(torch.arange(NUM_DISTANCES, dtype=torch.float32))
            init.copy_(module.distance_bias.weight, prior.expand_as(module.distance_bias.weight))
            init.zeros_(module.action_bias.weight)
            init.zeros_(module.done_bias.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.bert.embeddings.embed_tokens = value

    def item_rows(self, item_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the item table, (..., H), for ids (...) int64."""
        return self.get_input_embeddings()(item_ids)

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
    ) -> NextBehaviorOutput:
        """Losses at every position with labels, else the distribution of the event after the last one.

        Args:
            input_ids: (B, T) int64 item ids. A row without any attended position is an error.
            token_type_ids: (B, T) int64 action ids; None means unknown actions.
            time_gap_ids: (B, T) int64 time buckets; None means no gap known.
            attention_mask: (B, T) 0/1; None attends everywhere. Padding may stand on either side.
            labels, action_labels, time_labels: (B, T) int64, already shifted: the label at t is the event t + 1;
                -100 is ignored. An item label needs the action label beside it; without one the action counts as
                unknown.
            num_items_in_batch: the number of item labels to divide by; None counts this batch's.
        """
        input_ids, token_type_ids, time_gap_ids, attention_mask = self._complete(
            input_ids, token_type_ids, time_gap_ids, attention_mask
        )
        hidden = self.bert(input_ids, token_type_ids, time_gap_ids, attention_mask)  # (B, T, H)
        if labels is None and action_labels is None and time_labels is None:
            last = hidden[torch.arange(len(hidden), device=hidden.device), last_index(attention_mask)]  # (B, H)
            item_logits, path_logits = self._item_log_probabilities(
                hidden, input_ids, token_type_ids, attention_mask, self._all_actions(hidden.device)
            )
            return NextBehaviorOutput(
                action_logits=self._action_logits(last, calibrated=True),
                item_logits=item_logits,
                time_logits=self._time_logits(last, calibrated=True),
                path_logits=path_logits,
            )

        ignored = torch.full_like(input_ids, IGNORED)
        labels = ignored if labels is None else labels
        action_labels = ignored if action_labels is None else action_labels
        time_labels = ignored if time_labels is None else time_labels
        count = (labels != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        action_logits = self._action_logits(hidden, calibrated=False)
        time_logits = self._time_logits(hidden, calibrated=False)
        item_loss = self._item_loss(hidden, input_ids, token_type_ids, attention_mask, labels, action_labels) / count
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

    @torch.inference_mode()
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
    ) -> RankedBehaviors:
        """The `top_k` most probable next behaviours of each history.

        Args:
            input_ids ... attention_mask: (B, T), as for `forward`.
            of: "pair" ranks (action, item) pairs, an action without an item as (action, [NONE]); "item" ranks items,
                given that the next event names one; "action" ranks actions.
            action: an action id: the answer is given that this is the next action.
            exclude_seen: leave out the items in `input_ids`.
            allowed_items: item ids; only these are ranked. Actions without an item stay in "pair".

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
        input_ids, token_type_ids, time_gap_ids, attention_mask = self._complete(
            input_ids, token_type_ids, time_gap_ids, attention_mask
        )
        allowed = None
        if allowed_items is not None:
            allowed = torch.as_tensor(allowed_items, device=input_ids.device, dtype=torch.long)
            if allowed.numel() == 0 or allowed.min() < FIRST_NEW or allowed.max() >= self.config.vocab_size:
                raise ValueError(
                    f"allowed_items must be item ids from {FIRST_NEW} to {self.config.vocab_size - 1} and at least "
                    f"one, got {allowed.tolist()[:10]}: use tokenizer.encode_item(item)."
                )
        hidden = self.bert(input_ids, token_type_ids, time_gap_ids, attention_mask)  # (B, T, H)
        actions = self._all_actions(hidden.device) if action is None else torch.tensor([action], device=hidden.device)
        rows = max(1, MAX_CHUNK_ELEMENTS // (len(actions) * self.config.vocab_size))
        answers = [
            self._ranked(hidden[part], input_ids[part], token_type_ids[part], attention_mask[part],
                         actions, action is not None, top_k, of, exclude_seen, allowed)
            for part in torch.arange(len(hidden), device=hidden.device).split(rows)
        ]  # fmt: skip
        width = max(probabilities.shape[1] for _, _, probabilities in answers)
        item_ids, action_ids, probabilities = (
            torch.cat([F.pad(answer[field], (0, width - answer[field].shape[1])) for answer in answers])
            for field in range(3)
        )
        return RankedBehaviors(item_ids=item_ids, action_ids=action_ids, probabilities=probabilities)

    @torch.inference_mode()
    def item_log_probabilities(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        time_gap_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, V) float32: log p(item | history, the next event names an item), summed over actions; -inf for ids
        that are no candidates. Holds (B, V) and one action at a time."""
        input_ids, token_type_ids, time_gap_ids, attention_mask = self._complete(
            input_ids, token_type_ids, time_gap_ids, attention_mask
        )
        hidden = self.bert(input_ids, token_type_ids, time_gap_ids, attention_mask)  # (B, T, H)
        return self._marginal(hidden, input_ids, token_type_ids, attention_mask).log()

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _complete(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        time_gap_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Checks the batch and fills in the channels that were left out."""
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (batch, events).")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"histories of {input_ids.shape[1]} events, but this model holds {self.config.max_position_embeddings}: "
                "let the tokenizer truncate (it does unless max_length is raised)."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.full_like(input_ids, UNKNOWN_ACTION) * attention_mask
        if time_gap_ids is None:
            time_gap_ids = torch.ones_like(input_ids) * attention_mask
        return input_ids, token_type_ids, time_gap_ids, attention_mask

    def _all_actions(self, device: torch.device) -> torch.Tensor:
        return torch.arange(self.config.num_actions, device=device)

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

    def _path_logits(self, query: torch.Tensor, action_ids: torch.Tensor, can_repeat: torch.Tensor) -> torch.Tensor:
        """Log-weights (..., 3) of the paths for queries (..., H), action_ids (...) and can_repeat (...) bool."""
        without_item = torch.zeros(self.config.num_actions, dtype=torch.bool, device=query.device)
        without_item[self.config.actions_without_item] = True
        possible = torch.stack([without_item[action_ids], torch.ones_like(can_repeat), can_repeat], dim=-1)
        if self.config.vocab_size == self.config.first_item_id:
            possible[..., GATE_GENERATE] = ~possible.any(dim=-1)
        return self.path_gate(query).float().masked_fill(~possible, MASKED).log_softmax(dim=-1)

    def _item_loss(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        action_labels: torch.Tensor,
    ) -> torch.Tensor:
        """Sum of -log p(item | history, action) over the labelled positions."""
        actions = action_labels.masked_fill(action_labels == IGNORED, UNKNOWN_ACTION)
        query = self.item_query(hidden, actions)  # (B, T, H)
        index = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        pointer = self.repeat_path(query, actions, index, hidden, input_ids, token_type_ids, attention_mask)
        pointed = pointer.masked_fill(input_ids[:, None, :] != labels[:, :, None], MASKED)  # (B, T, T)

        scored = labels != IGNORED
        target = labels[scored]  # (N,)
        can_repeat = pointer[scored].amax(dim=-1) > MASKED
        gate = self._path_logits(query[scored], actions[scored], can_repeat)  # (N, 3)
        paths = torch.stack(
            [
                torch.zeros_like(gate[:, 0]).masked_fill(target != NONE, MASKED),
                self._generate_log_probability(query[scored], target),
                torch.logsumexp(pointed[scored], dim=-1),
            ],
            dim=-1,
        )  # (N, 3)
        return -torch.logsumexp((gate + paths).clamp(min=2 * MASKED), dim=-1).sum()

    def _generate_log_probability(self, query: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(N,) log p(target | generate) for queries (N, H) and target ids (N,) int64; MASKED for ids below the first
        item. The normaliser is exact, or estimated from shared uniform negatives while training with
        `num_negatives` (Jean et al. 2015, with the uniform proposal's correction)."""
        first, size = self.config.first_item_id, self.config.vocab_size
        is_item = target >= first
        rows = self.item_rows(target)  # (N, H)
        target_score = (query * rows).sum(dim=-1).float()
        if self.training and 0 < self.config.num_negatives < size - first:
            negatives = torch.randint(first, size, (self.config.num_negatives,), device=query.device)
            scores = (query @ self.item_rows(negatives).T).float()  # (N, M)
            scores = scores.masked_fill(negatives == target[:, None], MASKED)
            correction = torch.log(torch.tensor((size - first - 1) / self.config.num_negatives))
            normaliser = torch.logaddexp(target_score, scores.logsumexp(dim=-1) + correction)
        else:
            device_type = query.device.type
            low = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype
            table = self.item_rows(torch.arange(first, size, device=query.device))  # (V - first, H)
            normaliser = LinearLogSumExp.apply(query, table, low)
        return (target_score - normaliser).masked_fill(~is_item, MASKED)

    def _item_log_probabilities(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        actions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log p(item | history, action) (B, Q, V) and the paths' log-weights (B, Q, 3) at the last event, for the
        action ids `actions` (Q,)."""
        rows, first = len(hidden), self.config.first_item_id
        last = last_index(attention_mask)  # (B,)
        action_ids = actions.expand(rows, -1)  # (B, Q)
        last_hidden = hidden[torch.arange(rows, device=hidden.device), last]  # (B, H)
        query = self.item_query(last_hidden[:, None, :], action_ids)  # (B, Q, H)
        query_index = last[:, None].expand_as(action_ids)
        pointer = self.repeat_path(query, action_ids, query_index, hidden, input_ids, token_type_ids, attention_mask)
        can_repeat = pointer.amax(dim=-1) > MASKED  # (B, Q)
        gate = self._path_logits(query, action_ids, can_repeat)  # (B, Q, 3)

        table = self.item_rows(torch.arange(first, self.config.vocab_size, device=hidden.device))
        generated = (query @ table.T).float().softmax(dim=-1)  # (B, Q, V - first)
        probabilities = F.pad(generated * gate[..., GATE_GENERATE, None].exp(), (first, 0))  # (B, Q, V)
        pointed_at = input_ids[:, None, :].expand_as(pointer)
        probabilities.scatter_add_(2, pointed_at, (pointer + gate[..., GATE_REPEAT, None]).exp())
        probabilities[..., :FIRST_NEW] = 0
        probabilities[..., NONE] = gate[..., GATE_NONE].exp()
        if self.config.item_temperature != 1.0:
            probabilities = probabilities ** (1 / self.config.item_temperature)
        return (probabilities / probabilities.sum(dim=-1, keepdim=True)).log(), gate

    def _marginal(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """(B, V) p(item | history, the event names an item), one action at a time."""
        last = hidden[torch.arange(len(hidden), device=hidden.device), last_index(attention_mask)]
        action_probabilities = self._action_logits(last, calibrated=True).softmax(dim=-1)  # (B, A)
        total = hidden.new_zeros((len(hidden), self.config.vocab_size), dtype=torch.float32)
        for action in range(FIRST_ACTION, self.config.num_actions):
            one = torch.tensor([action], device=hidden.device)
            items, _ = self._item_log_probabilities(hidden, input_ids, token_type_ids, attention_mask, one)
            total += action_probabilities[:, action, None] * items[:, 0].exp()
        total[:, NONE] = 0
        return total / total.sum(dim=-1, keepdim=True)

    def _ranked(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        actions: torch.Tensor,
        action_given: bool,
        top_k: int,
        of: str,
        exclude_seen: bool,
        allowed: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """item_ids, action_ids and probabilities, each (B, k), of one chunk of rows."""
        last = hidden[torch.arange(len(hidden), device=hidden.device), last_index(attention_mask)]
        action_probabilities = self._action_logits(last, calibrated=True).softmax(dim=-1)  # (B, A)
        if of == "action":
            candidates = torch.arange(self.config.num_actions, device=hidden.device) >= FIRST_ACTION
            best, chosen = rank(action_probabilities, candidates.expand_as(action_probabilities), top_k)
            return torch.zeros_like(chosen), chosen, best

        # Which ids may be named: items, the new items of this history, and [NONE] where an action comes without one.
        nameable = torch.zeros((len(hidden), self.config.vocab_size), dtype=torch.bool, device=hidden.device)
        nameable[:, self.config.first_item_id :] = True
        nameable.scatter_(1, input_ids, True)
        if allowed is not None:
            only = torch.zeros(self.config.vocab_size, dtype=torch.bool, device=hidden.device)
            only[allowed] = True
            nameable &= only
        if exclude_seen:
            nameable.scatter_(1, input_ids, False)
        nameable[:, :FIRST_NEW] = False

        if of == "item" and not action_given:
            joint = self._marginal(hidden, input_ids, token_type_ids, attention_mask)[:, None, :]  # (B, 1, V)
        else:
            items, _ = self._item_log_probabilities(hidden, input_ids, token_type_ids, attention_mask, actions)
            joint = items.exp()  # (B, Q, V)
            if not action_given:
                joint = joint * action_probabilities[:, :, None]
        candidates = nameable[:, None, :].expand_as(joint).clone()
        if of == "pair":
            real = actions >= FIRST_ACTION
            candidates &= real[None, :, None]
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


def last_index(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B,) int64: the last attended position of each row of (B, T)."""
    length = attention_mask.shape[1]
    positions = torch.arange(1, length + 1, device=attention_mask.device)
    last = (attention_mask.bool() * positions).amax(dim=1) - 1
    return last.clamp(min=0)


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


BehaviorConfig.register_for_auto_class()
BertForNextBehavior.register_for_auto_class("AutoModel")
# An installed package registers itself. A remote copy must not: it would decide for every later repository.
if not __name__.startswith("transformers_modules"):
    AutoConfig.register(BehaviorConfig.model_type, BehaviorConfig, exist_ok=True)
    AutoModel.register(BehaviorConfig, BertForNextBehavior, exist_ok=True)
