"""Show for three households of the demo log what they bought last and what the model expects next, the first in words.

    python demo/predict.py --model .demo/model --events .demo/events.parquet

The history is the household's whole log, its last events included. So the data cannot say whether the answer is right;
how often such answers are right is in the test table of the training run.
"""

import argparse
import textwrap
from pathlib import Path
from typing import Any

import polars as pl
from transformers import pipeline
from transformers.utils.logging import disable_progress_bar

SHOWN_EVENTS = 6
TOP_K, TOP_K_NEW = 5, 3
TITLE_LENGTH = 52  # characters
WIDTH = 96
AT_ONCE = "at once"
HOW = {
    "buy": "at the regular price",
    "buy_discounted": "at the shop's reduced price",
    "buy_coupon": "with a coupon",
}
REASONS = {
    "repeat": "the household has bought it before",
    "associate": "the memory of what households buy close together, and of what they bought lately, names it",
    "generate": "the trained network, which reads the whole history, names it",
}
ALL = 0.95  # from here on a path is the reason, and not most of it


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
    return AT_ONCE


def read_titles(path: Path) -> dict[str, str]:
    """item_id -> title of the whole catalog; empty if there is no such file.

    The tokenizer keeps the titles of its vocabulary only; a household also buys products that are outside it.
    """
    if not path.is_file():
        return {}
    items = pl.read_parquet(path, columns=["item_id", "title"]).drop_nulls()
    return dict(items.iter_rows())


def within(answer: dict[str, Any]) -> str:
    """The probabilities of an event within an hour, a day ...: the same for every answer to one history."""
    chances = [(name, chance) for name, chance in answer["when"].items() if name.startswith("within_")]
    return ", ".join(f"{name.removeprefix('within_').replace('_', ' ')} {chance:.0%}" for name, chance in chances)


def shortened(text: str) -> str:
    return text if len(text) <= TITLE_LENGTH else f"{text[: TITLE_LENGTH - 1].rstrip()}…"


def day(event: dict[str, Any]) -> str:
    moment = event["timestamp"]
    return f"{moment:%B} {moment.day}, {moment.year}"


def main_path(answer: dict[str, Any]) -> tuple[str, float]:
    """The path that gives most of the probability of an answer with a product, and its share."""
    return max(answer["paths"].items(), key=lambda path: path[1])


class Household:
    """A household's history and what the model answers to it, as text.

    Args:
        pairs: the most probable (action, product) pairs, best first.
        new: the same for products that are not in the history, whatever the action.
    """

    def __init__(
        self,
        user: str,
        history: list[dict[str, Any]],
        pairs: list[dict[str, Any]],
        new: list[dict[str, Any]],
        titles: dict[str, str],
    ) -> None:
        self.user, self.history, self.pairs, self.new, self.titles = user, history, pairs, new, titles

    def title(self, item: str) -> str:
        return self.titles.get(item) or f"product {item}"

    def in_words(self, events: pl.DataFrame, num_items: int) -> str:
        """The first answer, and the first one of a product new to the household, with their reasons.

        Args:
            events: of all households.
            num_items: products in the model's vocabulary.
        """
        last, first = self.history[-1], self.pairs[0]
        basket = sum(event["timestamp"] == last["timestamp"] for event in self.history)
        lines = [
            f"Household {self.user} bought {basket} product{'s' if basket > 1 else ''} on {day(last)}, the last of "
            f'them "{self.title(last["item"])}".',
            f'Expected next: "{self.title(first["item"])}", {HOW[first["action"]]}, with a probability of '
            f"{first['probability']:.1%}. That is the most probable of {num_items:,} products and {len(HOW)} ways to "
            "buy them.",
            f"Why: {self.reason(first, events)}",
        ]
        if first["when"]:
            soon = duration(first["when"]["median_seconds"])
            means = ", which is in the same basket" if soon == AT_ONCE else ""
            lines.append(f"How soon: {soon}{means} (median); within an hour with {first['when']['within_1_hour']:.0%}.")
        if self.new:
            new = self.new[0]
            lines.append(
                f'If the next product is new to the household: "{self.title(new["item"])}", with '
                f"{new['probability']:.1%}."
            )
            lines.append(f"Why: {self.reason(new, events)}")
        return "\n".join(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines)

    def reason(self, answer: dict[str, Any], events: pl.DataFrame) -> str:
        """The path that gives most of an answer's probability, and what the log says about it."""
        path, share = main_path(answer)
        said = f"{'' if share >= ALL else 'mostly '}because {REASONS[path]}"
        if path == "repeat":
            own = [event for event in self.history if event["item"] == answer["item"]]
            said += f", {'once' if len(own) == 1 else f'{len(own)} times'}, last on {day(own[-1])}"
        said += f" (path `{path}`: {share:.0%} of this probability)."
        together = self.bought_together(answer["item"], events) if path == "associate" else None
        if together is not None:
            beside, baskets = together
            said += f' For example, it is beside "{self.title(beside)}" in {baskets} baskets of this log.'
        return said

    def bought_together(self, item: str, events: pl.DataFrame) -> tuple[str, int] | None:
        """Of the household's last products, the one that shares most baskets of the log with `item`, and how many; None
        if that is fewer than two."""
        recent = {event["item"] for event in self.history[-SHOWN_EVENTS:]} - {item}
        basket = ["user_id", "timestamp"]
        with_item = events.filter(pl.col("item_id") == item).select(basket).unique()
        beside = events.join(with_item, on=basket, how="semi").filter(pl.col("item_id").is_in(recent))
        counts = beside.unique([*basket, "item_id"])["item_id"].value_counts().sort(["count", "item_id"])
        return counts.row(-1) if counts.height and counts["count"][-1] > 1 else None

    def tables(self) -> str:
        """The last events, what comes next, and what comes next of products new to the household."""
        recent = self.history[-SHOWN_EVENTS:]
        lines = [f"Household {self.user}, {len(self.history):,} events. The last {len(recent)}:"]
        for event in recent:
            moment, title = f"{event['timestamp']:%Y-%m-%d %H:%M}", shortened(self.title(event["item"]))
            lines.append(f"    {moment}  {event['action']:<15} {title}")
        lines.append("  What comes next (action and product), and the path that gives most of its probability:")
        lines += [self.answer_line(answer, rank) for rank, answer in enumerate(self.pairs, 1)]
        if self.new:
            lines.append("  Which product, if it is new to the household:")
            lines += [self.answer_line(answer, rank) for rank, answer in enumerate(self.new, 1)]
        if self.pairs[0]["when"]:
            lines.append(f"  The next event comes within {within(self.pairs[0])}.")
        return "\n".join(lines)

    def answer_line(self, answer: dict[str, Any], rank: int) -> str:
        """One ranked answer: place, probability, action, product, and the path that gives most of it."""
        path, share = main_path(answer)
        title = shortened(self.title(answer["item"]))
        action = answer["action"] or ""
        return f"    {rank}. {answer['probability']:6.1%}  {action:<15} {title:<{TITLE_LENGTH}} {path} {share:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print readable predictions for three users of the demo log.")
    parser.add_argument("--model", type=Path, default=Path(".demo/model"), help="trained model (default: %(default)s)")
    parser.add_argument("--events", type=Path, default=Path(".demo/events.parquet"), help="log (default: %(default)s)")
    parser.add_argument("--items", type=Path, help="titles (default: items.parquet beside the events, if it is there)")
    args = parser.parse_args()
    for path, remedy in ((args.model / "config.json", "train_accelerate.py"), (args.events, "demo/prepare.py")):
        if not path.exists():
            parser.error(f"got no {path}, expected what {remedy} writes: run `make demo`")

    disable_progress_bar()
    events = pl.read_parquet(args.events)
    # transformers types only its own task names
    predict: Any = pipeline("next-behavior", model=str(args.model), trust_remote_code=True)  # type: ignore[call-overload]
    titles = read_titles(args.items or args.events.parent / "items.parquet")
    users = choose_users(events)
    histories = [history_of(events, user) for user in users]
    inputs = [{"events": history} for history in histories]
    pairs = predict(inputs, top_k=TOP_K, paths=True)
    new = predict(inputs, top_k=TOP_K_NEW, of="item", exclude_seen=True, paths=True)
    households = [Household(*one, titles) for one in zip(users, histories, pairs, new, strict=True)]
    print("\nThe first prediction, in words\n")
    print(households[0].in_words(events, len(predict.tokenizer.item_vocabulary)))
    print("\nThree households")
    for household in households:
        print(f"\n{household.tables()}")


if __name__ == "__main__":
    main()
