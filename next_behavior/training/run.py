"""A whole run, from its settings to the finished folder: prepare, train, fit on validation events, save, evaluate.

    finished = run(settings, ReadOptions(), started=time.monotonic())

What the settings leave open is chosen from the log (`choose_sizes`). The test events are evaluated beside the
baselines; the result lies in the output folder as `evaluation.html`, `evaluation.md` and `evaluation.json`.
"""

from __future__ import annotations

import itertools
import json
import logging
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, find_executable_batch_size
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from next_behavior.data.batches import target_positions
from next_behavior.data.files import only_writer, write_whole
from next_behavior.data.prepared_folder import PreparedFolder
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import TEST, VALIDATION
from next_behavior.evaluation.audit_counts import training_record
from next_behavior.evaluation.evaluator import evaluate_model
from next_behavior.evaluation.page import page_of
from next_behavior.evaluation.summary import in_three_lines
from next_behavior.evaluation.tables import format_table
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.text.encoders import computes_in_bfloat16
from next_behavior.training.calibration import fit_memory
from next_behavior.training.checkpoints import CHECKPOINTS, Checkpoints, RunIdentity, interrupted_batch_size
from next_behavior.training.continuing import learned_until
from next_behavior.training.from_prepared import take_prepared
from next_behavior.training.initial_model import build_model
from next_behavior.training.loop import TrainedModel, Training
from next_behavior.training.lora import lora_config, with_adapters
from next_behavior.training.memory import fill_memory
from next_behavior.training.phases import Phases, clock
from next_behavior.training.prepared_log import COUNTING, PreparedLog, prepare_log
from next_behavior.training.probability_calibration import fit_probabilities
from next_behavior.training.save import run_record, save_adapter, save_model
from next_behavior.training.settings import RunSettings
from next_behavior.training.sizes import Sizes, choose_sizes
from next_behavior.training.state import BatchStream
from next_behavior.training.time_limit import (
    TimeLimit,
    TrainingTime,
    affordable_calibration,
    affordable_fit,
    affordable_test_targets,
)

BUILDING = "Building the model and its memory"  # a phase


@dataclass(frozen=True)
class FinishedRun:
    """What the user is told.

    Attributes:
        verdict: what the evaluation on test events says, in three lines; None with `--split none`.
        seconds: of this process.
    """

    folder: str
    verdict: str | None
    seconds: float


def run(settings: RunSettings, options: ReadOptions, started: float) -> FinishedRun | None:
    """Trains a model into `settings.output_dir`; None on all processes but the main one.

    Args:
        options: how the event log is read.
        started: when the process started, by `time.monotonic`: `--max_minutes` counts from there.
    """
    keep_libraries_quiet()
    on_gpu = torch.cuda.is_available() and not settings.cpu
    accelerator = make_accelerator(settings, on_gpu)
    if settings.shard_items and accelerator.num_processes == 1:
        raise ValueError(
            "--shard_items divides the item table among processes, and got one: start several with accelerate launch "
            "--num_processes N train_accelerate.py ..., or leave it out."
        )
    folder = Path(settings.output_dir) / CHECKPOINTS
    with only_writer(folder) if accelerator.is_main_process else nullcontext():
        return run_alone(settings, options, started, on_gpu, accelerator)


def run_alone(
    settings: RunSettings, options: ReadOptions, started: float, on_gpu: bool, accelerator: Accelerator
) -> FinishedRun | None:
    """`run`, while nobody else writes to the output folder."""
    output, limit = Path(settings.output_dir), TimeLimit(started, settings.max_minutes)
    imports = limit.seconds_spent()
    folder = None if settings.prepared is None else PreparedFolder.open(settings.prepared)
    if folder is not None:
        settings, options = replace(settings, split=folder.split.how), folder.options
    phases = Phases(started, accelerator.print)
    if settings.tracker:
        accelerator.init_trackers("logs", config={key: str(value) for key, value in asdict(settings).items()})
    with accelerator.main_process_first():
        if folder is not None:
            prepared = take_prepared(settings, folder, accelerator, phases)
        else:
            prepared = prepare_log(settings, options, accelerator, phases)
    sizes = choose_sizes(settings, prepared.log.sequences, on_gpu)
    readers = 1 if settings.shard_items else accelerator.num_processes
    identity = RunIdentity(asdict(settings), asdict(options), prepared.log.sequences.digest(), readers)
    # What follows reads and writes the model and counts for the baselines, for half the time of choosing how to
    # count; the process ends in half the time that its imports took.
    budget = TrainingTime(limit, limit.seconds_spent(), fixed_seconds=(phases.seconds[COUNTING] + imports) / 2)
    trained = train_within_memory(settings, sizes, prepared, identity, accelerator, budget, phases)
    finished = None
    if accelerator.is_main_process:
        with phases("Reading the best model again"):
            model = BertForNextBehavior.from_pretrained(trained.folder, dtype=torch.float32)
            model = model.to(accelerator.device).eval()
        calibration = calibrate(model, settings, sizes, prepared, trained, budget, phases)
        model.config.learned_until = learned_until(prepared.log.sequences, prepared.log.split)
        seconds = trained.seconds_before + limit.seconds_spent()
        record = run_record(settings, sizes, options, trained.passes, seconds, trained.waiting_share)
        record["calibration"] = calibration
        with phases(f"Saving the model in {output}"):
            save_model(output, model, prepared.tokenizer, prepared.log.split, record)
            if settings.lora_r:
                save_adapter(output, trained.folder, model, prepared.tokenizer)
        verdict = None
        if settings.split != "none":
            verdict = evaluate_on_test(model, settings, sizes, prepared, trained, budget, phases, output)
        finished = FinishedRun(settings.output_dir, verdict, limit.seconds_spent())
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return finished


def keep_libraries_quiet() -> None:
    """One bar for the training; no notes on the tied head, which transformers restores."""
    datasets.disable_progress_bars()
    disable_transformers_bars()
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def make_accelerator(settings: RunSettings, on_gpu: bool) -> Accelerator:
    """Accelerate in the precision that is asked for, or that the hardware computes in."""
    precision = settings.precision
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else computes_in_bfloat16(torch.device("cpu"))
        precision = "bf16" if has_bf16 else "no"
    return Accelerator(
        cpu=settings.cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        log_with=settings.tracker,
        project_dir=settings.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )


def train_within_memory(
    settings: RunSettings,
    sizes: Sizes,
    prepared: PreparedLog,
    identity: RunIdentity,
    accelerator: Accelerator,
    budget: TrainingTime,
    phases: Phases,
) -> TrainedModel:
    """`train`. Where memory is short it starts again with batches of half the size, and twice as many in a step."""
    first_size = sizes.tokens_per_batch
    if settings.resume:
        first_size = interrupted_batch_size(Path(settings.output_dir), identity)
    smaller = (first_size >> halvings for halvings in itertools.count(1))

    @find_executable_batch_size(starting_batch_size=first_size, reduce_batch_size_fn=lambda: next(smaller))
    def attempt(tokens_per_batch: int) -> TrainedModel:
        accelerator.free_memory()
        shrink = sizes.tokens_per_batch // tokens_per_batch
        accelerator.gradient_accumulation_steps = settings.gradient_accumulation_steps * shrink
        return train(settings, sizes, prepared, identity, accelerator, budget, phases, tokens_per_batch)

    return attempt()


def train(
    settings: RunSettings,
    sizes: Sizes,
    prepared: PreparedLog,
    identity: RunIdentity,
    accelerator: Accelerator,
    budget: TrainingTime,
    phases: Phases,
    tokens_per_batch: int,
) -> TrainedModel:
    """Builds the model and trains it; `tokens_per_batch` are the events of `gradient_accumulation_steps` batches."""
    micro_batch = tokens_per_batch // settings.gradient_accumulation_steps
    stream = BatchStream(prepared.log, micro_batch, settings.seed, settings.old_share)
    with phases(BUILDING):
        model = build_model(
            prepared,
            sizes,
            use_positions=settings.use_positions,
            label_smoothing=settings.label_smoothing,
            item2vec=settings.item2vec,
            seed=settings.seed,
            say=phases.line,
            until=budget.limit.building_end(),
        )
    with_lora = None
    if settings.lora_r:
        adapters = lora_config(settings.lora_r, prepared.new_items)
        with_lora = with_adapters(model, adapters, train_the_rest=prepared.start.bert is not None)
    checkpoints = Checkpoints(
        accelerator, Path(settings.output_dir), identity, micro_batch * settings.gradient_accumulation_steps
    )
    budget.begin = budget.limit.seconds_spent()
    training = Training(settings, accelerator, budget, phases.line, prepared.log, stream, model, with_lora, checkpoints)
    if settings.resume:
        training.resume()
    with phases(f"Training: {stopping_rules(settings, budget)}"):
        training.choose_validation_events(sizes.validation_targets, is_fixed=settings.validation_targets is not None)
        return training.run()


def stopping_rules(settings: RunSettings, budget: TrainingTime) -> str:
    """For the user: the passes over the training events, and when the time is up."""
    least = f"at least {settings.min_epochs}, " if settings.min_epochs else ""
    end = "" if budget.limit.minutes is None else f", until about {clock(max(budget.begin, budget.end())).strip()}"
    return f"{least}at most {settings.max_epochs} epochs{end}"


def calibrate(
    model: BertForNextBehavior,
    settings: RunSettings,
    sizes: Sizes,
    prepared: PreparedLog,
    trained: TrainedModel,
    budget: TrainingTime,
    phases: Phases,
) -> dict[str, Any] | None:
    """Fits the memory and the probabilities on validation events, as many as the time allows; returns the record of the
    latter, None without validation events."""
    record = None
    log, seed = prepared.log, settings.seed
    positions = target_positions(log.sequences, VALIDATION, sizes.validation_targets, seed)
    left, each = budget.limit.seconds_left() - budget.fixed_seconds, budget.seconds_per_target
    fitted = affordable_fit(log.sequences, positions, budget.seconds_per_fitted, left, seed)
    if len(fitted):
        with phases(f"Fitting the memory on {len(fitted):,} validation events"):
            fit_memory(model, log, fitted)
    if len(positions):
        left = budget.limit.seconds_left() - budget.fixed_seconds
        calibrated = fitted if len(fitted) else trained.positions
        calibrated = affordable_calibration(log.sequences, calibrated, model.config.num_actions, each, left, seed)
        most_encoded = left / 8 / max(1e-9, budget.seconds_per_encoding)
        with phases(f"Fitting probabilities on {len(calibrated):,} validation events"):
            record = fit_probabilities(model, log, calibrated, most_encoded)
    if settings.split == "none":
        # Nothing is evaluated any more: the memory learns the held-out events, too.
        fill_memory(model, log.sequences, VALIDATION)
    return record


def evaluate_on_test(
    model: BertForNextBehavior,
    settings: RunSettings,
    sizes: Sizes,
    prepared: PreparedLog,
    trained: TrainedModel,
    budget: TrainingTime,
    phases: Phases,
    output: Path,
) -> str:
    """Writes the evaluation of the model and the baselines on test events; returns what it says, in three lines."""
    log = prepared.log
    sequences = log.sequences
    max_targets = sizes.test_targets or None
    if budget.limit.minutes is not None:
        planned = sizes.test_targets or len(target_positions(sequences, TEST))
        num_items = sequences.vocab_size - sequences.first_item_id
        left = budget.limit.seconds_left() - budget.fixed_seconds
        max_targets = affordable_test_targets(planned, num_items, budget.seconds_per_target, left)
    count = len(target_positions(sequences, TEST, max_targets, settings.seed))
    with phases(f"Evaluating on {count:,} test events, beside the baselines"):
        result = evaluate_model(
            model,
            sequences,
            TEST,
            log.max_length,
            max_targets=max_targets,
            seed=settings.seed,
            split=log.split,
            actions=prepared.tokenizer.action_vocabulary,
            neighbors=prepared.neighbors,
            baselines=settings.baselines,
            until=budget.limit.baselines_end(),
            record=training_record(output),
            time_edges=prepared.tokenizer.time_edges if prepared.tokenizer.has_time else None,
        )
    result["passes"] = trained.passes
    write_whole(output / "evaluation.json", json.dumps(result, indent=1))
    write_whole(output / "evaluation.md", format_table(result))
    write_whole(output / "evaluation.html", page_of(result, output.resolve().name))
    return in_three_lines(result, str(output))
