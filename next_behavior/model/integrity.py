"""Whether a folder still holds what was saved, and whether a model and a tokenizer belong together.

    check_folder(Path("out/shop"))              # SHA-256 of every listed file: ValueError for a damaged or missing one
    check_agreement(model.config, tokenizer)    # ValueError for the tokenizer of another model

Every save writes a manifest beside its files: the size and the SHA-256 of each. The weights and the vocabulary have one
each, because each is saved and pushed without the other, and a save then never touches what it did not write.
config.json is in neither: it is text that people change. A folder saved before there were manifests has none and is
not checked. Delete a manifest after changing its files on purpose.

This file needs neither torch nor transformers: a serving process calls it, too. Its tables are torch tensors or NumPy
arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .vocabulary import special_keys

WEIGHTS_MANIFEST, VOCABULARY_MANIFEST = "weights.manifest.json", "vocabulary.manifest.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
REMEDY = "copy the folder again, or train again"
BLOCK = 1 << 22
# A key of the memory is one item's id * 2**32 + another's.
LOW = (1 << 32) - 1
TOKENIZER_SETTINGS = ("num_new_items", "action_vocabulary", "time_edges", "has_time")


# -- files -------------------------------------------------------------------------------------------------------------


def with_variant(name: str, variant: str | None) -> str:
    """The name of a file of a variant, as transformers has it: model.fp16.safetensors."""
    start, ending = name.rsplit(".", 1)
    return name if variant is None else f"{start}.{variant}.{ending}"


def weight_files(folder: Path, variant: str | None = None) -> list[str]:
    """The files that loading a folder's weights reads; nothing without weights."""
    index = with_variant(WEIGHTS_INDEX, variant)
    if (folder / index).is_file():
        return [index, *sorted(set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()))]
    single = with_variant(WEIGHTS, variant)
    return [single] if (folder / single).is_file() else []


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(manifest: Path, names: Iterable[str]) -> None:
    """Describes the named files, which lie beside `manifest`; without any, there is no manifest."""
    files = {name: described(manifest.with_name(name)) for name in sorted(names)}
    if not files:
        manifest.unlink(missing_ok=True)
        return
    unfinished = manifest.with_name(f".{manifest.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, manifest)


def described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def update_manifest(manifest: Path, name: str) -> None:
    """Describes a file anew that was written alone, if there is a manifest."""
    if manifest.is_file():
        files = read_manifest(manifest) | {name: described(manifest.with_name(name))}
        manifest.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def read_manifest(manifest: Path) -> dict[str, dict[str, Any]]:
    """`bytes` and `sha256` of each file that a manifest lists."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        listed = {name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"got {manifest}, which is damaged; expected a list of files: {REMEDY}.") from error
    if outside := [name for name in listed if Path(name).name != name]:
        raise ValueError(f"got {manifest} that names {outside[0]!r}; expected files beside it: {REMEDY}.")
    return listed


def check_manifest(manifest: Path | None) -> None:
    """Raises a ValueError for a listed file that is missing or is not what was saved; without a manifest, nothing."""
    if manifest is None or not manifest.is_file():
        return
    remedy = f"{REMEDY}, or delete {manifest.name} if it was changed on purpose."
    listed = read_manifest(manifest)
    for name, saved in listed.items():  # all sizes before the first SHA-256, which takes time
        path = manifest.with_name(name)
        if not path.is_file():
            raise ValueError(f"got {manifest.parent} without {name}, which was saved there; expected it: {remedy}")
        if path.stat().st_size != saved["bytes"]:
            raise ValueError(f"got {path} with {path.stat().st_size:,} bytes; expected {saved['bytes']:,}: {remedy}")
    for name, saved in listed.items():
        if sha256_of(manifest.with_name(name)) != saved["sha256"]:
            raise ValueError(
                f"got {manifest.with_name(name)}, which is not what was saved (SHA-256 differs); expected the file "
                f"that {manifest.name} lists: {remedy}"
            )


def check_folder(folder: Path) -> None:
    """`check_manifest` for the weights and the vocabulary of a folder."""
    for name in (VOCABULARY_MANIFEST, WEIGHTS_MANIFEST):
        check_manifest(folder / name)


# -- values ------------------------------------------------------------------------------------------------------------


def check_tables(tables: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError for a weight that is not finite, in tables of floats by their names."""
    for name, table in tables.items():
        if math.prod(table.shape) and not (math.isfinite(float(table.min())) and math.isfinite(float(table.max()))):
            raise ValueError(f"got {where}, in which {name} holds nan or inf; expected finite numbers: {REMEDY}.")


def check_memory(pair_keys: Any, counts: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError unless the memory's keys (P,) are ascending pairs of counted items and no count is negative.

    Args:
        counts: the other tables of the memory by name, `pair_counts` and `item_counts` among them.
    """
    wrong = None
    if len(pair_keys) != len(counts["pair_counts"]):
        wrong = f"{len(pair_keys)} pair_keys and {len(counts['pair_counts'])} pair_counts, expected as many"
    elif not bool((pair_keys[1:] > pair_keys[:-1]).all()):
        wrong = "pair_keys out of order, expected ascending ones"
    elif len(pair_keys) and (
        int(pair_keys[0]) < 0
        or max(int(pair_keys[-1] >> 32), int((pair_keys & LOW).max())) >= len(counts["item_counts"])
    ):
        wrong = "pair_keys of items that are not counted"
    for name, table in counts.items():
        if math.prod(table.shape) and int(table.min()) < 0:
            wrong = f"a negative number in {name}"
    if wrong is not None:
        raise ValueError(f"got {where}, whose memory holds {wrong}: {REMEDY}.")


def check_vocabulary(settings: Mapping[str, Any], id_of: Callable[[str], int | None], where: str) -> None:
    """Raises a ValueError unless the tokenizer's actions are distinct, its time edges finite and ascending, and its
    special tokens where ids expect them.

    Args:
        settings: what tokenizer_config.json holds.
        id_of: the id of a key of the item vocabulary.
    """
    wrong = None
    if missing := [name for name in TOKENIZER_SETTINGS if name not in settings]:
        raise ValueError(f"got {where}, whose tokenizer_config.json lacks {', '.join(missing)}: {REMEDY}.")
    actions, edges = settings["action_vocabulary"], settings["time_edges"]
    specials = special_keys(settings["num_new_items"])
    if len(set(actions)) != len(actions):
        wrong = f"an action twice in {', '.join(actions)}"
    elif not all(map(math.isfinite, edges)) or list(edges) != sorted(set(edges)):
        wrong = "time_edges that are not finite and ascending"
    elif out_of_place := [key for index, key in enumerate(specials) if id_of(key) != index]:
        wrong = f"{out_of_place[0]} at id {id_of(out_of_place[0])}, not {specials.index(out_of_place[0])}"
    if wrong is not None:
        raise ValueError(f"got {where}, whose tokenizer holds {wrong}: {REMEDY}.")


# -- a model and its tokenizer -----------------------------------------------------------------------------------------


def vocabulary_digest(keys: Sequence[str], actions: Sequence[str], time_edges: Sequence[float], has_time: bool) -> str:
    """SHA-256 of what token ids mean.

    Args:
        keys: all keys of the item vocabulary in id order, special ones included.
        actions, time_edges, has_time: as the tokenizer has them.
    """
    meaning = [list(keys), list(actions), [float(edge) for edge in time_edges], bool(has_time)]
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()


def check_agreement(config: Any, tokenizer: Any) -> None:
    """Raises a ValueError unless the ids of a `BehaviorTokenizer` mean what they mean to the model of a
    `BehaviorConfig`. A model whose vocabulary is not recorded is checked by its sizes."""
    sizes = {
        "tokens": (len(tokenizer), config.vocab_size),
        "slots for new items": (tokenizer.num_new_items, config.num_new_items),
        "action ids": (tokenizer.num_actions, config.num_actions),
        "time-gap ids": (tokenizer.num_time_gaps, config.num_time_gaps),
    }
    for what, (theirs, ours) in sizes.items():
        if theirs != ours:
            raise ValueError(
                f"the tokenizer has {theirs:,} {what} and the model {ours:,}; expected the model's own tokenizer: load "
                "both from one folder."
            )
    if config.vocabulary_digest not in (None, tokenizer.vocabulary_digest):
        raise ValueError(
            "got a tokenizer whose items, actions or times are others, or stand in another order, than the model was "
            "trained with; expected the model's own tokenizer: load both from one folder."
        )


def check_loaded(model: Any, tokenizer: Any) -> None:
    """All checks of a model and its tokenizer: the files that they were loaded from, and that they agree."""
    check_manifest(tokenizer.manifest)
    check_manifest(model.manifest)
    check_agreement(model.config, tokenizer)
