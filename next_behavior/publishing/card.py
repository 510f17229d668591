"""The model card: `model_card.md` filled with what the run recorded and what was measured, nothing typed by hand.

text = model_card(facts)        # README.md of the repository, metadata and model-index included
draw_results(result, path)      # plots for it, PNG
draw_calibration(measured, path)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from next_behavior.data.splits import Split
from next_behavior.evaluation.evaluator import BALANCED, MODEL, UPDATED, marked, number, table, verdict, with_interval

TEMPLATE = Path(__file__).with_name("model_card.md")
WAYS = {"kept": "Next item, seen items kept", "removed": "Next item, seen items removed"}
# What the metadata lists as results: (where, group or None, metric, name on the Hub).
INDEXED = [
    ("kept", "all", "recall@10", "Recall@10"),
    ("kept", "all", "ndcg@10", "NDCG@10"),
    ("kept", "all", "mrr", "MRR"),
    ("removed", "all", "recall@10", "Recall@10"),
    ("removed", "all", "ndcg@10", "NDCG@10"),
    ("actions", None, "accuracy", "Accuracy of the next action"),
    ("actions", None, "macro_f1", "Macro-F1 of the next action"),
    ("actions", None, "log_loss", "Log-loss of the next action"),
    ("actions", None, "ece", "Expected calibration error of the next action"),
]
GROUPS = {
    "repeat": "items the user had before",
    "novel": "items new to the user",
    "cold": "items absent from the vocabulary",
    "switch": "items other than the one before",
}


@dataclass(frozen=True)
class Provenance:
    """What no run can know, and only the publisher can say; None is written as "not stated"."""

    license: str | None = None
    data_name: str | None = None
    data_source: str | None = None
    data_license: str | None = None
    data_id: str | None = None  # of a data set on the Hub
    base_model: str | None = None  # likewise of a model


@dataclass(frozen=True)
class CardFacts:
    """Everything the card says something about.

    Attributes:
        run, cleaning, result: run.json, cleaning_report.json and evaluation.json; None where the folder has none.
        command: the command that trains the same model.
        config: of the published model.
        actions, item_facts, num_items, has_time: of its tokenizer; item_facts are counts and titles.
        measured: calibration and slices, as `publish.measure` returns them; None without test events.
        privacy: as `publish.Privacy.to_dict`.
        history, answers: a golden history and what the pipeline answers to it.
        parameters: how many weights there are.
    """

    repo_id: str
    provenance: Provenance
    run: Mapping[str, Any] | None
    cleaning: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    command: str | None
    config: Any
    actions: Sequence[str]
    num_items: int
    has_time: bool
    measured: Mapping[str, Any] | None
    has_calibration_plot: bool
    privacy: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]
    parameters: int


def model_card(facts: CardFacts) -> str:
    """The card as text.

    Raises:
        ValueError: this runs from an installation, which holds no template.
    """
    if not TEMPLATE.is_file():
        raise ValueError(f"got no {TEMPLATE.name} beside publish.py; expected a checkout of the project: run it there.")
    card = ModelCard.from_template(
        metadata(facts),
        template_path=str(TEMPLATE),
        repo_id=facts.repo_id,
        name=facts.repo_id.split("/")[-1],
        actions=[plain(action) for action in facts.actions],
        actions_listed=listed([code(action) for action in facts.actions]),
        num_items=f"{facts.num_items:,}",
        history=[json.dumps(event, ensure_ascii=False) for event in facts.history],
        printed="\n".join(f"{a['action']} {a['item']} {round(a['probability'], 4)}" for a in facts.answers[:3]),
        has_time=facts.has_time,
        rarest_action=plain(facts.actions[-1]),
        data_rows=data_rows(facts),
        cleaning=cleaning_text(facts.cleaning),
        command=facts.command or "# the run recorded no settings",
        training_rows=training_rows(facts),
        results=None if facts.result is None else results(facts.result),
        shrunk=facts.privacy["removed_items"] or facts.privacy["removed_pairs"],
        calibration=calibration(facts),
        temperatures=temperatures(facts),
        slices=slices(facts),
        last_time=last_training_day(facts),
        words=words(facts.config),
        popularity=popularity(facts.result),
        privacy=privacy_text(facts.privacy),
        compute=compute_text(facts.run),
        citation=citation(facts.repo_id),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# Metadata
# ----------------------------------------------------------------------------------------------------------------------


def metadata(facts: CardFacts) -> ModelCardData:
    """The card's front matter; results become a `model-index`."""
    said = facts.provenance
    name = facts.repo_id.split("/")[-1]
    found: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["next-behavior", "recommendation", "sequential-recommendation", "bert-next-behavior", "custom_code"],
        "license": said.license,
        "datasets": [said.data_id] if said.data_id else None,
        "base_model": said.base_model,
    }
    if facts.result is not None:
        results = indexed_results(facts.result, said)
        metrics = list(dict.fromkeys(entry.metric_type for entry in results))
        found |= {"model_name": name, "eval_results": results, "metrics": metrics}
    return ModelCardData(**{key: value for key, value in found.items() if value is not None})


def indexed_results(result: Mapping[str, Any], said: Provenance) -> list[EvalResult]:
    """The model's figures for the Hub's model-index."""
    name = said.data_name or "the publisher's event log"
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
                dataset_type=said.data_id or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
                dataset_name=name,
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{title}, seen items removed" if where == "removed" else title,
                metric_value=round(value, 5),
            )
        )
    return indexed


# ----------------------------------------------------------------------------------------------------------------------
# Words
# ----------------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text that breaks neither a table nor a code span."""
    return text.replace("|", "/").replace("`", "'").replace("\n", " ")


def code(text: str) -> str:
    return f"`{plain(text)}`"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names with commas, the first `most` of them.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def share(part: float, whole: float) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def day(time: str | None) -> str | None:
    """The day of an ISO time."""
    return None if time is None else time[:10]


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(477), duration(9000)
    ('42 s', '8 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def last_training_day(facts: CardFacts) -> str | None:
    """The day that the training events end with; None if the log has no times."""
    split = None if facts.result is None else facts.result["split"]
    if split is not None and split["validation_cut"] is not None:
        return day(moment(split["validation_cut"]))
    return None if facts.cleaning is None else day(facts.cleaning["last_time"])


def data_rows(facts: CardFacts) -> list[tuple[str, str]]:
    """What the model was trained on."""
    said, found = facts.provenance, facts.cleaning
    rows = [
        ("name", plain(said.data_name) if said.data_name else "not stated by the publisher"),
        ("source", plain(said.data_source) if said.data_source else "not stated by the publisher"),
        ("licence", plain(said.data_license) if said.data_license else "not stated by the publisher"),
    ]
    if said.data_id:
        rows.append(("on the Hub", f"[{said.data_id}](https://huggingface.co/datasets/{said.data_id})"))
    if found is None:
        return [*rows, ("contents", "not recorded by the run")]
    period = "the log has no times"
    if found["first_time"]:
        period = f"{day(found['first_time'])} to {day(found['last_time'])} (UTC)"
    rows += [
        ("period", period),
        ("events", f"{found['events']:,}"),
        ("users", f"{found['users']:,}, median {found['median_user_events']:g} events, at most "
                  f"{found['longest_user_events']:,}"),
        ("items", f"{found['items']:,} in the log, {facts.num_items:,} in the published vocabulary"),
        ("actions", listed([f"{code(name)} {share(count, found['events'])}"
                            for name, count in found["actions"].items()])),
        ("repeats", f"{100 * found['repeats']:.1f} % of the events that name an item: their user had it before"),
    ]  # fmt: skip
    if found["without_item"]:
        rows.append(("without an item", share(found["without_item"], found["events"])))
    for name, digest in (facts.run or {}).get("events_sha256", {}).items():
        rows.append((f"SHA-256 of {code(name)}", code(digest)))
    return rows


def cleaning_text(found: Mapping[str, Any] | None) -> str:
    """What cleaning removed, in the report's own words."""
    if found is None:
        return "The run recorded no cleaning report."
    if not found["removed"]:
        text = f"Cleaning: {found['rows']:,} rows were read and none was removed."
    else:
        removed = sum(entry["rows"] for entry in found["removed"])
        why = "; ".join(f"{entry['rows']:,} {entry['what']}" for entry in found["removed"])
        text = f"Cleaning: {found['rows']:,} rows were read, {removed:,} removed: {why}."
    if found["exact_duplicates"]:
        text += (
            f" {share(found['exact_duplicates'], found['events'])} events are exact copies of another; they were kept."
        )
    if found["ties"]:
        text += f" {share(found['ties'], found['events'])} happened at the same time as the user's event before."
    if found["suspicious_users"]:
        text += f" {len(found['suspicious_users'])} users have so many events that they may not be people."
    return text


def training_rows(facts: CardFacts) -> list[tuple[str, str]]:
    """How it was trained, and what came out."""
    config, run = facts.config, facts.run
    rows = [
        ("architecture", f"{config.num_hidden_layers} layer(s) of width {config.hidden_size}, histories of up to "
                         f"{config.max_position_embeddings} events, {facts.parameters:,} parameters"),
        ("memory", f"{config.memory_size:,} counted pairs of items"),
    ]  # fmt: skip
    if config.text_size:
        # The last name alone: an encoder may be a folder, which is nobody's business.
        encoder = config.text_encoder.rstrip("/").split("/")[-1]
        rows.append(("words of items", f"{words(config)}, read by {code(encoder)}"))
    if run is None:
        return [*rows, ("settings", "not recorded")]
    settings = run["settings"]
    machine, versions = run.get("machine"), run.get("versions")
    rows += [
        ("split", settings["split"].replace("_", " ")),
        ("seed", str(settings["seed"])),
        ("time", duration(run["seconds"])),
        ("machine", plain(machine["description"]) if machine else "not recorded by the run"),
    ]
    if versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def words(config: Any) -> str:
    """The columns that items' words are read from; nothing for a model without words."""
    return listed([code(column) for column in config.text_columns or []])


def results(result: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of the model beside the baselines, and how it compares."""
    shown: dict[str, Any] = dict(result)
    tables = []
    for way, title in WAYS.items():
        names = [name for name in result["rankers"] if way in result[name]]
        rows = [result[name][way]["items"]["all"] for name in names]
        if not names or not rows[0]["count"]:
            continue
        columns = [
            ("Recall@10", marked([row["recall@10"] for row in rows])),
            ("NDCG@10", marked([row["ndcg@10"] for row in rows])),
            ("NDCG@10, 95 %", [with_interval(row, "ndcg@10") for row in rows]),
            ("MRR", marked([row["mrr"] for row in rows])),
        ]
        tables.append({"title": f"{title} ({rows[0]['count']:,} targets):", "text": ranker_table(names, columns)})
    names = [name for name in result["rankers"] if "actions" in result[name]]
    if names and len(result["actions"]) > 1:
        rows = [result[name]["actions"] for name in names]
        columns = [
            ("accuracy", marked([row["accuracy"] for row in rows])),
            ("accuracy, 95 %", [with_interval(row, "accuracy") for row in rows]),
            ("macro-F1", marked([row["macro_f1"] for row in rows])),
            ("log-loss", marked([row["log_loss"] for row in rows], lower=True)),
            ("ECE", marked([row["ece"] for row in rows], lower=True)),
        ]
        tables.append({"title": f"Next action ({rows[0]['count']:,} targets):", "text": ranker_table(names, columns)})
    return {
        "protocol": protocol(result),
        "tables": tables,
        "verdict": verdict(shown),
        "balanced": BALANCED in result["rankers"],
    }


def protocol(result: Mapping[str, Any]) -> str:
    """On what it was tested."""
    split = None if result["split"] is None else Split.from_dict(result["split"])
    if split is not None and split.test_cut is not None:
        when = f"events after {moment(split.test_cut)}; it was trained on events up to {moment(split.validation_cut)}"
    elif split is not None and split.how == "leave_one_out":
        when = (
            "each user's last event. Training saw other users' later events (leave-one-out leaks the future): compare "
            "these figures with published ones, but do not expect them in service"
        )
    else:
        when = "held-out events"
    sample = f", a sample of {result['targets']:,} of {result['all_targets']:,}" if result["sampled"] else ""
    groups = {group: row["count"] for group, row in result[MODEL]["kept"]["items"].items()}
    return (
        f"Tested on {when}. {result['targets']:,} test events of {result['users']:,} users{sample}; of the "
        f"{result['item_targets']:,} that name an item, {groups['repeat']:,} name one that the user had before, "
        f"{groups['novel']:,} one that is new to the user, and {groups['cold']:,} one that the published vocabulary "
        "lacks."
    )


def moment(microseconds: int | None) -> str:
    """A recorded cut as a day, in words."""
    assert microseconds is not None, "a split by time has both cuts"
    return datetime.fromtimestamp(microseconds / 1e6, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def row_name(ranker: str) -> str:
    return f"this {ranker}" if ranker in (MODEL, BALANCED) else ranker.replace("_", " ")


def ranker_table(names: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    shown = [row_name(name) for name in names]
    rows = [list(row) for row in zip(shown, *(cells for _, cells in columns), strict=True)]
    return table(["", *(title for title, _ in columns)], rows)


def calibration(facts: CardFacts) -> dict[str, Any] | None:
    """How far probabilities are from what happened, in words."""
    measured = facts.measured
    if measured is None:
        return None
    item = points(measured["item_calibration"]["ece"])
    text = f"The probability of the first-ranked item is off by **{item}** on average (expected calibration error)"
    if len(facts.actions) > 1:
        text += f", that of the predicted action by **{points(measured['action_calibration']['ece'])}**"
    return {"targets": f"{measured['targets']:,}", "text": f"{text}.", "plot": facts.has_calibration_plot}


def temperatures(facts: CardFacts) -> str:
    """The fitted temperatures of the heads that have something to say."""
    found = {"item": facts.config.item_temperature}
    if len(facts.actions) > 1:
        found["action"] = facts.config.action_temperature
    if facts.has_time:
        found["time"] = facts.config.time_temperature
    return ", ".join(f"{head} {temperature:.2f}" for head, temperature in found.items())


def points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} percentage points"


def slices(facts: CardFacts) -> dict[str, str | None] | None:
    """Where the model is good and where it is not: by kind of target and by action."""
    result, measured = facts.result, facts.measured
    if result is None or measured is None:
        return None
    items = result[MODEL]["kept"]["items"]
    others = [name for name in result["rankers"] if name not in (MODEL, UPDATED) and "kept" in result[name]]
    rows, lost = [], []
    for group, what in GROUPS.items():
        if not items[group]["count"]:
            continue
        best = max(((result[name]["kept"]["items"][group]["ndcg@10"], name) for name in others), default=(0.0, ""))
        rows.append(
            [
                f"{group}: {what}",
                share(items[group]["count"], items["all"]["count"]),
                number(items[group]["recall@10"]),
                number(items[group]["ndcg@10"]),
                f"{number(best[0])} ({best[1].replace('_', ' ')})" if best[0] else number(best[0]),
            ]
        )
        if best[0] > items[group]["ndcg@10"]:
            lost.append(f"{group} (by {best[1].replace('_', ' ')})")
    groups = table(["targets, seen items kept", "count", "Recall@10", "NDCG@10", "best baseline's NDCG@10"], rows)
    sentences = []
    if items["cold"]["count"]:
        sentences.append(
            f"{share(items['cold']['count'], items['all']['count'])} of the targets are items the vocabulary lacks, "
            "new ones and those that too few users touched: none of them can be named."
        )
    if lost:
        sentences.append(f"With seen items kept, a baseline ranks these better: {', '.join(lost)}.")
    recalls = result[MODEL]["actions"]["recall"] if len(result["actions"]) > 1 else {}
    missed = [f"{code(action)} ({number(recall, 2)})" for action, recall in recalls.items() if recall < 0.1]
    if missed:
        sentences.append(f"Rarely or never predicted as the next action, by recall: {listed(missed)}.")
    actions = None
    if len(facts.actions) > 1:
        actions = table(
            ["next action", "count", "action right", "item Recall@10", "item NDCG@10"],
            [
                [
                    code(action),
                    f"{row['count']:,}",
                    number(row["accuracy"], 3),
                    number(row.get("recall@10")),
                    number(row.get("ndcg@10")),
                ]
                for action, row in measured["by_action"].items()
            ],
        )
    return {"groups": groups, "text": " ".join(sentences), "actions": actions}


def popularity(result: Mapping[str, Any] | None) -> str:
    """What the lists' popularity figures say."""
    if result is None:
        return "Not measured. Rankings learned from behaviour tend to repeat what is popular already."
    row = result[MODEL]["kept"]
    bias, coverage = row["popularity_bias@10"], row["coverage@10"]
    if bias is None or coverage is None:
        return "Not measured: there are too few test events."
    how = "more popular than" if bias > 0.01 else "less popular than" if bias < -0.01 else "as popular as"
    apart = "" if how.startswith("as") else f" by {abs(100 * bias):.0f} percentile points"
    return (
        f"The first ten items shown are {how} what users then took{apart}. Over the {result['users']:,} users tested "
        f"they cover {100 * coverage:.0f} % of the catalogue; the rest was shown to none of them."
    )


def privacy_text(found: Mapping[str, Any]) -> str:
    """What was removed, what it cost, and what could still be learned about the people in the data."""
    lines = [
        "- Ids of users are in none of these files. Events are there as weights, as counts of items (`vocabulary.tsv`) "
        "and as counts of pairs of items (the memory)."
    ]
    if found["min_item_users"] > 1:
        lines.append(
            f"- Items that fewer than {found['min_item_users']} users touched were removed from the vocabulary, the "
            f"item table and the memory: {share(found['removed_items'], found['items'])} of the items."
        )
    else:
        lines.append("- Items were published however few users touched them.")
    if found["min_pair_users"] > 1:
        lines.append(
            "- Pairs of items (one followed by the other) that fewer than "
            f"{found['min_pair_users']} users share were removed from the memory: "
            f"{share(found['removed_pairs'], found['pairs'])} of the pairs."
        )
    else:
        lines.append("- Counted pairs of items were published however few users share them.")
    cost = found.get("cost")
    if cost:
        changes = [f"{name} {number(before)} to {number(after)}" for name, (before, after) in cost.items()]
        lines.append(f"- That changed, on the same test events: {', '.join(changes)}. The results above are after it.")
    traces = found["traces"]
    if traces:
        kinds = ", ".join(
            f"{len(items)} like {'an' if kind.startswith('e') else 'a'} {kind}" for kind, items in traces.items()
        )
        lines.append(f"- **Item ids and titles were searched for personal data, and some look like it: {kinds}.**")
    else:
        lines.append(
            "- Item ids and titles were searched for e-mail addresses, phone numbers and URLs: nothing was found."
        )
    after, before = found.get("membership"), found.get("membership_as_trained")
    if after is None:
        lines.append("- Whether training events can be told from others was not measured: no events were held out.")
    else:
        was = f" (it was {before['auc']:.2f} before the removals)" if before else ""
        new = "" if after["auc_new_items"] is None else f"; {after['auc_new_items']:.2f} on items new to the user"
        lines.append(
            f"- Membership inference by a threshold on the loss: AUC **{after['auc']:.2f}**{was}{new}, on "
            f"{after['members']:,} training and {after['others']:,} held-out events; 0.5 is guessing. It says how "
            "well someone who knows a user's history and next event could tell whether the model was trained on it. In "
            "a log that changes over time it is an upper bound, because held-out events are later ones."
        )
    return "\n".join(lines)


def compute_text(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return "The run recorded nothing about it."
    machine = run.get("machine")
    where = f" on {plain(machine['description'])}" if machine else "; the run did not record its machine"
    return (
        f"One training run of {duration(run['seconds'])}{where}; the evaluation comes on top. Runs before it, energy "
        "and carbon were not measured."
    )


def citation(repo_id: str) -> str:
    owner, name = repo_id.split("/")
    key = re.sub(r"[^a-z0-9]+", "_", f"{owner} {name}".lower()).strip("_")
    return (
        f"@misc{{{key},\n  author = {{{owner}}},\n  title = {{{name}: a BertForNextBehavior model of users' next "
        f"behavior}},\n  howpublished = {{\\url{{https://huggingface.co/{repo_id}}}}}\n}}"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Plots
# ----------------------------------------------------------------------------------------------------------------------

# Bins with fewer predictions are not drawn: their accuracy is chance.
FEWEST_IN_A_BIN = 10
MODEL_COLOR, BASELINE_COLOR, INK = "#1f6f8b", "#b8bdc4", "#333333"


def pyplot() -> Any:
    """matplotlib without a display.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(
            "got no matplotlib; expected it for the card's plots: pip install 'bert-for-next-behavior[publish]'."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plots

    return plots


def draw_results(result: Mapping[str, Any], path: Path) -> None:
    """NDCG@10 with intervals of the model and the baselines, seen items kept and removed, as bars."""
    plots = pyplot()
    shown = []
    for way, title in WAYS.items():
        names = [name for name in result["rankers"] if way in result[name]]
        rows = {name: result[name][way]["items"]["all"] for name in names}
        if names and rows[names[0]]["count"]:
            shown.append((title, {name: row for name, row in rows.items() if row["ndcg@10"] is not None}))
    figure, axes = plots.subplots(1, len(shown), figsize=(4.6 * len(shown) + 1, 3.4), squeeze=False)
    for axis, (title, rows) in zip(axes[0], shown, strict=True):
        ordered = sorted(rows, key=lambda name: rows[name]["ndcg@10"])
        values = [rows[name]["ndcg@10"] for name in ordered]
        ends = [
            rows[name].get("ndcg@10_interval") or [value, value] for name, value in zip(ordered, values, strict=True)
        ]
        apart = [
            [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
        ]
        labels = [row_name(name) for name in ordered]
        colors = [MODEL_COLOR if name == MODEL else BASELINE_COLOR for name in ordered]
        axis.barh(labels, values, color=colors, xerr=apart, ecolor=INK, capsize=2, error_kw={"linewidth": 0.9})
        reach = max((high for _, high in ends), default=0) or 1
        for row, (value, (_, high)) in enumerate(zip(values, ends, strict=True)):
            axis.text(high + 0.02 * reach, row, number(value, 3), va="center", fontsize=8, color=INK)
        axis.set_xlim(0, 1.18 * reach)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("NDCG@10, 95 % interval", fontsize=9)
        finish(axis)
    save(figure, path)


def drawn_bins(curve: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The bins with enough predictions to mean something."""
    return [found for found in curve["bins"] if found["count"] >= FEWEST_IN_A_BIN]


def draw_calibration(measured: Mapping[str, Any], names: Sequence[str], path: Path) -> bool:
    """Accuracy against probability in each bin, with the size of the bins, for the action and the first-ranked item.

    Args:
        names: the actions; with a single one there is nothing to be sure of.

    Returns:
        Whether there was anything to draw.
    """
    plots = pyplot()
    panels = {"Next action": measured["action_calibration"], "First-ranked item": measured["item_calibration"]}
    panels = {title: curve for title, curve in panels.items() if drawn_bins(curve)}
    if len(names) == 1:
        panels.pop("Next action", None)
    if not panels:
        return False
    figure, axes = plots.subplots(1, len(panels), figsize=(3.6 * len(panels) + 0.6, 3.6), squeeze=False)
    for axis, (title, curve) in zip(axes[0], panels.items(), strict=True):
        bins = drawn_bins(curve)
        reach = min(1.0, 1.1 * max(max(found["confidence"], found["accuracy"]) for found in bins))
        axis.plot([0, reach], [0, reach], color=BASELINE_COLOR, linewidth=1, linestyle="--", zorder=1)
        most = max(bin["count"] for bin in bins)
        axis.plot(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins], color=MODEL_COLOR, linewidth=1, zorder=2
        )
        axis.scatter(
            [b["confidence"] for b in bins],
            [b["accuracy"] for b in bins],
            s=[12 + 120 * b["count"] / most for b in bins],
            color=MODEL_COLOR,
            alpha=0.85,
            zorder=3,
        )
        axis.set_xlim(-0.04 * reach, 1.04 * reach)
        axis.set_ylim(-0.04 * reach, 1.04 * reach)
        axis.set_aspect("equal")
        axis.set_title(f"{title}: off by {100 * curve['ece']:.1f} points", fontsize=10)
        axis.set_xlabel("probability", fontsize=9)
        axis.set_ylabel("share that was right", fontsize=9)
        finish(axis)
    save(figure, path)
    return True


def finish(axis: Any) -> None:
    axis.tick_params(labelsize=8, colors=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Writes a PNG whose bytes depend on the figure alone, so that an unchanged plot is not sent again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot().close(figure)
