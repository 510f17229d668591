"""What a user asks of `publish`. Importing this is fast: the command reads its defaults before anything heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from next_behavior.data.read_options import ReadOptions


@dataclass(frozen=True)
class Provenance:
    """What only the publisher can say. None is written as "not stated".

    Attributes:
        license: of the model, as the Hub names it.
        data_name, data_source, data_license: of the event log.
        data_id, base_model: Hub ids of the data set and of the base model, which the run's record may hold.
    """

    license: str | None = None
    data_name: str | None = None
    data_source: str | None = None
    data_license: str | None = None
    data_id: str | None = None
    base_model: str | None = None


@dataclass(frozen=True)
class Delivery:
    """What happens to a folder that is ready.

    Attributes:
        dry_run: show it, send nothing.
        output: keep a copy here.
        public: whether a new repository is public.
        revision, tag: the branch, and a name for the commit.
    """

    dry_run: bool = False
    output: Path | None = None
    public: bool = False
    revision: str = "main"
    tag: str | None = None

    @property
    def load_revision(self) -> str | None:
        """The `revision=` that loads what is sent; None if no name is known for it before it is sent."""
        return self.tag or (self.revision if self.revision != "main" else None)


@dataclass(frozen=True)
class Request:
    """One call of `publish`.

    Attributes:
        model: the folder of a trained model, or of a PEFT adapter.
        repo_id: USER/NAME on the Hub.
        events, read_options: the training log and how to read it; None takes the model's `prepared/` folder.
        min_item_users, min_pair_users: items with fewer users, and pairs of items that fewer users share, are removed.
        text_encoder: where the model's text encoder is now, if not under its own name.
        base_repo_id: for an adapter, the Hub id of its base.
        little_is_fine: publish even a model of which nearly nothing is left.
        verify: download what was sent and compare its answers.
        push_dataset, dataset_repo_id, dataset_times: whether the sequences are sent too, where, with "day" or "exact"
            times.

    Raises:
        ValueError: a Hub id or a number of users that cannot be.
    """

    model: Path
    repo_id: str
    events: str | None = None
    read_options: ReadOptions = field(default_factory=ReadOptions)
    min_item_users: int = 5
    min_pair_users: int = 2
    provenance: Provenance = Provenance()
    delivery: Delivery = Delivery()
    text_encoder: str | None = None
    base_repo_id: str | None = None
    little_is_fine: bool = False
    verify: bool = False
    push_dataset: bool = False
    dataset_repo_id: str | None = None
    dataset_times: str = "day"

    def __post_init__(self) -> None:
        ids = {
            "repo_id": self.repo_id,
            "dataset_repo_id": self.dataset_repo_id,
            "base_repo_id": self.base_repo_id,
        }
        for name, value in ids.items():
            if value is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", value) is None:
                raise ValueError(f"got --{name} {value}; expected USER/NAME")
        for name, users in (("min_item_users", self.min_item_users), ("min_pair_users", self.min_pair_users)):
            if users < 1:
                raise ValueError(f"got --{name} {users}; expected at least 1, which keeps everything")

    @property
    def dataset_id(self) -> str:
        return self.dataset_repo_id or f"{self.repo_id}-sequences"
