"""The settings of a training run: their one home. Each becomes a flag of `train_accelerate.py` of the same name.

    add_arguments(parser)
    settings = settings_from_arguments(parser.parse_args(arguments))

A new setting is one field of `RunSettings` with its default, its help text and the values it may have. This file needs
the standard library alone, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from next_behavior.data.read_options import FORMATS, ITEMS_HELP

# Headings of `--help`.
LOG, TEXT, BASE, RUN = "log and output folder", "item text", "what the model starts from", "run"
TRAINING, MODEL, VALIDATION = "training", "model", "validation and test"

# Settings that decide when to stop and what is shown, not what is learned.
MAY_CHANGE_ON_RESUME = {
    *(
        "resume",
        "output_dir",
        "events",
        "prepared",
        "items",
        "items_id_column",
        "items_format",
        "items_columns",
        "tracker",
    ),
    *("max_minutes", "min_epochs", "max_epochs", "patience", "test_targets", "baselines", "cpu"),
}


def option(
    heading: str,
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    flag: str | None = None,
) -> Any:
    """A field with its heading and text in `--help`, and the values that it may have: one of `choices`, or a number of
    at least `least`, more than `above`, less than `below`. Its flag has its name, if no other is given."""
    ranges = {"choices": choices, "least": least, "above": above, "below": below, "flag": flag}
    return field(default=default, metadata={"heading": heading, "help": text, **ranges})


@dataclass
class RunSettings:
    """Everything that decides a run; saved with it as `run.json`."""

    events: str = option(
        LOG, "", "Event log: a CSV, TSV, JSON Lines or Parquet file, a folder or glob of them, or USER/NAME on the Hub."
    )
    prepared: str | None = option(
        LOG,
        None,
        "Instead of --events: a folder that next-behavior prepare wrote. It decides --split and the vocabulary.",
    )
    output_dir: str = option(LOG, "", "Folder for the model; it becomes loadable with AutoModel.from_pretrained.")

    items: str | None = option(
        TEXT, None, "Item table with item_id and text columns: item text helps to predict, titles are shown in answers."
    )
    items_id_column: str | None = option(TEXT, None, ITEMS_HELP["items_id_column"])
    items_format: str | None = option(TEXT, None, ITEMS_HELP["items_format"], choices=FORMATS)
    items_columns: str | None = option(TEXT, None, ITEMS_HELP["items_columns"])
    text_columns: str | None = option(
        TEXT, None, "Columns of --items to read, separated by commas. Default: all that hold text."
    )
    text_template: str | None = option(TEXT, None, "Instead of columns: '{title} by {brand}'.")
    text_encoder: str | None = option(
        TEXT,
        None,
        "Reads item texts: Hub id or folder of a BERT-like checkpoint, model2vec:NAME for static vectors, or none. "
        "Default: all-MiniLM-L6-v2.",
    )
    text_size: int = option(TEXT, 256, "Principal components kept of the text embeddings.", least=1)

    base_model: str | None = option(
        BASE,
        None,
        "Hub id or folder of a BERT checkpoint, whose encoder is taken, or of a trained behavior model, whose "
        "vocabulary grows. Default: a new model.",
    )
    continue_from: str | None = option(
        BASE,
        None,
        "Folder of a trained behavior model that goes on: it learns those of --events that it has not learned, with "
        "their new items and actions.",
        flag="continue",
    )
    old_share: float = option(
        BASE, 0.3, "With --continue: the share of an epoch's events that are old ones.", least=0, below=1
    )
    lora_r: int = option(
        BASE, 0, "Train LoRA adapters of this rank instead of the encoder's own; 0 trains all.", least=0
    )
    item2vec: bool = option(BASE, False, "Start item rows from skip-gram over the histories (needs gensim).")

    split: str = option(
        RUN, "time", "time, leave_one_out or none: what is held out for validation and test.",
        choices=("time", "leave_one_out", "none"),
    )  # fmt: skip
    seed: int = option(RUN, 0, "Seed of every random draw.", least=0)
    resume: bool = option(RUN, False, "Continue from the last checkpoint in --output_dir.")

    max_minutes: float | None = option(
        TRAINING, None, "Time limit of the whole process, reading and evaluation included. Default: none.", above=0
    )
    min_epochs: int = option(
        TRAINING, 0, "Passes over the training events that --max_minutes does not cut short.", least=0
    )
    max_epochs: int = option(TRAINING, 60, "Most passes over the training events.", least=1)
    patience: int = option(
        TRAINING, 5, "Stop after this many validations without a better NDCG@10 or log-loss.", least=1
    )
    learning_rate: float | None = option(
        TRAINING, None, "Peak learning rate of AdamW. Default: 0.002; with --continue 0.0005.", above=0
    )
    weight_decay: float = option(TRAINING, 0.01, "Weight decay of AdamW, on matrices.", least=0)
    warmup_steps: int = option(TRAINING, 100, "Steps of linear warm-up.", least=0)
    schedule: str = option(
        TRAINING,
        "constant",
        "constant, or linear: down to a tenth over --max_epochs or --max_minutes. Averaged weights need no decay.",
        choices=("constant", "linear"),
    )
    ema_decay: float = option(
        TRAINING,
        0.995,
        "Decay of the averaged weights, which are validated and saved; 0 turns averaging off.",
        least=0,
        below=1,
    )
    max_gradient_norm: float = option(TRAINING, 1.0, "Gradients are clipped to this norm.", above=0)
    tokens_per_batch: int | None = option(
        TRAINING, None, "Events in one optimizer step. Default: by the size of the log.", least=1
    )
    gradient_accumulation_steps: int = option(
        TRAINING, 1, "Batches in one optimizer step; each holds its share of the events.", least=1
    )
    precision: str = option(
        TRAINING, "auto", "auto, bf16 or no. auto takes bf16 where the hardware computes in it.",
        choices=("auto", "bf16", "no"),
    )  # fmt: skip
    shard_items: bool = option(
        TRAINING,
        False,
        "Divide the item table among the processes, which train on the same batches: for catalogs that one device "
        "cannot train.",
    )
    cpu: bool = option(TRAINING, False, "Train on the CPU although there is a GPU.")
    tracker: str | None = option(
        TRAINING, None, "tensorboard: log losses and validations under --output_dir/logs. Default: none.",
        choices=("tensorboard",),
    )  # fmt: skip

    hidden_size: int | None = option(MODEL, None, "Width. Default: 128.", least=1)
    num_hidden_layers: int | None = option(MODEL, None, "Depth. Default: by the size of the log.", least=1)
    num_attention_heads: int | None = option(
        MODEL, None, "Attention heads. Default: one for every 64 of width.", least=1
    )
    use_positions: bool = option(
        MODEL, False, "Embed each event's place in the history, counted from the oldest. A BERT checkpoint always does."
    )
    convolution_size: int | None = option(
        MODEL,
        None,
        "Events that the embedding of each is mixed from, itself included; 0 for none. Default: 4.",
        least=0,
    )
    dropout: float | None = option(MODEL, None, "Dropout. Default: by the size of the log.", least=0, below=1)
    label_smoothing: float = option(
        MODEL, 0.1, "Share of an item target that is spread over all items.", least=0, below=1
    )
    event_dropout: float | None = option(
        MODEL,
        None,
        "Share of the events whose item is hidden in training. Default: 0.2, none where a fifth of them repeat.",
        least=0,
        below=1,
    )
    max_length: int | None = option(
        MODEL, None, "Longest history in events. Default: by the log's users, at most 200.", least=1
    )
    num_negatives: int | None = option(
        MODEL, None, "Negatives of the softmax, 0 for all. Default: 0 to 50,000 items, then 4,096.", least=0
    )
    min_item_count: int = option(MODEL, 1, "Items with fewer training events stay outside the vocabulary.", least=1)

    validation_targets: int | None = option(
        VALIDATION,
        None,
        "Most validation events per validation, whole users drawn at random. Default: 4,000, fewer if many items or "
        "little time.",
        least=1,
    )
    test_targets: int | None = option(
        VALIDATION,
        None,
        "Most test events in the final table, drawn likewise; 0 for all. Default: 25,000, fewer if many items.",
        least=0,
    )
    baselines: str = option(
        VALIDATION, "counting",
        "Rivals in the final table. counting: those that train nothing; all: also LightGCN, five minutes at most.",
        choices=("counting", "all"),
    )  # fmt: skip
    validation_steps: int = option(
        VALIDATION,
        500,
        "Validate at every epoch's end, and this often; with --max_minutes only while it takes little of the time.",
        least=1,
    )

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_range()
        if self.prepared is not None and self.events:
            raise ValueError("--prepared and --events both name a log, expected one of them.")
        if self.lora_r and self.base_model is None:
            raise ValueError(f"--lora_r {self.lora_r} adapts a trained model: name it with --base_model.")
        if self.lora_r and self.shard_items:
            raise ValueError("--shard_items divides an item table that is trained, and --lora_r leaves it as it is.")
        if self.continue_from is not None:
            self._check_continue()
        if self.base_model is not None and (self.hidden_size or self.num_hidden_layers or self.num_attention_heads):
            raise ValueError("--base_model brings its width, depth and heads: leave out --hidden_size and the like.")
        if self.convolution_size == 0 and not self.use_positions and self.base_model is None:
            raise ValueError("--convolution_size 0 leaves the order of events to --use_positions: give it, too.")
        if self.min_epochs > self.max_epochs:
            raise ValueError(f"--min_epochs is {self.min_epochs}, expected at most --max_epochs {self.max_epochs}.")

    def _check_continue(self) -> None:
        brought = (
            "prepared",
            "base_model",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "convolution_size",
        )
        given = [name for name in (*brought, "lora_r", "item2vec", "use_positions") if getattr(self, name)]
        if given:
            raise ValueError(f"--continue goes on with a model as it is: leave out --{' and --'.join(given)}.")
        if self.split == "leave_one_out":
            raise ValueError("--continue learns the newer events: use --split time or --split none.")

    def _check_choices(self) -> None:
        for entry in fields(self):
            value, choices = getattr(self, entry.name), entry.metadata["choices"]
            if choices is not None and value != entry.default and value not in choices:
                *others, last = choices
                expected = f"{', '.join(others)} or {last}" if others else last
                raise ValueError(f"--{entry.name} {value} is unknown, expected {expected}.")

    def _check_range(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (bool, str)) or value is None:
                continue
            least, above, below = (entry.metadata[name] for name in ("least", "above", "below"))
            bounds = [f"at least {least}"] if least is not None else [f"more than {above}"] if above is not None else []
            bounds += [f"less than {below}"] if below is not None else []
            inside = (least is None or value >= least) and (above is None or value > above)
            if not (inside and (below is None or value < below) and math.isfinite(value)):
                raise ValueError(f"--{entry.name} is {value}, expected {' and '.join(bounds) or 'a finite number'}.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting, under the headings; `--output-dir` is `--output_dir`, too."""
    headings: dict[str, argparse._ArgumentGroup] = {}
    types = get_type_hints(RunSettings)
    for entry in fields(RunSettings):
        heading, text = entry.metadata["heading"], entry.metadata["help"]
        if heading not in headings:
            headings[heading] = parser.add_argument_group(heading)
        name = entry.metadata["flag"] or entry.name
        flags = list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))
        kind = next(kind for kind in get_args(types[entry.name]) or (types[entry.name],) if kind is not type(None))
        how: dict[str, Any] = {"type": kind}
        if kind is bool:  # alone it is true; "--resume false" is possible
            how = {"type": true_or_false, "nargs": "?", "const": True}
        elif entry.default not in (None, ""):
            text += f" Default: {entry.default}."
        headings[heading].add_argument(*flags, dest=entry.name, default=entry.default, help=text, **how)


def true_or_false(text: str) -> bool:
    """A value after a flag that needs none.

    >>> true_or_false("yes"), true_or_false("False")
    (True, False)
    """
    words = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    words |= {"no": False, "false": False, "f": False, "n": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected one of {', '.join(words)}")
    return words[text.lower()]


def settings_from_arguments(parsed: argparse.Namespace) -> RunSettings:
    """The settings that `add_arguments` parsed.

    Raises:
        ValueError: a value that a run cannot have.
    """
    return RunSettings(**{entry.name: getattr(parsed, entry.name) for entry in fields(RunSettings)})
