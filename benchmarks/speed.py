"""How near to the machine's matrix-multiply peak training comes, how long ranking all test targets takes, and how long
a served model needs to count an event and to answer.

    python -m benchmarks.speed --model DIR [--steps 40] [--threads 1]

DIR is what `train_accelerate.py` wrote: the prepared log in it, and a model of its sizes. Floating-point operations are
counted by PyTorch over one whole step (forward, backward, optimizer); the peak is the best of several square products
in the same precision. What a step spends its time on is read from the profiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from next_behavior.data.batches import (
    TrainingCollator,
    evaluation_batches,
    length_bucketed_batches,
    target_positions,
    training_windows,
)
from next_behavior.data.sequences import TEST, Sequences
from next_behavior.evaluation.rankers import ModelRanker
from next_behavior.evaluation.ranking import rank_items
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.neighbor_lists import NeighborLists

PEAK_SIZES = (512, 1024, 2048)
SHOWN_OPERATIONS = 6
SERVED_EVENTS = 60


def seconds_of(work: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def peak_flops(dtype: torch.dtype) -> float:
    """Floating-point operations per second of the fastest square product."""
    best = 0.0
    for size in PEAK_SIZES:
        left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
        best = max(best, 2 * size**3 / min(seconds_of(partial(torch.matmul, left, right), 12)))
    return best


def serve(model: BertForNextBehavior, log: Sequences, positions: np.ndarray) -> dict[str, float]:
    """Median milliseconds of what a served model does with the events at `positions`, one user at a time: `answer`
    from what it knows, `count` one event, `answer after`; and `lists anew`, what the answer would wait for if the lists
    of neighbors were made anew."""
    ranker, memory, spent = ModelRanker(model), model.associate_path, dict[str, list[float]]()
    for batch in evaluation_batches(log, TEST, model.config.max_position_embeddings, 1, positions=positions):
        asked = ranker.events(batch)
        answer, events = partial(model.predict, *asked, top_k=10), int(memory.item_counts.sum())
        before = seconds_of(answer, 1)
        counting = seconds_of(partial(model.update_memory, *asked), 1)
        if int(memory.item_counts.sum()) == events:  # the event repeats the one before it, or its item is unknown
            continue
        for name, seconds in (("answer", before), ("count", counting), ("answer after", seconds_of(answer, 1))):
            spent.setdefault(name, []).extend(seconds)
    spent["lists anew"] = seconds_of(partial(NeighborLists, memory.config, memory.tables()), 3)
    return {name: 1000 * statistics.median(seconds) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="output folder of train_accelerate.py")
    parser.add_argument("--steps", type=int, default=40, help="training steps that are timed (default 40)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--tokens_per_batch", type=int, default=1024, help="events in one step (default 1,024)")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    model: Any = BertForNextBehavior.from_pretrained(args.model)
    config = model.config
    prepared = datasets.load_from_disk(str(Path(args.model) / "prepared"))
    log = Sequences.from_dataset(prepared, vocab_size=config.vocab_size, first_item_id=config.first_item_id)

    items = log.items[(log.parts == 0) & (log.items < log.vocab_size)]
    windows = training_windows(log, config.max_position_embeddings)
    collator = TrainingCollator(log, windows, np.bincount(items, minlength=log.vocab_size))
    generator = np.random.default_rng(0)
    batches = length_bucketed_batches(collator.lengths(), args.tokens_per_batch, generator)[: args.steps]
    tensors = [
        {name: torch.from_numpy(array) for name, array in collator(batch, generator).items()} for batch in batches
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    model.train()

    def step(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast("cpu", dtype, enabled=args.precision == "bf16"):
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for batch in tensors[:5]:
        step(batch)
    seconds, operations, targets = 0.0, 0.0, 0
    for batch in tensors:
        with FlopCounterMode(display=False) as counter:
            step(batch)
        operations += counter.get_total_flops()
        targets += int((batch["labels"] != -100).sum())
        seconds += statistics.median(seconds_of(partial(step, batch), 3))
    peak = peak_flops(dtype)
    achieved = operations / seconds
    print(
        f"training, width {config.hidden_size}, {config.num_hidden_layers} layer(s), {log.vocab_size:,} items, "
        f"{args.precision}, {args.threads} thread(s): {targets / seconds:,.0f} targets/s, "
        f"{achieved / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, {achieved / peak:.0%} of the peak"
    )
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for batch in tensors[:10]:
            step(batch)
    averages = sorted(profiled.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
    total = sum(entry.self_cpu_time_total for entry in averages)
    for entry in averages[:SHOWN_OPERATIONS]:
        print(f"  {entry.self_cpu_time_total / total:5.1%}  {entry.key}")

    positions = target_positions(log, TEST, None, 0)
    started = time.perf_counter()
    rank_items(log, TEST, positions, {"model": ModelRanker(model)}, config.max_position_embeddings, None, False)
    print(f"ranking {len(positions):,} test targets among {log.vocab_size:,}: {time.perf_counter() - started:.1f} s")
    served = np.sort(np.random.default_rng(0).permutation(positions)[:SERVED_EVENTS])
    milliseconds = serve(model.eval(), log, served)
    pairs = len(model.associate_path.pair_keys)
    print(f"served, {pairs:,} pairs: " + ", ".join(f"{name} {value:.0f} ms" for name, value in milliseconds.items()))


if __name__ == "__main__":
    main()
