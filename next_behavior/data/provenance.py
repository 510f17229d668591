"""Where a run took place and what it read.

    record = {**settings, **provenance("events.parquet")}

It is recorded with the run, and printed in the model's card.
"""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from next_behavior.data.log_files import are_files_here, find_files

LIBRARIES = ("torch", "transformers", "accelerate")


def provenance(events: str, format: str | None = None) -> dict[str, Any]:
    """`machine` {"description", "cores", "threads"}, `versions` {name: version}, and `events_sha256` {file name:
    SHA-256 of its content}, which is empty for a log that is no file here. `format` is that of `ReadOptions`."""
    return {
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "events_sha256": content_hashes(events, format) if are_files_here(events) else {},
    }


def machine() -> dict[str, Any]:
    """What this process computes on, without the machine's name."""
    import torch  # here, because nothing else that reads data needs it

    cores, threads = os.cpu_count(), torch.get_num_threads()
    text = f"{processor()}, {cores} cores, {threads} thread{'s' if threads > 1 else ''}"
    if torch.cuda.is_available():
        text += f"; {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return {"description": text, "cores": cores, "threads": threads}


def processor() -> str:
    """The processor's name, or its architecture where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def content_hashes(source: str | os.PathLike[str], format: str | None = None) -> dict[str, str]:
    """{name: SHA-256} of the files of a log."""
    hashes = {}
    files = find_files(source, format)
    for name, file in zip(files.names, files.paths, strict=True):
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
        hashes[name] = digest.hexdigest()
    return hashes
