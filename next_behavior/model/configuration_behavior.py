"""BehaviorConfig: the architecture of a model, the constants of its memory, and what was fitted on validation events.

    config = BehaviorConfig(vocab_size=len(tokenizer), num_actions=tokenizer.num_actions)

It also names the files that belong to a saved folder. transformers finds the configuration and the model through one
file, `modeling_behavior`: from two copies of the code, `type(config)` would not be `model.config_class`.
"""

from __future__ import annotations

import copy
from dataclasses import field
from typing import Any

from transformers.models.bert.configuration_bert import BertConfig

from .special_ids import FIRST_NEW

# Of the saved files. 2: counts multiply what the network says; before, the two were mixed by a learned weight.
FORMAT_VERSION = 2
# Everything that a saved folder needs to load without this package.
CODE_FILES = (
    *("modeling_behavior.py", "tokenization_behavior.py", "pipeline_behavior.py", "handler.py"),
    *("special_ids.py", "vocabulary.py", "times.py", "histories.py", "answers.py", "configuration_behavior.py"),
    *("integrity.py", "saved_model.py", "item_text.py", "encoder.py"),
    *("repeat_path.py", "pair_tables.py", "neighbor_lists.py", "associative_memory.py", "mixture.py", "losses.py"),
    *("answer_tables.py", "coverage.py", "ranking.py", "predicting.py", "catalog.py"),
    *("explaining.py", "explaining_answers.py", "explaining_counterfactuals.py", "explaining_rules.py"),
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
        action_bias: (num_actions, num_actions) log-weights beside the temperature, by the last action of the history
            (row) and the next one (column); empty for none. Fitted on validation data.
        time_bias: (num_time_gaps,) log-weights of the time buckets beside the temperature; empty for none.
        item_set_limits, action_set_limits: (99,) limits of the prediction sets that cover 1 % to 99 %: see coverage.py.
            Empty where no validation events were left for them.
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
        memory_degree_power, memory_count_power: a neighbor's score is divided by the recent item's total count and by
            its own frequency, to these powers.
        memory_history: how many recent items are looked up; the k-th from the end weighs memory_history_decay ** k.
        memory_neighbors: most neighbors of an item that take part.
        memory_power, memory_unit: an item that the memory scores s is (1 + s / memory_unit) ** memory_power times as
            probable as the network alone says; fitted on validation data.
        memory_share: this share of the probability of new items comes from the memory alone, in proportion to its
            scores; more for items without counts. Fitted on validation data.
        memory_trend, memory_half_life: an item with n recent events is (1 + n / TREND_UNIT) ** memory_trend times as
            probable; an event counts half after so many others. Fitted on validation data; 0 where events have no time.
        memory_recent_unit: recent popularity is stored in whole numbers of 1 / memory_recent_unit.
        memory_freshness: how many times the pairs of an event count that the weights were not trained on: the network
            knows nothing of them yet.
        num_negatives: shared uniform negatives of the training softmax; 0 trains on the full softmax.
        use_positions: add an embedding of the event's place in the history, counted from the oldest, as BERT does.
        convolution_size: events that an event's embedding is mixed from by channel, itself included; 0 for none.
        event_dropout: in training, this share of the events loses its item, so that others are learned from.
        label_smoothing: of the generate path's own loss in training: this share of the target is spread over all items.
        text_size: components of the items' text vectors; 0 for a model without item text.
        text_encoder, text_encoder_size: the checkpoint that reads item texts (Hub id, folder or model2vec:NAME), and
            the size of its embeddings.
        text_columns, text_template, text_max_tokens: how an item's text is made of its columns, and how much is read.
        text_dropout: of the text vectors in training; id_dropout: in training, this share of the items is known by its
            text alone, as an added item will be.
        text_neighbors: items with similar texts that an item is linked to; without counts it borrows their neighbors.
        text_strength: how strongly it stands among them, and in proportion what its links add. More shows new items
            more often and the others less.
        retired_items: ids that are never answered any more.
        vocabulary_digest: `BehaviorTokenizer.vocabulary_digest` of the tokenizer whose ids the model was trained on, so
            that no other is used with it; None where it is not known.
        learned_until: microseconds since 1970 UTC, the newest event that training has learned; None where it was told
            no times, or by leave-one-out. `update_memory` leaves it.
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
    actions_without_item: list[int] = field(default_factory=list)
    action_temperature: float = 1.0
    item_temperature: float = 1.0
    time_temperature: float = 1.0
    generate_temperature: float = 1.0
    action_bias: list[list[float]] = field(default_factory=list)
    time_bias: list[float] = field(default_factory=list)
    item_set_limits: list[float] = field(default_factory=list)
    action_set_limits: list[float] = field(default_factory=list)
    action_weights: list[float] = field(default_factory=list)
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
    memory_recent_unit: int = 1024
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
    retired_items: list[int] = field(default_factory=list)
    vocabulary_digest: str | None = None
    learned_until: int | None = None
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
        self.actions_without_item = list(self.actions_without_item)
        self.action_weights = list(self.action_weights)
        self.action_bias = [list(row) for row in self.action_bias]
        self.time_bias = list(self.time_bias)
        self.item_set_limits, self.action_set_limits = list(self.item_set_limits), list(self.action_set_limits)
        self.retired_items = list(self.retired_items)
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

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> BehaviorConfig:
        """This configuration: transformers would take the name in `text_encoder` for one of its parts."""
        return self

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: `auto_map` says where the classes are. transformers calls this when it loads a folder's code,
        and saving the loaded model would then name another file."""
