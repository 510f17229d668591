"""A model that the page asks, loaded like anyone's, and the search in its catalog.

model = LoadedModel("out/shop")
model.catalog.search("lamp")                                   # [('Desk lamp (84)', '84')]
model.answers([{"item": "84"}], "item", None, False, 10)       # the pipeline's answers
"""

from __future__ import annotations

import difflib
import time
from pathlib import Path
from typing import Any

import numpy as np
from history_text import Event
from shown_text import shown
from transformers import pipeline

MATCHES = 8
# A longer history is not explained: each of its events would be one more question.
MOST_EXPLAINED = 60


class Catalog:
    """The items of a model with their titles, searched on the server: one text in memory, one line an item."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.items: list[str] = tokenizer.item_vocabulary
        lines = [self.whole(item).lower().replace("\n", " ") for item in self.items]
        self.text = "\n".join([*lines, ""])
        self.ends = np.cumsum([len(line) + 1 for line in lines])  # (V,) where the next line begins

    def title(self, item: str) -> str | None:
        """The title of an item, if it has one that can be read."""
        title = self.tokenizer.title(item)
        return title if title and title.strip() else None

    def whole(self, item: str) -> str:
        """Title and id, or the id alone."""
        title = self.title(item)
        return f"{title} ({item})" if title else item

    def label(self, item: str) -> str:
        """As `whole`, as it is shown."""
        title = self.title(item)
        return f"{shown(title)} ({shown(item)})" if title else shown(item)

    def holds(self, item: str) -> bool:
        return self.tokenizer.decode_item(self.tokenizer.encode_item(item)) is not None

    def search(self, query: str) -> list[tuple[str, str]]:
        """(label, item) of the item whose id is `query`, then of the first ones, in vocabulary order, whose title or id
        holds it, in any case."""
        query = query.strip()
        found = [query] if self.holds(query) else []
        row, needle = 0, query.lower().replace("\n", " ")
        while row < len(self.items) and len(found) < MATCHES:
            position = self.text.find(needle, int(self.ends[row - 1]) if row else 0)
            if position < 0:
                break
            row = int(np.searchsorted(self.ends, position, side="right"))
            found.append(self.items[row])
            row += 1
        return [(self.label(item), item) for item in dict.fromkeys(found)]


class LoadedModel:
    """A loaded model and what the page says of it."""

    def __init__(self, source: str) -> None:
        load: Any = pipeline  # transformers' types list its own tasks alone
        try:
            self.predict = load("next-behavior", model=source, trust_remote_code=True)
        except KeyError as error:
            if "Unknown task" not in str(error):
                raise
            raise ValueError(f"{source} brings no pipeline for next-behavior.") from error
        self.name = Path(source).resolve().name if Path(source).is_dir() else source
        self.catalog = Catalog(self.predict.tokenizer)
        self.actions: list[str] = self.predict.tokenizer.action_vocabulary
        self.has_time: bool = self.predict.tokenizer.has_time

    def answers(self, events: list[Event], of: str, action: str | None, exclude_seen: bool, top_k: int) -> list[Event]:
        """The pipeline's answers, with the paths."""
        if of == "action":
            return self.predict({"events": events}, of=of, top_k=top_k)
        options = {"action": action, "exclude_seen": exclude_seen, "top_k": top_k, "paths": True}
        return self.predict({"events": events}, of=of, **options)

    def contributions(
        self, events: list[Event], of: str, action: str | None, exclude_seen: bool, top_k: int
    ) -> list[float] | None:
        """What each event contributes to the first answer; None for a long history, and for a model whose code is older
        than explanations."""
        if not events or len(events) > MOST_EXPLAINED:
            return None
        options = {} if of == "action" else {"action": action, "exclude_seen": exclude_seen}
        try:
            answers = self.predict({"events": events}, of=of, top_k=1, explain=True, **options)
        except TypeError:
            return None
        return answers[0]["contributions"] if answers else None

    def unknown_actions(self, events: list[Event]) -> list[str]:
        """The actions of a history that the model does not know, in order, each once."""
        written = dict.fromkeys(str(event["action"]) for event in events if event.get("action") is not None)
        return [action for action in written if action not in self.actions]

    def nearest_action(self, action: str) -> str | None:
        """The known action that is spelled most like another one, if one is."""
        known = {name.casefold(): name for name in self.actions}
        # Cut, because the comparison takes time that grows with the square of the length.
        close = difflib.get_close_matches(action[:80].strip().casefold(), known, n=1)
        return known[close[0]] if close else None

    def example(self) -> list[Event]:
        """A history of common items: one of them twice, the last one an hour ago."""
        picks = [self.catalog.items[row % len(self.catalog.items)] for row in (0, 2, 5, 2)]
        events: list[Event] = [{"item": item, "action": self.actions[0]} for item in picks]
        if self.has_time:
            now = float(int(time.time()))
            for event, ago in zip(events, (172_800.0, 90_000.0, 86_400.0, 3_600.0), strict=True):
                event["timestamp"] = now - ago
        return events
