"""What the service needs of a predictor, as types. `predictor.py` has it; a test has a small one of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from next_behavior.model.vocabulary import VocabularyTable

Event = Mapping[str, Any]
Answers = list[dict[str, Any]]


class About(Protocol):
    """What is served: `revision` is a hash of its content."""

    @property
    def revision(self) -> str: ...
    @property
    def items(self) -> int: ...
    @property
    def actions(self) -> Sequence[str]: ...
    @property
    def max_events(self) -> int: ...
    @property
    def has_time(self) -> bool: ...
    @property
    def training_actions(self) -> Mapping[str, int] | None: ...
    @property
    def explained_events(self) -> int: ...


class Question(Protocol):
    """A history and options that have been read and checked."""

    @property
    def cold_start(self) -> bool: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def unknown_items(self) -> int: ...
    @property
    def events(self) -> int: ...


class Lesson(Protocol):
    """What the memory learned from one event: (item, item, weight) of each pair."""

    @property
    def pairs(self) -> Sequence[tuple[str, str, float]]: ...


class Answering(Protocol):
    """A predictor.

    Attributes:
        explains_beside: whether a step of `explain` may run in a thread while others are answered. If not, it is short.
    """

    explains_beside: bool

    @property
    def info(self) -> About: ...
    @property
    def vocabulary(self) -> VocabularyTable: ...

    def vocabulary_line(self, item: str) -> int | None:
        """The line of an item in `vocabulary`; None if the model does not know it."""

    def ask(
        self,
        events: Sequence[Event],
        *,
        top_k: int = 10,
        of: str = "pair",
        action: str | None = None,
        exclude_seen: bool = False,
        allowed_items: Sequence[str] | None = None,
        balanced: bool = False,
        coverage: float | None = None,
        largest_set: int | None = None,
        paths: bool = False,
        explain: bool = False,
    ) -> Any:
        """A `Question`, for `answers`. ValueError: an event or an option is not what is documented."""

    def answers(self, asked: Sequence[Any]) -> list[Answers]:
        """The answers to each question, in one pass."""

    def explain(self, asked: Any) -> Iterator[Answers | None]:
        """The explained answers to a question with `explain` come last; None before that, after each step."""

    def answer(self, events: Sequence[Event], **options: Any) -> Answers: ...

    def count(self, history: Sequence[Event]) -> Lesson:
        """The memory learns what the last event of the history adds."""

    def snapshot(self, path: Path) -> None: ...

    def restore(self, path: Path) -> None:
        """ValueError: the file is not a snapshot of this revision."""
