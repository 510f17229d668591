"""Where the models of an evaluation are good and where they are not, for its page (`page.py`).

Each group of test events has a bar for each model, and one for the best simple rule of that very group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from next_behavior.data.page_pieces import section, text
from next_behavior.evaluation.comparison import ACTIONS, Result
from next_behavior.evaluation.page_charts import RULE_COLOR, Bar, BarRow, bar_chart, key, model_color
from next_behavior.evaluation.rankers import UPDATED, UPDATED_SUFFIX, balanced
from next_behavior.evaluation.ranking import KEPT
from next_behavior.evaluation.tables import plain

# Fewer test events say little.
FEW_TARGETS = 50
MOST_ACTIONS = 12
# Groups of targets: what they are called, and what they are.
GROUPS = {
    "repeat": ("Items taken again", "the user had an event with the item before"),
    "novel": ("Items new to the user", "in the training, but not in the user's history"),
    "cold": ("Cold items", "absent from the training: only item text can name them"),
}
# What slices are made by: title, what stands for it, and how a slice is called.
SLICES: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "history": (
        "How much history does it need?",
        "Test events by the number of events that their user had before.",
        lambda name: f"{name} event" + ("" if name == "1" else "s"),
    ),
    "popularity": (
        "Does it serve rare items?",
        "Test events by how frequent their item was in the training: each group is a tenth of the items.",
        lambda name: {
            "1": "1 of 10, the rarest",
            "10": "10 of 10, the most frequent",
            "untrained": "not in the training",
        }.get(name, f"{name} of 10"),
    ),
    "action": ("Does it serve every action?", "Test events by the action that came.", lambda name: name),
}


def baselines_of(result: Result, models: Sequence[str]) -> list[str]:
    """The rankers that are no models, those apart that go on counting."""
    of_models = {*models, UPDATED, *map(balanced, models)}
    return [name for name in result["rankers"] if name not in of_models and not name.endswith(UPDATED_SUFFIX)]


def compared_row(
    label: str, note: str, values: Mapping[str, float | None], models: Sequence[str], rules: Sequence[str]
) -> BarRow:
    """A bar for each model, then one for the best of the rules, which the note names."""
    bars = [Bar(values.get(model), model_color(models, model)) for model in models]
    known = {rule: value for rule in rules if (value := values.get(rule)) is not None}
    if known:
        best = max(known, key=lambda rule: known[rule])
        bars.append(Bar(known[best], RULE_COLOR))
        if known[best] > 0:
            note = f"{note}; best rule: {text(plain(best))}"
    return BarRow(label, note, bars)


def legend(models: Sequence[str]) -> str:
    names = ["the model"] if len(models) == 1 else [text(plain(model)) for model in models]
    colors = [model_color(models, each) for each in models]
    return key([*names, "the best simple rule of the row"], [*colors, RULE_COLOR])


def note_of(count: int) -> str:
    return f"{count:,} test events" + (": too few to tell" if count < FEW_TARGETS else "")


def groups_section(result: Result, models: Sequence[str]) -> str:
    """Items taken again, new ones and cold ones."""
    items = {name: result[name][KEPT]["items"] for name in result["rankers"] if KEPT in result[name]}
    rules = [name for name in baselines_of(result, models) if name in items]
    rows = []
    for group, (label, meaning) in GROUPS.items():
        count = items[models[0]][group]["count"]
        if count:
            values = {name: groups[group]["recall@10"] for name, groups in items.items()}
            rows.append(compared_row(label, f"{meaning}; {note_of(count)}", values, models, rules))
    if not rows:
        return ""
    says = "How often the next item is among the first ten, by what the item is to its user."
    return section("Where is it good, and where not?", says, legend(models), bar_chart(rows))


def slices_section(result: Result, models: Sequence[str]) -> list[str]:
    """A section for each way to slice the targets; none for a result that has no slices."""
    sliced = {
        name: result[name][KEPT]["slices"] for name in result["rankers"] if "slices" in result[name].get(KEPT, {})
    }
    if models[0] not in sliced:
        return []
    rules, sections = [name for name in baselines_of(result, models) if name in sliced], []
    for by, (title, says, called) in SLICES.items():
        rows = []
        for name, metrics in list(sliced[models[0]].get(by, {}).items()):
            if metrics["count"]:
                values = {ranker: slices[by][name]["recall@10"] for ranker, slices in sliced.items()}
                row = compared_row(text(called(name)), note_of(metrics["count"]), values, models, rules)
                rows.append((metrics["count"], row))
        if by == "action":
            rows = sorted(rows, key=lambda row: -row[0])[:MOST_ACTIONS]
        if len(rows) > 1:
            chart = bar_chart([row for _, row in rows])
            sections.append(section(title, f"{says} The next item is among the first ten.", legend(models), chart))
    return sections


def actions_section(result: Result, models: Sequence[str]) -> str:
    """How often each action is predicted when it comes; nothing for a log of one action."""
    rows: dict[str, dict[str, Any]] = {
        name: result[name][ACTIONS] for name in result["rankers"] if ACTIONS in result[name]
    }
    if len(result["actions"]) < 2 or not rows or not rows[models[0]]["count"]:
        return ""
    rules = [name for name in baselines_of(result, models) if name in rows]
    whole = {name: row["accuracy"] for name, row in rows.items()}
    bars = [compared_row("All actions", "share that was right", whole, models, rules)]
    recalls = {name: row["recall"] for name, row in rows.items()}
    for action in list(recalls[models[0]])[:MOST_ACTIONS]:
        values = {name: recall.get(action) for name, recall in recalls.items()}
        bars.append(compared_row(text(action), "of those that came", values, models, rules))
    says = (
        "How often the most probable action is the one that came. An action that is rare is seldom the most probable "
        "one, even where its probability is right; balanced answers name it more often."
    )
    confusion = rows[models[0]].get("confusion")
    matrix = "" if confusion is None else confusion_table(confusion, plain(models[0]))
    return section("Does it know the next action?", says, legend(models), bar_chart(bars), matrix)


def confusion_table(confusion: Mapping[str, Mapping[str, int]], model: str) -> str:
    """How often each action came, by row, and what the model predicted, by column."""
    names = list(dict.fromkeys([*confusion, *(guess for row in confusion.values() for guess in row)]))[:MOST_ACTIONS]
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    lines = []
    for came in names:
        row = confusion.get(came, {})
        total = max(1, sum(row.values()))
        cells = []
        for guess in names:
            count = row.get(guess, 0)
            depth = round(100 * count / total)
            cells.append(f'<td style="--depth:{depth}%">{count:,}</td>')
        lines.append(f"<tr><th>{text(came)}</th>{''.join(cells)}</tr>")
    caption = f"What came (rows) and what the {text(model)} predicted (columns)"
    return (
        f'<div class="wide"><table class="matrix"><caption>{caption}</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
