"""The model card: `model_card.md` filled with what the run recorded and what was measured. Nothing is typed by hand.

    text = model_card(facts)        # README.md of the repository, with its metadata and model-index

The parts are written by `run_text.py` and `results_text.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from next_behavior.data.shown import shown
from next_behavior.evaluation.rankers import MODEL
from next_behavior.evaluation.ranking import KEPT, REMOVED
from next_behavior.evaluation.tables import little_training
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.publishing.explained_user import factor
from next_behavior.publishing.privacy import Privacy
from next_behavior.publishing.record import command_of
from next_behavior.publishing.request import Provenance
from next_behavior.publishing.results_text import calibration, popularity, results, slices, temperatures
from next_behavior.publishing.run_text import (
    cleaning_text,
    code,
    compute_text,
    data_rows,
    day,
    listed,
    moment,
    privacy_text,
    text_columns,
    training_rows,
    unfenced,
)

TEMPLATE = Path(__file__).with_name("model_card.md")
# What the metadata lists as results: (where, group or None, metric, name on the Hub).
INDEXED = [
    (KEPT, "all", "recall@10", "Recall@10"),
    (KEPT, "all", "ndcg@10", "NDCG@10"),
    (KEPT, "all", "mrr", "MRR"),
    (REMOVED, "all", "recall@10", "Recall@10"),
    (REMOVED, "all", "ndcg@10", "NDCG@10"),
    ("actions", None, "accuracy", "Accuracy of the next action"),
    ("actions", None, "macro_f1", "Macro-F1 of the next action"),
    ("actions", None, "log_loss", "Log-loss of the next action"),
    ("actions", None, "ece", "Expected calibration error of the next action"),
]

# Code is shown uncut.
WHOLE = 10**6


@dataclass(frozen=True)
class CardFacts:
    """Everything the card is written from.

    Attributes:
        revision: the branch or tag that the files are sent to, None if only main names them.
        run, cleaning, result: run.json, cleaning_report.json and evaluation.json; None where there is none.
        config: of the published model.
        parameters: how many weights it has.
        actions, num_items, has_time: of its tokenizer.
        measured: calibration and results by action, as `measures.measure` returns them; None without test events.
        history, answers: a golden history and the pipeline's answers to it.
        contributions: of the events to the first of them.
    """

    repo_id: str
    revision: str | None
    provenance: Provenance
    run: dict[str, Any] | None
    cleaning: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    config: BehaviorConfig
    parameters: int
    actions: Sequence[str]
    num_items: int
    has_time: bool
    measured: Mapping[str, Any] | None
    has_calibration_plot: bool
    privacy: Privacy
    history: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]
    contributions: Sequence[float]

    @property
    def name(self) -> str:
        return self.repo_id.split("/")[-1]


def model_card(facts: CardFacts) -> str:
    """The card as text."""
    actions, result = facts.actions, facts.result
    card = ModelCard.from_template(
        metadata(facts),
        template_path=str(TEMPLATE),
        repo_id=facts.repo_id,
        revision=facts.revision,
        name=facts.name,
        actions=[unfenced(action) for action in actions],
        actions_listed=listed([code(action) for action in actions]),
        num_items=f"{facts.num_items:,}",
        history=[shown(json.dumps(event, ensure_ascii=False), WHOLE) for event in facts.history],
        printed="\n".join(
            f"{unfenced(str(a['action']))} {unfenced(str(a['item']))} {round(a['probability'], 4)}"
            for a in facts.answers[:3]
        ),
        why=why_text(facts.history, facts.contributions),
        has_time=facts.has_time,
        rarest_action=unfenced(actions[-1]),
        data_rows=data_rows(facts.provenance, facts.cleaning, facts.run, facts.num_items),
        cleaning=cleaning_text(facts.cleaning),
        command=shown(command_of(facts.run) or "", WHOLE).replace("`", "'") or "# the run recorded no settings",
        training_rows=training_rows(facts.config, facts.parameters, facts.run),
        results=None if result is None else results(result),
        little_training=little_training((facts.run or {}).get("passes")),
        shrunk=facts.privacy.shrunk,
        calibration=calibration(facts.measured, len(actions), facts.has_calibration_plot),
        temperatures=temperatures(facts.config, len(actions), facts.has_time),
        slices=slices(result, facts.measured),
        last_time=last_training_day(result, facts.cleaning),
        text_columns=text_columns(facts.config),
        popularity=popularity(result),
        privacy=privacy_text(facts.privacy),
        compute=compute_text(facts.run),
        citation=citation(facts.repo_id),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def why_text(history: Sequence[Mapping[str, Any]], contributions: Sequence[float]) -> str:
    """The events of a history, each with what it contributes to the first answer.

    >>> print(why_text([{"item": "84", "action": "view"}, {"action": "search"}], [0.7, -0.1]))
    ×2.0   view 84
    ×0.90  search
    """
    lines = []
    for event, contribution in zip(history, contributions, strict=True):
        named = (event.get("action"), event.get("item"))
        words = " ".join(unfenced(str(one)) for one in named if one is not None)
        lines.append(f"{factor(contribution):5}  {words}")
    return "\n".join(lines)


def metadata(facts: CardFacts) -> ModelCardData:
    """The card's front matter; results become a `model-index`."""
    provenance = facts.provenance
    entries: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["next-behavior", "recommendation", "sequential-recommendation", "bert-next-behavior", "custom_code"],
        "license": provenance.license,
        "datasets": [provenance.data_id] if provenance.data_id else None,
        "base_model": provenance.base_model,
    }
    if facts.result is not None:
        indexed = indexed_results(facts.result, provenance)
        metrics = list(dict.fromkeys(entry.metric_type for entry in indexed))
        entries |= {"model_name": facts.name, "eval_results": indexed, "metrics": metrics}
    return ModelCardData(**{key: value for key, value in entries.items() if value is not None})


def indexed_results(result: Mapping[str, Any], provenance: Provenance) -> list[EvalResult]:
    """The model's figures for the Hub's model-index."""
    name = provenance.data_name or "the publisher's event log"
    indexed = []
    for where, group, metric, title in INDEXED:
        row = result[MODEL].get(where)
        value = None if row is None else row[metric] if group is None else row["items"][group][metric]
        if value is None or (where == "actions" and len(result["actions"]) == 1):
            continue
        indexed.append(
            EvalResult(
                task_type="other",
                task_name="Next behavior prediction",
                dataset_type=provenance.data_id or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
                dataset_name=name,
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{title}, seen items removed" if where == REMOVED else title,
                metric_value=round(value, 5),
            )
        )
    return indexed


def last_training_day(result: Mapping[str, Any] | None, cleaning: Mapping[str, Any] | None) -> str | None:
    """The day that the training events end with; None if the log has no times."""
    split = None if result is None else result["split"]
    if split is not None and split["validation_cut"] is not None:
        return day(moment(split["validation_cut"]))
    return None if cleaning is None else day(cleaning["last_time"])


def citation(repo_id: str) -> str:
    """A BibTeX entry."""
    owner, name = repo_id.split("/")
    key = re.sub(r"[^a-z0-9]+", "_", f"{owner} {name}".lower()).strip("_")
    return (
        f"@misc{{{key},\n  author = {{{owner}}},\n  title = {{{name}: a BertForNextBehavior model of users' next "
        f"behavior}},\n  howpublished = {{\\url{{https://huggingface.co/{repo_id}}}}}\n}}"
    )
