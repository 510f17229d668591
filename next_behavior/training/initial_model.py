"""The model that a training run starts from.

new       of the log's sizes; its memory counted from the training events
text      item rows that know the items' words (`--items`)
item2vec  item rows from skip-gram over the histories (`--item2vec`)
BERT      a checkpoint's encoder under new embeddings and heads (`--base_model`)
behaviour a trained model taken to another log: its vocabulary is kept and grows (`--base_model`)
LoRA      adapters instead of the encoder's own weights (`--lora_r`; Hu et al. 2022, library PEFT)
"""

from __future__ import annotations

import copy
import logging
import os
import string
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig

from next_behavior.data.batches import evaluation_batches, target_positions
from next_behavior.data.sequences import TRAIN, VALIDATION, Sequences
from next_behavior.evaluation.metrics import ndcg_at_k, pessimistic_ranks
from next_behavior.model.associative_memory import MAX_CHUNK_ELEMENTS
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.encoder import last_index
from next_behavior.model.item_text import DEFAULT_ENCODER, PROBE_TEXT, split_mark
from next_behavior.model.mixture import seen_items
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.text.embedding_cache import cached_embeddings
from next_behavior.text.encoders import TextEncoder, default_encoder, load_encoder
from next_behavior.text.item2vec import item2vec_rows
from next_behavior.text.item_texts import item_texts, text_columns
from next_behavior.text.reduction import Reduction, fit_reduction, reduce_embeddings
from next_behavior.training.calibration import take_best

if TYPE_CHECKING:
    from next_behavior.training.loop import PreparedLog, RunSettings, Sizes

# Item pairs a saved memory holds, about: 16 bytes each.
MEMORY_PAIRS = 4_000_000
# The memory's unit in shares of an item's mean sum of scores, until it is fitted on validation events.
MEMORY_UNIT = 0.003
# What is named lately: a mention counts half after this share of the training events.
TREND_HALF_LIFE = 0.05
# How much links between similar texts may add to the memory, what they add where nothing can be validated, and the
# validation targets that decide.
TEXT_LINKS = (0.0, 0.035, 0.07, 0.14, 0.28)
DEFAULT_LINKS = 0.14
LINK_TARGETS = 3000
# Items whose text vectors are worked on at a time.
TEXT_ROWS = 65_536
# What a BERT checkpoint decides about a model that starts from its encoder.
FROM_CHECKPOINT = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps", "max_position_embeddings"),
)
# The adapted matrices: attention's queries and values in the encoder, as in the paper.
LORA_TARGETS = r".*bert\.encoder\..*\.(query|value)"


@dataclass(frozen=True)
class EmbeddedText:
    """What the items' words are to the model."""

    encoder: str  # the name that `add_items` will load
    columns: list[str]
    template: str | None
    embeddings: np.ndarray  # (vocab_size, E) float16; zeros where there is no text
    reduction: Reduction
    probe: np.ndarray  # (E,), by which the model knows the encoder again


def check_items(settings: RunSettings, items: pl.DataFrame, tokenizer: BehaviorTokenizer) -> None:
    """ValueError if the item table is about other items than the log."""
    known = tokenizer.item_vocabulary
    if known and not items["item_id"].is_in(known).any():
        raise ValueError(
            f"got --items {settings.items} with ids such as {', '.join(items['item_id'].head(3).to_list())}, of which "
            f"the log names none; it names {', '.join(known[:3])}: write ids in both alike, or leave --items out"
        )


def words_report(settings: RunSettings, text: EmbeddedText | None, tokenizer: BehaviorTokenizer) -> str:
    """What is read of items' words, a line for the user."""
    if text is not None:
        read = ", ".join(text.columns) if text.template is None else text.template
        with_text = np.count_nonzero(text.embeddings.any(axis=1))
        known = len(tokenizer.item_vocabulary)
        return f"Item words        {with_text:,} of {known:,} items have a text, read from {read}"
    if settings.text_encoder == "none":
        return "Item words        not read (--text_encoder none); titles are shown in answers"
    return (
        "Item words        none: no column of the item table holds words, or fewer than three items of the log have "
        "different ones; items are known by their ids, titles are shown in answers"
    )


def whole_name(encoder: str) -> str:
    """The name that finds an encoder from another working directory too."""
    mark, place = split_mark(encoder)
    return f"{mark}{Path(place).resolve()}" if Path(place).is_dir() else encoder


def embed_items(settings: RunSettings, items: pl.DataFrame, tokenizer: BehaviorTokenizer) -> EmbeddedText | None:
    """Embeds the texts of the vocabulary's items, or takes them from the cache; None if there is nothing to read."""
    if settings.text_encoder == "none":
        return None
    columns = settings.text_columns.split(",") if settings.text_columns else None
    if columns is None and settings.text_template is None:
        columns = text_columns(items)
        if not columns:
            return None
    texts = item_texts(items, columns, settings.text_template).unique("item_id", keep="first")
    known = pl.DataFrame({"item_id": tokenizer.item_vocabulary}).join(
        texts, on="item_id", how="left", maintain_order="left"
    )
    if known["text"].n_unique() < 3:
        return None
    encoder = load_encoder(settings.text_encoder or default_encoder())
    embeddings = cached_embeddings(known["text"].to_list(), encoder)
    if columns is None:
        columns = [field for _, field, _, _ in string.Formatter().parse(settings.text_template or "") if field]
    return EmbeddedText(
        encoder=whole_name(settings.text_encoder or DEFAULT_ENCODER),
        columns=columns,
        template=settings.text_template,
        embeddings=np.pad(embeddings, ((tokenizer.first_item_id, 0), (0, 0))),
        probe=encoder.embed([PROBE_TEXT])[0],
        reduction=fit_reduction(embeddings, settings.text_size),
    )


def own_encoder(model: BertForNextBehavior, name: str) -> TextEncoder:
    """The text encoder `name`; a ValueError unless it is the one that the model was trained with."""
    encoder, item_text = load_encoder(name, model.config.text_max_tokens), model.bert.embeddings.item_text
    assert item_text is not None
    item_text.check(torch.from_numpy(encoder.embed([PROBE_TEXT])[0]), name)
    return encoder


def load_base(settings: RunSettings) -> BertForNextBehavior | PreTrainedConfig | None:
    """A trained behaviour model, or the config of a BERT checkpoint.

    Raises:
        ValueError: there is no such checkpoint, it is neither of both, or the settings want its shape changed.
    """
    name = settings.base_model
    if name is None:
        return None
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"--base_model {name} cannot be loaded, expected a Hub id or a folder with config.json: {error}"
        ) from error
    if isinstance(config, BehaviorConfig):
        if (settings.use_positions and not config.use_positions) or (
            settings.convolution_size not in (None, config.convolution_size)
        ):
            raise ValueError(
                f"--base_model {name} has use_positions={config.use_positions} and convolution_size="
                f"{config.convolution_size}, and keeps them: leave out --use_positions and --convolution_size."
            )
        return BertForNextBehavior.from_pretrained(name, dtype=torch.float32)
    if config.model_type != "bert":
        raise ValueError(
            f"--base_model {name} is of the type {config.model_type}, expected a BERT checkpoint (model_type bert) or "
            "a trained BertForNextBehavior."
        )
    return config


def grown_tokenizer(
    settings: RunSettings, model: BertForNextBehavior, events: pl.DataFrame, items: pl.DataFrame | None
) -> tuple[BehaviorTokenizer, list[int]]:
    """The tokenizer of a trained model with the items of `events` added to both, and the ids that are new."""
    tokenizer = BehaviorTokenizer.from_pretrained(str(settings.base_model))
    unknown = sorted(set(events["action"].unique()) - set(tokenizer.action_vocabulary))
    if unknown:
        raise ValueError(
            f"the log has the actions {', '.join(unknown)}, but {settings.base_model} was trained on "
            f"{', '.join(tokenizer.action_vocabulary)}: rename them in the log, or train a new model."
        )
    counted = events.filter(pl.col("item_id").is_not_null()).group_by("item_id").len()
    counted = counted.filter(pl.col("len") >= settings.min_item_count).sort("len", "item_id", descending=[True, False])
    added = counted.filter(~pl.col("item_id").is_in(tokenizer.item_vocabulary)).select("item_id")
    if items is not None:
        added = added.join(items.unique("item_id", keep="first"), on="item_id", how="left", maintain_order="left")
    before = len(tokenizer)
    name = model.config.text_encoder
    if name == DEFAULT_ENCODER:
        name = default_encoder()

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(cached_embeddings(texts, own_encoder(model, str(name)))).float()

    model.add_items(tokenizer, added.to_dicts(), embed=embed)
    return tokenizer, list(range(before, len(tokenizer)))


def build_model(settings: RunSettings, sizes: Sizes, log: PreparedLog) -> BertForNextBehavior:
    """The model of a run, before any training step."""
    if isinstance(log.base, BertForNextBehavior):
        return adapted(log.base, settings, sizes, log)
    tokenizer = log.tokenizer
    names = {0: "[PAD]", 1: "[UNK]", 2: "[START]"}
    names |= {FIRST_ACTION + index: action for index, action in enumerate(tokenizer.action_vocabulary)}
    if isinstance(log.base, PreTrainedConfig):
        shape = {name: log.base.to_dict()[name] for name in FROM_CHECKPOINT}
    else:
        shape = {
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.num_hidden_layers,
            "num_attention_heads": sizes.num_attention_heads,
            "intermediate_size": 4 * sizes.hidden_size,
            "max_position_embeddings": log.max_length,
        }
    text_settings: dict[str, Any] = {}
    if log.text is not None:
        text_settings = {
            "text_encoder": log.text.encoder,
            "text_encoder_size": log.text.embeddings.shape[1],
            "text_size": log.text.reduction.components.shape[1],
            "text_columns": log.text.columns,
            "text_template": log.text.template,
        }
    config = BehaviorConfig(
        vocab_size=len(tokenizer),
        num_new_items=tokenizer.num_new_items,
        num_actions=tokenizer.num_actions,
        num_time_gaps=tokenizer.num_time_gaps,
        actions_without_item=log.actions_without_item,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.dropout,
        **shape,
        use_positions=settings.use_positions or isinstance(log.base, PreTrainedConfig),
        convolution_size=sizes.convolution_size,
        num_negatives=sizes.num_negatives,
        event_dropout=sizes.event_dropout,
        label_smoothing=settings.label_smoothing,
        **text_settings,
        memory_distance=log.neighbours.max_distance,
        memory_decay=log.neighbours.constants.decay,
        memory_backward=log.neighbours.constants.backward,
        memory_degree_power=log.neighbours.constants.degree_power,
        memory_history_decay=log.neighbours.constants.history_decay,
        memory_count_power=log.neighbours.COUNT_POWER,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    torch.manual_seed(settings.seed)
    if isinstance(log.base, PreTrainedConfig):
        model = with_encoder_of(str(settings.base_model), config)
    else:
        model = BertForNextBehavior(config)
    if settings.item2vec:
        std = float(model.bert.embeddings.item_table().std())
        rows = item2vec_rows(log.sequences, sizes.hidden_size, settings.seed, std=std)
        first = model.config.first_item_id
        model.bert.embeddings.embed_tokens.weight.data[first:] = torch.from_numpy(rows[first:])
    fill_memory(model, log.sequences, TRAIN)
    model.config.memory_unit = max(1e-6, MEMORY_UNIT * model.associate_path.neighbors().mean_sum)
    if log.text is not None:
        fill_text(model, log.text)
        fit_text_links(model, log)
    return model


def with_encoder_of(name: str, config: BehaviorConfig) -> BertForNextBehavior:
    """A model whose encoder, positions and embedding norm are those of a BERT checkpoint; the rest is new."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its table of every weight; two lines follow instead
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
    print(f"From {name}: all {len(list(model.bert.encoder.state_dict()))} weights of the encoder, positions and norm.")
    print(f"  new here ({len(missing)}): {', '.join(missing)}")
    print(f"  not used ({len(unexpected)}): {', '.join(unexpected)}")
    config.name_or_path = ""  # what is saved is another model
    return model


def adapted(base: BertForNextBehavior, settings: RunSettings, sizes: Sizes, log: PreparedLog) -> BertForNextBehavior:
    """A copy of a trained model, with the log's training events counted into its memory."""
    model = copy.deepcopy(base)
    config = model.config
    config.actions_without_item = sorted({*config.actions_without_item, *log.actions_without_item})
    config.num_negatives = sizes.num_negatives
    config.event_dropout, config.label_smoothing = sizes.event_dropout, settings.label_smoothing
    fill_memory(model, log.sequences, TRAIN)
    model.config.name_or_path = ""
    return model


def lora_config(settings: RunSettings, new_items: list[int]) -> LoraConfig | None:
    """The adapters of a run, None without `--lora_r`. Rows of added items are trained as single rows, so that the
    adapter does not hold the item table."""
    if not settings.lora_r:
        return None
    return LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=settings.lora_r,
        lora_alpha=2 * settings.lora_r,
        target_modules=LORA_TARGETS,
        trainable_token_indices={"embed_tokens": new_items} if new_items else None,
    )


def with_adapters(model: BertForNextBehavior, config: LoraConfig, train_the_rest: bool) -> PeftModel:
    """Puts adapters into the model, in place. `train_the_rest`: everything outside the encoder is new and is trained
    too; it is saved with the base, never with the adapter."""
    adapted_model = get_peft_model(model, config)
    if train_the_rest:
        for name, weight in model.named_parameters():
            if not name.startswith("bert.encoder."):
                weight.requires_grad_(True)
    assert isinstance(adapted_model, PeftModel)
    return adapted_model


def save_with_adapter(model: PeftModel, folder: Path, final: Path) -> None:
    """Writes the merged model to `folder`, what the adapter sits on to `folder/base`, then `folder/adapter`, which
    names its base where it will lie, `final/base`."""
    inner: Any = model.get_base_model()
    copies = [copy.deepcopy(model).merge_and_unload(), copy.deepcopy(model).unload()]
    for merged_or_base, target in zip(copies, (folder, folder / "base"), strict=True):
        merged_or_base.config = copy.deepcopy(inner.config)
        merged_or_base.save_pretrained(target)
    model.peft_config["default"].base_model_name_or_path = os.fspath(final.resolve() / "base")
    model.save_pretrained(str(folder / "adapter"))


def fill_text(model: BertForNextBehavior, text: EmbeddedText) -> None:
    """Gives the model the words of its items."""
    item_text = model.bert.embeddings.item_text
    assert item_text is not None
    item_text.mean.copy_(torch.from_numpy(text.reduction.mean))
    item_text.components.copy_(torch.from_numpy(text.reduction.components))
    item_text.probe.copy_(torch.from_numpy(text.probe))
    reduced = reduce_embeddings(text.embeddings, text.reduction)
    item_text.unit.copy_(torch.from_numpy(np.abs(reduced).max(axis=0).astype(np.float32) / 127))
    for begin in range(0, len(text.embeddings), TEXT_ROWS):
        rows = torch.arange(begin, min(begin + TEXT_ROWS, len(text.embeddings)))
        item_text.write(rows, torch.from_numpy(text.embeddings[begin : begin + TEXT_ROWS].astype(np.float32)))
    progress = partial(tqdm, desc="linking similar texts", unit=" chunks", delay=2)
    model.associate_path.borrow(item_text, trained=False, progress=progress)


@torch.no_grad()
def fit_text_links(model: BertForNextBehavior, log: PreparedLog) -> None:
    """Chooses how much links between items with similar texts add to the memory: what ranks the next item best on
    validation events, by the memory alone."""
    memory, sequences = model.associate_path, log.sequences
    positions = target_positions(sequences, VALIDATION, LINK_TARGETS, seed=0)
    positions = positions[sequences.items[positions] >= sequences.first_item_id]
    model.config.memory_text = DEFAULT_LINKS
    if not len(positions):
        return
    rows = max(1, min(256, MAX_CHUNK_ELEMENTS // sequences.vocab_size))
    batches = list(evaluation_batches(sequences, VALIDATION, log.max_length, rows, positions=positions))

    def ndcg() -> float:
        memory.changed()
        gains = []
        for batch in batches:
            ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
            recent = memory.recent_items(ids, mask, last_index(mask)[:, None])[:, 0]
            scores = memory.score(recent, seen_items(ids, model.config.vocab_size))
            gains.append(ndcg_at_k(pessimistic_ranks(scores, batch.target_item), 10))
        return float(np.concatenate(gains).mean())

    reached = take_best(model.config, "memory_text", TEXT_LINKS, ndcg)
    memory.changed()
    print(
        "Links between items with similar texts: "
        + ", ".join(f"{weight:g} NDCG@10 {value:.4f}" for weight, value in reached.items())
        + f" by counts and words alone; {model.config.memory_text:g} is taken."
    )


def fill_memory(model: BertForNextBehavior, sequences: Sequences, part: int) -> None:
    """Counts the events of `part` into the model's memory, and notes what was named lately up to its end: nothing where
    events have no times. The weights are trained on the part TRAIN; another follows parts that are counted already."""
    memory = model.associate_path
    items, users, positions = sequences.runs(sequences.parts <= part)
    if part == TRAIN:
        memory.count(torch.from_numpy(items).to(model.device), torch.from_numpy(users).to(model.device), trained=True)
    else:
        memory.count_events(items, users, np.flatnonzero(sequences.parts[positions] == part))
    neighbors = int(np.clip(MEMORY_PAIRS // max(1, model.config.vocab_size), 16, model.config.memory_neighbors))
    if len(memory.pair_keys) > MEMORY_PAIRS:
        memory.prune(neighbors)
    counted = np.flatnonzero((sequences.parts <= part) & sequences.known_items() & (sequences.timestamps >= 0))
    counted = counted[np.argsort(sequences.timestamps[counted], kind="stable")]
    memory.recent_counts.zero_()
    model.config.memory_half_life = max(1, round(TREND_HALF_LIFE * len(counted)))
    memory.follow(torch.from_numpy(sequences.items[counted].astype(np.int64)).to(model.device))
