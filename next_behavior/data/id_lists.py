"""Lists of ids in text files, one on each line."""

from __future__ import annotations

from pathlib import Path


def read_ids(path: Path, flag: str) -> list[str]:
    """The ids in a text file, one on each line, exactly as written and each once; empty lines are passed over.

    Raises:
        FileNotFoundError: what `flag` names is no file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"got {flag} {path}; expected a text file with an item id on each line")
    return list(dict.fromkeys(filter(None, path.read_text(encoding="utf-8-sig").split("\n"))))
