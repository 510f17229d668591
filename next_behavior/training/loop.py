"""The training loop: optimizer steps, validations, checkpoints, until early stopping, the last epoch or the time limit.

    training = Training(...)
    if resume:
        training.resume()
    trained = training.run()

Every validation scores the averaged weights with a gate that is fitted on validation events. The weights with the best
NDCG@10 are kept. Every random draw comes from (seed, epoch, batch), so that an interrupted run continues to the same
weights.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from next_behavior.data.batches import padding_share, target_positions
from next_behavior.data.sequences import VALIDATION
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import IGNORED, NONE
from next_behavior.training.ahead import Waiting, made_ahead
from next_behavior.training.calibration import fit_gate
from next_behavior.training.checkpoints import Checkpoints
from next_behavior.training.encoded import encode_targets
from next_behavior.training.saved_state import TrainingState
from next_behavior.training.sharding import make_the_rest_equal, shard_items, whole_items
from next_behavior.training.state import AveragedWeights, BatchStream, RunState, learning_rate
from next_behavior.training.time_limit import TrainingTime, affordable_validation_targets
from next_behavior.training.tokenized_log import TokenizedLog
from next_behavior.training.validation import action_log_loss, validation_ndcg

# Steps between two losses that are shown and tracked; the shown one is a running mean, of which a step is this share.
SHOWN_STEPS, SHOWN_SHARE = 20, 0.02
# The bar ends with the last epoch or with the time, and is drawn less often where no terminal shows it.
BAR, COLUMNS = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, at most {remaining} left", 79
SECONDS_IN_A_FILE = 30
# Attention of training on a CPU. PyTorch's fused attention is made for answers: with dropout it takes
# a slow path, and its backward pass in bfloat16 takes three times as long as that of plain matrix products.
CPU_TRAINING_ATTENTION = "eager"
# Steps whose batches are made while a device computes those before. On a CPU there is nothing to gain: making a batch
# took 4 % of a step's processor time (the toys log), on the cores that compute the step.
STEPS_AHEAD = {"cuda": 2}
# Time is up: steps since the last validation are worth another if they are more than this share of an epoch.
WORTH_VALIDATING = 20

# Of AdamW, at its peak. Weights that have learned a log lose some of it at the rate of new ones.
LEARNING_RATE, CONTINUED_RATE = 2e-3, 5e-4

Batches = list[dict[str, torch.Tensor]]  # of one step, one for each accumulation step


class LoopSettings(Protocol):
    """What the loop reads of `RunSettings`."""

    seed: int
    min_epochs: int
    max_epochs: int
    patience: int
    learning_rate: float | None
    continue_from: str | None
    weight_decay: float
    warmup_steps: int
    schedule: str
    ema_decay: float
    shard_items: bool
    max_gradient_norm: float
    validation_steps: int


@dataclass(frozen=True)
class TrainedModel:
    """The best model of a run.

    Attributes:
        folder: where it lies.
        positions: the validation events that chose it.
        passes: over the training events, that its weights have seen.
        seconds_before: spent by the runs that this one resumed.
        waiting_share: of the time of this run's steps, what this process waited for batches; validations do not count.
    """

    folder: Path
    positions: np.ndarray
    passes: float
    seconds_before: float
    waiting_share: float


class Training:
    """One training run.

    Args:
        stream: the training batches of one process and one accumulation step.
        model: before the first step; with `with_lora`, adapters are in it.
    """

    bar: tqdm  # while it runs

    def __init__(
        self,
        settings: LoopSettings,
        accelerator: Accelerator,
        budget: TrainingTime,
        say: Callable[[str], None],
        log: TokenizedLog,
        stream: BatchStream,
        model: BertForNextBehavior,
        with_lora: PeftModel | None,
        checkpoints: Checkpoints,
    ) -> None:
        self.settings, self.accelerator, self.budget, self.say = settings, accelerator, budget, say
        self.log, self.stream, self.checkpoints, self.with_lora = log, stream, checkpoints, with_lora
        # With a sharded item table all processes train on the same batches; else each on its own.
        self.readers, self.reader = accelerator.num_processes, accelerator.process_index
        if settings.shard_items:
            self.readers, self.reader = 1, 0
            shard_items(model, accelerator.device, accelerator.num_processes)
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        default_rate = LEARNING_RATE if settings.continue_from is None else CONTINUED_RATE
        self.peak_rate = settings.learning_rate or default_rate
        optimizer = make_optimizer(self.trained, self.peak_rate, settings.weight_decay)
        if settings.shard_items:
            self.model = accelerator.prepare_model(model, evaluation_mode=True)  # that is, without DDP
            self.optimizer = accelerator.prepare_optimizer(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare: BertForNextBehavior = accelerator.unwrap_model(self.model)
        self.attention = self.bare.config._attn_implementation
        self.state, self.averaged = RunState(), AveragedWeights(self.bare, settings.ema_decay)
        self.everything = TrainingState(self.bare, self.averaged, self.optimizer, self.state)
        self.seconds_before = 0.0
        self.positions = np.zeros(0, dtype=np.int64)  # validation events
        self.running_loss = math.nan
        self.waiting = Waiting()

    def resume(self) -> None:
        """Goes on from the last checkpoint."""
        self.checkpoints.restore_last(self.everything)
        self.state.check_end(self.settings.patience, self.settings.max_epochs)
        self.seconds_before = self.state.seconds
        self.say(f"Resumed at step {self.state.step} (epoch {self.state.epoch}).")

    def choose_validation_events(self, planned: int, is_fixed: bool) -> None:
        """Draws the validation events: as many as the time allows, or as the resumed run had."""
        state, seed = self.state, self.settings.seed
        if not state.validation_targets:
            with whole_items(self.bare):
                state.validation_targets = affordable_validation_targets(
                    self.bare, self.log, planned, is_fixed, self.budget, seed, self.accelerator
                )
        self.positions = target_positions(self.log.sequences, VALIDATION, state.validation_targets, seed)

    @property
    def batches_per_step(self) -> int:
        return self.readers * self.accelerator.gradient_accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.stream.batches(self.state.epoch)) / self.batches_per_step)

    def summary(self) -> str:
        """A line for the user: the model and its batches."""
        config, accelerator = self.bare.config, self.accelerator
        share = padding_share(self.stream.lengths, self.stream.batches(self.state.epoch))
        parameters = sum(weight.numel() for weight in self.bare.parameters())
        adapted = "" if self.with_lora is None else f" ({sum(weight.numel() for weight in self.trained):,} trained)"
        events = self.stream.tokens_per_batch * self.batches_per_step
        negatives = f"{config.num_negatives} negatives" if config.num_negatives else "softmax over all items"
        precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
        return (
            f"Model: {parameters:,} parameters{adapted}, width {config.hidden_size}, {config.num_hidden_layers} "
            f"layer(s), histories of {self.log.max_length} events; {self.steps_per_epoch} steps of {events:,} events "
            f"an epoch, {share:.1%} padding; {negatives}; {accelerator.device.type}, {precision}."
        )

    def run(self) -> TrainedModel:
        """Trains until the end and returns the best model.

        Raises:
            KeyboardInterrupt: with a message that says how to continue.
        """
        self.say(self.summary())
        self.train_mode()
        if self.budget.limit.minutes is not None:
            seconds = self.steps_per_epoch * self.seconds_of_a_step()
            self.say(self.budget.outlook(seconds, self.settings.min_epochs))
        self.bar = tqdm(
            total=1.0,
            bar_format=BAR,
            desc="training",
            mininterval=1 if sys.stderr.isatty() else SECONDS_IN_A_FILE,
            ncols=COLUMNS,
            disable=not self.accelerator.is_main_process,
        )
        try:
            if self.settings.continue_from is not None and not self.state.step:
                self.validate()  # weights that training makes worse are kept as they were
            with closing(self.batches_of_steps()) as batches:
                why = self.train_until_the_end(batches)
        except KeyboardInterrupt:
            self.bar.close()
            how = "continue with --resume" if self.checkpoints.has_last() else "nothing was kept yet, start again"
            raise KeyboardInterrupt(f"interrupted at step {self.state.step}; {how}") from None
        self.bar.close()
        state = self.state
        self.say(f"Stopped {why}; step {state.kept_step} is kept, validation NDCG@10 {state.kept_metric:.4f}.")
        share = self.waiting.share
        self.say(f"Waiting for data: {share:.1%} of the time of the steps.")
        return TrainedModel(self.checkpoints.best(), self.positions, state.kept_passes, self.seconds_before, share)

    def train_mode(self) -> None:
        self.model.train()
        if self.accelerator.device.type == "cpu":
            self.bare.set_attn_implementation(CPU_TRAINING_ATTENTION)

    def evaluation_mode(self) -> None:
        self.bare.set_attn_implementation(self.attention)
        self.bare.eval()

    def seconds_of_a_step(self) -> float:
        """How long a step takes on this machine; it changes no weight."""
        seconds = 0.0
        for _ in range(2):  # the first one prepares what the others find
            before = time.monotonic()
            for batch in self.on_device(self.step_batches(self.state.epoch, self.state.step_in_epoch)):
                output = self.model(**batch)
                self.accelerator.backward(output.loss)
                float(output.loss.detach())  # waits for a GPU
            self.optimizer.zero_grad()
            seconds = time.monotonic() - before
        self.budget.step_seconds = seconds
        return seconds

    def train_until_the_end(self, batches: Iterator[Batches]) -> str:
        """Trains on the batches of each step until the end and returns why it ended."""
        state, settings = self.state, self.settings
        out_of_time, validated_at, validation_end = False, state.step, time.monotonic()
        while not state.finished and not out_of_time:
            self.set_learning_rate()
            self.train_step(batches)
            epoch_ends = state.step_in_epoch >= self.steps_per_epoch
            if epoch_ends:
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
            out_of_time = self.is_out_of_time()
            is_worth_it = state.kept_step == 0 or state.step - validated_at > self.steps_per_epoch // WORTH_VALIDATING
            is_due = epoch_ends or (
                state.step_in_epoch % settings.validation_steps == 0
                and self.has_time_to_validate(time.monotonic() - validation_end)
            )
            if is_due or (out_of_time and is_worth_it):
                self.validate()
                validated_at, validation_end = state.step, time.monotonic()
            elif out_of_time:
                self.save_checkpoint()
        return "because the time is up" if out_of_time else f"after {state.epoch} epochs"

    def set_learning_rate(self) -> None:
        """The rate of the next step, by the progress in epochs or in time, whichever is further."""
        state, settings = self.state, self.settings
        progress = self.progress()
        rate = learning_rate(self.peak_rate, settings.warmup_steps, settings.schedule, state.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def passes(self) -> float:
        """Over the training events, so far."""
        return self.state.epoch + self.state.step_in_epoch / self.steps_per_epoch

    def progress(self) -> float:
        """The share of the training that is over, in epochs or in time, whichever is further."""
        return min(1.0, max(self.passes() / self.settings.max_epochs, self.budget.progress()))

    def train_step(self, batches_of_steps: Iterator[Batches]) -> None:
        """One optimizer step over the batches of all processes and accumulation steps."""
        state, accelerator = self.state, self.accelerator
        begin = time.monotonic()
        # Dropout and negatives depend on the step alone, so that a resumed run draws what the first would have drawn.
        torch.manual_seed((self.settings.seed * 1_000_003 + state.step) * self.readers + self.reader)
        batches = self.on_device(self.waiting.next(batches_of_steps))
        targets = torch.stack([(batch["labels"] != IGNORED).sum() for batch in batches]).sum()
        if self.readers > 1:
            targets = accelerator.reduce(targets, reduction="sum")
        # Accelerate averages over processes and accumulation steps; dividing by the mean count makes it a mean over
        # all targets of the step.
        per_batch = targets.clamp(min=1) / self.batches_per_step
        for batch in batches:
            with accelerator.accumulate(self.model):
                output = self.model(**batch, num_items_in_batch=per_batch)
                accelerator.backward(output.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.trained, self.settings.max_gradient_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        state.step += 1
        state.step_in_epoch += 1
        if self.settings.ema_decay:
            self.averaged.update(self.bare, state.step)
        loss = float(output.loss.detach())
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {state.step}, expected a finite number: lower --learning_rate "
                f"({self.peak_rate:g}), or train in fp32 (--precision no)."
            )
        self.budget.step_seconds = time.monotonic() - begin
        self.waiting.total += self.budget.step_seconds
        self.show_loss(loss)

    def batches_of_steps(self) -> Generator[Batches, None, None]:
        """This process's batches of each step, from the next one on, made ahead within an epoch."""
        while True:
            make = partial(self.step_batches, self.state.epoch)
            steps = range(self.state.step_in_epoch, self.steps_per_epoch)
            yield from made_ahead(make, steps, ahead=STEPS_AHEAD.get(self.accelerator.device.type, 0))

    def step_batches(self, epoch: int, step_in_epoch: int) -> Batches:
        """This process's batches of a step, in memory that a GPU can read while it computes."""
        first = step_in_epoch * self.batches_per_step + self.reader
        numbers = range(first, first + self.batches_per_step, self.readers)
        batches = [self.stream.batch(epoch, number) for number in numbers]
        if self.accelerator.device.type != "cuda":
            return batches
        return [{name: tensor.pin_memory() for name, tensor in batch.items()} for batch in batches]

    def on_device(self, batches: Batches) -> Batches:
        device = self.accelerator.device
        return [{name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()} for batch in batches]

    def show_loss(self, loss: float) -> None:
        before = loss if math.isnan(self.running_loss) else self.running_loss
        self.running_loss = (1 - SHOWN_SHARE) * before + SHOWN_SHARE * loss
        self.bar.update(max(0.0, self.progress() - self.bar.n))
        if self.state.step % SHOWN_STEPS == 0:
            self.bar.set_description_str(f"epoch {self.state.epoch} loss {self.running_loss:.3f}", refresh=False)
            self.accelerator.log({"loss": loss, "epoch": self.state.epoch}, step=self.state.step)

    def is_out_of_time(self) -> bool:
        """Whether the time for training is spent in any process, and may end it."""
        if self.budget.limit.minutes is None or self.state.epoch < self.settings.min_epochs:
            return False
        is_over = torch.tensor(float(self.budget.progress() >= 1), device=self.accelerator.device)
        return bool(self.accelerator.reduce(is_over) > 0)

    def has_time_to_validate(self, seconds: float) -> bool:
        """Whether a validation is a small part of the seconds since the last one, in every process."""
        if self.budget.limit.minutes is None:
            return True
        is_cheap = torch.tensor(float(self.budget.has_time_to_validate(seconds)), device=self.accelerator.device)
        return bool(self.accelerator.reduce(is_cheap) >= self.accelerator.num_processes)

    def validate(self) -> None:
        """Scores the averaged weights, keeps them if they are the best, and writes a checkpoint."""
        state, begin = self.state, time.monotonic()
        make_the_rest_equal(self.bare)
        if self.settings.ema_decay:
            self.averaged.swap(self.bare)
            make_the_rest_equal(self.bare)
        learned = copy.deepcopy(self.bare.path_gate.state_dict())
        with whole_items(self.bare):
            self.evaluation_mode()
            metric, loss = self.score()
            if state.judge(metric, loss):
                state.kept_passes = self.passes()
                self.checkpoints.save_best(self.bare, self.with_lora)
        self.bare.path_gate.load_state_dict(learned)
        self.train_mode()
        if self.settings.ema_decay:
            self.averaged.swap(self.bare)
        state.check_end(self.settings.patience, self.settings.max_epochs)
        self.save_checkpoint()
        self.accelerator.log({"validation_ndcg@10": metric, "validation_log_loss": loss}, step=state.step)
        self.budget.validation_seconds = time.monotonic() - begin
        self.bar.write(
            f"epoch {state.epoch:>3}  step {state.step:>6}  loss {self.running_loss:.4f}  "
            f"validation {loss:.4f}  NDCG@10 {metric:.4f}{'  kept' if state.kept_step == state.step else ''}"
        )

    def score(self) -> tuple[float, float]:
        """NDCG@10 of the next item and log-loss of item and action over the validation events, after the gate's fit."""
        before, log = time.monotonic(), self.log
        targets = encode_targets(self.bare, log.sequences, VALIDATION, log.max_length, self.positions)
        encoding = time.monotonic() - before
        item_loss = fit_gate(self.bare, targets)
        if not (log.sequences.items[self.positions] != NONE).any():
            # Without a held-out event that names an item, the last weights are the best.
            return 0.0, -float(self.state.step)
        before = time.monotonic()
        metric = validation_ndcg(self.bare, targets)
        self.budget.note_ranking(len(self.positions), encoding, time.monotonic() - before)
        return metric, item_loss + action_log_loss(self.bare, targets)

    def save_checkpoint(self) -> None:
        self.state.seconds = self.seconds_before + self.budget.limit.seconds_spent()
        self.checkpoints.save_last(self.everything)


def make_optimizer(weights: list[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices alone."""
    sharded = [weight for weight in weights if isinstance(weight, DTensor)]
    matrices = [weight for weight in weights if weight.ndim > 1 and not isinstance(weight, DTensor)]
    vectors = [weight for weight in weights if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if sharded:  # one kernel cannot take both kinds
        groups.append({"params": sharded, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
