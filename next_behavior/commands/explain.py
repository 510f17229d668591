"""Why one user gets the answers they get: a picture of their history and the answers, as HTML or PNG.

    next-behavior explain --model out/shop --events events.parquet --user u17 --output why.html
    next-behavior explain --model out/shop --events events.parquet --user u17 --output why.png --of item --exclude_seen

The history is that of the log, each event colored by what it contributes to the first answer; docs/explanations.md says
what the numbers mean. HTML files are self-contained. PNG files need matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from next_behavior.data.read_options import add_event_arguments, options_from_arguments
from next_behavior.model.times import micros_of_text

HTML, PNG = (".html", ".htm"), (".png",)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a trained model, or USER/NAME on the Hub")
    parser.add_argument("--revision", help="of the Hub repository: a branch, a tag or a commit")
    parser.add_argument(
        "--events",
        required=True,
        help="event log: a CSV, TSV, JSON Lines or Parquet file, a folder or glob of them, or USER/NAME on the Hub",
    )
    parser.add_argument("--user", required=True, help="the user's id in the log")
    parser.add_argument("--output", required=True, type=Path, help="the picture to write: FILE.html or FILE.png")
    parser.add_argument("--until", help="read the user's events up to this time alone (ISO, UTC)")
    parser.add_argument("--top_k", type=int, default=10, help="answers")
    parser.add_argument("--of", default="pair", choices=["pair", "item", "action"], help="what is ranked")
    parser.add_argument("--action", help="answers given that this is the next action")
    parser.add_argument("--exclude_seen", action="store_true", help="leave out the items of the history")
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    if args.top_k < 1:
        parser.error(f"--top_k {args.top_k}: expected at least 1")
    if args.output.suffix.lower() not in (*HTML, *PNG):
        parser.error(f"--output {args.output}: expected a name that ends in .html or .png")
    if args.until is not None and micros_of_text(args.until) is None:
        parser.error(f"--until {args.until}: expected a date or a time, such as 2024-05-17 or 2024-05-17T08:30:00")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)

    from next_behavior.data.outputs import check_output_file

    options = options_from_arguments(args)
    check_output_file(args.output, "--output", {"--events": args.events})

    import polars as pl

    from next_behavior.data.events import read_events
    from next_behavior.data.files import write_whole
    from next_behavior.data.known import check_known
    from next_behavior.data.shown import to_width
    from next_behavior.model.integrity import check_folder
    from next_behavior.model.modeling_behavior import BertForNextBehavior
    from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
    from next_behavior.model.tokenization_behavior import BehaviorTokenizer
    from next_behavior.publishing.explained_page import page_of
    from next_behavior.publishing.explained_user import explained_user, history_of, question_in_words
    from next_behavior.serving.export import model_folder

    folder = model_folder(args.model, args.revision)
    check_folder(folder)
    tokenizer = BehaviorTokenizer.from_pretrained(folder)
    if args.action is not None:
        tokenizer.encode_action(args.action)  # an unknown one is refused before the log is read
    model = BertForNextBehavior.from_pretrained(folder)
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    log = read_events(args.events, options)
    print(to_width(str(log.report)))
    check_known(log.events, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
    events = log.events.filter(pl.col("user_id") == args.user)
    if args.until is not None:
        events = events.filter(pl.col("timestamp").dt.epoch("us") <= (micros_of_text(args.until) or 0))
    history = history_of(events, args.user)
    asked = {"top_k": args.top_k, "of": args.of, "action": args.action}
    if args.of != "action":
        asked["exclude_seen"] = args.exclude_seen
    user = explained_user(
        predict,
        Path(args.model).name,
        args.user,
        history,
        question_in_words(args.of, args.action, args.exclude_seen),
        **asked,
    )
    if args.output.suffix.lower() in HTML:
        write_whole(args.output, page_of(user))
    else:
        from next_behavior.publishing.explained_png import draw

        draw(user, args.output)
    print(f"The picture is in {args.output}.")
