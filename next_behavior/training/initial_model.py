"""The model of a run before its first training step.

new       of the log's sizes; its memory counts the training events
text      item rows that read item text (`--items`)
item2vec  item rows from skip-gram over the histories (`--item2vec`)
BERT      a checkpoint's encoder below new embeddings and heads (`--base_model`)
behavior  a trained model taken to another log: its vocabulary is kept and grows (`--base_model`)
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.evaluation.item_neighbors import ItemNeighbors
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import ACTION_SPECIALS
from next_behavior.text.item2vec import item2vec_rows
from next_behavior.training.item_text import EmbeddedText, fill_text, fit_text_links
from next_behavior.training.memory import fill_memory, set_memory_unit
from next_behavior.training.prepared_log import PreparedLog
from next_behavior.training.sizes import Sizes
from next_behavior.training.tokenized_log import TokenizedLog, actions_without_item

# What a BERT checkpoint decides about a model that starts from its encoder.
FROM_CHECKPOINT = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps", "max_position_embeddings"),
)


def build_model(
    prepared: PreparedLog,
    sizes: Sizes,
    *,
    use_positions: bool,
    label_smoothing: float,
    item2vec: bool,
    seed: int,
    say: Callable[[str], None],
    until: float = math.inf,
) -> BertForNextBehavior:
    """The model of a run, before any training step; `say` tells the user what was taken from where. What can be chosen
    or left is chosen `until` then, by `time.monotonic`."""
    start, log = prepared.start, prepared.log
    torch.manual_seed(seed)
    if start.behavior is not None:
        return adapted(start.behavior, log, sizes, label_smoothing)
    config = new_config(prepared, sizes, use_positions or start.bert is not None, label_smoothing)
    model = BertForNextBehavior(config) if start.bert is None else with_encoder_of(start.name, config, say)
    if item2vec:
        start_rows(model, log.sequences, seed)
    fill_memory(model, log.sequences, TRAIN)
    set_memory_unit(model)
    if prepared.text is not None:
        fill_text(model, prepared.text)
        links = fit_text_links(model, log, until)
        if links is not None:
            say(links)
    return model


def new_config(prepared: PreparedLog, sizes: Sizes, use_positions: bool, label_smoothing: float) -> BehaviorConfig:
    """The configuration of a new model, with or without a BERT checkpoint's encoder."""
    tokenizer, bert = prepared.tokenizer, prepared.start.bert
    names = dict(enumerate([*ACTION_SPECIALS, *tokenizer.action_vocabulary]))
    if bert is not None:
        shape = {name: bert.to_dict()[name] for name in FROM_CHECKPOINT}
    else:
        shape = {
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.num_hidden_layers,
            "num_attention_heads": sizes.num_attention_heads,
            "intermediate_size": 4 * sizes.hidden_size,
            "max_position_embeddings": prepared.log.max_length,
        }
    return BehaviorConfig(
        vocab_size=len(tokenizer),
        num_new_items=tokenizer.num_new_items,
        num_actions=tokenizer.num_actions,
        num_time_gaps=tokenizer.num_time_gaps,
        actions_without_item=actions_without_item(prepared.log.sequences),
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.dropout,
        **shape,
        use_positions=use_positions,
        convolution_size=sizes.convolution_size,
        num_negatives=sizes.num_negatives,
        event_dropout=sizes.event_dropout,
        label_smoothing=label_smoothing,
        **text_fields(prepared.text),
        **memory_fields(prepared.neighbors),
        id2label=names,
        label2id={name: index for index, name in names.items()},
        vocabulary_digest=tokenizer.vocabulary_digest,
    )


def text_fields(text: EmbeddedText | None) -> dict[str, Any]:
    """What the configuration says of item text; nothing without text."""
    if text is None:
        return {}
    return {
        "text_encoder": text.encoder,
        "text_encoder_size": text.embeddings.shape[1],
        "text_size": text.reduction.components.shape[1],
        "text_columns": text.columns,
        "text_template": text.template,
    }


def memory_fields(neighbors: ItemNeighbors) -> dict[str, Any]:
    """The memory counts as the item neighbors do, whose constants were chosen on validation events."""
    return {
        "memory_distance": neighbors.max_distance,
        "memory_decay": neighbors.constants.decay,
        "memory_backward": neighbors.constants.backward,
        "memory_degree_power": neighbors.constants.degree_power,
        "memory_history_decay": neighbors.constants.history_decay,
        "memory_count_power": neighbors.COUNT_POWER,
    }


def start_rows(model: BertForNextBehavior, sequences: Sequences, seed: int) -> None:
    """Starts the item rows from skip-gram over the histories, with the spread that they have."""
    embeddings, first = model.bert.embeddings, model.config.first_item_id
    rows = item2vec_rows(sequences, model.config.hidden_size, seed, std=float(embeddings.item_table().std()))
    embeddings.embed_tokens.weight.data[first:] = torch.from_numpy(rows[first:])


def with_encoder_of(name: str, config: BehaviorConfig, say: Callable[[str], None]) -> BertForNextBehavior:
    """A model whose encoder, positions and embedding norm are those of a BERT checkpoint; the rest is new."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its table of every weight; three lines follow instead
    try:
        loaded: Any = BertForNextBehavior.from_pretrained(
            name, config=config, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    finally:
        logger.setLevel(level)
    model, report = loaded
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    lost = [key for key in missing if key.startswith("bert.encoder.")]
    if lost or report["mismatched_keys"]:
        without = ", ".join(map(str, lost + report["mismatched_keys"]))
        raise ValueError(f"--base_model {name} lacks weights of its encoder: {without}.")
    say(f"From {name}: all {len(list(model.bert.encoder.state_dict()))} weights of the encoder, positions and norm.")
    say(f"  new here ({len(missing)}): {', '.join(missing)}")
    say(f"  not used ({len(unexpected)}): {', '.join(unexpected)}")
    config.name_or_path = ""  # what is saved is another model
    return model


def adapted(base: BertForNextBehavior, log: TokenizedLog, sizes: Sizes, label_smoothing: float) -> BertForNextBehavior:
    """A copy of a trained model whose memory has counted the training events that it has not learned, too."""
    model = copy.deepcopy(base)
    config = model.config
    config.actions_without_item = sorted({*config.actions_without_item, *actions_without_item(log.sequences)})
    config.num_negatives = sizes.num_negatives
    config.event_dropout, config.label_smoothing = sizes.event_dropout, label_smoothing
    fill_memory(model, log.sequences, TRAIN, log.learned)
    config.name_or_path = ""
    return model
