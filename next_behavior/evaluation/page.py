"""An evaluation as one HTML file, for whoever decides whether a model is used: nothing is loaded, nothing runs.

    Path("evaluation.html").write_text(page_of(result, "out/shop"))

It begins with the verdict in plain words. Then come the comparisons with simple rules, where the model is good and
where it is not, what it does not beat, and what was not tested. The tables with all numbers are folded at the end.
`result` is what `evaluator.evaluate` returns, also one that an earlier version saved: what it lacks is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from next_behavior.data.page_pieces import page, percent, section, table, text, tiles
from next_behavior.data.splits import Split
from next_behavior.evaluation.comparison import ACTIONS, Result
from next_behavior.evaluation.page_charts import Bar, BarRow, IntervalRow, bar_chart, interval_chart, model_color
from next_behavior.evaluation.page_probabilities import probabilities_section, sets_section, times_section
from next_behavior.evaluation.page_slices import actions_section, baselines_of, groups_section, slices_section
from next_behavior.evaluation.rankers import MODEL, UPDATED, UPDATED_SUFFIX
from next_behavior.evaluation.ranking import KEPT, REMOVED
from next_behavior.evaluation.summary import judged, outcome
from next_behavior.evaluation.tables import PART_NAMES, audit_lines, number, plain, saw_little

HEADLINES = {
    "better": "Better than the best simple rule",
    "worse": "A simple rule is better",
    "unclear": "Not surely better than a simple rule",
    "nothing": "Nothing to compare with",
}
# Classes of the style for an outcome.
LEVELS = {"better": "keep", "worse": "retrain", "unclear": "unclear", "nothing": "unclear"}
WORDS = {"better": "better than", "worse": "worse than", "unclear": "no certain difference to"}
# What is compared, in words.
QUESTIONS = {
    (KEPT, "all", "recall@10"): "The next item is among the first ten",
    (KEPT, "all", "ndcg@10"): "The next item stands high in the list",
    (KEPT, "repeat", "ndcg@10"): "… when the user takes an item again",
    (KEPT, "novel", "ndcg@10"): "… when the item is new to the user",
    (REMOVED, "all", "recall@10"): "Seen items left out: the next item is among the first ten",
    (REMOVED, "all", "ndcg@10"): "Seen items left out: the next item stands high",
    (ACTIONS, None, "accuracy"): "The next action is the one predicted",
    (ACTIONS, None, "macro_f1"): "Rare actions are found, too (macro-F1)",
    (ACTIONS, None, "log_loss"): "The action that came had a high probability (log-loss)",
}
LONGEST_AUDIT = 2000  # characters of what a leak audit says
METRICS = {"ndcg@10": "NDCG@10", "macro_f1": "macro-F1", "log_loss": "log-loss"}
SHARES = ("recall@10", "accuracy")
# What the simple rules do.
RULES = {
    "popularity": "the most frequent items of the training",
    "recent_popularity": "the most frequent items of the last seven days of the training",
    "repeat_last": "the user's own items, the most recent first",
    "decayed_repeat": "the user's own items, by number and recency",
    "item_transition": "what most often came right after the last item",
    "item_neighbours": "what often stands near the recent items",
    "repeat_neighbours": "the user's own items, then what often stands near them",
    "gp_topfreq": "the user's own items by number, then the most frequent items",
    "vmis_knn": "what stands in the past sessions that share most with the running one",
    "tifu_knn": "the user's own items, mixed with those of similar users",
    "tgh_1": "what followed the recent items, ordered by likeness of text",
    "tgh_2": "what followed them in two steps, ordered by likeness of text",
    "lightgcn": "items near the user in the graph of users and items; it trains",
    "last_action_markov": "what most often came after the last action",
}


def page_of(result: Result, name: str) -> str:
    """The whole page; `name` is what the model is called, or the models together."""
    models = result.get("models", [MODEL])
    comparisons: Mapping[str, Sequence[dict[str, Any]]] = result.get("comparisons", {MODEL: result["comparison"]})
    sections = [
        *(beats_section(result, model, comparisons[model], len(models) > 1) for model in models),
        rankers_section(result, [*models, *baselines_of(result, models)], models),
        updated_section(result),
        groups_section(result, models),
        *slices_section(result, models),
        actions_section(result, models),
        probabilities_section(result, models),
        times_section(result),
        sets_section(result),
        loses_section(result, comparisons),
        untested_section(result),
    ]
    body = f"""{header(result, comparisons, name)}
{tiles(figures(result, models, comparisons[models[0]]))}
<div class="sections">{"".join(sections)}</div>
{all_numbers(result)}
{notes(result)}"""
    return page(f"Evaluation of {name}", body)


# -- the verdict -------------------------------------------------------------------------------------------------------


def header(result: Result, comparisons: Mapping[str, Sequence[dict[str, Any]]], name: str) -> str:
    """The verdict in plain words."""
    comparison = next(iter(comparisons.values()))
    row = judged(comparison)
    found = "nothing" if row is None else outcome(row)
    if "pairs" in result:
        sentences = [sentence for pair in result["pairs"] for sentence in pair["sentences"]]
        listed = "".join(f"<li>{text(sentence, 400)}</li>" for sentence in sentences)
        return (
            f'<header class="unclear"><p class="label">Comparison of {text(name, 200)}</p>'
            f"<h1>{len(result['models'])} models on the same events</h1><ul>{listed}</ul></header>"
        )
    reasons = [told(other) for other in comparison if other is not row and is_told(result, other)]
    if saw_little(result.get("passes")):
        reasons.insert(0, f"The model saw {result['passes']:.2f} of a pass over its training events: train it longer.")
    lead = "No simple rule was measured on these events." if row is None else verdict_sentence(row)
    listed = "".join(f"<li>{reason}</li>" for reason in reasons)
    return (
        f'<header class="{LEVELS[found]}"><p class="label">Evaluation of {text(name)}</p><h1>{HEADLINES[found]}</h1>'
        f'<p class="lead">{lead}</p><ul>{listed}</ul></header>'
    )


def verdict_sentence(row: dict[str, Any]) -> str:
    """What the comparison that counts comes to."""
    what = "the next action is right" if row["where"] == ACTIONS else "the next item is among the first ten answers"
    rule = f"the best simple rule, {text(plain(row['best_baseline']))}, reaches {percent(row['best'])}"
    points, ends = 100 * row["difference"], row["difference_interval"]
    doubt = "" if ends is None else f" (95 % interval {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
    tail = " The interval holds 0: more test events would be needed to tell." if outcome(row) == "unclear" else ""
    return f"In {percent(row['model'])} of the test events {what}; {rule}: {points:+.1f} points{doubt}.{tail}"


def is_told(result: Result, row: Mapping[str, Any]) -> bool:
    """Whether a comparison stands in the verdict beside the first one."""
    if row["where"] == ACTIONS:
        return row["metric"] == "accuracy" and len(result["actions"]) > 1
    return row["metric"] == "ndcg@10" and row["group"] in ("repeat", "novel")


def told(row: dict[str, Any]) -> str:
    """One more comparison of the verdict."""
    question = QUESTIONS[(row["where"], row["group"], row["metric"])].removeprefix("… ")
    question = question[:1].upper() + question[1:]
    level, best = outcome(row), text(plain(row["best_baseline"]))
    metric = "" if row["metric"] in SHARES else f"{METRICS[row['metric']]} "
    return (
        f'{question}: <b class="{LEVELS[level]}">{WORDS[level]}</b> {best} ({metric}{said(row, "model")} against '
        f"{said(row, 'best')}{'; no interval' if row['difference_interval'] is None else ''})."
    )


def said(row: Mapping[str, Any], side: str) -> str:
    """The value of a side of a comparison: a share in percent, any other metric as a number."""
    return percent(row[side]) if row["metric"] in SHARES else number(row[side], 3)


def figures(result: Result, models: Sequence[str], comparison: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The figures that matter most, of a single model beside the best rule's."""
    rows = {(row["where"], row["group"], row["metric"]): row for row in comparison}
    shown: list[tuple[str, str, str]] = []
    for where, title in (
        ((KEPT, "all", "recall@10"), "Next item in the first ten"),
        ((REMOVED, "all", "recall@10"), "Seen items left out"),
        ((ACTIONS, None, "accuracy"), "Next action right"),
    ):
        is_shown = where in rows and len(models) == 1 and (where[0] != ACTIONS or len(result["actions"]) > 1)
        if is_shown:
            shown.append((title, percent(rows[where]["model"]), f"best rule {percent(rows[where]['best'])}"))
    error = result[models[0]][ACTIONS]["ece"]
    if len(models) == 1 and len(result["actions"]) > 1 and error is not None:
        shown.append(("Action probabilities are off by", percent(error), "0 is perfect"))
    drawn = f"of {result['all_targets']:,}" if result["sampled"] else "all there are"
    return [*shown, ("Test events", f"{result['targets']:,}", f"{drawn}, {result['users']:,} users")]


# -- sections ----------------------------------------------------------------------------------------------------------


def beats_section(result: Result, model: str, comparison: Sequence[dict[str, Any]], is_one_of_many: bool) -> str:
    """Every comparison with its interval on one scale."""
    rows = []
    for row in comparison:
        if (row["where"] == ACTIONS and len(result["actions"]) == 1) or not row["best"]:
            continue
        ends = row["difference_interval"]
        rows.append(
            IntervalRow(
                label=QUESTIONS[(row["where"], row["group"], row["metric"])],
                difference=row["difference"] / row["best"],
                ends=None if ends is None else (ends[0] / row["best"], ends[1] / row["best"]),
                says=f"{said(row, 'model')} against {said(row, 'best')}, {text(plain(row['best_baseline']))}"
                + ("; no interval" if ends is None else ""),
                level="unclear" if ends is None else LEVELS[outcome(row)],
            )
        )
    who = text(plain(model)) if is_one_of_many else "it"
    says = (
        "Each line is one question. The mark is how much better (right) or worse (left) the model is than the best "
        "simple rule for that question, in percent of what the rule reaches. The bar holds 95 % of what other users "
        "would show: where it crosses the middle, the test cannot tell."
    )
    return section(f"Does {who} beat the best simple rule?", says, interval_chart(rows))


def rankers_section(result: Result, rankers: Sequence[str], models: Sequence[str]) -> str:
    """Rankers by Recall@10, the best on top."""
    names = [name for name in rankers if KEPT in result[name]]
    values = {name: result[name][KEPT]["items"]["all"] for name in names}
    values = {name: row for name, row in values.items() if row["recall@10"] is not None}
    if not values:
        return ""
    says = (
        f"How often the next item is among the first ten of {result['items']:,} items. Thin lines are 95 % intervals. "
        "The simple rules count the same training events."
    )
    return section("How does it stand beside simple rules?", says, recall_bars(values, models))


def recall_bars(values: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> str:
    """Recall@10 of rankers, the best on top; `values` holds the metrics of each."""
    rows = []
    for name in sorted(values, key=lambda name: -values[name]["recall@10"]):
        note = RULES.get(name.removesuffix(UPDATED_SUFFIX), "")
        bar = Bar(values[name]["recall@10"], model_color(models, name), values[name].get("recall@10_interval"))
        rows.append(BarRow(text(plain(name)), note, [bar]))
    return bar_chart(rows)


def updated_section(result: Result) -> str:
    """The model while its memory counts the passing events, beside the rules that count them, too."""
    names = [name for name in result["rankers"] if name == UPDATED or name.endswith(UPDATED_SUFFIX)]
    values = {name: result[name][KEPT]["items"]["all"] for name in names}
    if UPDATED not in values or values[UPDATED]["recall@10"] is None:
        return ""
    row = judged(result.get("comparison_updated", []))
    says = "A service counts each passing event, without training. So do these, before each block of test events."
    lead = "" if row is None else f" {verdict_sentence(row)}"
    return section("And while it learns from each event?", says + lead, recall_bars(values, [UPDATED]))


def loses_section(result: Result, comparisons: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """What no model beats, or not surely."""
    lines = []
    for model, comparison in comparisons.items():
        for row in comparison:
            if (row["where"] == ACTIONS and len(result["actions"]) == 1) or outcome(row) == "better":
                continue
            who = f"{text(plain(model))}: " if len(comparisons) > 1 else ""
            lines.append(f"<li>{who}{told(row)}</li>")
    if not lines:
        says = "It beats the best simple rule in every comparison of this page."
        return section("What does it not beat?", says)
    says = "Comparisons that the model loses, and those that this test cannot decide."
    return section("What does it not beat?", says, f"<ul>{''.join(lines)}</ul>")


def untested_section(result: Result) -> str:
    """What the figures do not say."""
    split = None if result["split"] is None else Split.from_dict(result["split"])
    lines = [
        "What people would do if they saw these recommendations: the test events happened without them. Only an "
        "experiment with users tells.",
        "The first event of a user: a test event counts only if its user has an earlier one.",
        "How fast answers are, and how much memory they take.",
    ]
    if split is not None and split.how == "leave_one_out":
        lines.insert(0, "The future: this split trains on events that are later than the ones it tests. It serves to "
                        "compare with published tables. A split by time shows what users would see.")  # fmt: skip
    if split is not None and split.how == "time":
        lines.append("Events after the end of this log: tastes and catalogs move on. Repeat the test on newer events.")
    if result["sampled"]:
        lines.append(
            f"All test events: {result['targets']:,} of {result['all_targets']:,} were drawn, of whole users. More "
            "of them make the intervals narrower."
        )
    if len(result["actions"]) == 1:
        lines.append("The next action: this log has a single one.")
    if UPDATED not in result["rankers"]:
        lines.append("The model while it learns from each passing event, as a service does.")
    listed = "".join(f"<li>{text(line, 400)}</li>" for line in lines)
    return section("What was not tested?", "Good figures here do not answer these.", f"<ul>{listed}</ul>")


# -- all numbers -------------------------------------------------------------------------------------------------------


def all_numbers(result: Result) -> str:
    """The tables, folded."""
    parts = []
    for way, title in ((KEPT, "Next item, seen items kept"), (REMOVED, "Next item, seen items removed")):
        names = [name for name in result["rankers"] if way in result[name]]
        for group in ("all", "repeat", "novel", "cold"):
            counted = {name: result[name][way]["items"][group] for name in names}
            if names and counted[names[0]]["count"]:
                metrics = [metric for metric in counted[names[0]] if metric[-8:] != "interval" and metric != "count"]
                rows = [[text(plain(name)), *(number(counted[name][metric]) for metric in metrics)] for name in names]
                heading = f"<h3>{title}: {group} ({counted[names[0]]['count']:,} test events)</h3>"
                parts.append(f'{heading}<div class="wide">{table(["", *metrics], rows)}</div>')
    names = [name for name in result["rankers"] if ACTIONS in result[name]]
    if len(result["actions"]) > 1 and names:
        metrics = ["accuracy", "macro_f1", "log_loss", "ece"]
        rows = [[text(plain(name)), *(number(result[name][ACTIONS][metric]) for metric in metrics)] for name in names]
        parts.append(f'<h3>Next action</h3><div class="wide">{table(["", *metrics], rows)}</div>')
    return f"<details><summary>All numbers</summary>{''.join(parts)}</details>"


def notes(result: Result) -> str:
    """How the numbers came about, and what the words mean."""
    split = "not recorded" if result["split"] is None else str(Split.from_dict(result["split"]))
    return f"""<footer><h2>How to read this</h2><ul>
<li>{result["targets"]:,} {PART_NAMES[result["part"]]} events of {result["users"]:,} users; split: {text(split, 200)}.
Each is predicted from the events of its user before it. {result["item_targets"]:,} of them name an item.</li>
<li>The whole catalog of {result["items"]:,} items is ranked, and ties count against whoever ranks.</li>
<li>NDCG@10 is 1 for a first place, falls with the place, and is 0 after the tenth. Recall@10 is how often the item is
among the first ten. Macro-F1 is the mean over the actions of how well each is found.</li>
<li>A 95 % interval holds what 95 of 100 other samples of users would show (bootstrap over users). Differences are
paired: both sides are measured on the same users.</li>
{"".join(f"<li>{text(line, LONGEST_AUDIT)}</li>" for line in audit_lines(result))}
</ul></footer>"""
