"""What a run starts from, by `--base_model`: nothing, a BERT checkpoint's encoder, or a trained behavior model.

    start = load_start(settings.base_model, settings.use_positions, settings.convolution_size)
    if start.behavior is not None:
        tokenizer = own_tokenizer(start)
        new_items = grow(start, tokenizer, events, items, settings.min_item_count)

`initial_model.py` builds the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import torch
from transformers import AutoConfig, PreTrainedConfig

from next_behavior.data.shown import shown
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.integrity import check_agreement, check_manifest
from next_behavior.model.item_text import DEFAULT_ENCODER
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.text.embedding_cache import cached_embeddings
from next_behavior.text.encoders import default_encoder
from next_behavior.training.item_text import own_encoder

# Actions that a message names.
MOST_NAMED = 20


@dataclass(frozen=True)
class Start:
    """What a run starts from; a new model if it is neither of both.

    Attributes:
        name: Hub id or folder, "" for a new model.
        bert: the configuration of a BERT checkpoint: its encoder is taken, everything else is new.
        behavior: a trained model: its vocabulary is kept and grows by the items of the log.
    """

    name: str = ""
    bert: PreTrainedConfig | None = None
    behavior: BertForNextBehavior | None = None


def load_start(name: str | None, use_positions: bool, convolution_size: int | None) -> Start:
    """The start that `--base_model` names. A trained model keeps how it reads the order of events.

    Raises:
        ValueError: there is no such checkpoint, it is neither of both or damaged, or the other arguments ask for
            another shape.
    """
    if name is None:
        return Start()
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"--base_model {name} cannot be loaded, expected a Hub id or a folder with config.json: {error}"
        ) from error
    if isinstance(config, BehaviorConfig):
        if (use_positions and not config.use_positions) or convolution_size not in (None, config.convolution_size):
            raise ValueError(
                f"--base_model {name} has use_positions={config.use_positions} and convolution_size="
                f"{config.convolution_size}, and keeps them: leave out --use_positions and --convolution_size."
            )
        behavior = BertForNextBehavior.from_pretrained(name, dtype=torch.float32)
        check_manifest(behavior.manifest)
        return Start(name, behavior=behavior)
    if config.model_type != "bert":
        raise ValueError(
            f"--base_model {name} is of the type {config.model_type}, expected a BERT checkpoint (model_type bert) or "
            "a trained BertForNextBehavior."
        )
    return Start(name, bert=config)


def own_tokenizer(start: Start) -> BehaviorTokenizer:
    """The tokenizer of the trained model that a run starts from. ValueError: it is damaged or another model's."""
    assert start.behavior is not None
    tokenizer = BehaviorTokenizer.from_pretrained(start.name)
    check_manifest(tokenizer.manifest)
    check_agreement(start.behavior.config, tokenizer)
    return tokenizer


def new_actions(tokenizer: BehaviorTokenizer, events: pl.DataFrame) -> list[str]:
    """The actions of a log that a tokenizer does not know, in order of the text."""
    return sorted(set(events["action"].unique()) - set(tokenizer.action_vocabulary))


def grow(
    start: Start,
    tokenizer: BehaviorTokenizer,
    events: pl.DataFrame,
    items: pl.DataFrame | None,
    min_item_count: int,
) -> list[int]:
    """Adds the items of `events` to a trained model and its tokenizer; returns the token ids of the added items.

    Raises:
        ValueError: the log has actions that the model does not know.
    """
    model = start.behavior
    assert model is not None
    unknown = new_actions(tokenizer, events)
    if unknown:
        raise ValueError(
            f"the log has the actions {', '.join(map(shown, unknown[:MOST_NAMED]))}, but {start.name} was trained on "
            f"{', '.join(map(shown, tokenizer.action_vocabulary[:MOST_NAMED]))}: rename them in the log, or "
            "train a new model. --continue adds actions to a model that goes on with its own log."
        )
    counts = events.filter(pl.col("item_id").is_not_null()).group_by("item_id").len()
    counts = counts.filter(pl.col("len") >= min_item_count).sort("len", "item_id", descending=[True, False])
    added = counts.filter(~pl.col("item_id").is_in(tokenizer.item_vocabulary)).select("item_id")
    if items is not None:
        added = added.join(items.unique("item_id", keep="first"), on="item_id", how="left", maintain_order="left")
    before = len(tokenizer)
    name = model.config.text_encoder
    if name == DEFAULT_ENCODER:
        name = default_encoder()

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(cached_embeddings(texts, own_encoder(model, str(name)))).float()

    model.add_items(tokenizer, added.to_dicts(), embed=embed)
    return list(range(before, len(tokenizer)))
