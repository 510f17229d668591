"""One model from several that stem from the same weights: the mean of their weights, as one loadable folder.

    next-behavior average --model out/tuned_1 --model out/tuned_2 --events events.parquet --output_dir out/average

The models must have the same architecture, vocabulary and memory. With `--events`, what is fitted on validation events
(temperatures, the memory's constants) is fitted anew, and the average is measured beside its parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from next_behavior.data.read_options import add_event_arguments, options_from_arguments

# Validation events that are fitted and measured on, about.
VALIDATION_TARGETS = 4000


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, action="append", type=Path, help="folder of a trained model; again for each other one"
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="a new folder")
    parser.add_argument(
        "--events", help="the log that they were trained on: its validation events fit the temperatures anew"
    )
    parser.add_argument("--max_targets", type=int, default=VALIDATION_TARGETS, help="validation events, about")
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    if len(args.model) < 2:
        parser.error("got one --model, expected several: name each with a --model of its own")
    if args.max_targets < 1:
        parser.error(f"--max_targets {args.max_targets}: expected at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        raise ValueError(f"got --output_dir {args.output_dir}, which is there already; expected a new folder")

    from next_behavior.data.outputs import check_output_folder

    options = options_from_arguments(args)
    check_output_folder(args.output_dir, "--output_dir", {"--events": args.events})

    from transformers.utils.logging import disable_progress_bar

    from next_behavior.data.events import read_events
    from next_behavior.data.sequences import VALIDATION
    from next_behavior.training.averaging import averaged, check_splits, fitted_on, save_average, validation_log
    from next_behavior.training.catalog import load_trained
    from next_behavior.training.encoded import encode_targets
    from next_behavior.training.validation import validation_ndcg

    disable_progress_bar()
    check_splits(args.model)
    loaded = [load_trained(folder) for folder in args.model]
    tokenizer = loaded[0][1]
    names = [str(folder) for folder in args.model]
    average = averaged(loaded, names)
    measured: dict[str, float] = {}
    if args.events is not None:
        events = read_events(args.events, options).events
        log, positions = validation_log(args.model[0], tokenizer, events, args.max_targets)
        fitted_on(average, log, positions)
        for name, model in zip([*names, "average"], [*(model for model, _ in loaded), average], strict=True):
            targets = encode_targets(model, log.sequences, VALIDATION, log.max_length, positions)
            measured[name] = validation_ndcg(model, targets)
            print(f"{name}: NDCG@10 {measured[name]:.4f} on {len(positions):,} validation events")
        if measured["average"] < min(measured[name] for name in names):
            print(
                "The average ranks worse than each of its models. Weights have a mean only where they stem from the\n"
                "same weights: fine-tune one model several times, or average probabilities (evaluate --ensemble)."
            )
    save_average(average, tokenizer, args.model, args.output_dir, measured)
    print(f"The average of {len(loaded)} models is in {args.output_dir}")
