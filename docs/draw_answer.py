"""Ask the demo model two questions, and draw its answers for the README: images/answer.json and images/answer.svg.

    python demo/prepare.py --output .demo --households 500
    python train_accelerate.py --events .demo/events.parquet --items .demo/items.parquet --output_dir .demo/model \
        --max_minutes 30
    python docs/draw_answer.py --user 1260 --last 4     # asks the model, writes both files
    python docs/draw_answer.py                          # draws images/answer.json again

The bars are the probabilities that `pipeline("next-behavior")` gave, each cut into the shares of the paths.
"""

import argparse
import json
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parent / "images"
QUESTIONS: dict[str, dict[str, Any]] = {
    "What comes next": {"top_k": 3},
    "What comes next among other items": {"top_k": 3, "exclude_seen": True},
}
PATHS = {"repeat": "#e8833a", "associate": "#5a9e5d", "generate": "#4a7ab5"}  # name, color
PATH_TEXT = {
    "repeat": "repeat: the household's own items",
    "associate": "associate: counts of what others bought",
    "generate": "generate: the network",
}
DARK, GRAY, LINE = "#1f2328", "#656d76", "#d0d7de"
WIDTH, MARGIN, ROW = 860, 24, 26
ACTION_X, TITLE_X, BAR_X, BAR_WIDTH = 180, 310, 590, 180
TITLE_LENGTH = 36  # characters


def ask(model: Path, events: Path, user: str, last: int) -> dict[str, Any]:
    """What is drawn: the last events of a user, and the model's answers to them."""
    import polars as pl
    from transformers import pipeline

    own = pl.read_parquet(events).filter(pl.col("user_id") == user).sort("timestamp", maintain_order=True).tail(last)
    history = own.select(
        item="item_id", action="action", timestamp=pl.col("timestamp").dt.epoch("s")
    ).to_dicts()  # fmt: skip
    load: Any = pipeline  # transformers types only its own task names
    predict = load("next-behavior", model=str(model), trust_remote_code=True)
    answers = {name: predict({"events": history}, paths=True, **question) for name, question in QUESTIONS.items()}
    titles = [predict.tokenizer.title(event["item"]) for event in history]
    return {"user": user, "history": history, "titles": titles, "answers": answers}


def text(x: float, y: float, content: str, *, color: str = DARK, size: int = 14, weight: str = "normal") -> str:
    style = f'fill="{color}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(content)}</text>'


def shortened(title: str | None, item: str) -> str:
    name = title or f"item {item}"
    return name if len(name) <= TITLE_LENGTH else f"{name[: TITLE_LENGTH - 1].rstrip()}…"


def bar(y: float, answer: dict[str, Any], scale: float) -> list[str]:
    """The probability as a bar of its paths, and as a number beside it."""
    parts, x = [], float(BAR_X)
    for name, color in PATHS.items():
        width = BAR_WIDTH * answer["probability"] * answer["paths"][name] / scale
        parts.append(f'<rect x="{x:.1f}" y="{y - 12:g}" width="{width:.1f}" height="15" fill="{color}"/>')
        x += width
    return [*parts, text(x + 8, y, f"{answer['probability']:.1%}", weight="600")]


def how_soon(when: dict[str, float]) -> str:
    """The time until the next event: "within 1 hour 50%, within 7 days 96%"."""
    names = (name for name in when if name.startswith("within_"))
    return ", ".join(f"{name.replace('_', ' ')} {when[name]:.0%}" for name in names)


def draw(asked: dict[str, Any]) -> str:
    """The SVG."""
    history, answers = asked["history"], asked["answers"]
    parts, y = [text(MARGIN, 38, f"The last {len(history)} events of a household", size=15, weight="600")], 38
    for event, title in zip(history, asked["titles"], strict=True):
        y += ROW
        moment = datetime.fromtimestamp(event["timestamp"], tz=timezone.utc)
        parts.append(text(MARGIN, y, f"{moment:%d %b %Y, %H:%M}", color=GRAY))
        parts.append(text(ACTION_X, y, event["action"], color=GRAY))
        parts.append(text(TITLE_X, y, shortened(title, event["item"])))
    scale = max(answer["probability"] for ranked in answers.values() for answer in ranked)
    for name, ranked in answers.items():
        y += 44
        parts.append(f'<line x1="{MARGIN}" y1="{y - 26}" x2="{WIDTH - MARGIN}" y2="{y - 26}" stroke="{LINE}"/>')
        parts.append(text(MARGIN, y, name, size=15, weight="600"))
        for place, answer in enumerate(ranked, 1):
            y += ROW
            parts.append(text(MARGIN, y, f"{place}.", color=GRAY))
            parts.append(text(ACTION_X, y, answer["action"], color=GRAY))
            parts.append(text(TITLE_X, y, shortened(answer["title"], answer["item"])))
            parts += bar(y, answer, scale)
    y += 40
    parts.append(text(MARGIN, y, "When", size=15, weight="600"))
    when = next(iter(answers.values()))[0]["when"]
    parts.append(text(ACTION_X, y, how_soon(when), color=GRAY))
    y += 38
    x = float(MARGIN)
    for name, color in PATHS.items():
        parts.append(f'<rect x="{x:g}" y="{y - 11}" width="12" height="12" fill="{color}"/>')
        parts.append(text(x + 18, y, PATH_TEXT[name], color=GRAY, size=13))
        x += 40 + 7.4 * len(PATH_TEXT[name])
    height = y + 22
    frame = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="white" stroke="{LINE}"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        'aria-label="Answers of the model with their probabilities and paths">'
    )
    return "\n".join([head, frame, *parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path(".demo/model"), help="trained model (default: %(default)s)")
    parser.add_argument("--events", type=Path, default=Path(".demo/events.parquet"), help="log (default: %(default)s)")
    parser.add_argument("--user", help="whose events to ask about; without it images/answer.json is drawn again")
    parser.add_argument("--last", type=int, default=4, help="how many of the user's last events (default: %(default)s)")
    args = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if args.user is not None:
        asked = ask(args.model, args.events, args.user, args.last)
        (IMAGES / "answer.json").write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    asked = json.loads((IMAGES / "answer.json").read_text(encoding="utf-8"))
    (IMAGES / "answer.svg").write_text(draw(asked), encoding="utf-8")


if __name__ == "__main__":
    main()
