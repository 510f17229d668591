"""The predictor's answers from the model itself, in torch: on a GPU, or where ONNX Runtime is not.

    predictor = TorchPredictor.load(Path("out/shop"), device="cuda")

It has the interface of `predictor.Predictor` and needs no export. An answer takes several times as long on a processor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from next_behavior.model.integrity import check_folder
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.model.vocabulary import VOCABULARY_FILE, VocabularyTable, plain_item
from next_behavior.serving.export import digest_of_model
from next_behavior.serving.live_memory import added_pairs, read_state
from next_behavior.serving.predictor import Info, Learned, info_of
from next_behavior.serving.questions import Asked, Questions
from next_behavior.serving.training_record import training_record
from next_behavior.serving.write_bundle import constants_of

TABLES = ("pair_keys", "pair_counts", "item_counts", "recent_counts")


@dataclass(frozen=True)
class AskedOfModel(Asked):
    """A question with the list of events and the options that the pipeline reads."""

    listed: list[Mapping[str, Any]]
    options: dict[str, Any]


class TorchPredictor:
    """Answers for histories; threads take turns."""

    explains_beside = True

    def __init__(
        self,
        model: BertForNextBehavior,
        tokenizer: BehaviorTokenizer,
        vocabulary: VocabularyTable,
        revision: str,
        training_actions: dict[str, int] | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        # The model compares queries with its table itself: the longest row is not looked for.
        self.constants = constants_of(model.config, tokenizer, revision, training_actions, longest_row=0.0)
        self.questions = Questions(self.constants, tokenizer.backend_tokenizer.token_to_id)
        self._tokenizer = tokenizer
        self._pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device=model.device)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TorchPredictor:
        """The predictor of a saved model.

        Args:
            folder: `export.model_folder` of a Hub id.

        Raises:
            ValueError: the folder is damaged.
        """
        check_folder(folder)
        model = BertForNextBehavior.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        vocabulary = VocabularyTable((folder / VOCABULARY_FILE).read_bytes())
        tokenizer, actions = BehaviorTokenizer.from_pretrained(folder), training_record(folder).actions
        return cls(model, tokenizer, vocabulary, digest_of_model(folder), actions)

    @property
    def info(self) -> Info:
        return info_of(self.constants)

    def vocabulary_line(self, item: str) -> int | None:
        """The line of an item in `vocabulary`; None if the model does not know it."""
        item_id, first = self._tokenizer.encode_item(item), self.questions.first_item_id
        return None if item_id < first else item_id - first + 1

    def ask(self, events: Sequence[Mapping[str, Any]], **options: Any) -> AskedOfModel:
        """Reads and checks a question; see `Questions.ask`."""
        asked = self.questions.ask(events, **options)
        values = {each.name: getattr(asked, each.name) for each in fields(Asked)}
        of_model = {name: value for name, value in options.items() if name != "largest_set"}
        return AskedOfModel(**values, listed=list(events), options=of_model)

    def answer(self, events: Sequence[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """The answers to one history."""
        return self.answers([self.ask(events, **options)])[0]

    def answers(self, asked: Sequence[AskedOfModel]) -> list[list[dict[str, Any]]]:
        """The answers to each question; those with the same options in one pass."""
        found: list[list[dict[str, Any]]] = [[] for _ in asked]
        with self._lock:
            rows: dict[str, list[int]] = {}
            for row, one in enumerate(asked):
                rows.setdefault(repr(sorted(one.options.items())), []).append(row)
            for together in rows.values():
                options = asked[together[0]].options
                answers = self._pipeline(
                    [{"events": asked[row].listed} for row in together], batch_size=len(together), **options
                )
                for row, answer in zip(together, answers, strict=True):
                    found[row] = answer[: asked[row].most_answers]
        return found

    def explain(self, asked: AskedOfModel) -> Iterator[list[dict[str, Any]] | None]:
        """The explained answers to a question, in one step. It needs no turn: what is counted meanwhile is not seen."""
        yield self._pipeline({"events": asked.listed}, **asked.options)

    def count(self, history: Sequence[Mapping[str, Any]]) -> Learned:
        """Learns what the last event of a history adds."""
        runs = self.questions.new_run(history)
        if not runs:
            return Learned([])
        model: BertForNextBehavior = self._pipeline.model
        ids = torch.tensor([runs], device=model.device)
        with self._lock, torch.no_grad():
            model.update_memory(ids)
        return Learned([(self._name(one), self._name(other), weight) for one, other, weight in self._pairs(runs)])

    def _pairs(self, runs: list[int]) -> list[tuple[int, int, float]]:
        return [(pair.first, pair.second, pair.weight) for pair in added_pairs(self.constants, runs)]

    def _name(self, item_id: int) -> str:
        key = self._tokenizer.backend_tokenizer.id_to_token(item_id)
        assert key is not None, "an id of the vocabulary"
        return plain_item(key)

    def snapshot(self, path: Path) -> None:
        """Writes what was learned, whole or not at all."""
        memory = self._pipeline.model.associate_path
        with self._lock:
            tables = {name: getattr(memory, name).cpu().numpy() for name in TABLES}
        unit = np.array(memory.config.memory_recent_unit)
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez(unfinished, allow_pickle=False, recent_unit=unit, **tables)
        unfinished.replace(path)

    def restore(self, path: Path) -> None:
        """Takes up what `snapshot` wrote.

        Raises:
            ValueError: it is the memory of another model, or of the other engine.
        """
        model: BertForNextBehavior = self._pipeline.model
        memory, size = model.associate_path, model.config.vocab_size
        state = read_state(path)
        with self._lock:
            if set(state) != {*TABLES, "recent_unit"} or len(state["item_counts"]) > size:
                raise ValueError(f"{path} is the memory of another model or engine: delete it, and events count again.")
            for name in TABLES:
                setattr(memory, name, torch.from_numpy(state[name]).to(model.device))
            model.config.memory_recent_unit = int(state["recent_unit"])
            memory.changed()
