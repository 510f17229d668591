"""The state of a training run on disk: tensors as safetensors, the rest as JSON.

    state.save(folder)
    state.load(folder)

Nothing is pickled: a checkpoint that comes from elsewhere runs no code. Every random draw of training comes from the
seed and the step, so no generator's state is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file

from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.training.sharding import divided_like, gathered, local
from next_behavior.training.state import AveragedWeights, RunState

TENSORS, NUMBERS = "state.safetensors", "state.json"
MODEL, AVERAGED, OPTIMIZER = "model", "averaged", "optimizer"


@dataclass(frozen=True)
class TrainingState:
    """Everything that changes while training. `load` puts what `save` wrote back into the same objects."""

    model: BertForNextBehavior
    averaged: AveragedWeights
    optimizer: AcceleratedOptimizer
    run: RunState

    def save(self, folder: Path, writes: bool = True) -> None:
        """One process writes; where the item table is sharded, the others come here to give their rows."""
        tensors = {f"{MODEL}/{name}": weight for name, weight in distinct(self.model.state_dict())}
        tensors |= {f"{AVERAGED}/{name}": weight for name, weight in self.averaged.weights.items()}
        optimizer = self.optimizer.state_dict()
        for place, moments in optimizer["state"].items():
            tensors |= {f"{OPTIMIZER}/{place}/{name}": moment for name, moment in moments.items()}
        for name, tensor in tensors.items():
            whole = gathered(tensor)
            if writes:
                tensors[name] = whole.contiguous()
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / TENSORS)
        numbers = {"run": asdict(self.run), "param_groups": optimizer["param_groups"]}
        (folder / NUMBERS).write_text(json.dumps(numbers, indent=1))

    def load(self, folder: Path) -> None:
        tensors, numbers = load_file(folder / TENSORS), json.loads((folder / NUMBERS).read_text())
        weights = self.model.state_dict()
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for key, tensor in tensors.items():
                kind, name = key.split("/", 1)
                if kind == OPTIMIZER:
                    place, moment = name.split("/")
                    moments.setdefault(int(place), {})[moment] = divided_like(tensor, trained[int(place)])
                else:
                    target = (weights if kind == MODEL else self.averaged.weights)[name]
                    target.copy_(divided_like(tensor, target))
        self.optimizer.load_state_dict({"state": moments, "param_groups": numbers["param_groups"]})
        for name, value in numbers["run"].items():
            setattr(self.run, name, value)


def distinct(state: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a state dict, each storage once: the tied head is the item table."""
    stored = set()
    for name, tensor in state.items():
        place = (local(tensor).data_ptr(), tensor.numel())
        if tensor.numel() == 0 or place not in stored:
            stored.add(place)
            yield name, tensor
