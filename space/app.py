"""Try a next-behavior model in a browser: pick or paste a history, see what comes next, compare two models.

    python space/app.py --model DIR_OR_HUB_ID [--compare DIR_OR_HUB_ID]       # needs gradio, torch and transformers

As a Space it takes both from the Space's variables MODEL and COMPARE. The folder's three files are the whole Space: the
models are loaded like anyone's, through `pipeline("next-behavior", trust_remote_code=True)`. Which models are loaded is
decided at the start and never in the page: remote code is run only where whoever starts this trusts it.

The catalog stays on the server, which looks items up; the browser gets a handful of matches. Whatever a model or a
visitor calls an item is escaped before it becomes HTML.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import

import gradio as gr
import numpy as np
from transformers import pipeline

MATCHES = 8
MAX_EVENTS = 2_000
MAX_TEXT = 500_000
LARGEST_TIMESTAMP = 1e11
TOP_K = 10
COLUMNS = ("item", "action", "timestamp")
GAPS = {"a minute later": 60.0, "an hour later": 3600.0, "a day later": 86400.0, "a week later": 604800.0}
ANY_ACTION = "any action"
QUESTIONS = {"Action and item": "pair", "Item": "item", "Action": "action"}
PATHS = {
    "generate": ("generated", "from the whole catalog"),
    "repeat": ("repeated", "from this history"),
    "associate": ("associated", "often together with recent items"),
}
UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))

Event = dict[str, Any]


# ----------------------------------------------------------------------------------------------------------------------
# Histories as text
# ----------------------------------------------------------------------------------------------------------------------


def parse_events(text: str) -> list[Event]:
    """The events of a pasted history.

    Args:
        text: JSON (a list of events, `{"events": [...]}`, or one event a line), or CSV (`item,action,timestamp`, other
            orders and fewer columns with a header). A time is seconds since 1970 or ISO text.

    Raises:
        ValueError: the text is neither, with the line that is not.

    >>> parse_events("84,view,1700000000\\n7,cart,")
    [{'item': '84', 'action': 'view', 'timestamp': 1700000000.0}, {'item': '7', 'action': 'cart'}]
    >>> parse_events('{"events": [{"item": "84"}]}') == parse_events("item\\n84")
    True
    """
    text = text.strip()
    if not text:
        return []
    events = json_events(text) if text[0] in "[{" else csv_events(text)
    if len(events) > MAX_EVENTS:
        raise ValueError(f"got {len(events):,} events, expected at most {MAX_EVENTS:,}: paste the newest.")
    return events


def json_events(text: str) -> list[Event]:
    """As `parse_events`, of JSON."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not lines[1].lstrip().startswith("{"):
            raise ValueError(f"line {error.lineno} is not JSON ({error.msg}), expected a list of events.") from error
        found = [json_line(line, number) for number, line in enumerate(lines, 1)]
    if isinstance(found, dict):
        found = found["events"] if set(found) == {"events"} else [found]
    if not isinstance(found, list) or not all(isinstance(event, dict) for event in found):
        raise ValueError('got JSON that is no list of events, expected [{"item": "84", "action": "view"}, ...].')
    return found


def json_line(line: str, number: int) -> Any:
    """One line of JSON lines."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON ({error.msg}), expected one event on each line.") from error


def csv_events(text: str) -> list[Event]:
    """As `parse_events`, of CSV."""
    lines = list(csv.reader(io.StringIO(text), strict=False, skipinitialspace=True))
    names = ["item" if name == "item_id" else name for name in (field.strip().lower() for field in lines[0])]
    if "item" in names or set(names) <= set(COLUMNS):
        if unknown := sorted(set(names) - set(COLUMNS)):
            raise ValueError(f"the header has {', '.join(unknown)}, expected some of {', '.join(COLUMNS)}.")
        lines = lines[1:]
        first = 2
    else:
        names, first = list(COLUMNS), 1
    events = []
    for number, fields in enumerate(lines, first):
        if not any(field.strip() for field in fields):
            continue
        if len(fields) > len(names):
            raise ValueError(f"line {number} has {len(fields)} fields, expected {','.join(names)}.")
        event: Event = {name: field.strip() for name, field in zip(names, fields, strict=False) if field.strip()}
        if re.fullmatch(r"-?\d+(\.\d+)?", event.get("timestamp", "")):
            event["timestamp"] = float(event["timestamp"])
        events.append(event)
    return events


def events_text(events: Sequence[Event]) -> str:
    """The events as CSV, which `parse_events` reads back."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for event in events:
        values = [event.get(name) for name in COLUMNS]
        writer.writerow(
            ["" if value is None else f"{value:.0f}" if type(value) is float else value for value in values]
        )
    return out.getvalue()


# ----------------------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------------------


class Catalog:
    """The items of a model with their titles, searched on the server: one text in memory, one line an item."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.items: list[str] = tokenizer.item_vocabulary
        lines = [self.label(item).lower().replace("\n", " ") for item in self.items]
        self.text = "\n".join([*lines, ""])
        self.ends = np.cumsum([len(line) + 1 for line in lines])  # (V,) where the next line begins

    def label(self, item: str) -> str:
        """Title and id, or the id alone."""
        title = self.tokenizer.title(item)
        return f"{title} ({item})" if title else item

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


class Model:
    """A loaded model and what the page says of it."""

    def __init__(self, source: str) -> None:
        load: Any = pipeline  # transformers' types list its own tasks alone
        self.predict = load("next-behavior", model=source, trust_remote_code=True)
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

    def example(self) -> list[Event]:
        """A history of common items: one of them twice, the last one an hour ago."""
        picks = [self.catalog.items[row % len(self.catalog.items)] for row in (0, 2, 5, 2)]
        events: list[Event] = [{"item": item, "action": self.actions[0]} for item in picks]
        if self.has_time:
            now = float(int(time.time()))
            for event, ago in zip(events, (172_800.0, 90_000.0, 86_400.0, 3_600.0), strict=True):
                event["timestamp"] = now - ago
        return events


# ----------------------------------------------------------------------------------------------------------------------
# HTML: everything that a model or a visitor wrote goes through `escape`
# ----------------------------------------------------------------------------------------------------------------------


def percent(probability: float) -> str:
    """
    >>> [percent(value) for value in (0.5, 0.0312, 0.00004, 0.0)]
    ['50 %', '3.1 %', '<0.01 %', '0 %']
    """
    value = 100 * probability
    if 0 < value < 0.01:
        return "<0.01 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 1 else f"{value:.2f} %"


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (0.3, 30, 5400, 200_000, 5_000_000)]
    ['a second', '30 seconds', '1.5 hours', '2.3 days', '58 days']
    """
    if seconds < 1.5:
        return "a second"
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 1.5 * size)
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 10 and unit != "seconds" else f"{value:.0f} {unit}"


def moment_text(timestamp: Any) -> str:
    """
    >>> [moment_text(time) for time in (1_700_000_000.0, "2024-05-17", None)]
    ['2023-11-14 22:13', '2024-05-17', '']
    """
    if isinstance(timestamp, (int, float)) and 0 <= timestamp < LARGEST_TIMESTAMP:
        return f"{datetime.fromtimestamp(timestamp, timezone.utc):%Y-%m-%d %H:%M}"
    return "" if timestamp is None else str(timestamp)


def item_html(item: str | None, title: str | None, catalog: Catalog) -> str:
    """An item for people: its title over its id."""
    if item is None:
        return '<span class="bnb-quiet">no item</span>'
    name = f'<span class="bnb-title">{escape(title)}</span>' if title else ""
    new = "" if catalog.holds(item) else ' <span class="bnb-new">new to the model</span>'
    return f'{name}<span class="bnb-id">{escape(item)}{new}</span>'


def action_html(action: str | None) -> str:
    return "" if action is None else f'<span class="bnb-action">{escape(action)}</span>'


def history_html(events: Sequence[Event], catalog: Catalog) -> str:
    """The history, newest first, as a list."""
    if not events:
        return '<p class="bnb-quiet">An empty history: what a newcomer does.</p>'
    rows = []
    for event in reversed(events):
        item, action = (None if event.get(name) is None else str(event[name]) for name in ("item", "action"))
        title = None if item is None else catalog.tokenizer.title(item)
        moment = f'<small class="bnb-quiet">{escape(moment_text(event.get("timestamp")))}</small>'
        rows.append(f"<li>{action_html(action)}<div>{item_html(item, title, catalog)}</div>{moment}</li>")
    return f'<ol class="bnb-history">{"".join(rows)}</ol>'


def bar_html(share: float) -> str:
    return f'<div class="bnb-bar"><i style="width:{100 * share:.1f}%"></i></div>'


def paths_html(paths: dict[str, float] | None) -> str:
    """Which path named an item: a bar of three parts, and in words the largest."""
    if paths is None:
        return ""
    parts = "".join(f'<i class="bnb-{path}" style="width:{100 * share:.1f}%"></i>' for path, share in paths.items())
    largest = max(paths, key=paths.__getitem__)
    every = ", ".join(f"{PATHS[path][0]} {percent(share)}" for path, share in paths.items())
    words = f"{PATHS[largest][0]} {percent(paths[largest])}"
    return f'<div class="bnb-paths" title="{every}">{parts}</div><small>{words}</small>'


def answers_html(answers: Sequence[Event], catalog: Catalog, others: Sequence[Event] | None) -> str:
    """The ranked answers as a table; with the other model's answers, their rank there."""
    if not answers:
        return '<p class="bnb-quiet">Nothing is left to rank.</p>'
    elsewhere = {(answer["action"], answer["item"]): rank for rank, answer in enumerate(others or [], 1)}
    largest = max(answer["probability"] for answer in answers) or 1.0
    rows = []
    for rank, answer in enumerate(answers, 1):
        item = answer["item"]
        named = item_html(item, answer["title"], catalog) if "paths" in answer else ""
        also = ""
        if others is not None:
            there = elsewhere.get((answer["action"], item))
            also = f'<small class="bnb-also">{f"other model: #{there}" if there else "not in the other list"}</small>'
        rows.append(
            f'<tr><td class="bnb-rank">{rank}</td>'
            f'<td class="bnb-what">{action_html(answer["action"])}<div>{named}{also}</div></td>'
            f'<td class="bnb-probability"><b>{percent(answer["probability"])}</b>'
            f"{bar_html(answer['probability'] / largest)}</td>"
            f'<td class="bnb-named">{paths_html(answer.get("paths"))}</td></tr>'
        )
    named_by = "Named by" if "paths" in answers[0] else ""
    head = f"<tr><th>#</th><th>Behavior</th><th>Probability</th><th>{named_by}</th></tr>"
    return f'<table class="bnb-table"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def when_html(when: dict[str, float] | None) -> str:
    """How soon the next event comes."""
    if when is None:
        return '<p class="bnb-quiet">This model was trained on a log without times.</p>'
    horizons = [(name.removeprefix("within_").replace("_", " "), p) for name, p in when.items() if "within" in name]
    bars = "".join(f"<div><span>within {name}</span>{bar_html(p)}<b>{percent(p)}</b></div>" for name, p in horizons)
    median = duration(when["median_seconds"])
    return f'<div class="bnb-when"><p>The next event: half of the time within <b>{median}</b></p>{bars}</div>'


def error_html(error: ValueError) -> str:
    return f'<div class="bnb-error" role="alert"><b>That did not work.</b> {escape(str(error))}</div>'


def panel_html(model: Model, answers: Sequence[Event] | ValueError, others: Sequence[Event] | ValueError | None) -> str:
    """What one model says."""
    name = f'<h3 class="bnb-model">{escape(model.name)}</h3>'
    if isinstance(answers, ValueError):
        return f"<section>{name}{error_html(answers)}</section>"
    table = answers_html(answers, model.catalog, [] if isinstance(others, ValueError) else others)
    when = when_html(answers[0]["when"]) if answers else ""
    return f"<section>{name}{table}{when}</section>"


LEGEND = "".join(f'<span><i class="bnb-{path}"></i><b>{name}</b> {what}</span>' for path, (name, what) in PATHS.items())

# Colors are the theme's, so that the page follows the visitor's light or dark mode; only the paths have their own.
CSS = """
.bnb-panels {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1.5rem}
.bnb-panels section {container-type: inline-size; min-width: 0}
.bnb-panels h3.bnb-model {margin: 0 0 .25rem; font-size: 1.05rem; overflow-wrap: anywhere}
.bnb-quiet, .bnb-id, .bnb-panels small, .bnb-panels th {color: var(--body-text-color) !important; opacity: .68}
.bnb-panels table.bnb-table {width: 100%; border-collapse: collapse; margin: 0; font-size: .925rem}
.bnb-table, .bnb-table thead, .bnb-table th, .bnb-table td, .bnb-table tr {border: 0 !important}
.bnb-table tbody tr {border-top: 1px solid var(--border-color-primary) !important; background: none}
.bnb-table th {text-align: left; font-weight: 500; font-size: .8rem; padding: .25rem .5rem}
.bnb-table td {padding: .5rem !important; vertical-align: top}
.bnb-rank {width: 1.5rem}
.bnb-probability, .bnb-named {width: 23%}
.bnb-also {display: block} .bnb-named small {white-space: nowrap}
.bnb-title {display: block; overflow-wrap: anywhere}
.bnb-id {display: block; font-size: .8rem; line-height: 1.25; overflow-wrap: anywhere}
.bnb-action {flex: none; display: inline-block; border-radius: 1rem; padding: 0 .6rem; margin: 0 .4rem .15rem 0;
  font-size: .8rem; line-height: 1.5; overflow-wrap: anywhere; background: var(--color-accent-soft);
  border: 1px solid var(--border-color-accent-subdued)}
.bnb-new {border: 1px solid var(--border-color-primary); border-radius: .25rem; padding: 0 .3rem; font-size: .72rem}
.bnb-bar {background: var(--border-color-primary); border-radius: 4px; height: 8px; overflow: hidden; flex: 1}
.bnb-bar i {display: block; height: 100%; background: var(--color-accent); border-radius: 4px}
.bnb-paths {display: flex; height: 8px; border-radius: 4px; overflow: hidden; margin: .5rem 0 .1rem}
.bnb-paths i {display: block; height: 100%}
.bnb-generate {background: #4f9bd9} .bnb-repeat {background: #e0903c} .bnb-associate {background: #2a9d8f}
.bnb-legend {display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .8rem; margin-bottom: 1rem}
.bnb-legend i {display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .35rem}
.bnb-when {margin-top: 1rem; padding: .75rem; border-radius: 8px; background: var(--background-fill-secondary)}
.bnb-when p {margin: 0 0 .4rem}
.bnb-when div:not(.bnb-bar) {display: flex; align-items: center; gap: .75rem; font-size: .85rem}
.bnb-when span {width: 7.5rem} .bnb-when b {min-width: 3.2rem; text-align: right} .bnb-when p b {min-width: 0}
#matches .wrap {flex-direction: column; flex-wrap: nowrap; gap: .25rem}
#matches label {padding: .25rem .5rem; box-shadow: none}
ol.bnb-history {list-style: none !important; margin: 0 !important; padding: 0 !important;
  max-height: 24rem; overflow-y: auto}
.bnb-history li {display: flex; align-items: flex-start; margin: 0; padding: .4rem 0}
.bnb-history li small {margin-left: auto; padding-left: .75rem; white-space: nowrap; font-size: .75rem}
.bnb-history li + li {border-top: 1px solid var(--border-color-primary)}
.bnb-error {border-left: 4px solid #d9534f; border-radius: 4px; padding: .75rem; overflow-wrap: anywhere;
  background: var(--background-fill-secondary)}
@container (max-width: 30rem) {
  .bnb-table thead {display: none}
  .bnb-table tr {display: grid; grid-template-columns: 1.9rem 1fr 7.4rem; padding: .4rem 0}
  .bnb-table td {padding: 0 .25rem !important; width: auto}
  .bnb-named {grid-column: 3}
  .bnb-rank, .bnb-what {grid-row: span 2}
}
"""


# ----------------------------------------------------------------------------------------------------------------------
# The page
# ----------------------------------------------------------------------------------------------------------------------


class Page:
    """What the page's controls do; the history lives in the text box of the second tab, as CSV or as it was pasted."""

    def __init__(self, model: Model, other: Model | None) -> None:
        self.model, self.other = model, other

    def ask(self, text: str, question: str, action: str, exclude_seen: bool, top_k: int) -> tuple[str, str]:
        """The history and the answers, as HTML."""
        try:
            events = parse_events(text)
            shown = history_html(events, self.model.catalog)
        except ValueError as error:
            return error_html(error), ""
        asked = (QUESTIONS[question], None if action == ANY_ACTION else action, exclude_seen, top_k)
        models = [self.model] if self.other is None else [self.model, self.other]
        found: list[list[Event] | ValueError] = []
        for model in models:
            try:
                found.append(model.answers(events, *asked))
            except ValueError as error:
                found.append(error)
        pairs = [(found[0], None)] if self.other is None else [(found[0], found[1]), (found[1], found[0])]
        panels = [panel_html(model, mine, others) for model, (mine, others) in zip(models, pairs, strict=True)]
        legend = "" if asked[0] == "action" else f'<div class="bnb-legend">{LEGEND}</div>'
        return shown, f'{legend}<div class="bnb-panels">{"".join(panels)}</div>'

    def which_apply(self, question: str) -> list[Any]:
        """Which action and which items: not asked where actions alone are ranked."""
        return [gr.update(interactive=QUESTIONS[question] != "action")] * 2

    def matches(self, query: str) -> Any:
        """The items to choose from, for what was typed. A dropdown that is refilled while one types would not do: it
        remembers the place of a choice, not its name."""
        return gr.update(choices=self.model.catalog.search(query), value=None)

    def add(self, text: str, item: str | None, action: str, gap: str) -> str:
        """The history with one more event."""
        try:
            events = parse_events(text)
        except ValueError as error:
            raise gr.Error(f"The pasted history: {error}") from error
        event: Event = {"action": action} if item is None else {"item": item, "action": action}
        if self.model.has_time:
            last = events[-1].get("timestamp") if events else None
            event["timestamp"] = (last if isinstance(last, float) else float(int(time.time()))) + GAPS[gap]
        return events_text([*events, event])

    def without_last(self, text: str) -> str:
        try:
            return events_text(parse_events(text)[:-1])
        except ValueError as error:
            raise gr.Error(f"The pasted history: {error}") from error


def build(model: Model, other: Model | None = None) -> gr.Blocks:
    """The page for a model, beside another one if there is one."""
    page = Page(model, other)
    catalog = model.catalog
    said = f"{len(catalog.items):,} items, {len(model.actions)} action{'s' * (len(model.actions) > 1)}"
    title = model.name if other is None else f"{model.name} and {other.name}"
    example = events_text(model.example())
    with gr.Blocks(title=f"Next behavior: {title}", analytics_enabled=False, fill_width=other is not None) as blocks:
        gr.HTML(
            f'<h1>What comes next?</h1><p class="bnb-quiet">{escape(title)}: {said}. Pick or paste what someone did; '
            "see which action on which item is likely to follow, how soon, and which part of the model said so.</p>"
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Pick items"):
                        query = gr.Textbox(label="Find an item", placeholder="a part of its title, or its id")
                        item = gr.Radio(catalog.search(""), show_label=False, container=False, elem_id="matches")
                        with gr.Row():
                            action = gr.Dropdown(model.actions, value=model.actions[0], label="Action", min_width=120)
                            gap = gr.Dropdown(list(GAPS), label="When", min_width=120, visible=model.has_time)
                        with gr.Row():
                            add = gr.Button("Add event", variant="primary", size="sm", min_width=70)
                            undo = gr.Button("Remove last", size="sm", min_width=70)
                            clear = gr.Button("Clear", size="sm", min_width=60)
                            again = gr.Button("Example", size="sm", min_width=60)
                    with gr.Tab("Paste events"):
                        label = "CSV (item,action,timestamp) or JSON, oldest first"
                        text = gr.Textbox(
                            example, lines=8, max_lines=16, max_length=MAX_TEXT, label=label, elem_id="events"
                        )
                gr.HTML("<h4>History, newest first</h4>")
                history = gr.HTML(elem_id="history")
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    question = gr.Radio(list(QUESTIONS), value="Action and item", label="Rank", min_width=300, scale=3)
                    given = gr.Dropdown(
                        [ANY_ACTION, *model.actions], label="If the next action is", min_width=140, scale=2
                    )
                with gr.Row():
                    exclude_seen = gr.Checkbox(False, label="Leave out items of the history", min_width=200)
                    top_k = gr.Slider(3, 50, value=TOP_K, step=1, label="Answers", min_width=200)
                answers = gr.HTML(elem_id="answers")
        controls = [text, question, given, exclude_seen, top_k]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        changes = [text.change, question.change, given.change, exclude_seen.change, top_k.change]
        gr.on([blocks.load, *changes], page.ask, controls, [history, answers], trigger_mode="always_last", **quiet)
        question.change(page.which_apply, question, [given, exclude_seen], **quiet)
        query.input(page.matches, query, item, trigger_mode="always_last", **quiet)
        add.click(page.add, [text, item, action, gap], text, **quiet)
        undo.click(page.without_last, text, text, **quiet)
        clear.click(lambda: "", None, text, **quiet)
        again.click(lambda: events_text(model.example()), None, text, **quiet)
    return blocks


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; on a Space, which has none, the variables MODEL and COMPARE."""
    parser = argparse.ArgumentParser(description="Try a next-behavior model in a browser.")
    parser.add_argument("--model", default=os.environ.get("MODEL"), help="folder or Hub id (default: variable MODEL)")
    parser.add_argument("--compare", default=os.environ.get("COMPARE"), help="a second model, shown beside the first")
    parser.add_argument("--host", default=None, help="address to serve on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=None, help="port (default: the first free one from 7860)")
    found = parser.parse_args(given)
    if not found.model:
        parser.error("got no --model; expected a model's folder or Hub id (on a Space: set the variable MODEL)")
    return found


def main() -> None:
    args = arguments()
    model = Model(args.model)
    other = Model(args.compare) if args.compare else None
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    build(model, other).launch(
        server_name=args.host, server_port=args.port, theme=theme, head=f"<style>{CSS}</style>", footer_links=[]
    )


if __name__ == "__main__":
    main()
