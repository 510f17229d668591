"""What a command writes to, checked before it begins: it can be written, and it holds nothing that is read.

    check_output_folder("out/shop", "--output_dir", {"--events": "events.csv", "--items": None})
    check_output_file("result.json", "--json", {"--events": "events.csv"})

A run that ends after an hour because its folder is a file has lost the hour. One that writes beside its own log reads
its own files the next time.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path

from next_behavior.data.log_files import are_files_here

# What is read, by the flag that names it; None where the flag was left out.
Inputs = Mapping[str, str | None]
# A path that ends with one is meant as a folder, whether or not the folder is there.
SEPARATORS = tuple({"/", os.sep})


def check_other_model(model: str, output: str) -> None:
    """ValueError unless `--continue` names a folder with a model, and the output is another."""
    if not (Path(model) / "config.json").is_file():
        raise ValueError(f"got --continue {model}, which has no config.json; expected the folder of a trained model")
    if Path(model).resolve() == Path(output).resolve():
        raise ValueError(
            f"got --output_dir {output}, the folder of --continue; expected another: the model of before stays, to "
            "compare the new one with"
        )


def check_output_folder(output: str | Path, flag: str, inputs: Inputs) -> None:
    """Checks a folder that is to be written.

    Args:
        inputs: paths, patterns or names on the Hub, which are passed over.

    Raises:
        ValueError: it is a file, cannot be written, holds a file that is read, or lies in a folder that is read.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"got {flag} {folder}, which is a file; expected a folder: name another")
    _check_writable(folder, flag)
    whole = folder.resolve()
    for name, source in inputs.items():
        for read in _read_paths(source):
            if whole == read or whole in read.parents or read in whole.parents:
                relation = "lies in" if read in whole.parents else "holds"
                raise ValueError(
                    f"got {flag} {folder}, which {relation} what {name} reads ({source}); expected a folder of its "
                    "own: the files that are written would mix with those that are read"
                )


def check_output_file(output: str | Path, flag: str, inputs: Inputs) -> None:
    """The same for a file: it is no folder, and none of the files that are read."""
    file = Path(output)
    if file.is_dir() or str(output).endswith(SEPARATORS):
        raise ValueError(
            f"got {flag} {file}, which is a folder; expected a file: add a name, such as {file / 'a.json'}"
        )
    _check_writable(file.parent, flag)
    for name, source in inputs.items():
        if file.resolve() in _read_paths(source):
            raise ValueError(f"got {flag} {file}, which {name} reads; expected another file: it would be overwritten")


def can_write(folder: Path) -> bool:
    """Whether files can be made in a folder that is there."""
    return os.access(folder, os.W_OK | os.X_OK)


def _check_writable(folder: Path, flag: str) -> None:
    """ValueError unless the folder, or the nearest one above it that is there, is a folder that can be written."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"got {flag} below {nearest}, which is a file; expected a folder: name another")
    if not can_write(nearest):
        raise ValueError(
            f"got {flag} in {nearest}, which cannot be written; expected a folder that can: change its permissions, or "
            "name another"
        )


def _read_paths(source: str | None) -> list[Path]:
    """The files and folders that a source names."""
    if source is None or not are_files_here(source):
        return []
    parts = [source] if os.path.exists(source) else [part.strip() for part in source.split(",")]
    names = [name for part in parts for name in ([part] if os.path.exists(part) else glob.glob(part, recursive=True))]
    return [Path(name).resolve() for name in names]
