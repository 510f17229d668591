"""Show, for three households of the demo log, what they bought last and what the model expects next.

    python demo/predict.py --model .demo/model --events .demo/events.parquet

The history is the household's whole log, its last events included. So the data cannot say whether the answer is right;
how often such answers are right is in the test table of the training run.
"""

import argparse
from pathlib import Path
from typing import Any

import polars as pl
from transformers import pipeline

SHOWN_EVENTS = 6
TOP_K = 5


def choose_users(events: pl.DataFrame, count: int = 3) -> list[str]:
    """`count` users spread over the activity of the log: from the lower to the upper quarter by number of events."""
    sizes = events.group_by("user_id").len().sort("len", "user_id")
    places = [round((0.25 + 0.5 * i / max(count - 1, 1)) * (sizes.height - 1)) for i in range(count)]
    return sizes["user_id"].gather(places).to_list()


def history_of(events: pl.DataFrame, user_id: str) -> list[dict[str, Any]]:
    """The user's events, oldest first, as the pipeline takes them; events of one time stay in file order."""
    own = events.filter(pl.col("user_id") == user_id).sort("timestamp", maintain_order=True)
    return own.select(item="item_id", action="action", timestamp="timestamp").to_dicts()


def duration(seconds: float) -> str:
    """Seconds from the last event, for people; under a minute is "at once", as two products of one basket are.

    >>> duration(0.0), duration(90.0), duration(4_000.0), duration(200_000.0)
    ('at once', 'in 2 minutes', 'in 1 hour', 'in 2 days')
    """
    for name, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            amount = round(seconds / length)
            return f"in {amount} {name}{'s' if amount != 1 else ''}"
    return "at once"


def read_titles(path: Path) -> dict[str, str]:
    """item_id -> title of the whole catalog; empty if there is no such file.

    The tokenizer keeps the titles of its vocabulary only; a household also buys what came after the training events.
    """
    if not path.is_file():
        return {}
    items = pl.read_parquet(path, columns=["item_id", "title"]).drop_nulls()
    return dict(items.iter_rows())


def line_of(answer: dict[str, Any], rank: int, titles: dict[str, str]) -> str:
    """One ranked answer: place, probability, action, product, median time until it."""
    item = answer["item"]
    product = answer["title"] or titles.get(item) or (f"product {item}" if item else "(no product)")
    when = duration(answer["when"]["median_seconds"]) if answer["when"] else ""
    return f"    {rank}. {answer['probability']:6.1%}  {answer['action'] or '':<15} {product:<58.58} {when}".rstrip()


def within(answer: dict[str, Any]) -> str:
    """The probabilities of an event within an hour, a day ...: the same for every answer to one history."""
    chances = [(name, chance) for name, chance in answer["when"].items() if name.startswith("within_")]
    return ", ".join(f"{name.removeprefix('within_').replace('_', ' ')} {chance:.0%}" for name, chance in chances)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print readable predictions for three users of the demo log.")
    parser.add_argument("--model", type=Path, default=Path(".demo/model"), help="trained model (default: %(default)s)")
    parser.add_argument("--events", type=Path, default=Path(".demo/events.parquet"), help="log (default: %(default)s)")
    parser.add_argument("--items", type=Path, help="titles (default: items.parquet beside the events, if it is there)")
    args = parser.parse_args()
    for path, remedy in ((args.model / "config.json", "train_accelerate.py"), (args.events, "demo/prepare.py")):
        if not path.exists():
            parser.error(f"got no {path}, expected what {remedy} writes: run `make demo`")

    events = pl.read_parquet(args.events)
    # transformers types only its own task names
    predict: Any = pipeline("next-behavior", model=str(args.model), trust_remote_code=True)  # type: ignore[call-overload]
    titles = read_titles(args.items or args.events.parent / "items.parquet")
    users = choose_users(events)
    histories = [history_of(events, user) for user in users]
    inputs = [{"events": history} for history in histories]
    pairs = predict(inputs, top_k=TOP_K, of="pair", exclude_seen=False)
    items = predict(inputs, top_k=TOP_K, of="item", exclude_seen=False)

    for user, history, ranked_pairs, ranked_items in zip(users, histories, pairs, items, strict=True):
        print(f"\nHousehold {user}, {len(history):,} events. The last {min(SHOWN_EVENTS, len(history))}:")
        for event in history[-SHOWN_EVENTS:]:
            item = event["item"]
            product = predict.tokenizer.title(item) or titles.get(item) or f"product {item}"
            print(f"    {event['timestamp']:%Y-%m-%d %H:%M}  {event['action']:<15} {product}")
        print("  What comes next (action and product):")
        print("\n".join(line_of(answer, rank, titles) for rank, answer in enumerate(ranked_pairs, 1)))
        if ranked_pairs and ranked_pairs[0]["when"]:
            print(f"    the next event comes within {within(ranked_pairs[0])}")
        print("  Which product, whatever the action:")
        print("\n".join(line_of(answer, rank, titles) for rank, answer in enumerate(ranked_items, 1)))


if __name__ == "__main__":
    main()
