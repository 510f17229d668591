"""BertForNextBehavior: which action a user takes next, on which item, and how soon.

One position per event. The event embedding is BERT's own sum with one more term (encoder.py), the encoder transformers'
causal `BertEncoder`. The head is a joint distribution,

    p(action, item | history) = p(action | history) * p(item | history, action),

whose item factor mixes several ways to name an item (mixture.py): a softmax over the item table, a pointer over the
user's own events (repeat_path.py), and the neighbors of recent items in a memory of counts (associative_memory.py).
A third head predicts the time to the next event.

This folder is pushed to the Hub byte for byte. Its files import torch, transformers, numpy and each other.

    model = AutoModel.from_pretrained(DIR, trust_remote_code=True)
    ranked = model.predict(**tokenizer([history], return_tensors="pt"), top_k=10, of="pair")

References: BERT (Devlin et al. 2019); next-item transformers (Kang and McAuley 2018); the others stand in the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .associative_memory import AssociativeMemory
from .catalog import ChangingCatalog
from .configuration_behavior import BehaviorConfig
from .encoder import BehaviorEmbeddings, BehaviorEncoder, Events, last_hidden, last_index
from .losses import item_loss, summed_cross_entropy
from .mixture import GATE, ItemQuery
from .ranking import (
    RankedBehaviors,
)
from .repeat_path import BIAS_SCALE, COUNT_BUCKET_MEANS, NUM_RECENCIES, RepeatPath
from .saved_model import SavedModel
from .special_ids import FIRST_ACTION, FIRST_GAP, IGNORED, PAD

__all__ = ["BehaviorConfig", "BehaviorEmbeddings", "BertForNextBehavior", "NextBehaviorOutput", "RankedBehaviors"]


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

    def __getitem__(self, k: Any) -> Any:
        if k == "logits":  # what Trainer smooths
            raise ValueError(
                "label_smoothing_factor needs an output with one `logits`, and this model has three: train with "
                "model.config.label_smoothing, which smooths over the items."
            )
        return super().__getitem__(k)


class BertForNextBehavior(ChangingCatalog, SavedModel):
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
        self.associate_path = AssociativeMemory(config)
        self.path_gate = nn.Linear(config.hidden_size, len(GATE))
        self.action_head = nn.Linear(config.hidden_size, config.num_actions)
        self.time_head = nn.Linear(config.hidden_size, config.num_time_gaps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        repeat, associate, text = self.repeat_path, self.associate_path, self.bert.embeddings.item_text
        # transformers never comes here for a module of ours that holds no weights of its own, so leaves are asked for.
        if module is self.bert.embeddings.embed_tokens:
            # At BERT's 0.02 the terms that all events share would drown the item in the event embedding, and logits
            # would start flat; with this spread they start with a variance of one. Where items have text, its
            # projection has the spread: text is learned from first, and an id learns what its text does not say.
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
            # A checkpoint without a memory (BERT's) would leave these as uninitialized storage.
            for table in associate.buffers():
                init.zeros_(table)

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.bert.embeddings.embed_tokens = value

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
        events = Events.complete(self.config, input_ids, token_type_ids, time_gap_ids, attention_mask)
        hidden = self.bert(*events)  # (B, T, H)
        if labels is None and action_labels is None and time_labels is None:
            last = last_hidden(hidden, events.mask)  # (B, H)
            actions = torch.arange(self.config.num_actions, device=hidden.device).expand(hidden.shape[0], -1)
            tables = self.answer_tables(hidden.device)
            named = self.item_head.named_items(hidden, events, actions, tables)
            return NextBehaviorOutput(
                action_logits=self.calibrated_actions(last, events),
                item_logits=named.probabilities(self.config, events.items, tables).log(),
                time_logits=self.calibrated_times(last),
                path_logits=named.path_log_weights(),
            )

        ignored = torch.full_like(events.items, IGNORED)
        labels = ignored if labels is None else labels
        action_labels = ignored if action_labels is None else action_labels
        time_labels = ignored if time_labels is None else time_labels
        return self._losses(hidden, events, labels, action_labels, time_labels, num_items_in_batch)

    def _losses(
        self,
        hidden: torch.Tensor,
        events: Events,
        labels: torch.Tensor,
        action_labels: torch.Tensor,
        time_labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> NextBehaviorOutput:
        """The losses of states (B, T, H), and the logits at every position; arguments as for `forward`."""
        action_labels = action_labels.masked_fill(action_labels < FIRST_ACTION, IGNORED)
        time_labels = time_labels.masked_fill(time_labels < FIRST_GAP, IGNORED)
        count = (labels != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        action_logits, time_logits = self.action_logits(hidden), self.time_logits(hidden)
        of_items = item_loss(self.item_head, hidden, events, labels, action_labels, self.training) / count
        action_loss = summed_cross_entropy(action_logits, action_labels) / count
        time_loss = summed_cross_entropy(time_logits, time_labels) / count
        return NextBehaviorOutput(
            loss=of_items + self.config.action_loss_weight * action_loss + self.config.time_loss_weight * time_loss,
            item_loss=of_items.detach(),
            action_loss=action_loss.detach(),
            time_loss=time_loss.detach(),
            action_logits=action_logits,
            time_logits=time_logits,
        )

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
        """Learns item-to-item counts and recent popularity from histories, without training. Kept by `save_pretrained`.
        The counts do not depend on the order of calls; recent popularity does, so call it in the order of time. May run
        beside questions in other threads; changes wait for each other.

        Args:
            pairs: "last" counts what the last event of each history adds: call it once for every new event;
                "all" counts every pair of the history: call it once for every new history.
            trained: the weights are trained on these events too. Pairs of other events count
                `config.memory_freshness` times, because the network knows nothing of them yet.
        """
        if pairs not in ("last", "all"):
            raise ValueError(f'pairs={pairs!r}, expected "last" or "all".')
        events = Events.complete(self.config, input_ids, token_type_ids, time_gap_ids, attention_mask)
        run, items = self.associate_path.runs(events.items, events.mask)
        if pairs == "last":
            # An event that continues a run, or names no known item, adds nothing.
            last = last_index(events.mask)[:, None]
            before = run.gather(1, (last - 1).clamp(min=0)).where(last > 0, torch.zeros_like(last))
            items = items[(run.gather(1, last) > before)[:, 0]]
        owner = torch.arange(len(items), device=items.device)[:, None].expand_as(items)[items > 0]
        self.associate_path.count(items[items > 0], owner, only_last=pairs == "last", trained=trained)


BertForNextBehavior.register_for_auto_class("AutoModel")
# An installed package registers itself. A remote copy must not: it would decide for every later repository.
if not __name__.startswith("transformers_modules"):
    AutoConfig.register(BehaviorConfig.model_type, BehaviorConfig, exist_ok=True)
    AutoModel.register(BehaviorConfig, BertForNextBehavior, exist_ok=True)
