"""Predictor: the answers of a saved model in well under a millisecond, without torch and transformers.

    predictor = Predictor.load(bundle)
    predictor.answer([{"item": "84", "action": "view", "timestamp": 1700000000}], top_k=10)
    predictor.count(history)                  # its last event changes the next answer

Questions and answers are those of the pipeline (`model/pipeline_behavior.py`); the export asserts that they are equal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from next_behavior.model.answers import TimeUntilNext
from next_behavior.model.coverage import set_sizes
from next_behavior.model.histories import as_arrays
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_GAP, FIRST_NEW, NONE, PATHS
from next_behavior.model.vocabulary import VOCABULARY_FILE, VocabularyTable, known_item, plain_item
from next_behavior.serving.bundle import GOLDEN, NETWORK, Bundle, Constants, open_bundle
from next_behavior.serving.distribution import (
    GATE_NONE,
    GATE_REPEAT,
    MASKED,
    Catalog,
    Joint,
    Said,
    probabilities_of,
    ranked,
    shares_of_paths,
)
from next_behavior.serving.explaining import ANY_ACTION, Named, Texts, explaining_steps
from next_behavior.serving.golden import check_golden
from next_behavior.serving.live_memory import LiveMemory, read_state
from next_behavior.serving.pointer import Pointer
from next_behavior.serving.questions import Asked, Questions, most_explained

# Scores held at once, as in the model.
MAX_SCORES = 2**22
# Items whose name and title are kept.
MOST_SHOWN = 65_536


@dataclass(frozen=True)
class Info:
    """What a predictor answers with.

    Attributes:
        revision: digest of the model's files.
        items: how many there are; actions: their names.
        max_events: of a history, the newest, that are read.
        has_time: whether answers say when.
        training_actions: events by action in the log of the training; None where that is not recorded.
        explained_events: of the longest history whose answers are explained.
    """

    revision: str
    items: int
    actions: list[str]
    max_events: int
    has_time: bool
    training_actions: dict[str, int] | None
    explained_events: int


class NetworkAnswer(NamedTuple):
    """What is known of the next event of B histories, of Q actions that may come next.

    Attributes:
        by_action: (B, Q) and times: (B, G), calibrated probabilities.
        queries: (B, Q, H); pointer: (B, Q, T) and gate: (B, Q, 3), logarithms, MASKED where impossible.
    """

    by_action: np.ndarray
    times: np.ndarray
    queries: np.ndarray
    pointer: np.ndarray
    gate: np.ndarray


@dataclass(frozen=True)
class Learned:
    """What an event has taught: (item, item, weight) for "the first, then the second"."""

    pairs: list[tuple[str, str, float]]


class Predictor:
    """Answers for histories; one process may use it from several threads, which take turns."""

    explains_beside = False

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        constants = bundle.constants
        self.constants = constants
        self.first_item_id = FIRST_NEW + constants.num_new_items
        self._tokenizer = Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
        self.vocabulary = VocabularyTable((bundle.folder / VOCABULARY_FILE).read_bytes())
        self.questions = Questions(constants, self._tokenizer.token_to_id)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        path = str(bundle.folder / NETWORK)
        self._network = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._table = bundle.item_table
        self.catalog = Catalog(constants, bundle.item_columns)
        self.memory = LiveMemory(constants, bundle.memory)
        self._texts = Texts(bundle.text["text_vectors"], bundle.text["text_unit"])
        self._pointer = Pointer(constants, bundle.pointer)
        self._causal = np.triu(np.full((constants.max_events, constants.max_events), MASKED), 1)
        self._without_item = np.isin(np.arange(FIRST_ACTION, constants.num_actions), constants.actions_without_item)
        width = constants.num_actions
        self._action_bias = np.array(constants.action_bias or np.zeros((width, width)), np.float32)
        self._time_bias = np.array(constants.time_bias or 0.0, np.float32)
        self._until_next = TimeUntilNext(constants.time_edges) if constants.has_time else None
        self._shown = lru_cache(MOST_SHOWN)(self._item_and_title)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Predictor:
        """The predictor of a bundle.

        Args:
            folder: from `bundle_for` (export.py).
            threads: of the network.

        Raises:
            ValueError: the bundle is damaged, or does not answer as its model did.
        """
        predictor = cls(open_bundle(folder), threads)
        check_golden(predictor.answers_to, folder / GOLDEN)
        return predictor

    @property
    def info(self) -> Info:
        return info_of(self.constants)

    def item_vocabulary(self) -> list[str]:
        """The items in id order; the first has the id `first_item_id`."""
        return [self._name(index) for index in range(self.first_item_id, self.constants.vocab_size)]

    def vocabulary_line(self, item: str) -> int | None:
        """The line of an item in `vocabulary`; None if the model does not know it."""
        item_id = known_item(self._tokenizer.token_to_id, item)
        return None if item_id is None or item_id < self.first_item_id else item_id - self.first_item_id + 1

    def ask(self, events: Sequence[Mapping[str, Any]], **options: Any) -> Asked:
        """Reads and checks a question; see `Questions.ask`."""
        return self.questions.ask(events, **options)

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(self, events: Sequence[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """The answers to one history: the pipeline's, for the same events and options."""
        return self.answers([self.ask(events, **options)])[0]

    def answers(self, asked: Sequence[Asked]) -> list[list[dict[str, Any]]]:
        """The answers to each question; an answer does not depend on the others."""
        with self._lock:
            answered = self._answers(asked)
            for row, one in enumerate(asked):
                if one.history is not None:
                    for step in explaining_steps(self, self._texts, one, answered[row]):
                        answered[row] = step or answered[row]
        return answered

    def explain(self, one: Asked) -> Iterator[list[dict[str, Any]] | None]:
        """The explained answers to a question come last; None before that, after each step of some milliseconds.

        Whoever counts events between two steps gets numbers from before and after.
        """
        with self._lock:
            steps = explaining_steps(self, self._texts, one, self._answers([one])[0])
        yield None
        while True:
            with self._lock:
                step = next(steps)
            yield step
            if step is not None:
                return

    def _answers(self, asked: Sequence[Asked]) -> list[list[dict[str, Any]]]:
        """The answers without their explanations."""
        if not asked:
            return []
        answered: list[list[dict[str, Any]]] = [[] for _ in asked]
        said = self._said_of_all(asked)
        for row, one in enumerate(asked):
            if one.of == "action":
                answered[row] = self._ranked_actions(one, said.by_action[row])
        for row, joint, of_items in self._joints(asked, said):
            answered[row] = self._ranked_items(asked[row], joint, of_items)
        for row, (one, found) in enumerate(zip(asked, answered, strict=True)):
            when = None if self._until_next is None else self._until_next(said.times[row])
            for each in found:
                each["when"] = when
                if one.paths:
                    each["paths"] = each.pop("paths", None)
        return answered

    def probabilities(self, asked: Sequence[Asked], named: Sequence[Named]) -> list[np.ndarray]:
        """(k,) float32 for each question: the probabilities that its answers of some names would have."""
        found: list[np.ndarray] = [np.zeros(0, np.float32) for _ in asked]
        said = self._said_of_all(asked)
        for row, (one, answers) in enumerate(zip(asked, named, strict=True)):
            if one.of == "action":
                found[row] = said.by_action[row][answers.rows]
        for row, joint, _ in self._joints(asked, said):
            one = asked[row]
            offset = 0 if one.action is None else one.action - FIRST_ACTION
            rows = np.where(named[row].rows == ANY_ACTION, ANY_ACTION, named[row].rows - offset)
            limits = one.exclude, one.allowed, self._without(one, joint)
            found[row] = probabilities_of(joint, self.first_item_id, ranked_of(one), *limits, named[row].items, rows)
        return found

    def said_of(self, one: Asked) -> NetworkAnswer:
        """What the network says after one history, without the dimension of the histories."""
        return NetworkAnswer(*(table[0] for table in self._said_of_all([one])))

    def _said_of_all(self, asked: Sequence[Asked]) -> NetworkAnswer:
        histories = [one.ids for one in asked]
        return self.network_answer(*as_arrays(histories, max(len(ids.items) for ids in histories)))

    def _joints(self, asked: Sequence[Asked], answer: NetworkAnswer) -> Iterator[tuple[int, Joint, Said]]:
        """The distribution of each question about items, by its place; it holds until the next one is taken."""
        waiting = [row for row, one in enumerate(asked) if one.of != "action"]
        queries = answer.queries
        rows_at_once = max(1, MAX_SCORES // (self.catalog.width * queries.shape[1]))
        for begin in range(0, len(waiting), rows_at_once):
            part = waiting[begin : begin + rows_at_once]
            chosen = [self._rows_of(asked[row]) for row in part]
            asking = [queries[row, actions] for row, actions in zip(part, chosen, strict=True)]
            together = np.concatenate(asking) if len(asking) > 1 else asking[0]
            logits, limit = self.catalog.logits(together), self.catalog.limit(together)
            end = 0
            for row, actions in zip(part, chosen, strict=True):
                one, width = asked[row], len(asked[row].ids.items)
                begin_of, end = end, end + len(queries[row, actions])
                counts = answer.by_action[row, actions] if one.action is None else np.ones(1, np.float32)
                items, pointer = np.array(one.ids.items), answer.pointer[row, actions, -width:]
                said = Said(items, pointer, answer.gate[row, actions], counts)
                recent = one.runs[::-1][: self.constants.memory_history]
                joint = self.catalog.joint(said, logits[begin_of:end], limit, self.memory, recent, one.paths)
                yield row, joint, said

    def network_answer(
        self, items: np.ndarray, actions: np.ndarray, time_gaps: np.ndarray, mask: np.ndarray
    ) -> NetworkAnswer:
        """What the network says after histories of ids, (B, T) int64 each, padded on the left."""
        constants = self.constants
        feed = {
            "item_rows": self._table[items],
            "actions": actions,
            "time_gaps": time_gaps,
            "mask": mask,
            "attention_bias": self._attention_bias(mask),
        }
        action_logits, time_logits, queries, scores, gate = self._network.run(None, feed)
        pointer = self._pointer.log_probabilities(scores, items, actions, time_gaps, mask)
        gate[:, ~self._without_item, GATE_NONE] = MASKED
        gate[pointer.max(axis=2) <= MASKED, GATE_REPEAT] = MASKED
        action_logits = action_logits / np.float32(constants.action_temperature) + self._action_bias[actions[:, -1]]
        time_logits = time_logits / np.float32(constants.time_temperature) + self._time_bias
        by_action, times = softmax(action_logits[:, FIRST_ACTION:]), softmax(time_logits[:, FIRST_GAP:])
        return NetworkAnswer(by_action, times, queries, pointer, gate)

    def _attention_bias(self, mask: np.ndarray) -> np.ndarray:
        """(B, 1, T, T) float32: an event reads itself and those before it, padding reads itself."""
        length = mask.shape[1]
        causal = self._causal[:length, :length]
        if mask.all():
            return np.broadcast_to(causal, (len(mask), 1, length, length))
        bias = np.where(mask[:, None, None, :] != 0, causal, MASKED)
        bias[:, :, np.arange(length), np.arange(length)] = 0
        return bias

    def _rows_of(self, one: Asked) -> slice:
        return slice(None) if one.action is None else slice(one.action - FIRST_ACTION, one.action - FIRST_ACTION + 1)

    def _without(self, one: Asked, joint: Joint) -> list[int]:
        """The rows of `joint` whose action may come without an item, if that is an answer."""
        if one.of != "pair":
            return []
        given = range(len(joint.weights)) if one.action is None else [one.action - FIRST_ACTION]
        can = {action - FIRST_ACTION for action in self.constants.actions_without_item}
        return [row for row, action in enumerate(given) if action in can]

    def _ranked_items(self, one: Asked, joint: Joint, said: Said) -> list[dict[str, Any]]:
        first, without = self.first_item_id, self._without(one, joint)
        ids, rows, probabilities = ranked(
            joint, first, ranked_of(one), one.top_k, one.exclude, one.allowed, without, one.limit
        )
        if one.most_answers is not None:
            ids, rows, probabilities = (column[: one.most_answers] for column in (ids, rows, probabilities))
        if not np.isfinite(probabilities).all():
            raise ValueError("got a probability that is not finite: the model or its memory is damaged.")
        shares = shares_of_paths(joint, said, first, ids, rows) if one.paths else None
        offset = 0 if one.action is None else one.action - FIRST_ACTION
        answers = []
        for place, (item_id, row, probability) in enumerate(
            zip(ids.tolist(), rows.tolist(), probabilities.tolist(), strict=True)
        ):
            item, title = (
                (one.new_items[item_id - FIRST_NEW], None) if FIRST_NEW <= item_id < first else self._shown(item_id)
            )
            found: dict[str, Any] = {
                "action": None if row == -1 else self.constants.actions[row + offset],
                "item": item,
                "title": title,
                "probability": probability,
            }
            if shares is not None:
                share = dict(zip(PATHS, shares[place].tolist(), strict=True))
                del share["none"]
                found["paths"] = share if sum(share.values()) > 0 else None
            answers.append(found)
        return answers

    def _ranked_actions(self, one: Asked, probabilities: np.ndarray) -> list[dict[str, Any]]:
        score = probabilities
        if one.balanced:
            score = score * np.exp(np.array(self.constants.action_weights[FIRST_ACTION:], np.float32))
        order = np.argsort(-score, kind="stable")
        count = one.top_k if one.limit is None else set_sizes(score[order][None], one.limit)[0]
        return [
            {
                "action": self.constants.actions[row],
                "item": None,
                "title": None,
                "probability": float(probabilities[row]),
            }
            for row in order[:count].tolist()
        ]

    def _item_and_title(self, item_id: int) -> tuple[str | None, str | None]:
        """What the user calls an id of the vocabulary."""
        if item_id == NONE:
            return None, None
        return self._name(item_id), self.vocabulary.fields(item_id - self.first_item_id + 1)[3] or None

    def answers_to(self, histories: Sequence[Any], options: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        """The answers to one question about several histories."""
        return self.answers([self.ask(history, **options) for history in histories])

    # -- learning ------------------------------------------------------------------------------------------------------

    def count(self, history: Sequence[Mapping[str, Any]]) -> Learned:
        """Learns what the last event of a history adds, as `update_memory` does: call it once for every new event."""
        runs = self.questions.new_run(history)
        if not runs:
            return Learned([])
        with self._lock:
            pairs = self.memory.count(runs)
        name = self._name
        return Learned([(name(pair.first), name(pair.second), pair.weight) for pair in pairs])

    def _name(self, item_id: int) -> str:
        key = self._tokenizer.id_to_token(item_id)
        assert key is not None, "an id of the vocabulary"
        return plain_item(key)

    def snapshot(self, path: Path) -> None:
        """Writes what was learned since the export, whole or not at all."""
        with self._lock:
            state = {name: table.copy() for name, table in self.memory.state().items()}
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez(unfinished, allow_pickle=False, **state)
        unfinished.replace(path)

    def restore(self, path: Path) -> None:
        """Takes up what `snapshot` wrote.

        Raises:
            ValueError: it is damaged, or belongs to another model.
        """
        state = read_state(path)
        with self._lock:
            self.memory.take_state(state)


def info_of(constants: Constants) -> Info:
    return Info(
        revision=constants.revision,
        items=constants.vocab_size - FIRST_NEW - constants.num_new_items,
        actions=constants.actions,
        max_events=constants.max_events,
        has_time=constants.has_time,
        training_actions=constants.training_actions,
        explained_events=most_explained(constants),
    )


def ranked_of(one: Asked) -> str:
    """What is ranked: items over all actions, or pairs."""
    return "item" if one.of == "item" and one.action is None else "pair"


def softmax(logits: np.ndarray) -> np.ndarray:
    """(B, n) for (B, n) logits."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
