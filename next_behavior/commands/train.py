"""Train a `BertForNextBehavior` from an event log, ready for `AutoModel.from_pretrained`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from next_behavior.data.read_options import add_event_arguments, options_from_arguments
from next_behavior.training.settings import add_arguments, settings_from_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """`train_accelerate.py`, with `arguments` or those of the process.

    Raises:
        ValueError, FileNotFoundError: the user can mend it.
    """
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    add_event_arguments(parser)
    parsed = parser.parse_args(arguments)
    settings, options = settings_from_arguments(parsed), options_from_arguments(parsed)
    for name, value in (("events", settings.events or settings.prepared), ("output_dir", settings.output_dir)):
        if not value:
            parser.error(f"--{name} is required")

    from next_behavior.data.outputs import check_output_folder

    inputs = {"--events": settings.events or None, "--prepared": settings.prepared, "--items": settings.items}
    if settings.continue_from is not None:
        from next_behavior.data.outputs import check_other_model

        check_other_model(settings.continue_from, settings.output_dir)
    check_output_folder(settings.output_dir, "--output_dir", inputs)

    from next_behavior.training.run import run  # takes seconds, which `--help` does not need

    finished = run(settings, options, started)
    if finished is None:  # only the main process prints
        return
    if finished.verdict is not None:
        print(f"\n{finished.verdict}\nTo read in a browser: {finished.folder}/evaluation.html")
        print(f"All tables are in {finished.folder}/evaluation.md.")
    print(
        f"\nThe model is in {finished.folder} ({finished.seconds:.0f} s). Load it with\n"
        f'  AutoModel.from_pretrained("{finished.folder}", trust_remote_code=True)'
    )
