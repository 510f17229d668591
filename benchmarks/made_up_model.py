"""A model that was never trained, for measurements whose time does not depend on the weights.

    python -m benchmarks.made_up_model --output .bench/serving/made-up --items 12000 --width 128 --layers 2
    python -m benchmarks.made_up_model --output .bench/serving/toys --events toys.parquet     # with a log's items

Weights are random. The memory is counted, as it is in training: from a log, or from random walks in which items with
close numbers follow each other and few items are frequent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.serving_inputs import LENGTH, random_walks, windows_of_log
from next_behavior.data.events import read_events
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import PAD
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.vocabulary import assemble

ACTIONS = ("view", "cart", "buy")
TIME_EDGES = [float(2**power) for power in range(26)]
NEW_ITEMS = 64
# Behind the memory: at least so many walks, and one for each item, of so many events.
WALKS, STEPS = 200_000, 8
COUNTED_AT_ONCE = 20_000


def make(output: Path, names: list[str], walks: np.ndarray, actions: int, width: int, layers: int) -> None:
    """Saves a model and its tokenizer.

    Args:
        names: of the items.
        walks: (n, L) numbers of items that follow each other, -1 for none.
    """
    tokenizer: BehaviorTokenizer = assemble(
        names, list(ACTIONS[:actions]), TIME_EDGES, num_new_items=NEW_ITEMS, max_length=LENGTH
    )
    tokenizer.describe_items([1] * len(names), [f"Title of item {name}" for name in names])
    torch.manual_seed(0)
    config = BehaviorConfig(
        vocab_size=len(tokenizer),
        num_actions=tokenizer.num_actions,
        num_time_gaps=tokenizer.num_time_gaps,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 32),
        intermediate_size=4 * width,
        convolution_size=3,
        use_positions=False,
        max_position_embeddings=LENGTH,
        item_temperature=1.1,
        memory_trend=0.1,
        memory_share=0.05,
        memory_half_life=5000,
    )
    model = BertForNextBehavior(config).eval()
    ids = np.where(walks < 0, PAD, walks + tokenizer.first_item_id).astype(np.int64)
    with torch.no_grad():
        for part in np.array_split(ids, max(1, len(ids) // COUNTED_AT_ONCE)):
            model.update_memory(torch.from_numpy(part), pairs="all", trained=True)
        recent = ids[-2000:].ravel()
        model.associate_path.follow(torch.from_numpy(recent[recent != PAD]))
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--items", type=int, default=12_000, help="size of the catalog (default 12,000)")
    parser.add_argument("--events", help="event log whose items the model has and whose pairs its memory counts")
    parser.add_argument("--actions", type=int, default=1, choices=range(1, len(ACTIONS) + 1))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    if args.events is None:
        names = [str(number) for number in range(args.items)]
        walks = random_walks(np.random.default_rng(0), args.items, max(WALKS, args.items), STEPS)
    else:
        events = read_events(args.events).events
        names = events["item_id"].drop_nulls().unique().sort().to_list()
        walks = windows_of_log(events, names)
    make(args.output, names, walks, args.actions, args.width, args.layers)
    print(f"{len(names):,} items, {args.width} wide, {args.layers} layers: {args.output}")


if __name__ == "__main__":
    main()
