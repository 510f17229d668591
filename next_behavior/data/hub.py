"""Event logs on the Hub: `owner/name` or `hf://datasets/owner/name`, with `@revision` after it where it matters.

    is_hub_dataset("ana/shop-log")          # True, unless there is such a file or folder here
    load_hub_dataset("ana/shop-log@v1")     # a datasets.Dataset

A log may have one row per event, or one row per user with lists of items, actions and times (what `publish.py
--push_dataset` sends); `events.py` reads both. Private data sets need HF_TOKEN or `hf auth login`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from next_behavior.data.log_files import EXTENSIONS

if TYPE_CHECKING:
    import datasets

PREFIX = "hf://datasets/"
HUB_ID = re.compile(r"(?:hf://datasets/)?(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def is_hub_dataset(name: str) -> bool:
    """Whether `name` is written like a data set on the Hub and is no file or folder here.

    >>> [is_hub_dataset(name) for name in ("ana/shop-log", "hf://datasets/ana/log@v1", "data/events.csv", "/data/log")]
    [True, True, False, False]
    """
    if not HUB_ID.fullmatch(name) or name.lower().endswith(EXTENSIONS):
        return False
    return name.startswith(PREFIX) or not Path(name).exists()


def load_hub_dataset(name: str) -> datasets.Dataset:
    """The `train` split of a data set on the Hub, or its only one.

    Raises:
        FileNotFoundError: there is none of this name, or it may not be seen.
        ValueError: it has several splits and none is called train, or cannot be read.
    """
    import datasets  # here, because importing them takes longer than reading most files

    parts = HUB_ID.fullmatch(name)
    assert parts is not None, name
    try:
        splits = datasets.load_dataset(parts["name"], revision=parts["revision"])
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"got {name}, which is neither a file here nor a data set on the Hub that you may read; expected an event "
            f"log: check the name, or run `hf auth login` if it is private ({error})"
        ) from error
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"got {name}, which is no file here and could not be read from the Hub ({error}); expected an event log: "
            "check the name and the connection"
        ) from error
    if "train" in splits:
        return splits["train"]
    if len(splits) > 1:
        raise ValueError(
            f"got {name} with the splits {', '.join(splits)}; expected one called train, or a single one: save the one "
            "you mean as Parquet, and pass that"
        )
    return next(iter(splits.values()))
