"""Fit the probabilities of a trained model to held-out events again, without training.

    next-behavior calibrate --model out/shop --events events.parquet
    next-behavior calibrate --model out/shop --events events.parquet --output_dir out/shop-calibrated

A model with a recorded split is fitted on the validation events of its own log. One that was trained with
`--split none` knows its whole log: give a log with events that are later than those, and it is fitted on them.
The ranking within repeats and within new items stays; how the two compare may change a little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from next_behavior.data.read_options import add_event_arguments, options_from_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        ValueError, FileNotFoundError: the user can mend it.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--events", required=True, help="event log, as for training")
    parser.add_argument("--output_dir", help="write the model here instead of into its own folder")
    parser.add_argument("--max_targets", type=int, help="validation events at most; the default takes 4,000")
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    if args.max_targets is not None and args.max_targets < 1:
        parser.error(f"--max_targets {args.max_targets}: expected at least 1")
    folder = Path(args.model)
    if not folder.is_dir():
        raise FileNotFoundError(f"got --model {args.model}; expected the folder of a trained model")
    options = options_from_arguments(args)

    from next_behavior.data.outputs import check_output_folder

    output = folder
    if args.output_dir is not None:
        output = Path(args.output_dir)
        check_output_folder(args.output_dir, "--output_dir", {"--model": args.model, "--events": args.events})

    from next_behavior.data.events import read_events
    from next_behavior.evaluation.table_cells import number
    from next_behavior.model.integrity import check_folder
    from next_behavior.training.refit import refit

    check_folder(folder)
    record = refit(folder, read_events(args.events, options).events, output, args.max_targets)
    for head in ("action", "time"):
        fit = record[head]
        if fit["after"]["count"]:
            errors = f"{number(fit['before']['ece'])} before, {number(fit['after']['ece'])} after"
            print(f"{head}: expected calibration error {errors}, on events that the fit has not seen")
    print(json.dumps({"events": record["events"], "item_events": record["item_events"]}))
    print(f"The model is in {output}. Its evaluation.json is of before: evaluate it again.")
