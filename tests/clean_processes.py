"""Clean processes in a quarter of the time: forked from a process that has imported torch, nothing of Hugging Face or
of this project.

Most of the seconds that a process needs before its first line of work go into torch, and into what transformers
imports of torch and of SciPy. They are the same for every process, so one process imports them once per test run.
Libraries of Hugging Face read the environment when they are imported: every child imports them anew.

    python -I clean_processes.py SOCKET       # conftest.py starts it; it ends with its standard input

A request is a line of JSON: `arguments` of the interpreter, `folder`, `environment`, and the files `output` and
`errors`. It is answered by two lines: the number of the process, and at its end its exit status.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import itertools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = "CLEAN_PROCESSES"  # the variable that names the socket
# What transformers, datasets and our own code import of others. None of them reads a setting that a test changes.
IMPORTED_BEFORE = (
    *("torch._dynamo", "torch.distributed.tensor", "torch.export", "torch.utils.data", "scipy.optimize"),
    *("sklearn.metrics", "pandas", "pyarrow.dataset", "PIL.Image", "jinja2", "yaml", "httpx2"),
)
# Options of the interpreter after which it imports installed packages alone.
ISOLATED = {"-I", "-P"}
OPTIONS = ISOLATED | {"-B"}


# ----------------------------------------------------------------------------------------------------------------------
# The test's side
# ----------------------------------------------------------------------------------------------------------------------


def run(
    command: Sequence[str], *, cwd: str | Path, env: Mapping[str, str], timeout: float, **_: object
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` does with this interpreter, its output captured as text; where nothing serves, it does."""
    if SERVER not in os.environ:
        settings: dict[str, Any] = {"cwd": cwd, "env": env, "timeout": timeout, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, capture_output=True, text=True, **settings)
    with tempfile.TemporaryDirectory(prefix="clean-process-") as folder, socket.socket(socket.AF_UNIX) as server:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        request = {"arguments": list(command[1:]), "folder": str(cwd), "environment": dict(env)}
        server.connect(os.environ[SERVER])
        server.sendall(json.dumps(request | {"output": str(output), "errors": str(errors)}).encode() + b"\n")
        with server.makefile() as answers:
            process = int(answers.readline())
            is_late = not select.select([server], [], [], timeout)[0]
            if is_late:
                os.kill(process, signal.SIGKILL)
            status = int(answers.readline())
        if is_late:
            raise subprocess.TimeoutExpired(list(command), timeout)
        return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())


@contextmanager
def serving() -> Iterator[None]:
    """While the block runs, this process and those that it starts can make clean processes."""
    with tempfile.TemporaryDirectory(prefix="clean-processes-") as folder:
        address = f"{folder}/socket"
        with subprocess.Popen(
            [sys.executable, "-I", __file__, address], env={"OMP_NUM_THREADS": "1", "PATH": ""},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as server:  # fmt: skip
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == "listens\n"
            os.environ[SERVER] = address
            yield
            del os.environ[SERVER]
            server.stdin.close()


# ----------------------------------------------------------------------------------------------------------------------
# The server's side
# ----------------------------------------------------------------------------------------------------------------------


def import_before() -> None:
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    gc.freeze()  # or the garbage collector of every child touches, and so copies, all that it has of the server


def child_with_a_request(listener: socket.socket) -> dict[str, Any]:
    """Waits for requests. Returns in a new process with each; the process that called it ends in here."""
    watchers: set[int] = set()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        # Reaped, so that their processor time counts as this process's.
        watchers = {pid for pid in watchers if not os.waitpid(pid, 0 if sys.stdin in ready else os.WNOHANG)[0]}
        if sys.stdin in ready:
            sys.exit()
        if IMPORTED_BEFORE[0] not in sys.modules:
            import_before()
        connection, _ = listener.accept()
        with connection:
            if pid := os.fork():
                watchers.add(pid)
                continue
            request = json.loads(connection.makefile().readline())
            child = os.fork()
            if not child:
                return request
            connection.sendall(b"%d\n" % child)
            _, status = os.waitpid(child, 0)
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Gives this process the streams, the folder and the environment of the request, and nothing else."""
    for number, path in enumerate((os.devnull, request["output"], request["errors"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])


def execute(arguments: list[str]) -> None:
    """Runs what the interpreter's arguments name, as it would."""
    options = list(itertools.takewhile(OPTIONS.__contains__, arguments))
    kind, *rest = arguments[len(options) :]
    sys.dont_write_bytecode = "-B" in options
    if not ISOLATED & set(options):
        beside = {"-c": "", "-m": os.getcwd()}.get(kind, str(Path(kind).resolve().parent))
        sys.path[:0] = [beside, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def end_at_once() -> None:
    """Leaves out that the interpreter takes all modules apart, which takes a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    status = 0
    atexit.register(end_at_once)  # the first to be registered is the last to be called
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("listens", flush=True)
        request = child_with_a_request(listener)
    become(request)
    try:
        execute(request["arguments"])
    except SystemExit as end:
        status = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
        raise
    except BaseException:
        status = 1
        raise
