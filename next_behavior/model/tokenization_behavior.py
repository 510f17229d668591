"""BehaviorTokenizer: histories of events to aligned token ids, and ids back to what the user calls things.

One position per event and one channel per property of it: `input_ids` (items), `token_type_ids` (actions) and
`time_gap_ids` (log-spaced time since the event before), beside the `attention_mask`. An ordinary fast tokenizer: a
WordLevel vocabulary in tokenizer.json, the action vocabulary and the time buckets in tokenizer_config.json, and the
items' counts and titles in vocabulary.tsv, for people.

    tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)
    batch = tokenizer([[{"item": "84", "action": "view", "timestamp": 1700000000}]], return_tensors="pt")

Items are looked up whole and never split. An item that could be taken for a special token has an escaped key in the
vocabulary, so an item called [PAD] is an ordinary item. Items the vocabulary does not know stay apart within a history
as [NEW_1], [NEW_2] ..., as in pointer-generator networks (See et al. 2017).

This file is pushed to the Hub byte for byte and imports torch, numpy, tokenizers and transformers alone. The class has
no __init__: transformers 5 would reload a fast tokenizer with one as an empty BPE.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shutil
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerFast

from .special_ids import (
    ACTION_SPECIALS,
    FIRST_ACTION,
    FIRST_GAP,
    FIRST_NEW,
    IGNORED,
    ITEM_SPECIALS,
    NO_GAP,
    NONE,
    START,
    START_ACTION,
    UNK,
    UNKNOWN_ACTION,
)

EVENT_KEYS = frozenset({"item", "action", "timestamp"})
# What `pad` puts into the channels that transformers does not know.
PADDING = {"time_gap_ids": 0, "labels": IGNORED, "action_labels": IGNORED, "time_labels": IGNORED}

# Seconds beyond the year 5138 are milliseconds.
LARGEST_TIMESTAMP = 1e11

ESCAPE = "\\"
ESCAPED_STARTS = ("", "[", ESCAPE)
VOCABULARY_FILE = "vocabulary.tsv"
VOCABULARY_HEADER = "id\titem\tcount\ttitle"
TSV_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
TSV_ESCAPE_TABLE = str.maketrans(TSV_ESCAPES)
TSV_UNESCAPES = {escaped: plain for plain, escaped in TSV_ESCAPES.items()}


def item_key(item: str) -> str:
    """The key of an item in the vocabulary: the item itself, escaped where it could be a special token or empty."""
    return ESCAPE + item if item[:1] in ESCAPED_STARTS else item


def special_keys(num_new_items: int) -> list[str]:
    """The reserved keys in id order: [PAD], [UNK], [NONE], [START], then [NEW_1] ... [NEW_n]."""
    return [*ITEM_SPECIALS, *(f"[NEW_{slot}]" for slot in range(1, num_new_items + 1))]


class BehaviorTokenizer(PreTrainedTokenizerFast):
    """Histories of events to aligned ids; `tokenizer_build.build_tokenizer` makes one from a log.

    Item ids: 0 [PAD], 1 [UNK], 2 [NONE] (the event names no item), 3 [START] (an empty history), then `num_new_items`
    slots for items the vocabulary does not know, then the items. Action ids: 0 padding, 1 unknown, 2 start, then the
    actions. Time-gap ids: 0 padding, 1 no gap known, 2 and up the buckets of `time_edges`.

    Pads and truncates on the left: the newest events are kept. `model_max_length` is the longest window.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "vocabulary_file": VOCABULARY_FILE}  # noqa: RUF012
    model_input_names = ["input_ids", "token_type_ids", "time_gap_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"
    truncation_side = "left"

    _table: VocabularyTable | None = None

    # -- vocabularies --------------------------------------------------------------------------------------------------

    @property
    def num_new_items(self) -> int:
        """Slots [NEW_j] for items the vocabulary does not know."""
        return self.init_kwargs["num_new_items"]

    @property
    def action_vocabulary(self) -> list[str]:
        """The actions in id order; the first has id 3."""
        return self.init_kwargs["action_vocabulary"]

    @property
    def time_edges(self) -> list[float]:
        """Ascending edges, in seconds, of the time-gap buckets; a gap equal to an edge lies above it."""
        return self.init_kwargs["time_edges"]

    @property
    def has_time(self) -> bool:
        """Whether the log that this tokenizer was built from tells gaps apart; if not, every gap id is 1."""
        return self.init_kwargs["has_time"]

    @property
    def first_item_id(self) -> int:
        return FIRST_NEW + self.num_new_items

    @property
    def num_actions(self) -> int:
        """Action ids there are, 3 specials included."""
        return FIRST_ACTION + len(self.action_vocabulary)

    @property
    def num_time_gaps(self) -> int:
        """Time-gap ids there are, padding and "no gap known" included."""
        return FIRST_GAP + len(self.time_edges) + 1

    @cached_property
    def item_vocabulary(self) -> list[str]:
        """The items in id order; the first has the id `first_item_id`. Made on first use (1 s for a million items)."""
        return [plain_item(self._key(index)) for index in range(self.first_item_id, len(self))]

    @cached_property
    def _action_ids(self) -> dict[str, int]:
        return {action: index for index, action in enumerate(self.action_vocabulary, start=FIRST_ACTION)}

    def encode_item(self, item: str | int) -> int:
        """The item's token id; 1 ([UNK]) if the vocabulary does not hold it."""
        index = known_item(self.backend_tokenizer.token_to_id, as_text(item, "item"))
        return UNK if index is None else index

    def decode_item(self, index: int) -> str | None:
        """The user's id of a token id; None for special tokens and [NEW_j] (see `new_items`).

        Raises:
            ValueError: `index` is no token id.
        """
        index = int(index)
        if not 0 <= index < len(self):
            raise ValueError(f"item token {index} does not exist, expected 0 to {len(self) - 1}.")
        return plain_item(self._key(index)) if index >= self.first_item_id else None

    def encode_action(self, action: str | int) -> int:
        """The action's id.

        Raises:
            ValueError: the action is unknown. (In a history, an unknown action is id 1.)
        """
        text = as_text(action, "action")
        if text not in self._action_ids:
            raise ValueError(f"action {text!r} is unknown, expected one of {', '.join(map(repr, self._action_ids))}.")
        return self._action_ids[text]

    def decode_action(self, index: int) -> str:
        """The name of an action id, in brackets for the three special ones.

        Raises:
            ValueError: `index` is no action id.
        """
        index = int(index)
        if not 0 <= index < self.num_actions:
            raise ValueError(f"action id {index} does not exist, expected 0 to {self.num_actions - 1}.")
        return ACTION_SPECIALS[index] if index < FIRST_ACTION else self.action_vocabulary[index - FIRST_ACTION]

    def _key(self, index: int) -> str:
        return cast(str, self.backend_tokenizer.id_to_token(index))

    # -- histories to ids ----------------------------------------------------------------------------------------------

    def __call__(
        self,
        histories: Sequence[Any],
        max_length: int | None = None,
        padding: bool | str = True,
        truncation: bool = True,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Token ids of one history or of several.

        An event is a dict with the keys `item` (text or int; None or absent: the event names no item), `action` (text;
        None or absent: the log's only action, or unknown) and `timestamp` (seconds since 1970, a datetime, where naive
        means UTC, or ISO text; None or absent: no gap known).

        Args:
            histories: a list of events, oldest first, or a list of such lists. An empty history is one [START].
            max_length: events to keep, the newest; None means `model_max_length`.
            padding: True or "longest" pads to the longest history, "max_length" to `max_length`, False not at all.
            truncation: False keeps every event.
            return_tensors: "pt", "np", or None for lists.

        Returns:
            input_ids, token_type_ids, time_gap_ids and attention_mask, each (B, T) int64, also for one history. Gaps
            are taken before truncation, [NEW_j] are numbered after it.

        Raises:
            ValueError: something is not a history, an event or one of its values. Only the events that are kept, and
                the one before them, are looked at.
        """
        batch = as_histories(histories)
        length = self._window_length(max_length)
        rows = [self._encode(history, length if truncation else len(history), row) for row, history in enumerate(batch)]
        longest = max((len(items) for items, _, _ in rows), default=0)
        if padding in (True, "longest"):
            width = longest
        elif padding == "max_length":
            width = max(length, longest)
        elif padding in (False, "do_not_pad"):
            width = None
        else:
            raise ValueError(f'padding is {padding!r}, expected True, False, "longest" or "max_length".')
        if width is None and return_tensors is None:
            channels = [[list(row[channel]) for row in rows] for channel in range(3)]
            return BatchEncoding(self._named(*channels, [[1] * len(items) for items, _, _ in rows]))
        if width is None and any(len(items) != longest for items, _, _ in rows):
            raise ValueError("histories of different lengths do not fit one tensor: pass padding=True.")
        arrays = as_arrays(rows, longest if width is None else width)
        if return_tensors is None:
            return BatchEncoding(self._named(*(array.tolist() for array in arrays)))
        if return_tensors == "np":
            return BatchEncoding(self._named(*arrays))
        if return_tensors == "pt":
            return BatchEncoding(self._named(*(torch.from_numpy(array) for array in arrays)))
        raise ValueError(f'return_tensors is {return_tensors!r}, expected "pt", "np" or None.')

    def new_items(self, history: Sequence[Mapping[str, Any]], max_length: int | None = None) -> list[str]:
        """The user's ids behind [NEW_1], [NEW_2] ... of a history, in that order, after truncation."""
        seen: dict[str, int] = {}
        self._encode(as_histories([history])[0], self._window_length(max_length), 0, seen)
        slots = range(FIRST_NEW, self.first_item_id)
        return [item for item, index in seen.items() if index in slots]

    def in_time_order(self, histories: Sequence[Any]) -> list[list[Mapping[str, Any]]]:
        """Each history sorted by time, equal times in the order given; as it is if one of its events has no timestamp.

        Raises:
            ValueError: as for a call, over all events.
        """
        ordered = []
        for row, history in enumerate(as_histories(histories)):
            for position, event in enumerate(history):
                check_event(event, position, row)
            moments = [event.get("timestamp") for event in history]
            order: Sequence[int] = range(len(history))
            if not any(moment is None for moment in moments):
                try:
                    seconds = [as_seconds(moment) for moment in moments]
                except ValueError as error:
                    raise ValueError(f"history {row}: {error}") from error
                order = sorted(order, key=seconds.__getitem__)
            ordered.append([history[position] for position in order])
        return ordered

    def _named(self, *channels: Any) -> dict[str, Any]:
        return dict(zip(self.model_input_names, channels, strict=True))

    def _window_length(self, max_length: int | None) -> int:
        if max_length is None:
            return self.model_max_length
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}, expected at least 1.")
        return max_length

    def _encode(
        self, history: Sequence[Mapping[str, Any]], length: int, row: int, seen: dict[str, int] | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        """Item, action and time-gap ids of the newest `length` events; `seen` is filled with the ids of their items."""
        if not history:
            return [START], [START_ACTION], [NO_GAP]
        begin = max(0, len(history) - length)
        # One event more than is kept: the gap of the first one kept is the time since it.
        window = history[max(0, begin - 1) :]
        for position, event in enumerate(window, start=max(0, begin - 1)):
            if type(event) is not dict or not event or not EVENT_KEYS.issuperset(event):
                check_event(event, position, row)
        try:
            gaps = self._time_gaps(window)
            if begin:
                window, gaps = window[1:], gaps[1:]
            return self._items(window, {} if seen is None else seen), self._actions(window), gaps
        except ValueError as error:
            raise ValueError(f"history {row}: {error}") from error

    def _items(self, events: Sequence[Mapping[str, Any]], seen: dict[str, int]) -> list[int]:
        ids = []
        lookup = self.backend_tokenizer.token_to_id
        unused, end = FIRST_NEW, self.first_item_id
        for event in events:
            item = event.get("item")
            if item is None:
                ids.append(NONE)
                continue
            if type(item) is not str:
                item = as_text(item, "item")
            index = seen.get(item)
            if index is None:
                index = known_item(lookup, item)
                if index is None and item == "":
                    index = NONE  # as in a log: an empty field names no item
                elif index is None and unused < end:
                    index = unused
                    unused += 1
                elif index is None:
                    index = UNK
                seen[item] = index
            ids.append(index)
        return ids

    def _actions(self, events: Sequence[Mapping[str, Any]]) -> list[int]:
        known = self._action_ids
        unsaid = FIRST_ACTION if len(known) == 1 else UNKNOWN_ACTION
        ids = []
        for event in events:
            action = event.get("action")
            if action is None:
                ids.append(unsaid)
            else:
                ids.append(known.get(action if type(action) is str else as_text(action, "action"), UNKNOWN_ACTION))
        return ids

    def _time_gaps(self, events: Sequence[Mapping[str, Any]]) -> list[int]:
        edges, has_time = self.time_edges, self.has_time
        ids = []
        before = None
        for event in events:
            now = event.get("timestamp")
            if now is not None:
                kind = type(now)
                if (kind is not int and kind is not float) or not -LARGEST_TIMESTAMP <= now <= LARGEST_TIMESTAMP:
                    now = as_seconds(now)
            if now is None or before is None or not has_time:
                ids.append(NO_GAP)
            else:
                ids.append(FIRST_GAP + bisect_right(edges, now - before))
            before = now
        return ids

    # -- what transformers calls ---------------------------------------------------------------------------------------

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pads every channel, labels included: `pad` and `DataCollatorWithPadding` come here for each history."""
        before = len(encoded_inputs["input_ids"])
        side = kwargs.get("padding_side") or self.padding_side
        padded = super()._pad(encoded_inputs, *args, **kwargs)
        missing = len(padded["input_ids"]) - before
        for name in PADDING.keys() & padded.keys():
            filling = [PADDING[name]] * missing
            padded[name] = filling + list(padded[name]) if side == "left" else list(padded[name]) + filling
        return padded

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """The user's ids with spaces between them, for people; `decode_item` gives them back exactly."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        shown = [self._key(index) for index in ids if index >= FIRST_NEW or not skip_special_tokens]
        return " ".join(plain_item(key) for key in shown)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **kwargs: Any) -> Any:
        """As in transformers. The vocabulary holds the special tokens already; saying that there are no added ones
        keeps transformers from parsing the whole tokenizer.json a second time, in Python, to look for them."""
        return super().from_pretrained(pretrained_model_name_or_path, *inputs, added_tokens_decoder={}, **kwargs)

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        saved = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return saved + self.save_vocabulary(str(save_directory), filename_prefix)

    # -- counts and titles ---------------------------------------------------------------------------------------------

    def describe_items(self, counts: Sequence[int | None], titles: Sequence[str | None]) -> None:
        """Sets what vocabulary.tsv says of each item, in id order: how often the log holds it, and its title."""
        if not len(counts) == len(titles) == len(self.item_vocabulary):
            raise ValueError(
                f"got {len(counts)} counts and {len(titles)} titles, expected one of each for "
                f"{len(self.item_vocabulary)} items."
            )
        lines = [VOCABULARY_HEADER]
        rows = zip(self.item_vocabulary, counts, titles, strict=True)
        for index, (item, count, title) in enumerate(rows, start=self.first_item_id):
            shown = "" if count is None else count
            lines.append(f"{index}\t{tsv_field(item)}\t{shown}\t{tsv_field(title or '')}")
        self._table = VocabularyTable("\n".join([*lines, ""]).encode())

    def add_items(self, items: Sequence[str | int], titles: Sequence[str | None]) -> list[int]:
        """Appends items to the vocabulary; those it holds already keep their id and title.

        Use `model.add_items`, which gives them their rows too.

        Returns:
            The id of each item, in their order.
        """
        names = [as_text(item, "item") for item in items]
        if "" in names:
            raise ValueError("an item's id is empty, expected text.")
        new: dict[str, str | None] = {}
        for name, title in zip(names, titles, strict=True):
            if self.encode_item(name) == UNK:
                new.setdefault(name, title)
        if new:
            vocabulary = self.backend_tokenizer.get_vocab()
            table = self._load_table()
            before = VOCABULARY_HEADER + "\n" if table is None else table.text.decode()
            if table is None:
                for index, item in enumerate(self.item_vocabulary, start=self.first_item_id):
                    before += f"{index}\t{tsv_field(item)}\t\t\n"
            lines = []
            for index, (name, title) in enumerate(new.items(), start=len(self)):
                vocabulary[item_key(name)] = index
                lines.append(f"{index}\t{tsv_field(name)}\t0\t{tsv_field(title or '')}\n")
            self.backend_tokenizer.model = WordLevel(vocabulary, unk_token="[UNK]")
            self._table = VocabularyTable((before + "".join(lines)).encode())
            self.__dict__.pop("item_vocabulary", None)
        return [self.encode_item(name) for name in names]

    def title(self, item: str | int) -> str | None:
        """The title of an item (the user's id); None if it has none or is not in the vocabulary."""
        index = self.encode_item(item)
        if index < self.first_item_id:
            return None
        table = self._load_table()
        if table is None:
            return None
        row, _, _, title = table.fields(index - self.first_item_id + 1)
        if int(row) != index:
            raise ValueError(
                f"{VOCABULARY_FILE} has id {row} where id {index} should be: it belongs to another tokenizer."
            )
        return title or None

    def _load_table(self) -> VocabularyTable | None:
        source = self._vocabulary_source()
        if self._table is None and source is not None:
            self._table = VocabularyTable(source.read_bytes())
        return self._table

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes vocabulary.tsv: id, item, count and title of every item, with tabs and line ends as \\t and \\n."""
        target = Path(save_directory) / (f"{filename_prefix}-{VOCABULARY_FILE}" if filename_prefix else VOCABULARY_FILE)
        source = self._vocabulary_source()
        if self._table is None and source is None:
            warnings.warn(
                f"no counts and titles were found with this tokenizer: {target} lists items alone.", stacklevel=2
            )
            nothing = [None] * len(self.item_vocabulary)
            self.describe_items(nothing, nothing)
        if self._table is not None:
            target.write_bytes(self._table.text)
        elif source is not None and not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
        return (str(target),)

    def _vocabulary_source(self) -> Path | None:
        """The vocabulary.tsv this tokenizer was loaded with, as transformers resolved it."""
        path = self.init_kwargs.get("vocabulary_file")
        return Path(path) if path is not None and os.path.exists(path) else None


class VocabularyTable:
    """vocabulary.tsv in memory: its bytes and where its lines begin. A line is decoded when it is asked for, so that a
    million titles cost no million strings."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
        self.line_starts = np.concatenate([[0], ends + 1])

    def fields(self, line: int) -> list[str]:
        """The fields of a line; line 0 is the header."""
        begin, end = self.line_starts[line : line + 2]
        return [plain_field(field) for field in self.text[begin : end - 1].decode().split("\t")]


def plain_item(key: str) -> str:
    """The item of a key; the inverse of `item_key`."""
    return key.removeprefix(ESCAPE)


def known_item(lookup: Callable[[str], int | None], item: str) -> int | None:
    """The id of an item's key, None if the vocabulary does not hold it."""
    try:
        return lookup(item_key(item) if item[:1] in ESCAPED_STARTS else item)
    except UnicodeEncodeError:  # a lone surrogate, as JSON may hold one: not text, so in no vocabulary
        return None


def tsv_field(text: str) -> str:
    """Text for one field of vocabulary.tsv: backslash, tab and line ends escaped."""
    return text.translate(TSV_ESCAPE_TABLE)


def plain_field(field: str) -> str:
    """The inverse of `tsv_field`."""
    return re.sub(r"\\.", lambda escaped: TSV_UNESCAPES[escaped[0]], field)


# ----------------------------------------------------------------------------------------------------------------------
# What callers may pass
# ----------------------------------------------------------------------------------------------------------------------


def as_histories(histories: Any) -> Sequence[Sequence[Mapping[str, Any]]]:
    """One history or several, as several; ValueError for anything else."""
    if isinstance(histories, (list, tuple)):
        if not histories or isinstance(histories[0], Mapping):
            return [histories]
        if all(isinstance(history, (list, tuple)) for history in histories):
            return histories
    got = type(histories).__name__
    if isinstance(histories, (list, tuple)):
        wrong = next(history for history in histories if not isinstance(history, (list, tuple)))
        got = f"a list that holds {wrong!r:.80}"
    remedy = 'an event looks like {"item": "84", "action": "view", "timestamp": 1700000000}'
    if isinstance(histories, Mapping):
        remedy = "pass the list of events in it"
    raise ValueError(
        f"got {got}, expected a history (a list of events, oldest first) or a list of histories: {remedy}."
    )


def check_event(event: Any, position: int, row: int) -> None:
    """ValueError unless `event` is a mapping with some of the known keys and no other."""
    where = f"event {position} of history {row}"
    if not isinstance(event, Mapping) or not event:
        raise ValueError(
            f"{where} is {event!r:.80} ({type(event).__name__}), expected a dict with at least one of the keys item, "
            "action and timestamp."
        )
    for key in event:
        if key not in EVENT_KEYS:
            close = difflib.get_close_matches(str(key), EVENT_KEYS, n=1, cutoff=0.5)
            remedy = f"did you mean {close[0]!r}?" if close else "remove it."
            raise ValueError(f"{where} has the key {key!r}, expected item, action and timestamp: {remedy}")


def as_text(value: Any, name: str) -> str:
    """An item or an action as text; whole numbers become their digits."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value))
    raise ValueError(
        f"{name} is {value!r:.80} ({type(value).__name__}), expected text or a whole number: write it as text, as in "
        f"the log, and a missing {name} as None."
    )


def as_seconds(value: Any) -> float:
    """A timestamp as seconds since 1970 UTC."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
        except ValueError as error:
            raise ValueError(
                f'timestamp is {value!r:.80}, expected ISO text such as "2024-05-17T08:30:00+00:00", a datetime or '
                "seconds since 1970 as a number."
            ) from error
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        seconds = float(value)
        if abs(seconds) <= LARGEST_TIMESTAMP:
            return seconds
        if not math.isnan(seconds):
            raise ValueError(f"timestamp is {value!r}, expected seconds since 1970: divide milliseconds by 1000.")
    raise ValueError(
        f"timestamp is {value!r:.80} ({type(value).__name__}), expected seconds since 1970, a datetime or ISO text: "
        "write an unknown time as None."
    )


def as_arrays(rows: Sequence[tuple[list[int], list[int], list[int]]], width: int) -> list[np.ndarray]:
    """Items, actions, time gaps and attention mask, each (B, width) int64, padded on the left."""
    arrays = [np.zeros((len(rows), width), dtype=np.int64) for _ in range(4)]
    for index, channels in enumerate(rows):
        begin = width - len(channels[0])
        for array, channel in zip(arrays, channels, strict=False):
            array[index, begin:] = channel
        arrays[3][index, begin:] = 1
    return arrays


BehaviorTokenizer.register_for_auto_class()
# An installed package registers itself. A remote copy must not: it would decide for every later repository.
if not __name__.startswith("transformers_modules"):
    AutoTokenizer.register("bert-next-behavior", BehaviorTokenizer, exist_ok=True)
