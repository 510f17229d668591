"""The parts of a training loop that have a state or a rule of their own: learning rate, batches, averaged weights, and
where the run stands.

Every random draw comes from (seed, epoch, batch), so that an interrupted run continues to the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from next_behavior.data.batches import TrainingCollator, length_bucketed_batches, training_windows
from next_behavior.training.sharding import local
from next_behavior.training.tokenized_log import TokenizedLog, expected_unknown_share, training_token_counts

# Validations within this share of the highest NDCG@10 are a draw, which the log-loss of actions and items decides.
DRAW = 3e-4
# Where the linear schedule ends, in shares of the peak.
FINAL_RATE = 0.1


def learning_rate(peak: float, warmup_steps: int, schedule: str, step: int, progress: float) -> float:
    """The rate of a step: linear warm-up, then constant or falling to a tenth as `progress` goes from 0 to 1."""
    rate = peak * min(1.0, (step + 1) / max(1, warmup_steps))
    return rate * (1 - (1 - FINAL_RATE) * progress) if schedule == "linear" else rate


class BatchStream:
    """The training batches, addressed by number: the same (seed, epoch, index) gives the same batch.

    Args:
        old_share: where a model goes on with newer events, this share of an epoch's targets are events that it has
            learned, in windows that each epoch draws anew.
    """

    def __init__(self, log: TokenizedLog, tokens_per_batch: int, seed: int, old_share: float = 0.0) -> None:
        windows = training_windows(log.sequences, log.max_length, log.learned)
        if not len(windows):
            raise ValueError("no training events are left: use a larger log, or --split none.")
        counts = training_token_counts(log.sequences)
        self.collator = TrainingCollator(log.sequences, windows, counts, hide_share=expected_unknown_share(log))
        self.lengths = self.collator.lengths()
        self.old, self.new = np.flatnonzero(windows.learned), np.flatnonzero(~windows.learned)
        targets = (windows.stop - windows.first_target)[self.new].sum() * old_share / (1 - old_share)
        of_old = (windows.stop - windows.first_target)[self.old].sum()
        self.old_windows = round(len(self.old) * min(1.0, targets / max(1, of_old)))
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The windows of each batch of an epoch."""
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            if len(self.old):
                drawn = np.sort(generator.permutation(self.old)[: self.old_windows])
                windows = np.concatenate([self.new, drawn])
                chosen = length_bucketed_batches(self.lengths[windows], self.tokens_per_batch, generator)
                self._batches = [windows[batch] for batch in chosen]
            else:
                self._batches = length_bucketed_batches(self.lengths, self.tokens_per_batch, generator)
            self._epoch = epoch
        return self._batches

    def batch(self, epoch: int, index: int) -> dict[str, torch.Tensor]:
        """Batch number `index` of the epoch; numbers past the end begin again, so that all processes have work."""
        batches = self.batches(epoch)
        generator = np.random.default_rng((self.seed, epoch, index))
        arrays = self.collator(batches[index % len(batches)], generator)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass
class RunState:
    """Where a run stands: everything besides weights and optimizer that a checkpoint holds."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_metric: float = -1.0
    best_loss: float = math.inf
    kept_step: int = 0  # the validation whose weights are kept
    kept_metric: float = -1.0
    kept_loss: float = math.inf
    kept_passes: float = 0.0  # over the training events, that they have seen
    bad_validations: int = 0
    finished: bool = False
    seconds: float = 0.0  # of all processes so far, up to the checkpoint
    validation_targets: int = 0

    def judge(self, metric: float, loss: float) -> bool:
        """Notes a validation; True where its weights are the best so far: the highest NDCG@10, and among those that
        draw with it the lowest log-loss."""
        # A lower log-loss is an improvement, too: at first, what a network learns lowers the NDCG of the counts.
        improved = metric > self.best_metric or loss < self.best_loss
        self.bad_validations = 0 if improved else self.bad_validations + 1
        self.best_metric, self.best_loss = max(self.best_metric, metric), min(self.best_loss, loss)
        lowest = self.best_metric * (1 - DRAW)
        keep = metric >= lowest and (self.kept_metric < lowest or loss < self.kept_loss)
        if keep:
            self.kept_step, self.kept_metric, self.kept_loss = self.step, metric, loss
        return keep

    def check_end(self, patience: int, max_epochs: int) -> None:
        """Notes whether training is over, the time limit aside."""
        self.finished = self.bad_validations >= patience or self.epoch >= max_epochs


class AveragedWeights:
    """Exponential moving average of the weights; it makes a decay of the learning rate unnecessary.

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
        averages = [local(average) for average in self.weights.values()]
        torch._foreach_lerp_(averages, [local(current[name]) for name in self.weights], 1 - decay)

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchanges the model's weights and the averaged ones; a second call undoes it."""
        current = dict(model.named_parameters())
        for name in self.weights:
            weight = current[name]
            held = weight.detach().clone()
            weight.copy_(self.weights[name])
            self.weights[name].copy_(held)
