"""How a command ends after a mistake of its user: one line and exit status 1 instead of a traceback.

The last line of a root command is `run("train_accelerate.py", main)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

USER_ERRORS: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)


def run(name: str, main: Callable[[], None], errors: tuple[type[Exception], ...] = USER_ERRORS) -> None:
    """Calls `main`; one of `errors` ends the process with `NAME: MESSAGE`, any other shows its traceback."""
    try:
        main()
    except errors as error:
        sys.exit(f"{name}: {error}")
