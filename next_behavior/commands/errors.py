"""How a command begins, and how it ends after a mistake of its user, or Ctrl-C: one line instead of a traceback.

The last line of a root command is `run("train_accelerate.py", main)`. The exit status is 1, after Ctrl-C 130.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from next_behavior.data.shown import shown_lines

# OSError: a file that is missing or may not be read or written, a full disk, a file where a folder should be.
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError)
INTERRUPTED = 130
# What libraries write in Rust say of a full disk; Python says it by an OSError.
DISK_FULL = "No space left on device"
MAKE_ROOM = "free some, or name a folder on another disk"
# OpenMP's threads spin while they wait for each other. Beside a second busy process they spin away the time of the
# thread that they wait for: a training step takes several times as long (`python -m benchmarks.busy_machine`).
SLEEP_WHILE_WAITING = ("OMP_WAIT_POLICY", "PASSIVE")


def run(name: str, main: Callable[[], None], errors: tuple[type[Exception], ...] = USER_ERRORS) -> None:
    """Calls `main`; one of `errors` ends the process with `NAME: MESSAGE`, any other shows its traceback.

    `main` must be the first to import torch, which reads how threads wait once. A value of the user's own stays.
    """
    os.environ.setdefault(*SLEEP_WHILE_WAITING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack the characters of an id
            stream.reconfigure(errors="backslashreplace")
    usual = warnings.showwarning
    warnings.showwarning = partial(show_warning, name, usual)
    try:
        main()
    except KeyboardInterrupt as interruption:
        print(f"\n{name}: {str(interruption) or 'interrupted'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except errors as error:
        sys.exit(f"{name}: {shown_lines(message_of(error))}")
    except Exception as error:
        if DISK_FULL in str(error):
            sys.exit(f"{name}: {DISK_FULL}: {MAKE_ROOM} ({error})")
        raise
    finally:
        warnings.showwarning = usual


def show_warning(
    name: str, usual: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any
) -> None:
    """A warning for a user in a line, like an error. Those for programmers are shown as Python shows them."""
    if issubclass(category, UserWarning):
        print(f"{name}: warning: {shown_lines(str(message))}", file=sys.stderr)
    else:
        usual(message, category, *where)


def message_of(error: Exception) -> str:
    """An error in a line. Those of the operating system say what was wrong with which file."""
    if isinstance(error, shutil.Error):  # of a folder that was copied: (from, to, what happened) of each file
        why = error.args[0][0][2]
        return f"{why}: {MAKE_ROOM if DISK_FULL in why else 'check the path and its permissions'}"
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if error.errno == errno.ENOSPC:  # a file that was copied is named, not where to
        return f"{DISK_FULL}: {MAKE_ROOM}"
    where = f" {error.filename}" if error.filename else ""
    return f"{error.strerror}:{where or ' a file'}: check the path, its permissions and the free space"
