"""BehaviorTokenizer: histories of events to aligned token ids, and ids back to what the user calls things.

One position per event and one channel per property of it: `input_ids` (items), `token_type_ids` (actions) and
`time_gap_ids` (log-spaced time since the event before), beside the `attention_mask`. An ordinary fast tokenizer: a
WordLevel vocabulary in tokenizer.json, the action vocabulary and the time buckets in tokenizer_config.json, and the
items' counts and titles in vocabulary.tsv, for people.

    tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)
    batch = tokenizer([[{"item": "84", "action": "view", "timestamp": 1700000000}]], return_tensors="pt")

How events become ids is in histories.py, the keys of items in vocabulary.py. The class has no __init__: transformers 5
would reload a fast tokenizer with one as an empty BPE.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerFast

from .histories import HistoryReader, as_arrays, as_histories, as_text, in_time_order, known_action
from .integrity import (
    VOCABULARY_MANIFEST,
    check_manifest,
    check_vocabulary,
    update_manifest,
    vocabulary_digest,
    write_manifest,
)
from .special_ids import ACTION_SPECIALS, FIRST_ACTION, FIRST_GAP, FIRST_NEW, IGNORED, PAD, UNK
from .vocabulary import (
    VOCABULARY_FILE,
    VOCABULARY_HEADER,
    VocabularyTable,
    item_key,
    known_item,
    plain_item,
    tsv_field,
)

# What `pad` puts into the channels that transformers does not know.
PADDING = {"time_gap_ids": PAD, "labels": IGNORED, "action_labels": IGNORED, "time_labels": IGNORED}


class GrownVocabulary(NamedTuple):
    """A vocabulary with new items: the ids of those asked for, in their order; the tokens there are; the new keys; and
    the tokenizer's model and its table, None where nothing is new."""

    ids: list[int]
    size: int
    keys: list[str]
    model: WordLevel | None
    table: VocabularyTable | None


class BehaviorTokenizer(PreTrainedTokenizerFast):
    """Histories of events to aligned ids; `tokenizer_build.build_tokenizer` makes one from a log.

    Item ids: 0 [PAD], 1 [UNK], 2 [NONE] (the event names no item), 3 [START] (an empty history), then `num_new_items`
    slots for items the vocabulary does not know, then the items. Action ids: 0 padding, 1 unknown, 2 start, then the
    actions. Time-gap ids: 0 padding, 1 no gap known, 2 and up the buckets of `time_edges`.

    Pads and truncates on the left: the newest events are kept. `model_max_length` is the longest window.
    """

    vocab_files_names = {  # noqa: RUF012
        "tokenizer_file": "tokenizer.json",
        "vocabulary_file": VOCABULARY_FILE,
        "manifest_file": VOCABULARY_MANIFEST,
    }
    model_input_names = ["input_ids", "token_type_ids", "time_gap_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"
    truncation_side = "left"

    _table: VocabularyTable | None = None
    # The first of the announced ids, and their keys.
    _announced: tuple[int, list[str]] | None = None

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
    def manifest(self) -> Path | None:
        """Of the files that this tokenizer was loaded from; None without one."""
        path = self.init_kwargs.get("manifest_file")
        return None if path is None else Path(path)

    @property
    def vocabulary_digest(self) -> str:
        """SHA-256 of what the ids mean: items, actions and times in order (2 s for a million items)."""
        keys = [self._key(index) for index in range(len(self))]
        return vocabulary_digest(keys, self.action_vocabulary, self.time_edges, self.has_time)

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

    @cached_property
    def _warned(self) -> set[str]:
        """Unknown actions of histories that were warned of."""
        return set()

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
        key = self._known_key(index) if index >= 0 else None
        if key is None:
            raise ValueError(f"item token {index} does not exist, expected 0 to {len(self) - 1}.")
        return plain_item(key) if index >= self.first_item_id else None

    def encode_action(self, action: str | int) -> int:
        """The action's id.

        Raises:
            ValueError: the action is unknown. (In a history, an unknown action is id 1.)
        """
        return known_action(self._action_ids, action)

    def decode_action(self, index: int) -> str:
        """The name of an action id, in brackets for the three special ones.

        Raises:
            ValueError: `index` is no action id.
        """
        index = int(index)
        if not 0 <= index < self.num_actions:
            raise ValueError(f"action id {index} does not exist, expected 0 to {self.num_actions - 1}.")
        return ACTION_SPECIALS[index] if index < FIRST_ACTION else self.action_vocabulary[index - FIRST_ACTION]

    @property
    def reader(self) -> HistoryReader:
        """Reads histories with the vocabulary as it is now, also when items are added later."""
        lookup = self.backend_tokenizer.model.token_to_id
        return HistoryReader(lookup, self._action_ids, self.time_edges, self.has_time, self.num_new_items, self._warned)

    def _key(self, index: int) -> str:
        return cast(str, self.backend_tokenizer.id_to_token(index))

    def _known_key(self, index: int) -> str | None:
        """The key of a token id, announced ones too; None if there is none."""
        announced = self._announced
        key = self.backend_tokenizer.id_to_token(index)
        if key is None and announced is not None and 0 <= index - announced[0] < len(announced[1]):
            return announced[1][index - announced[0]]
        return key

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
        read = self.reader.ids
        rows = [read(history, length if truncation else len(history), row) for row, history in enumerate(batch)]
        longest = max((len(ids.items) for ids in rows), default=0)
        if padding in (True, "longest"):
            width = longest
        elif padding == "max_length":
            width = max(length, longest)
        elif padding in (False, "do_not_pad"):
            width = None
        else:
            raise ValueError(f'padding is {padding!r}, expected True, False, "longest" or "max_length".')
        if width is None and return_tensors is None:
            channels = [[ids[channel] for ids in rows] for channel in range(3)]
            return BatchEncoding(self._named(*channels, [[1] * len(ids.items) for ids in rows]))
        if width is None and any(len(ids.items) != longest for ids in rows):
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
        return self.reader.new_items(as_histories([history])[0], self._window_length(max_length))

    def in_time_order(self, histories: Sequence[Any]) -> list[list[Mapping[str, Any]]]:
        """Each history sorted by time, equal times in the order given; as it is if one of its events has no timestamp.

        Raises:
            ValueError: as for a call, over all events.
        """
        return in_time_order(as_histories(histories))

    def _named(self, *channels: Any) -> dict[str, Any]:
        return dict(zip(self.model_input_names, channels, strict=True))

    def _window_length(self, max_length: int | None) -> int:
        if max_length is None:
            return self.model_max_length
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}, expected at least 1.")
        return max_length

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
        keeps transformers from parsing the whole tokenizer.json a second time, in Python, to look for them.

        Raises:
            ValueError: the files are damaged.
        """
        source = pretrained_model_name_or_path
        try:
            loaded: Any = super().from_pretrained(source, *inputs, added_tokens_decoder={}, **kwargs)
        except Exception:
            check_manifest(Path(source, kwargs.get("subfolder") or "", VOCABULARY_MANIFEST))  # the better reason
            raise
        check_vocabulary(loaded.init_kwargs, loaded.backend_tokenizer.token_to_id, str(source))
        return loaded

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        saved = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        saved += self.save_vocabulary(str(save_directory), filename_prefix)
        manifest = Path(save_directory) / prefixed(VOCABULARY_MANIFEST, filename_prefix)
        write_manifest(manifest, [path.name for path in map(Path, saved) if path.parent == manifest.parent])
        return (*saved, str(manifest))

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
        grown = self.with_items(items, titles)
        self.announce(grown)
        self.take(grown)
        return grown.ids

    def add_actions(self, actions: Sequence[str]) -> None:
        """Appends actions to the vocabulary: a model needs rows for them, too (`train --continue`)."""
        self.init_kwargs["action_vocabulary"] = [*self.action_vocabulary, *actions]
        self.__dict__.pop("_action_ids", None)

    def with_items(self, items: Sequence[str | int], titles: Sequence[str | None]) -> GrownVocabulary:
        """The vocabulary with these items appended; the tokenizer stays as it is. Arguments as for `add_items`."""
        names = [as_text(item, "item") for item in items]
        if "" in names:
            raise ValueError("an item's id is empty, expected text.")
        new: dict[str, str | None] = {}
        for name, title in zip(names, titles, strict=True):
            if self.encode_item(name) == UNK:
                new.setdefault(name, title)
        known = len(self)
        added = {name: index for index, name in enumerate(new, start=known)}
        ids = [added[name] if name in added else self.encode_item(name) for name in names]
        if not new:
            return GrownVocabulary(ids, known, [], None, None)
        table = self._load_table()
        before = VOCABULARY_HEADER + "\n" if table is None else table.text.decode()
        if table is None:
            for index, item in enumerate(self.item_vocabulary, start=self.first_item_id):
                before += f"{index}\t{tsv_field(item)}\t\t\n"
        lines = [f"{added[name]}\t{tsv_field(name)}\t0\t{tsv_field(title or '')}\n" for name, title in new.items()]
        keys = [item_key(name) for name in new]
        vocabulary = self.backend_tokenizer.get_vocab() | dict(zip(keys, added.values(), strict=True))
        return GrownVocabulary(
            ids=ids,
            size=known + len(new),
            keys=keys,
            model=WordLevel(vocabulary, unk_token="[UNK]"),
            table=VocabularyTable((before + "".join(lines)).encode()),
        )

    def announce(self, grown: GrownVocabulary) -> None:
        """Ids can be decoded from now on; items are encoded as before."""
        if grown.model is not None:
            self._announced = (len(self), grown.keys)
            self._table = grown.table

    def take(self, grown: GrownVocabulary) -> None:
        """Takes the vocabulary, which was made of this one."""
        if grown.model is not None:
            self.backend_tokenizer.model = grown.model
            self._announced = None
            self.__dict__.pop("item_vocabulary", None)

    def title(self, item: str | int) -> str | None:
        """The title of an item (the user's id); None if it has none or is not in the vocabulary."""
        return self.title_of(self.encode_item(item))

    def title_of(self, index: int) -> str | None:
        """The title of a token id; None if it has none or is no item's."""
        return self._described(index)[1] or None

    def count_of(self, index: int) -> int | None:
        """How often the log holds the item of a token id; None where that is not known."""
        count = self._described(index)[0]
        return int(count) if count else None

    def _described(self, index: int) -> tuple[str, str]:
        """Count and title of a token id as vocabulary.tsv has them, both empty if it says nothing of it."""
        table = self._load_table() if index >= self.first_item_id else None
        if table is None:
            return "", ""
        row, _, count, title = table.fields(index - self.first_item_id + 1)
        if int(row) != index:
            raise ValueError(
                f"{VOCABULARY_FILE} has id {row} where id {index} should be: it belongs to another tokenizer."
            )
        return count, title

    def _load_table(self) -> VocabularyTable | None:
        source = self._vocabulary_source()
        if self._table is None and source is not None:
            self._table = VocabularyTable(source.read_bytes())
        return self._table

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes vocabulary.tsv: id, item, count and title of every item, with tabs and line ends as \\t and \\n."""
        target = Path(save_directory) / prefixed(VOCABULARY_FILE, filename_prefix)
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
        update_manifest(target.with_name(prefixed(VOCABULARY_MANIFEST, filename_prefix)), target.name)
        return (str(target),)

    def _vocabulary_source(self) -> Path | None:
        """The vocabulary.tsv this tokenizer was loaded with, as transformers resolved it."""
        path = self.init_kwargs.get("vocabulary_file")
        return Path(path) if path is not None and os.path.exists(path) else None


def prefixed(name: str, prefix: str | None) -> str:
    """A file's name as `save_pretrained(filename_prefix=...)` has it."""
    return f"{prefix}-{name}" if prefix else name


BehaviorTokenizer.register_for_auto_class()
# An installed package registers itself. A remote copy must not: it would decide for every later repository.
if not __name__.startswith("transformers_modules"):
    AutoTokenizer.register("bert-next-behavior", BehaviorTokenizer, exist_ok=True)
