"""Train a `BertForNextBehavior` from an event log, ready for `AutoModel.from_pretrained`.

    python train_accelerate.py --events events.parquet --output_dir out/shop
    python train_accelerate.py --events events.csv.gz --items items.csv --output_dir out/shop --max_minutes 30
    python train_accelerate.py --events beauty.parquet --output_dir out/beauty --split leave_one_out
    python train_accelerate.py --events events.parquet --output_dir out/shop --resume
    accelerate launch train_accelerate.py --events events.parquet --output_dir out/shop

What is left out is chosen from the log: history length, width, depth, batch and schedule (`choose_sizes`). The run ends
by calibrating the probabilities on validation events and by evaluating on the test events beside the baselines; the
table lies in the output folder as `evaluation.md` and `evaluation.json`.

Every random draw comes from (seed, epoch, batch), so that an interrupted run continues to the same weights.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, find_executable_batch_size
from peft import PeftModel
from tqdm import tqdm
from transformers import HfArgumentParser, PreTrainedConfig
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from next_behavior.data.batches import (
    TrainingCollator,
    length_bucketed_batches,
    padding_share,
    target_positions,
    training_windows,
)
from next_behavior.data.events import ReadOptions, add_event_arguments, options_from_arguments, read_events, read_items
from next_behavior.data.provenance import provenance
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION, Sequences, save_dataset
from next_behavior.data.splits import Split, assign_parts, make_split
from next_behavior.evaluation.baselines import ItemNeighbours
from next_behavior.evaluation.evaluator import (
    evaluate_model,
    format_table,
    tokenize_log,
    write_whole,
)
from next_behavior.model.item_text import split_mark
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION, NONE
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.calibration import (
    MEMORY_RANKINGS,
    action_log_loss,
    fit_gate,
    fit_memory,
    fit_temperatures,
    validation_ndcg,
)
from next_behavior.training.initial_model import (
    EmbeddedText,
    build_model,
    check_items,
    embed_items,
    fill_memory,
    grown_tokenizer,
    load_base,
    lora_config,
    save_with_adapter,
    with_adapters,
    words_report,
)
from next_behavior.training.vocabulary import build_tokenizer

CHECKPOINTS = "checkpoints"
# Share of --max_minutes kept for calibration, the final evaluation and saving; and the most that a validation may take.
FINAL_SHARE, VALIDATION_SHARE = 0.25, 0.05
# A validation takes about as long as ranking its targets three times; on so many of them that is measured.
VALIDATION_RANKINGS, PROBED_TARGETS = 3, 128
# What all baselines together take to score one item for one target, about; a table from fewer targets says too little.
BASELINE_SECONDS_PER_ITEM = 1.1e-7
FEWEST_TEST_TARGETS = 500
# The memory is not fitted on fewer validation targets.
FEWEST_FITTED = 500
# Validations within this share of the highest NDCG@10 are a draw, which the log-loss of actions and items decides.
DRAW = 3e-4
# Settings that decide when to stop and what is shown, not what is learned.
MAY_CHANGE_ON_RESUME = {
    *("resume", "output_dir", "events", "items", "tracker"),
    *("max_minutes", "max_epochs", "patience", "test_targets", "cpu"),
}


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field with a help text."""
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class RunSettings:
    """Everything that decides a run; saved with it as `run.json`."""

    events: str = option("", "Event log: .csv, .csv.gz, .parquet or a folder of Parquet files.")
    output_dir: str = option("", "Folder for the model; it becomes loadable with AutoModel.from_pretrained.")
    items: str | None = option(
        None, "Item table with item_id and text columns: its words help to predict, its titles are shown in answers."
    )
    text_columns: str | None = option(None, "Columns of --items to read, with commas between. Default: all with words.")
    text_template: str | None = option(None, "Instead of columns: '{title} by {brand}'.")
    text_encoder: str | None = option(
        None,
        "Reads item texts: Hub id or folder of a BERT-like checkpoint, model2vec:NAME for static vectors, or none. "
        "Default: all-MiniLM-L6-v2.",
    )
    text_size: int = option(256, "Principal components kept of the text embeddings.")
    base_model: str | None = option(
        None,
        "Start from a BERT checkpoint's encoder, or from a trained behaviour model, whose vocabulary grows: Hub id or "
        "folder.",
    )
    lora_r: int = option(0, "Train LoRA adapters of this rank instead of the encoder's own weights; 0 trains all.")
    item2vec: bool = option(False, "Start item rows from skip-gram over the histories (needs gensim).")
    split: str = option("time", "time, leave_one_out or none: what is held out for validation and test.")
    seed: int = option(0, "Seed of every random draw.")
    resume: bool = option(False, "Continue from the last checkpoint in output_dir.")

    max_minutes: float | None = option(None, "Time limit of the whole process, reading and evaluation included.")
    max_epochs: int = option(60, "Most passes over the training events.")
    patience: int = option(5, "Stop after this many validations without a better NDCG@10 or log-loss.")
    learning_rate: float = option(2e-3, "Peak learning rate of AdamW.")
    weight_decay: float = option(0.01, "Weight decay of AdamW, on matrices.")
    warmup_steps: int = option(100, "Steps of linear warm-up.")
    schedule: str = option(
        "constant", "constant, or linear: down to a tenth over max_epochs or max_minutes. The average decays anyway."
    )
    ema_decay: float = option(0.995, "Decay of the averaged weights that are validated and saved; 0 turns it off.")
    max_gradient_norm: float = option(1.0, "Gradients are clipped to this norm.")
    tokens_per_batch: int | None = option(None, "Events in one optimizer step. Default: by the size of the log.")
    gradient_accumulation_steps: int = option(1, "Batches in one optimizer step; each holds its share of the events.")
    precision: str = option("auto", "auto, bf16 or no. auto takes bf16 where the hardware computes in it.")
    cpu: bool = option(False, "Train on the CPU although there is a GPU.")
    tracker: str | None = option(None, "tensorboard: log losses and validation under output_dir/logs.")

    hidden_size: int | None = option(None, "Width. Default: by the size of the log.")
    num_hidden_layers: int | None = option(None, "Depth. Default: by the size of the log.")
    num_attention_heads: int | None = option(None, "Attention heads. Default: one for every 64 of width.")
    use_positions: bool = option(
        False, "Embed each event's place in the history, counted from the oldest. A BERT checkpoint always does."
    )
    convolution_size: int | None = option(
        None, "Events that the embedding of each is mixed from, itself included; 0 for none. Default: 4."
    )
    dropout: float | None = option(None, "Dropout. Default: by the size of the log.")
    label_smoothing: float = option(0.1, "Share of an item target that is spread over all items.")
    event_dropout: float | None = option(
        None, "Share of the events whose item is hidden in training. Default: 0.2, none where a fifth of them repeat."
    )
    max_length: int | None = option(None, "Longest history in events. Default: by the log's users, at most 200.")
    num_negatives: int | None = option(None, "Negatives of the softmax, 0 for all. Default: 0 to 50,000 items.")
    min_item_count: int = option(1, "Items with fewer training events stay outside the vocabulary.")

    validation_targets: int | None = option(
        None,
        "Most validation events per validation, whole users drawn at random. Default: 4,000, fewer if many items or "
        "little time.",
    )
    test_targets: int | None = option(
        None, "Most test events in the final table, drawn likewise; 0 for all. Default: 25,000, fewer if many items."
    )
    validation_steps: int = option(500, "Validate at least this often, and at every epoch's end.")

    def __post_init__(self) -> None:
        if self.split not in ("time", "leave_one_out", "none"):
            raise ValueError(f"--split {self.split} is unknown, expected time, leave_one_out or none.")
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"--schedule {self.schedule} is unknown, expected constant or linear.")
        if self.precision not in ("auto", "bf16", "no"):
            raise ValueError(f"--precision {self.precision} is unknown, expected auto, bf16 or no.")
        if self.tracker not in (None, "tensorboard"):
            raise ValueError(f"--tracker {self.tracker} is unknown, expected tensorboard.")
        at_least_one = {
            "max_epochs": self.max_epochs,
            "patience": self.patience,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "tokens_per_batch": self.tokens_per_batch,
            "max_length": self.max_length,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "validation_targets": self.validation_targets,
            "validation_steps": self.validation_steps,
        }
        if self.lora_r and self.base_model is None:
            raise ValueError(f"--lora_r {self.lora_r} adapts a trained model: name it with --base_model.")
        if self.base_model is not None and (self.hidden_size or self.num_hidden_layers or self.num_attention_heads):
            raise ValueError("--base_model brings its width, depth and heads: leave out --hidden_size and the like.")
        if self.convolution_size == 0 and not self.use_positions and self.base_model is None:
            raise ValueError("--convolution_size 0 leaves the order of events to --use_positions: give it, too.")
        if self.convolution_size is not None and self.convolution_size < 0:
            raise ValueError(f"--convolution_size is {self.convolution_size}, expected 0 for none, or more.")
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, expected at least 1.")


# ----------------------------------------------------------------------------------------------------------------------
# Data and sizes
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class PreparedLog:
    """A tokenised log and what was decided on the way."""

    sequences: Sequences
    tokenizer: BehaviorTokenizer
    split: Split
    max_length: int  # events of the longest history
    item_counts: np.ndarray  # (vocab_size,) int64, training events per token id
    actions_without_item: list[int]
    novel_share: float  # of the training events with an item, those whose user meets it for the first time
    unknown_share: float  # of the events to come, the share whose item is not in the vocabulary
    neighbours: ItemNeighbours  # its constants, chosen on validation events, are the memory's
    text: EmbeddedText | None  # of the vocabulary's items, where the model is new
    base: BertForNextBehavior | PreTrainedConfig | None  # what --base_model names
    new_items: list[int]  # token ids that were added to the base's vocabulary


def prepare_log(settings: RunSettings, options: ReadOptions, accelerator: Accelerator) -> PreparedLog:
    """Reads, cleans, splits and tokenises the log; the main process, which must come first, writes the report, the
    rejects and the prepared sequences."""
    output, writes = Path(settings.output_dir), accelerator.is_main_process
    log = read_events(settings.events, options, rejects_path=output / "rejects.parquet" if writes else None)
    accelerator.print(str(log.report))
    if writes:
        (output / "cleaning_report.json").write_text(json.dumps(log.report.to_dict(), indent=1, default=str))
    split = make_split(log.events, settings.split)
    events = assign_parts(log.events, split)
    if settings.split == "none":
        events = hold_out_last_events(events, settings.seed)
        vocabulary_events = events
    else:
        vocabulary_events = events.filter(pl.col("part") == 0)
    lengths = vocabulary_events.group_by("user_id").len()["len"].to_numpy()
    max_length = settings.max_length or int(np.clip(math.ceil(np.quantile(lengths, 0.99) / 8) * 8, 16, 200))
    items = None if settings.items is None else read_items(settings.items)
    base, new_items = load_base(settings), list[int]()
    if isinstance(base, BertForNextBehavior):
        tokenizer, new_items = grown_tokenizer(settings, base, vocabulary_events, items)
    else:
        if base is not None:
            max_length = min(max_length, base.max_position_embeddings)
        tokenizer = build_tokenizer(
            vocabulary_events,
            items,
            min_item_count=settings.min_item_count,
            num_new_items=max(64, max_length),
            max_length=max_length,
        )
    text = None
    if items is not None:
        check_items(settings, items, tokenizer)
        if not isinstance(base, BertForNextBehavior):
            text = embed_items(settings, items, tokenizer)
            accelerator.print(words_report(settings, text, tokenizer))
    max_length = min(max_length, tokenizer.model_max_length)
    dataset = tokenize_log(events, tokenizer)
    prepared = output / "prepared"
    dataset = save_dataset(dataset, prepared) if writes else datasets.Dataset.load_from_disk(str(prepared))
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    training = sequences.parts == 0
    to_come = sequences.items[(sequences.parts == VALIDATION) & (sequences.items != NONE)]
    unknown_share = float(np.mean(to_come >= sequences.vocab_size)) if len(to_come) else 0.0
    counted = sequences.items[training & (sequences.items < sequences.vocab_size)]
    without_item = np.unique(sequences.actions[training & (sequences.items == NONE)])
    return PreparedLog(
        sequences=sequences,
        tokenizer=tokenizer,
        split=split,
        max_length=max_length,
        item_counts=np.bincount(counted, minlength=sequences.vocab_size),
        actions_without_item=[int(action) for action in without_item if action >= FIRST_ACTION],
        novel_share=novel_share(sequences),
        # With --split none every item is in the vocabulary, but new ones will come.
        unknown_share=0.1 if settings.split == "none" else float(np.clip(unknown_share, 0.02, 0.5)),
        neighbours=ItemNeighbours().fit(sequences),
        text=text,
        base=base,
        new_items=new_items,
    )


def novel_share(sequences: Sequences) -> float:
    """Of the training events with an item, the share whose user has not met the item before."""
    counted = (sequences.parts == 0) & (sequences.items != NONE)
    pairs = (sequences.user_of_event()[counted].astype(np.int64) << 32) + sequences.items[counted]
    return len(np.unique(pairs)) / max(1, len(pairs))


def hold_out_last_events(events: pl.DataFrame, seed: int, share: float = 0.2, most: int = 4000) -> pl.DataFrame:
    """Marks the last tenth of the events, at least one, of a random share of the users with two events and more as
    validation: with `--split none` they decide when to stop and how much counts and words say.

    These are what users do next whom the model knows, as it will be asked. Whole users held out would say how it does
    for strangers, for whom counts are worth less.
    """
    length = pl.len().over("user_id").cast(pl.Int64)
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")
    users = events.filter(length > 1)["user_id"].unique(maintain_order=True)
    count = min(most, math.ceil(share * len(users)))
    drawn = users.gather(np.random.default_rng(seed).permutation(len(users))[:count])
    held_out = pl.col("user_id").is_in(drawn.implode()) & (place >= length - (length // 10).clip(lower_bound=1))
    return events.with_columns(pl.when(held_out).then(VALIDATION).otherwise(TRAIN).cast(pl.Int8).alias("part"))


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run: what the settings say, else what suits the log."""

    tokens_per_batch: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    convolution_size: int
    dropout: float
    event_dropout: float
    num_negatives: int
    validation_targets: int
    test_targets: int


def choose_sizes(settings: RunSettings, log: PreparedLog) -> Sizes:
    """Fills what the settings leave open, from the numbers of training events and of items."""
    num_events = int((log.sequences.parts == 0).sum())
    num_items = log.sequences.vocab_size - log.sequences.first_item_id
    small = num_events < 300_000
    largest = 16384 if torch.cuda.is_available() and not settings.cpu else 2048

    def given(value: int | None, default: int) -> int:
        return default if value is None else value

    hidden_size = given(settings.hidden_size, 128)
    heads = max(1, hidden_size // 64)
    while hidden_size % heads:
        heads -= 1
    return Sizes(
        # About 150 steps an epoch: small logs need many small steps, large ones use the hardware better. A CPU is busy
        # with 2,048 events, and learns more from more steps in its time.
        tokens_per_batch=given(settings.tokens_per_batch, int(np.clip(num_events // 150, 512, largest))),
        hidden_size=hidden_size,
        num_hidden_layers=given(settings.num_hidden_layers, 1 if small else 2),
        num_attention_heads=given(settings.num_attention_heads, heads),
        convolution_size=given(settings.convolution_size, 4),
        dropout=(0.3 if small else 0.1) if settings.dropout is None else settings.dropout,
        # It makes up for few events of an item, but what repeats is found by the events themselves.
        event_dropout=max(0.0, log.novel_share - 0.8) if settings.event_dropout is None else settings.event_dropout,
        num_negatives=given(settings.num_negatives, 0 if num_items <= 50_000 else 4096),
        # Ranking costs targets x items; these bounds keep a validation to seconds and the final table to minutes.
        validation_targets=given(settings.validation_targets, int(np.clip(100_000_000 // num_items, 500, 4000))),
        test_targets=given(settings.test_targets, int(np.clip(400_000_000 // num_items, 2000, 25_000))),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Training state
# ----------------------------------------------------------------------------------------------------------------------


def learning_rate(settings: RunSettings, step: int, progress: float) -> float:
    """The rate of a step: linear warm-up, then constant or falling to a tenth as `progress` goes from 0 to 1."""
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return rate * (1 - 0.9 * progress) if settings.schedule == "linear" else rate


class BatchStream:
    """The training batches, addressed by number: the same (seed, epoch, index) gives the same batch."""

    def __init__(self, log: PreparedLog, max_length: int, tokens_per_batch: int, seed: int) -> None:
        windows = training_windows(log.sequences, max_length)
        if not len(windows):
            raise ValueError("no training events are left: use a larger log, or --split none.")
        self.collator = TrainingCollator(log.sequences, windows, log.item_counts, hide_share=log.unknown_share)
        self.lengths = self.collator.lengths()
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def batches(self, epoch: int) -> list[np.ndarray]:
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._batches = length_bucketed_batches(self.lengths, self.tokens_per_batch, generator)
            self._epoch = epoch
        return self._batches

    def batch(self, epoch: int, index: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Batch number `index` of the epoch; numbers past the end begin again, so that all processes have work."""
        batches = self.batches(epoch)
        generator = np.random.default_rng((self.seed, epoch, index))
        arrays = self.collator(batches[index % len(batches)], generator)
        return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


@dataclass
class RunState:
    """Where a run stands; everything besides weights and optimizer that a checkpoint holds."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_metric: float = -1.0
    best_loss: float = math.inf
    kept_step: int = 0  # the validation whose weights are kept
    kept_metric: float = -1.0
    kept_loss: float = math.inf
    bad_validations: int = 0
    finished: bool = False
    seconds: float = 0.0  # of all processes so far, up to the checkpoint
    validation_targets: int = 0

    def judge(self, metric: float, loss: float) -> bool:
        """Notes a validation; True where its weights are the best so far: the highest NDCG@10, and among those that
        draw with it the lowest log-loss."""
        # A falling log-loss goes on too: a network that has just begun to learn lowers the NDCG of the counts at first.
        improved = metric > self.best_metric or loss < self.best_loss
        self.bad_validations = 0 if improved else self.bad_validations + 1
        self.best_metric, self.best_loss = max(self.best_metric, metric), min(self.best_loss, loss)
        lowest = self.best_metric * (1 - DRAW)
        keep = metric >= lowest and (self.kept_metric < lowest or loss < self.kept_loss)
        if keep:
            self.kept_step, self.kept_metric, self.kept_loss = self.step, metric, loss
        return keep

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class AveragedWeights:
    """Exponential moving average of the weights; a schedule-free stand-in for decaying the learning rate.

    The decay grows with the steps, as min(decay, (1 + step) / (10 + step)), so that the start is forgotten.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
        }

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.weights.values()), [current[name] for name in self.weights], 1 - decay)

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchanges the model's weights and the averaged ones; a second call undoes it."""
        current = dict(model.named_parameters())
        for name in self.weights:
            weight = current[name]
            held = weight.detach().clone()
            weight.copy_(self.weights[name])
            self.weights[name].copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return self.weights

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, weight in state.items():
            self.weights[name].copy_(weight)


def interrupted_batch_size(settings: RunSettings) -> int:
    """tokens_per_batch of the run that `settings` resumes, which is smaller than planned where memory was short.

    Raises:
        ValueError: there is no such run, or it was another one: its weights would not be continued but mixed.
    """
    record = json.loads((last_checkpoint(Path(settings.output_dir) / CHECKPOINTS) / "settings.json").read_text())
    now, then = asdict(settings), record["settings"]
    changed = [f"{name}: {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
    changed = [text for text in changed if text.split(":")[0] not in MAY_CHANGE_ON_RESUME]
    if changed:
        raise ValueError(
            f"--resume continues the interrupted run, but its settings differ ({'; '.join(changed)}): repeat them as "
            "they were, or start without --resume."
        )
    return int(record["tokens_per_batch"])


def last_checkpoint(root: Path) -> Path:
    """The last checkpoint, also one whose replacement was interrupted between its two renames."""
    for name in ("last", "last.old"):
        if (root / name).exists():
            return root / name
    raise ValueError(f"--resume: there is no checkpoint in {root}; start without --resume, or check --output_dir.")


def replace_directory(unfinished: Path, final: Path) -> None:
    """Puts a finished folder in place; the old one is removed only when the new one is there."""
    old = final.with_name(final.name + ".old")
    # Without `final` a replacement was interrupted, and `old` is the only good one.
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(unfinished, final)
    shutil.rmtree(old, ignore_errors=True)


class Checkpoints:
    """`checkpoints/last` (all state) and `checkpoints/best` (the model), each written whole or not at all."""

    def __init__(self, accelerator: Accelerator, settings: RunSettings, tokens_per_batch: int) -> None:
        self.accelerator = accelerator
        self.root = Path(settings.output_dir) / CHECKPOINTS
        self.record = {"settings": asdict(settings), "tokens_per_batch": tokens_per_batch}

    def save_last(self) -> None:
        unfinished = self.root / "last.unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (unfinished / "settings.json").write_text(json.dumps(self.record, indent=1))
            replace_directory(unfinished, self.root / "last")

    def save_best(self, model: BertForNextBehavior, with_lora: PeftModel | None) -> None:
        if self.accelerator.is_main_process:
            unfinished = self.root / "best.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            if with_lora is None:
                model.save_pretrained(unfinished)
            else:
                save_with_adapter(with_lora, unfinished, self.root.parent)
            replace_directory(unfinished, self.root / "best")
        self.accelerator.wait_for_everyone()

    def restore_last(self) -> None:
        self.accelerator.load_state(str(last_checkpoint(self.root)))

    def best(self) -> Path:
        return self.root / "best" if (self.root / "best").exists() else self.root / "best.old"


# ----------------------------------------------------------------------------------------------------------------------
# The run
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModel:
    """Where the best model lies, how long it takes to rank the items of one target, and what was spent before."""

    folder: Path
    positions: np.ndarray  # the validation events that chose it
    seconds_per_target: float
    seconds_before: float  # of the runs that this one resumed


def make_accelerator(settings: RunSettings) -> Accelerator:
    precision = settings.precision
    if precision == "auto":
        on_gpu = torch.cuda.is_available() and not settings.cpu
        capabilities = torch.cpu.get_capabilities()
        cpu_has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        precision = "bf16" if (torch.cuda.is_bf16_supported() if on_gpu else cpu_has_bf16) else "no"
    return Accelerator(
        cpu=settings.cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        log_with=settings.tracker,
        project_dir=settings.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )


def train(
    settings: RunSettings,
    sizes: Sizes,
    log: PreparedLog,
    accelerator: Accelerator,
    started: float,
    tokens_per_batch: int,
) -> TrainedModel:
    """Trains until early stopping, the last epoch or the time limit."""
    accumulation = accelerator.gradient_accumulation_steps
    stream = BatchStream(log, log.max_length, tokens_per_batch, settings.seed)
    model = build_model(settings, sizes, log)
    adapters = lora_config(settings, log.new_items)
    with_lora = None
    if adapters is not None:
        with_lora = with_adapters(model, adapters, train_the_rest=isinstance(log.base, PreTrainedConfig))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trained if weight.ndim > 1]
    vectors = [weight for weight in trained if weight.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        fused=True,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    bare = accelerator.unwrap_model(model)
    state, averaged = RunState(), AveragedWeights(bare, settings.ema_decay)
    accelerator.register_for_checkpointing(state, averaged)
    checkpoints = Checkpoints(accelerator, settings, tokens_per_batch * settings.gradient_accumulation_steps)
    if settings.resume:
        checkpoints.restore_last()
        state.finished = state.bad_validations >= settings.patience or state.epoch >= settings.max_epochs
        accelerator.print(f"Resumed at step {state.step} (epoch {state.epoch}).")
    seconds_before = state.seconds

    if not state.validation_targets:
        state.validation_targets = affordable_validation_targets(bare, log, settings, sizes, accelerator)
    positions = target_positions(log.sequences, VALIDATION, state.validation_targets, settings.seed)
    processes, rank = accelerator.num_processes, accelerator.process_index
    batches_per_step = processes * accumulation
    steps_per_epoch = math.ceil(len(stream.batches(state.epoch)) / batches_per_step)
    deadline = None if settings.max_minutes is None else started + 60 * settings.max_minutes * (1 - FINAL_SHARE)
    share = padding_share(stream.lengths, stream.batches(state.epoch))
    accelerator.print(
        f"Model: {sum(weight.numel() for weight in bare.parameters()):,} parameters"
        f"{f' ({sum(weight.numel() for weight in trained):,} trained)' if adapters else ''}, width "
        f"{bare.config.hidden_size}, {bare.config.num_hidden_layers} layer(s), histories of {log.max_length} events; "
        f"{steps_per_epoch} steps of {tokens_per_batch * batches_per_step:,} events an epoch, {share:.1%} padding; "
        f"{'softmax over all items' if not sizes.num_negatives else f'{sizes.num_negatives} negatives'}; "
        f"{accelerator.device.type}, {accelerator.mixed_precision if accelerator.mixed_precision != 'no' else 'fp32'}."
    )

    def save_checkpoint() -> None:
        state.seconds = seconds_before + time.monotonic() - started
        checkpoints.save_last()

    def validate() -> None:
        """Scores the averaged weights, keeps them if they are the best, and writes a checkpoint."""
        if settings.ema_decay:
            averaged.swap(bare)
        bare.eval()
        learned = copy.deepcopy(bare.path_gate.state_dict())
        item_loss = fit_gate(bare, log, positions)
        before = time.monotonic()
        if (log.sequences.items[positions] != NONE).any():
            metric = validation_ndcg(bare, log, positions)
            seconds_per_target.append((time.monotonic() - before) / len(positions))
            loss = item_loss + action_log_loss(bare, log, positions)
        else:  # Without a held-out event that names an item, the last weights are the best.
            metric, loss = 0.0, -float(state.step)
        if state.judge(metric, loss):
            checkpoints.save_best(bare, with_lora)
        bare.path_gate.load_state_dict(learned)
        bare.train()
        if settings.ema_decay:
            averaged.swap(bare)
        state.finished = state.bad_validations >= settings.patience or state.epoch >= settings.max_epochs
        save_checkpoint()
        accelerator.log({"validation_ndcg@10": metric, "validation_log_loss": loss}, step=state.step)
        bar.set_postfix_str(f"validation NDCG@10 {metric:.4f}, best {state.best_metric:.4f}")
        bar.write(
            f"epoch {state.epoch:>3}  step {state.step:>6}  loss {running_loss:.4f}  "
            f"validation log-loss {loss:.4f}  NDCG@10 {metric:.4f}"
            f"{'  kept' if state.kept_step == state.step else ''}"
        )

    bar = tqdm(unit=" events", unit_scale=True, desc="training", mininterval=1, disable=not accelerator.is_main_process)
    running_loss, out_of_time, validated_at = float("nan"), False, state.step
    seconds_per_target: list[float] = []
    model.train()
    while not state.finished and not out_of_time:
        progress = (state.epoch + state.step_in_epoch / steps_per_epoch) / settings.max_epochs
        if deadline is not None:
            progress = max(progress, (time.monotonic() - started) / (deadline - started))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, state.step, min(1.0, progress))
        # Dropout and negatives depend on the step alone, so that a resumed run draws what the first would have drawn.
        torch.manual_seed((settings.seed * 1_000_003 + state.step) * processes + rank)
        first = (state.step_in_epoch * accumulation) * processes + rank
        batches = [
            stream.batch(state.epoch, first + micro * processes, accelerator.device) for micro in range(accumulation)
        ]
        targets = torch.stack([(batch["labels"] != -100).sum() for batch in batches]).sum()
        targets = accelerator.reduce(targets, reduction="sum")
        # Accelerate averages over processes and accumulation steps; dividing by the mean count makes it a mean over
        # all targets of the step.
        per_batch = targets.clamp(min=1) / batches_per_step
        for batch in batches:
            with accelerator.accumulate(model):
                output = model(**batch, num_items_in_batch=per_batch)
                accelerator.backward(output.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, settings.max_gradient_norm)
                optimizer.step()
                optimizer.zero_grad()
        state.step += 1
        state.step_in_epoch += 1
        if settings.ema_decay:
            averaged.update(bare, state.step)
        loss = float(output.loss.detach())
        running_loss = loss if math.isnan(running_loss) else 0.98 * running_loss + 0.02 * loss
        bar.update(int(targets))
        if state.step % 20 == 0:
            bar.set_description_str(f"epoch {state.epoch} loss {running_loss:.3f}")
            accelerator.log({"loss": loss, "epoch": state.epoch}, step=state.step)
        epoch_ends = state.step_in_epoch >= steps_per_epoch
        if epoch_ends:
            state.epoch, state.step_in_epoch = state.epoch + 1, 0
            steps_per_epoch = math.ceil(len(stream.batches(state.epoch)) / batches_per_step)
        if deadline is not None:
            out_of_time = bool(
                accelerator.reduce(torch.tensor(float(time.monotonic() > deadline), device=accelerator.device)) > 0
            )
        # When the time is up, a few steps since the last validation are not worth another.
        is_worth_it = state.kept_step == 0 or state.step - validated_at > steps_per_epoch // 20
        if epoch_ends or state.step_in_epoch % settings.validation_steps == 0 or (out_of_time and is_worth_it):
            validate()
            validated_at = state.step
        elif out_of_time:
            save_checkpoint()
    bar.close()
    why = "the time is up" if out_of_time else f"after {state.epoch} epochs"
    accelerator.print(f"Stopped {why}; step {state.kept_step} is kept, validation NDCG@10 {state.kept_metric:.4f}.")
    return TrainedModel(checkpoints.best(), positions, float(np.mean(seconds_per_target or [0.0])), seconds_before)


def affordable_validation_targets(
    model: BertForNextBehavior, log: PreparedLog, settings: RunSettings, sizes: Sizes, accelerator: Accelerator
) -> int:
    """Validation targets while training: the planned number, with a time limit as many as can be ranked in a small part
    of it; the same on all processes."""
    positions = target_positions(log.sequences, VALIDATION, sizes.validation_targets, settings.seed)
    sample = positions[log.sequences.items[positions] != NONE][:PROBED_TARGETS]
    if settings.max_minutes is None or settings.validation_targets is not None or not len(sample):
        return sizes.validation_targets
    model.eval()
    validation_ndcg(model, log, sample)  # makes the lists of neighbours
    before = time.monotonic()
    validation_ndcg(model, log, sample)
    each = VALIDATION_RANKINGS * (time.monotonic() - before) / len(sample)
    model.train()
    affordable = max(FEWEST_FITTED, int(60 * settings.max_minutes * VALIDATION_SHARE / each))
    everywhere = accelerator.gather(torch.tensor([affordable], device=accelerator.device))
    return min(len(positions), int(cast(torch.Tensor, everywhere).min()))


def affordable_targets(sizes: Sizes, log: PreparedLog, trained: TrainedModel, seconds_left: float) -> int:
    """Test targets for the final table: the planned number, or as many as can be ranked in the time that is left."""
    num_items = log.sequences.vocab_size - log.sequences.first_item_id
    each = trained.seconds_per_target + num_items * BASELINE_SECONDS_PER_ITEM
    # The other half is for fitting the baselines and for the actions.
    affordable = max(FEWEST_TEST_TARGETS, int(0.5 * seconds_left / each))
    planned = sizes.test_targets or len(target_positions(log.sequences, TEST))
    return min(planned, affordable)


def affordable_validation(
    positions: np.ndarray, log: PreparedLog, settings: RunSettings, trained: TrainedModel, seconds_left: float
) -> np.ndarray:
    """The validation targets that the memory is fitted on: those at `positions`, with a time limit as many of them as
    a third of what is left is enough for, or none. The rest is for temperatures and the final table."""
    affordable = seconds_left / 3 / max(1e-9, MEMORY_RANKINGS * trained.seconds_per_target)
    if affordable >= len(positions):
        return positions
    fewer = target_positions(log.sequences, VALIDATION, max(1, int(affordable)), settings.seed)
    return fewer if affordable >= FEWEST_FITTED else positions[:0]


def save_model(
    model: BertForNextBehavior,
    log: PreparedLog,
    settings: RunSettings,
    sizes: Sizes,
    options: ReadOptions,
    seconds: float,
    best: Path,
) -> None:
    """Makes the output folder loadable; the weights come last, so that a folder with weights is complete."""
    output = Path(settings.output_dir)
    log.tokenizer.save_pretrained(output)
    (output / "split.json").write_text(json.dumps(log.split.to_dict(), indent=1))
    _, encoder = split_mark(settings.text_encoder or "")
    named = {"events": settings.events, "base_model": settings.base_model, "text_encoder": encoder}
    run = {
        "settings": asdict(settings),
        "sizes": asdict(sizes),
        "read_options": asdict(options),
        "seconds": round(seconds, 1),
        # These named files here, and nothing on the Hub, whatever lies here when the run is read again.
        "files": [name for name, value in named.items() if value and Path(value).exists()],
        **provenance(settings.events),
    }
    (output / "run.json").write_text(json.dumps(run, indent=1))
    model.save_pretrained(output)
    if settings.lora_r:
        # What was fitted after training belongs to the base: the adapter holds weights alone.
        base = BertForNextBehavior.from_pretrained(best / "base", dtype=torch.float32)
        base.config = copy.deepcopy(model.config)
        base.associate_path.load_tables(model.associate_path)
        base.path_gate.load_state_dict(model.path_gate.state_dict())
        base.save_pretrained(output / "base")
        log.tokenizer.save_pretrained(output / "base")
        shutil.copytree(best / "adapter", output / "adapter", dirs_exist_ok=True)


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    parser = HfArgumentParser(cast(Any, RunSettings), description=__doc__.split("\n\n")[0])
    add_event_arguments(parser)
    parsed = parser.parse_args(arguments)
    settings = RunSettings(**{entry.name: getattr(parsed, entry.name) for entry in fields(RunSettings)})
    for name in ("events", "output_dir"):
        if not getattr(settings, name):
            parser.error(f"--{name} is required")
    options = options_from_arguments(parsed)
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)

    # One bar for the training; no notes on the tied head, which transformers restores.
    datasets.disable_progress_bars()
    disable_transformers_bars()
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator = make_accelerator(settings)
    if settings.tracker:
        accelerator.init_trackers("logs", config={key: str(value) for key, value in asdict(settings).items()})
    with accelerator.main_process_first():
        log = prepare_log(settings, options, accelerator)
    sizes = choose_sizes(settings, log)

    first_size = interrupted_batch_size(settings) if settings.resume else sizes.tokens_per_batch
    # Out of memory: batches of half the size, and twice as many in a step.
    smaller = (first_size >> halvings for halvings in itertools.count(1))

    @find_executable_batch_size(starting_batch_size=first_size, reduce_batch_size_fn=lambda: next(smaller))
    def run(tokens_per_batch: int) -> TrainedModel:
        accelerator.free_memory()
        accelerator._custom_objects.clear()  # what the attempt that failed has registered for checkpoints
        shrink = sizes.tokens_per_batch // tokens_per_batch
        accelerator.gradient_accumulation_steps = settings.gradient_accumulation_steps * shrink
        return train(
            settings, sizes, log, accelerator, started, tokens_per_batch // settings.gradient_accumulation_steps
        )

    trained = run()
    if accelerator.is_main_process:
        output = Path(settings.output_dir)
        model = BertForNextBehavior.from_pretrained(trained.folder, dtype=torch.float32)
        model = model.to(accelerator.device).eval()
        positions = target_positions(log.sequences, VALIDATION, sizes.validation_targets, settings.seed)
        limit = math.inf if settings.max_minutes is None else started + 60 * settings.max_minutes
        fitted = affordable_validation(positions, log, settings, trained, limit - time.monotonic())
        if len(fitted):
            fit_memory(model, log, fitted)
        if len(positions):
            fit_temperatures(model, log, fitted if len(fitted) else trained.positions)
        if settings.split == "none":
            # Nothing is evaluated any more: the memory learns the held-out events too.
            fill_memory(model, log.sequences, VALIDATION)
        seconds = trained.seconds_before + time.monotonic() - started
        save_model(model, log, settings, sizes, options, seconds, trained.folder)
        if settings.split != "none":
            max_targets = sizes.test_targets or None
            if settings.max_minutes is not None:
                left = 60 * settings.max_minutes - (time.monotonic() - started)
                max_targets = affordable_targets(sizes, log, trained, left)
            result = evaluate_model(
                model,
                log.sequences,
                TEST,
                log.max_length,
                max_targets=max_targets,
                seed=settings.seed,
                split=log.split,
                actions=log.tokenizer.action_vocabulary,
                neighbours=log.neighbours,
            )
            write_whole(output / "evaluation.json", json.dumps(result, indent=1))
            table = format_table(result)
            write_whole(output / "evaluation.md", table)
            print(table)
        print(
            f"\nThe model is in {settings.output_dir} ({time.monotonic() - started:.0f} s). Load it with\n"
            f'  AutoModel.from_pretrained("{settings.output_dir}", trust_remote_code=True)'
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_accelerate.py: {error}")
