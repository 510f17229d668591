"""NextBehaviorPipeline: raw events in, ranked next behaviors out, always in the user's own ids.

    predict = pipeline("next-behavior", model=DIR, trust_remote_code=True)
    predict({"events": [{"item": "84", "action": "view", "timestamp": 1700000000}, ...]}, top_k=10)
    # [{"action": "buy", "item": "84", "title": "Garden chair", "probability": 0.031, "when": {...}}, ...]

A list of such dicts is a batch and gives a list of such lists. The ids come from the tokenizer and the ranking from
`BertForNextBehavior.predict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .answer_tables import TABLES_LOCK, AnswerTables
from .answers import TimeUntilNext, allowed_ids, events_of
from .encoder import CHANNELS
from .explaining_answers import Explainer, Given
from .explaining_counterfactuals import Counterfactuals
from .explaining_rules import COUNTERFACTUAL, INTEGRATED_GRADIENTS, LEAVE_ONE_OUT, check_explain
from .histories import HistoryReader, as_arrays, in_time_order, is_whole
from .integrity import check_loaded
from .ranking import Question
from .special_ids import FIRST_NEW, PAD, PATHS

DEFAULT_BATCH_SIZE = 32
OPTIONS = (
    *("top_k", "of", "action", "exclude_seen", "allowed_items", "balanced", "coverage", "paths"),
    *("explain", "target"),
)


@dataclass(frozen=True)
class Explanation:
    """What explanation is asked for: the options `explain` and `top_k`, the id of `target`, and of what question."""

    explain: bool | str
    top_k: int
    target: int | None
    question: Question


@dataclass(frozen=True)
class BesideIds:
    """What a batch of inputs holds beside the token ids.

    Attributes:
        tables: what the answers read; they belong to the vocabulary that gave the ids.
        reader: gave the ids. events: for each row the list that it was given.
        new_items: for each row the user's ids behind [NEW_1], [NEW_2] ...
        seen_before: for each row the ids of known items that were seen before the window.
    """

    tables: AnswerTables
    reader: HistoryReader
    events: list[list[Any]]
    new_items: list[list[str]]
    seen_before: list[list[int]]


class NextBehaviorPipeline(Pipeline):
    """What a user does next: which action, on which item, how probable and how soon.

    Options, at construction or in a call (the call wins):
        top_k: answers per history, default 10; beyond the number of candidates, all of them.
        of: "pair" (default) ranks (action, item) pairs, "item" items, "action" actions.
        action: the answer given that this is the next action, by its name.
        exclude_seen: leave out every item in `events`, also in events too old for the model's window.
        allowed_items: rank only these items (the user's ids; all must be in the vocabulary).
        balanced: with of="action", name rare actions first more often: ranked for macro-F1, not by probability.
        coverage: with of="item" or "action", instead of `top_k` answers the smallest number of most probable ones that
            holds the next item, or action, with this probability. It is fitted on validation events.
        paths: say which way each item was named.
        explain: True says what each event contributes to each answer; "integrated_gradients" by gradients;
            "counterfactual" which events the first answer depends on (explaining_rules.py).
        target: with explain="counterfactual", an item: which events would bring it among the answers.
        batch_size: histories per forward pass, default 32; it changes no answer.

    Each answer has the keys
        action: name, or None where the question was not about actions (of="item" without `action`).
        item: the user's id, also of items the vocabulary does not know but the history holds; None where the action
            comes without an item, or for of="action".
        title: the item's title, or None.
        probability: float, over the candidates that the options leave.
        when: `median_seconds` until the next event and the probabilities `within_1_hour`, `within_1_day`,
            `within_7_days` and `within_30_days`; None for a model of a log without times. The same for every answer
            to one history.
        paths: with `paths=True`, the shares of the item's probability that the paths `generate` (the item table),
            `repeat` (a pointer over the user's events) and `associate` (the memory of co-occurrence and of recent
            popularity) give; they sum to one. None for an answer without an item.
        contributions: with `explain`, one number for each event, in the order of `events`. importance: the same, to
            rank events by. because: with `explain`,
            what the model's parts say of the item.
        counterfactual: with `explain="counterfactual"`, of the first answer.

    Events out of time order are sorted if all of them carry a timestamp. The model is put in eval mode.
    """

    # A BertForNextBehavior and a BehaviorTokenizer. Imported here, a folder's code would be loaded twice.
    model: Any
    tokenizer: Any

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.tokenizer is None:
            raise ValueError("the pipeline got no tokenizer, expected the model's: pass tokenizer=.")
        check_loaded(self.model, self.tokenizer)
        self._until_next = TimeUntilNext(self.tokenizer.time_edges or [1.0])
        self.model.eval()

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"{name} is not an option, expected {', '.join(OPTIONS)} or batch_size.")
        for_preprocess = {name: value for name, value in options.items() if name == "exclude_seen"}
        return for_preprocess, options, {}

    def get_inference_context(self) -> Any:
        return torch.inference_mode

    def __call__(self, inputs: Any, batch_size: int | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Answers for `{"events": [...]}`: a list of dicts; for a list of such inputs: a list of lists; for any other
        iterable of them: an iterator of lists, read `batch_size` at a time.

        Raises:
            ValueError: an input, an event or the value of an option is not what is documented.
            TypeError: an option does not exist.
        """
        size = self._batch_size or DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        if not is_whole(size) or size < 1:
            raise ValueError(
                f"batch_size is {batch_size!r:.80} ({type(batch_size).__name__}), expected a whole number of at least "
                "1."
            )
        if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
            raise ValueError(f'got {inputs!r:.80}, expected {{"events": [...]}} or several of such.')
        given = self._sanitize_parameters(**options)
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        parameters = [{**default, **call} for default, call in zip(defaults, given, strict=True)]
        if isinstance(inputs, Mapping):
            return self.run_single([inputs], *parameters)[0]
        answers = self._in_batches(inputs, size, parameters)
        return list(answers) if isinstance(inputs, (list, tuple)) else answers

    def _in_batches(
        self, inputs: Iterable[Any], size: int, parameters: list[dict[str, Any]]
    ) -> Iterator[list[dict[str, Any]]]:
        remaining = iter(inputs)
        while batch := list(islice(remaining, size)):
            yield from self.run_single(batch, *parameters)

    def preprocess(self, inputs: list[Any], exclude_seen: bool = False) -> dict[str, Any]:  # type: ignore[override]
        """Token ids of a batch of inputs, and what was read beside them."""
        lists = [events_of(one, row) for row, one in enumerate(inputs)]
        histories = in_time_order(lists)
        # Taken together, so that both know the same items.
        with TABLES_LOCK, torch.no_grad():
            reader, tables = self.tokenizer.reader, self.model.answer_tables(self.device)
        length, first_item = self.tokenizer.model_max_length, self.tokenizer.first_item_id
        rows, new_items, seen_before = [], [], []
        for row, history in enumerate(histories):
            seen: dict[str, int] = {}
            rows.append(reader.ids(history, length, row, seen))
            new_items.append([item for item, index in seen.items() if FIRST_NEW <= index < first_item])
            older = history[:-length] if exclude_seen else []
            seen_before.append(sorted({index for index in reader.known_items(older) if index >= first_item}))
        arrays = as_arrays(rows, max(len(ids.items) for ids in rows))
        batch = dict(zip(CHANNELS, (torch.from_numpy(array) for array in arrays), strict=True))
        return {"batch": batch, "beside": BesideIds(tables, reader, lists, new_items, seen_before)}

    def _forward(  # type: ignore[override]
        self,
        model_inputs: dict[str, Any],
        top_k: int = 10,
        of: str = "pair",
        action: str | None = None,
        exclude_seen: bool = False,
        allowed_items: list[str] | None = None,
        balanced: bool = False,
        coverage: float | None = None,
        paths: bool = False,
        explain: bool | str = False,
        target: str | None = None,
    ) -> dict[str, Any]:
        """The model's `Answers`."""
        check_explain(explain, target, of, coverage)
        beside: BesideIds = model_inputs["beside"]
        allowed = None if allowed_items is None else self._known_items(allowed_items)
        action_id = None if action is None else self.tokenizer.encode_action(action)
        answers = self.model.answers(
            **model_inputs["batch"],
            top_k=top_k,
            of=of,
            action=action_id,
            exclude_seen=exclude_seen,
            allowed_items=allowed,
            balanced=balanced,
            coverage=coverage,
            left_out=beside.seen_before if any(beside.seen_before) else None,
            shares=paths or bool(explain),
            time=self.tokenizer.has_time,
            tables=beside.tables,
        )
        asked = None
        if explain:
            target_id = None if target is None else int(self._known_items([target])[0])
            question = Question(of, top_k, action_id, exclude_seen, allowed, balanced=balanced)
            asked = Explanation(explain, top_k, target_id, question)
        return {"answers": answers, "beside": beside, "asked": asked}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[list[dict[str, Any]]]:  # type: ignore[override]
        """Ids back to what the user calls things."""
        said: Any = model_outputs["answers"]
        lists = (said.ranked.item_ids.tolist(), said.ranked.action_ids.tolist(), said.ranked.probabilities.tolist())
        times = None if said.time is None else said.time.cpu().numpy()
        all_shares = None if said.shares is None else said.shares.tolist()
        answers = []
        for row, (item_ids, action_ids, probabilities) in enumerate(zip(*lists, strict=True)):
            new_items = model_outputs["beside"].new_items[row]
            when = None if times is None else self._until_next(times[row])
            found = []
            shares = None if all_shares is None else all_shares[row]
            ranked = zip(item_ids, action_ids, probabilities, strict=True)
            for place, (item_id, action_id, probability) in enumerate(ranked):
                if item_id == PAD and action_id == PAD:  # fewer candidates than top_k
                    continue
                item, title = self._item(item_id, new_items)
                found.append(
                    {
                        "action": None if action_id == PAD else self.tokenizer.decode_action(action_id),
                        "item": item,
                        "title": title,
                        "probability": probability,
                        "when": when,
                    }
                )
                if shares is not None:
                    share = dict(zip(PATHS, shares[place], strict=True))
                    del share["none"]  # the path of answers without an item
                    found[-1]["paths"] = share if sum(share.values()) > 0 else None
            answers.append(found)
        if model_outputs["asked"] is not None:
            self._explain(model_outputs["asked"], answers, lists, model_outputs["beside"])
        return answers

    def _explain(
        self, asked: Explanation, answers: list[list[dict[str, Any]]], lists: tuple[Any, ...], beside: BesideIds
    ) -> None:
        """Adds the explanations to the answers, whose item ids, action ids and probabilities are `lists`."""
        explainer = Explainer(self.model, beside.reader, beside.tables, self.tokenizer.model_max_length, asked.question)
        given, probabilities = [], []
        for row, (found, *columns) in enumerate(zip(answers, *lists, strict=True)):
            item_ids, action_ids, ranked = (column[: len(found)] for column in columns)
            events, new_items = beside.events[row], beside.new_items[row]
            given.append(
                Given(events, item_ids, action_ids, new_items, explainer.seen_in(events, beside.seen_before[row]))
            )
            probabilities.append(ranked)
        numbers: list[dict[str, Any]] = [{} for _ in given]
        if asked.explain is LEAVE_ONE_OUT:
            both = explainer.leave_one_out(given, probabilities)
            numbers = [{"contributions": one, "importance": other} for one, other in both]
        elif asked.explain == INTEGRATED_GRADIENTS:
            numbers = [{"contributions": one} for one in explainer.integrated_gradients(given)]
        for row, found in enumerate(answers):
            for place, reasons in enumerate(explainer.because(given[row]) if found else []):
                found[place].update({name: of[place].tolist() for name, of in numbers[row].items()})
                found[place]["because"] = reasons
            if asked.explain == COUNTERFACTUAL and found:
                search = Counterfactuals(explainer, given[row], self.tokenizer)
                found[0]["counterfactual"] = (
                    search.removed() if asked.target is None else search.added(asked.target, asked.top_k)
                )

    def _item(self, item_id: int, new_items: list[str]) -> tuple[str | None, str | None]:
        """The user's id and the title."""
        if FIRST_NEW <= item_id < self.tokenizer.first_item_id:
            return new_items[item_id - FIRST_NEW], None
        return self.tokenizer.decode_item(item_id), self.tokenizer.title_of(item_id)

    def _known_items(self, items: Any) -> torch.Tensor:
        """Token ids (N,) of the user's ids; ValueError if the vocabulary lacks one."""
        ids = allowed_ids(items, self.tokenizer.encode_item, self.tokenizer.first_item_id)
        return torch.tensor(ids, dtype=torch.long, device=self.device)


# An installed package registers itself. A remote copy must not: it would decide for every later repository.
if not __name__.startswith("transformers_modules"):
    PIPELINE_REGISTRY.register_pipeline("next-behavior", pipeline_class=NextBehaviorPipeline, pt_model=AutoModel)
