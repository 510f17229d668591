"""The bundle of a saved model (bundle.py): found beside it, or made there once.

    bundle = bundle_for("out/shop")           # a folder, or a Hub id
    next-behavior export --model out/shop     the same, from the command line

A bundle is named by a digest of the model's files, so a model that was changed gets another one. It is made in a
process of its own (write_bundle.py): whoever serves imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from next_behavior.serving.bundle import MANIFEST
from next_behavior.serving.training_record import RECORD_FILES, training_record

# Counts up when a bundle is written in another way.
EXPORT_VERSION = 6
READ_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocabulary.tsv")
FOLDER = "serving"
REVISION_LENGTH = 16


def bundle_for(model: str | Path, revision: str | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of a model's bundle, which is made if it is not there.

    Args:
        model: the folder of a saved model, or a Hub id; what a folder holds wins.
        revision: of a Hub id.
        say: is told what takes time.

    Raises:
        ValueError: there is no such model, or it cannot be exported; with the reason.
    """
    folder = model_folder(model, revision)
    name = digest_of_model(folder)
    beside = folder / FOLDER / name
    cached = cache_folder() / FOLDER / name
    for place in (beside, cached):
        if (place / MANIFEST).is_file():
            return place
    # The Hub's cache belongs to the Hub's client.
    place = beside if Path(model).is_dir() and os.access(folder, os.W_OK) else cached
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / ".lock"):
        if not (place / MANIFEST).is_file():
            begin = time.monotonic()
            say(f"exporting {model} for serving ...")
            export(folder, place, name)
            say(f"exported to {place} in {time.monotonic() - begin:.0f} s")
    return place


def export(folder: Path, place: Path, revision: str) -> None:
    """Makes the bundle of the model in `folder` in a process of its own, whole or not at all."""
    command = [sys.executable, "-m", "next_behavior.serving.write_bundle", str(folder), str(place), revision]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"the export ended with status {done.returncode}"
        raise ValueError(f"the model in {folder} could not be exported: {reason}")


def model_folder(model: str | Path, revision: str | None) -> Path:
    """Where the files of a model lie, downloaded if it is a Hub id."""
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"got --model {folder}, which has no config.json; expected the folder of a trained model.")
        return folder
    if not isinstance(model, str) or folder.is_absolute() or len(folder.parts) > 2 or folder.exists():
        raise ValueError(f"got --model {model}; expected the folder of a trained model or a Hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = [*READ_FILES, *RECORD_FILES, "*.safetensors*", "*.manifest.json"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"got --model {model}, which is neither a folder here nor a model that the Hub gives ({reason}); expected "
            "one of them: check the path; for the Hub the connection, and `hf auth login` for a private model"
        ) from error


def digest_of_model(folder: Path) -> str:
    """The first digits of a SHA-256 over the files that a bundle is made from."""
    digest = hashlib.sha256(f"export {EXPORT_VERSION}".encode())
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"got --model {folder}, which has no model.safetensors; expected the folder of a trained model."
        )
    for name in (*READ_FILES, *weights):
        digest.update(name.encode())
        with (folder / name).open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    digest.update(json.dumps(training_record(folder).actions).encode())
    return digest.hexdigest()[:REVISION_LENGTH]


def cache_folder() -> Path:
    """Where bundles of models go that lie where nothing can be written."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "next_behavior"
