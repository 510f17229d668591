"""One system, measured: the process that `benchmarks/peers.py` starts, in the environment that has its library.

    python -m benchmarks.peers_measure --system implicit-als --folder .bench/peers --seed 0

Writes `SYSTEM-seedN.result.json` into the folder, where `benchmarks.peers_task` has prepared the task.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.peers_scoring import Clock, Task, score, top_items
from benchmarks.peers_systems import (
    ImplicitALS,
    ImplicitItemKNN,
    LightFMSystem,
    OurBaseline,
    OurModel,
    RecBoleSequential,
    RecToolsTransformer,
    SurpriseSVD,
)

LATENCY_CALLS, LATENCY_WARM_UP = 60, 5
AGREEMENT_USERS = 50
# The environments that the make target builds, and the project's own.
TRANSFORMERS, CLASSIC, OURS = "peers", "peers-classic", "ours"

# The figures of the eSASRec paper's repository for Beauty (README, "Hyperparameters for all datasets").
ESASREC: dict[str, Any] = {
    "layers": "LiGR",
    "loss": "sampled_softmax",
    "n_negatives": 256,
    "n_factors": 64,
    "n_blocks": 1,
    "n_heads": 1,
    "dropout_rate": 0.2,
    "session_max_len": 50,
    "lr": 1e-3,
    "batch_size": 128,
}
# The same with RecTools' own layers and loss, twice as wide.
SASREC: dict[str, Any] = {
    "loss": "softmax",
    "n_factors": 128,
    "n_blocks": 1,
    "n_heads": 1,
    "dropout_rate": 0.2,
    "session_max_len": 50,
    "lr": 1e-3,
    "batch_size": 128,
}
STOCK_STEPS = 60
# The default is 2048; on a core few epochs fit into a time limit, and smaller batches learn more in each.
RECBOLE = {"train_batch_size": 256}
AS_ESASREC = "--hidden_size 64 --num_hidden_layers 1 --num_attention_heads 1 --num_negatives 256"
AS_SASREC = "--hidden_size 128 --num_hidden_layers 1 --num_attention_heads 1 --num_negatives 0"
# The peers read order from positions, and have no convolution.
AS_PEER = "--use_positions --convolution_size 0 --dropout 0.2 --max_length 50 --max_epochs 3 --test_targets 500"

# In which environment each system runs; `make_system` builds it.
ENVIRONMENTS = {
    "popularity": OURS,
    "item-transition": OURS,
    "item-neighbours": OURS,
    "implicit-als": CLASSIC,
    "implicit-item-knn": CLASSIC,
    "lightfm": CLASSIC,
    "surprise-svd": CLASSIC,
    "rectools-esasrec": TRANSFORMERS,
    "rectools-esasrec-real": TRANSFORMERS,
    "rectools-sasrec": TRANSFORMERS,
    "rectools-sasrec-real": TRANSFORMERS,
    "recbole-sasrec": TRANSFORMERS,
    "recbole-bert4rec": TRANSFORMERS,
    "recbole-gru4rec": TRANSFORMERS,
    "ours": OURS,
    "ours-as-esasrec": OURS,
    "ours-as-esasrec-fp32": OURS,
    "ours-as-sasrec": OURS,
    "ours-as-sasrec-fp32": OURS,
}


class System(Protocol):
    what: str

    @property
    def libraries(self) -> tuple[str, ...]: ...

    def fit(self, task: Task, clock: Clock) -> None: ...

    def rows(self, positions: np.ndarray) -> np.ndarray: ...

    def recommend(self, position: int) -> list[int]: ...


def make_system(name: str, seed: int, folder: Path) -> System:
    """The system of that name; the dictionary above lists them."""
    match name:
        case "popularity":
            return OurBaseline("Popularity", folder)
        case "item-transition":
            return OurBaseline("ItemTransition", folder)
        case "item-neighbours":
            return OurBaseline("ItemNeighbors", folder)
        case "implicit-als":
            return ImplicitALS(seed)
        case "implicit-item-knn":
            return ImplicitItemKNN(seed)
        case "lightfm":
            return LightFMSystem(seed)
        case "surprise-svd":
            return SurpriseSVD(seed)
        case "rectools-esasrec" | "rectools-sasrec":
            return RecToolsTransformer(False, STOCK_STEPS, **(ESASREC if "esas" in name else SASREC))
        case "rectools-esasrec-real" | "rectools-sasrec-real":
            return RecToolsTransformer(True, None, **(ESASREC if "esas" in name else SASREC))
        case "recbole-sasrec":
            return RecBoleSequential("SASRec", seed, folder, **RECBOLE)
        case "recbole-bert4rec":
            return RecBoleSequential("BERT4Rec", seed, folder, **RECBOLE)
        case "recbole-gru4rec":
            return RecBoleSequential("GRU4Rec", seed, folder, **RECBOLE)
        case "ours":
            return OurModel(name, seed, folder, "", False)
        case "ours-as-esasrec" | "ours-as-esasrec-fp32" | "ours-as-sasrec" | "ours-as-sasrec-fp32":
            flags = f"{AS_ESASREC if 'esas' in name else AS_SASREC} {AS_PEER}"
            return OurModel(name, seed, folder, flags + (" --precision no" if "fp32" in name else ""), True)
        case _:
            raise ValueError(f"got the system {name!r}; expected one of {', '.join(ENVIRONMENTS)}")


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # the libraries draw from it
    with contextlib.suppress(ImportError):
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def latency(system: System, positions: np.ndarray) -> dict[str, float]:
    """Milliseconds of single-user calls."""
    milliseconds = []
    for position in positions.tolist():
        before = time.process_time()
        system.recommend(position)
        milliseconds.append(1000 * (time.process_time() - before))
    measured = milliseconds[min(LATENCY_WARM_UP, len(milliseconds) - 1) :]
    median, p90 = np.quantile(measured, [0.5, 0.9]).tolist()
    return {"median_ms": median, "p90_ms": p90, "calls": len(measured)}


def agreement(system: System, task: Task, positions: np.ndarray) -> float:
    """Share of the ten items that `rows` ranks first that the public call recommends too."""
    shares = []
    for position in positions.tolist():
        scores = system.rows(np.array([position]))[0]
        scores[task.history(position)] = -np.inf
        expected = {item for item in top_items(scores).tolist() if scores[item] > -np.inf}
        shares.append(len(expected & set(system.recommend(position))) / max(1, len(expected)))
    return float(np.mean(shares))


def measure(name: str, folder: Path, seed: int, limit: float) -> dict[str, Any]:
    """Trains, scores and times one system."""
    set_seed(seed)
    task = Task.load(folder / "task.npz")
    system = make_system(name, seed, folder)
    clock = Clock(task, limit)
    system.fit(task, clock)
    result: dict[str, Any] = {"system": name, "seed": seed, "what": system.what, "environment": ENVIRONMENTS[name]}
    result["versions"] = {library: importlib.metadata.version(library) for library in system.libraries}
    result["python"] = sys.version.split()[0]
    result["training_seconds"] = clock.elapsed() if clock.training_seconds is None else clock.training_seconds
    result["targets_per_second"] = clock.targets_per_second()
    result["targets_per_epoch"] = task.next_item_targets()
    result["stopped_by_time"] = clock.is_over() and clock.training_seconds is None
    result["curve"] = clock.curve
    if clock.curve:
        best = clock.curve[clock.best_epoch - 1]
        result |= {"epochs": clock.epoch, "best_epoch": clock.best_epoch, "best_validation": clock.best}
        result["seconds_to_best"] = best["seconds"]
        before = time.process_time()
        result["test"] = score(system.rows, task, task.test)
        result["scoring_seconds"] = time.process_time() - before
    draw = np.random.default_rng(0)
    # Not every public call answers a user without history.
    known = np.array([position for position in task.test.tolist() if len(task.history(position))])
    sample = draw.choice(known, min(len(known), LATENCY_CALLS + LATENCY_WARM_UP), replace=False)
    result["latency"] = latency(system, sample)
    result["agreement"] = agreement(system, task, sample[:AGREEMENT_USERS])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--system", required=True, choices=list(ENVIRONMENTS), metavar="NAME")
    parser.add_argument("--folder", required=True, help="where benchmarks.peers has prepared the task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds that the training may take")
    args = parser.parse_args()
    folder = Path(args.folder).resolve()
    result = measure(args.system, folder, args.seed, args.limit)
    (folder / f"{args.system}-seed{args.seed}.result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
