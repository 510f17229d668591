"""How long one answer of the pipeline takes on one core, for a model of given sizes that was never trained.

    taskset -c 0 env OMP_NUM_THREADS=1 python -m benchmarks.pipeline_latency [--items 26000] [--item_text] [...]

Weights are random, and the memory has counted a made-up log, so that lists are as long as in use. Prints the median of
many calls in milliseconds: the encoder, and the pipeline's answers to several questions. Run it with the package of
another commit (PYTHONPATH) to compare the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.training.vocabulary import assemble

QUESTIONS: dict[str, dict[str, Any]] = {
    "pair": {},
    "item": {"of": "item"},
    "item of an action": {"of": "item", "action": "a0"},
    "new to the user": {"exclude_seen": True},
    "action": {"of": "action"},
    "with paths": {"paths": True},
}
EDGES = [float(2**power) for power in range(4, 24)]


def make_pipeline(args: argparse.Namespace) -> NextBehaviorPipeline:
    """A pipeline around a model in memory."""
    torch.manual_seed(0)
    names = [f"i{number}" for number in range(args.items)]
    actions = [f"a{number}" for number in range(args.actions)]
    tokenizer = assemble(names, actions, EDGES, num_new_items=64, max_length=200)
    tokenizer.describe_items([1] * len(names), names)
    text: dict[str, Any] = {"text_size": 256, "text_encoder": "none", "text_encoder_size": 384}
    config = BehaviorConfig(
        vocab_size=len(tokenizer),
        num_actions=tokenizer.num_actions,
        num_time_gaps=tokenizer.num_time_gaps,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        intermediate_size=4 * args.hidden_size,
        memory_share=0.1,
        memory_trend=0.1,
        **(text if args.item_text else {}),
    )
    model = BertForNextBehavior(config).eval()
    with torch.no_grad():
        item_text = model.bert.embeddings.item_text
        if item_text is not None:
            item_text.vectors = torch.randint(-127, 128, item_text.vectors.shape, dtype=torch.int8)
            item_text.unit = torch.full_like(item_text.unit, 1 / 127)
        for _ in range(args.log_batches):
            model.update_memory(made_up_histories(config, 256, 50), pairs="all", trained=True)
    return NextBehaviorPipeline(model=model, tokenizer=tokenizer)


def made_up_histories(config: BehaviorConfig, users: int, length: int) -> torch.Tensor:
    """(users, length) int64 items; a few are frequent, and near numbers stand near each other."""
    count = config.vocab_size - config.first_item_id
    start = (torch.rand(users, 1) ** 2 * count).long()
    steps = torch.randint(-30, 31, (users, length)).cumsum(dim=1)
    return config.first_item_id + (start + steps) % count


def history(items: int, actions: int, length: int, number: int) -> list[dict[str, Any]]:
    return [
        {
            "item": f"i{(number * 977 + place * place * 31 // 7) % items}",
            "action": f"a{place % actions}",
            "timestamp": 1_700_000_000 + 3_600 * place,
        }
        for place in range(length)
    ]


def answer(predict: NextBehaviorPipeline, asked: list[Any], question: dict[str, Any], number: int) -> Any:
    return predict(asked[number % len(asked)], **question)


def median_ms(answer: Callable[[int], Any], repeats: int) -> float:
    """The median time of one call, after a few that are not measured."""
    taken = []
    for number in range(repeats + 5):
        begin = time.process_time()
        answer(number)
        taken.append(time.process_time() - begin)
    return 1000 * statistics.median(taken[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=26_000, help="size of the catalog (default 26,000)")
    parser.add_argument("--actions", type=int, default=3, help="actions of the log (default 3)")
    parser.add_argument("--hidden_size", type=int, default=64, help="width of the model (default 64)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the encoder (default 2)")
    parser.add_argument("--events", type=int, default=50, help="events of a history (default 50)")
    parser.add_argument("--log_batches", type=int, default=60, help="the log, in 256 users with 50 events (default 60)")
    parser.add_argument("--repeats", type=int, default=200, help="calls of each kind (default 200)")
    parser.add_argument("--item_text", action="store_true", help="items have texts")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predict = make_pipeline(args)
    asked = [{"events": history(args.items, args.actions, args.events, number)} for number in range(20)]
    batch = predict.tokenizer(asked[0]["events"], return_tensors="pt")
    with torch.inference_mode():
        taken = {"encoder": median_ms(lambda _: predict.model.bert(**batch), args.repeats)}
    for name, question in QUESTIONS.items():
        taken[name] = median_ms(partial(answer, predict, asked, question), args.repeats)
    if args.json:
        print(json.dumps(taken))
        return
    print(f"{args.items:,} items, {args.actions} actions, {args.events} events, ms an answer (median)")
    for name, value in taken.items():
        print(f"{name:20} {value:8.2f}")


if __name__ == "__main__":
    main()
