"""Tune a text encoder on an event log, so that items which one user takes one after the other have similar texts.

    next-behavior tune-text --events events.parquet --items items.csv --output_dir encoder
    python train_accelerate.py --events events.parquet --items items.csv --text_encoder encoder --output_dir out

With a split, only its training events are read. An interrupted run goes on with `--resume`. How it learns is in
`next_behavior/text/tuning.py`, the effect in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from next_behavior.data.read_options import SPLITS, add_event_arguments, add_item_arguments, options_from_arguments


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--events", required=True, help="event log")
    parser.add_argument("--items", required=True, help="item table with item_id and text columns")
    parser.add_argument("--output_dir", required=True, type=Path, help="new folder for the encoder")
    parser.add_argument("--split", default="time", choices=SPLITS, help="as in training (default time)")
    parser.add_argument("--text_columns", help="columns of --items to read, as in training (default: all with text)")
    parser.add_argument("--text_template", help="instead of columns: '{title} by {brand}'")
    parser.add_argument("--text_encoder", help="BERT checkpoint to begin with (default: all-MiniLM-L6-v2)")
    parser.add_argument("--layers", type=int, default=2, help="layers that are trained, from the end (default 2)")
    parser.add_argument("--steps", type=int, default=600, help="training steps (default 600)")
    parser.add_argument("--max_minutes", type=float, help="time limit of the training, if it is to end before")
    parser.add_argument("--batch_items", type=int, default=192, help="items of a step at least (default 192)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="peak of AdamW's (default 1e-4)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run, with the same settings")
    parser.add_argument("--seed", type=int, default=0, help="of users, stretches and dropout (default 0)")
    add_item_arguments(parser)
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    for name in ("steps", "max_minutes", "batch_items", "learning_rate"):
        if (value := getattr(args, name)) is not None and value <= 0:
            parser.error(f"--{name} {value}: expected more than 0")
    return args


def checkpoint_of(output_dir: Path, resume: bool) -> Path:
    """The file in which a run for this folder notes how far it is.

    Raises:
        ValueError: the folder is there, or the file is there without `--resume`, or is not there with it.
    """
    if output_dir.exists():
        raise ValueError(f"got --output_dir {output_dir}, which is there already; expected a new folder")
    checkpoint = output_dir.with_name(f".{output_dir.name}.checkpoint")
    if checkpoint.exists() != resume:
        raise ValueError(
            f"got --resume without the file {checkpoint} of an interrupted run: leave it out, or check --output_dir"
            if resume
            else f"got an interrupted run's file {checkpoint}: go on with it by --resume, or delete it to begin anew"
        )
    return checkpoint


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    checkpoint = checkpoint_of(args.output_dir, args.resume)

    from next_behavior.data.outputs import check_output_folder

    options = options_from_arguments(args)
    inputs = {"--events": args.events, "--items": args.items}
    check_output_folder(args.output_dir, "--output_dir", inputs)

    import numpy as np
    from transformers.utils.logging import disable_progress_bar

    from next_behavior.data.events import read_events
    from next_behavior.data.items import read_items
    from next_behavior.data.splits import assign_parts, make_split
    from next_behavior.text.encoders import default_encoder
    from next_behavior.text.item_texts import item_texts
    from next_behavior.text.tuning import MEASURED_EVENTS, TunedEncoder, measured_recall, tune, user_histories

    disable_progress_bar()
    encoder = TunedEncoder(args.text_encoder or default_encoder(), args.layers)
    log = read_events(args.events, options)
    print(log.report)
    events = assign_parts(log.events, make_split(log.events, args.split))
    items = read_items(args.items, args.items_id_column, format=args.items_format, columns=args.items_columns)
    columns = args.text_columns.split(",") if args.text_columns else None
    training, held_out, texts = user_histories(events, item_texts(items, columns, args.text_template))
    if len(training) < 2:
        raise ValueError(
            f"got {len(training)} users with two training events of items that have a text; expected two at least: "
            "check the item_ids of --items and the columns that are read"
        )
    drawn = np.random.default_rng(args.seed).permutation(len(held_out))[:MEASURED_EVENTS]
    sample = [held_out[row] for row in drawn]
    before = measured_recall(encoder, texts, sample)
    losses = tune(
        encoder,
        training,
        texts,
        steps=args.steps,
        max_minutes=args.max_minutes,
        batch_items=args.batch_items,
        learning_rate=args.learning_rate,
        seed=args.seed,
        checkpoint=checkpoint,
    )
    after = measured_recall(encoder, texts, sample)
    encoder.save(args.output_dir)
    checkpoint.unlink(missing_ok=True)
    first, last = np.mean(losses[:20]), np.mean(losses[-20:])
    print(f"{len(losses):,} steps over {len(texts):,} texts, loss {first:.3f} to {last:.3f}")
    print(recall_text(before, after, events=len(sample), texts=len(texts)))
    print(f"The encoder is in {args.output_dir}: train with --text_encoder {args.output_dir}")


def recall_text(before: float | None, after: float | None, events: int, texts: int) -> str:
    """What tuning has changed, or why it was not measured."""
    if before is None or after is None:
        why = "no validation events" if not events else f"{texts:,} texts take too long to read twice"
        return f"Recall by item text alone was not measured: {why}"
    return (
        f"Recall@10 of the next item by item text alone, {events:,} validation events: {before:.4f} before, "
        f"{after:.4f} now"
    )
