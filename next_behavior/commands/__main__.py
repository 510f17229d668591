"""The console command of the package.

    next-behavior train --events events.csv --output_dir out/shop
    python -m next_behavior.commands train ...          the same, where the script is not installed

Each command is a file beside this one. Its options are parsed before anything heavy is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from next_behavior.commands.errors import run

NAME = "next-behavior"
COMMANDS = {
    "prepare": "prepare a large event log for training, in little memory",
    "train": "train a model from an event log",
    "evaluate": "measure a model and the baselines on held-out events",
    "average": "average the weights of models that stem from the same weights",
    "calibrate": "fit the probabilities of a trained model to held-out events again",
    "tokenize": "build the tokenizer of an event log alone",
    "add-items": "give a trained model new items, retire old ones, without training",
    "export": "export a model for serving, without torch",
    "score": "score every user of a log, as Parquet",
    "publish": "turn a trained model into a Hub repository",
    "explain": "draw why one user gets the answers they get",
    "serve": "serve a trained model over HTTP, in real time",
    "drift": "report what has changed since the training, from stored events",
    "tune-text": "tune a text encoder on an event log and its item texts",
}


def help_text() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    return "\n".join([f"usage: {NAME} COMMAND ...", "", *lines, "", f"{NAME} COMMAND --help lists its options."])


def main_of(command: str) -> Callable[[Sequence[str] | None], None]:
    """The function that does what a command is for; only its file is imported."""
    match command:
        case "prepare":
            from next_behavior.commands import prepare

            return prepare.main
        case "train":
            from next_behavior.commands import train

            return train.main
        case "evaluate":
            from next_behavior.commands import evaluate

            return evaluate.main
        case "average":
            from next_behavior.commands import average

            return average.main
        case "calibrate":
            from next_behavior.commands import calibrate

            return calibrate.main
        case "tokenize":
            from next_behavior.commands import tokenize

            return tokenize.main
        case "add-items":
            from next_behavior.commands import add_items

            return add_items.main
        case "export":
            from next_behavior.commands import export

            return export.main
        case "score":
            from next_behavior.commands import score

            return score.main
        case "publish":
            from next_behavior.commands import publish

            return publish.main
        case "explain":
            from next_behavior.commands import explain

            return explain.main
        case "serve":
            from next_behavior.commands import serve

            return serve.main
        case "drift":
            from next_behavior.commands import drift

            return drift.main
        case "tune-text":
            from next_behavior.commands import tune_text

            return tune_text.main
    sys.exit(f"{NAME}: got the command {command!r}; expected one of {', '.join(COMMANDS)}")


def main(arguments: Sequence[str] | None = None) -> None:
    command, *others = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(help_text())
        return
    begin = main_of(command)
    name = f"{NAME} {command}"
    sys.argv[0] = name  # argparse says it in the usage line
    run(name, partial(begin, others))


if __name__ == "__main__":
    main()
