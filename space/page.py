"""The page: its controls, and what they do.

On a wide screen the history stands on the left and the answers on the right. On a narrow one the answers come first,
and what builds the history is folded below them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import

import gradio as gr
from answer_html import context_html, error_html, history_html, panel_html
from history_text import Event, events_text, parse_events
from loaded_model import LoadedModel
from shown_text import as_html, seconds_of, shown

MAX_TEXT = 500_000
TOP_K = 10
GAPS = {"a minute later": 60.0, "an hour later": 3600.0, "a day later": 86400.0, "a week later": 604800.0}
ANY_ACTION = ""  # what no action is called
QUESTIONS = {"Action and item": "pair", "Item": "item", "Action": "action"}

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# The width at which the style puts the columns below each other.
NARROW = 767
# Which folds are open when the page comes: options, then what builds the history.
FOLDS_JS = f"() => [1, 1].map(() => ({{__type__: 'update', open: window.innerWidth > {NARROW}}}))"
# A search begins once typing has paused: what was typed before is never answered.
PAUSE_JS = """(query) => new Promise((search) => {
  clearTimeout(window.bnbPause);
  window.bnbPause = setTimeout(() => search(query), 200);
})"""


class Page:
    """What the page's controls do; the history lives in the text box of the second tab, as CSV or as it was pasted."""

    def __init__(self, model: LoadedModel, other: LoadedModel | None) -> None:
        self.model, self.other = model, other

    def ask(self, text: str, question: str, action: str, exclude_seen: bool, top_k: int) -> tuple[str, str]:
        """The history and the answers, as HTML."""
        try:
            events = parse_events(text)
        except ValueError as error:
            return '<p class="bnb-empty">The pasted text is no history.</p>', error_html(error)
        asked = (QUESTIONS[question], None if action == ANY_ACTION else action, exclude_seen, top_k)
        try:
            contributions = self.model.contributions(events, *asked)
        except ValueError:  # the answers say why
            contributions = None
        history = history_html(events, self.model, contributions)
        models = [self.model] if self.other is None else [self.model, self.other]
        found: list[list[Event] | ValueError] = []
        for model in models:
            try:
                found.append(model.answers(events, *asked))
            except ValueError as error:
                found.append(error)
        pairs = [(found[0], None)] if self.other is None else [(found[0], found[1]), (found[1], found[0])]
        panels = [panel_html(model, events, mine, others) for model, (mine, others) in zip(models, pairs, strict=True)]
        return history, f'{context_html(events, self.model)}<div class="bnb-panels">{"".join(panels)}</div>'

    def which_apply(self, question: str) -> list[Any]:
        """Which action and which items: not asked where actions alone are ranked."""
        return [gr.update(interactive=QUESTIONS[question] != "action")] * 2

    def matches(self, query: str) -> tuple[Any, str]:
        """The items to choose from for what was typed, the one that is meant chosen, and a word if there is none. A
        dropdown that is refilled while one types would not do: it remembers the place of a choice, not its name."""
        found = self.model.catalog.search(query)
        items = [item for _, item in found]
        chosen = query.strip() if query.strip() in items else items[0] if len(items) == 1 else None
        none = f'<p class="bnb-empty">No title or id holds <bdi>“{as_html(query.strip())}”</bdi>.</p>'
        return gr.update(choices=found, value=chosen), "" if found else none

    def add(self, text: str, item: str | None, action: str, gap: str) -> str:
        """The history with one more event."""
        events = self.events_of(text)
        event: Event = {"action": action} if item is None else {"item": item, "action": action}
        if self.model.has_time:
            last = seconds_of(events[-1].get("timestamp")) if events else None
            event["timestamp"] = (float(int(time.time())) if last is None else last) + GAPS[gap]
        return events_text([*events, event])

    def without_last(self, text: str) -> str:
        return events_text(self.events_of(text)[:-1])

    def events_of(self, text: str) -> list[Event]:
        """The pasted events, to be changed by a button."""
        try:
            return parse_events(text)
        except ValueError as error:  # shown as HTML
            raise gr.Error(f"The pasted history: {as_html(str(error))}") from error

    def example(self) -> str:
        return events_text(self.model.example())


# ----------------------------------------------------------------------------------------------------------------------
# Its layout
# ----------------------------------------------------------------------------------------------------------------------


def action_choices(model: LoadedModel) -> list[tuple[str, str]]:
    """(as it is shown, action)."""
    return [(shown(action), action) for action in model.actions]


def heading_html(model: LoadedModel, other: LoadedModel | None) -> str:
    said = f"{len(model.catalog.items):,} items, {len(model.actions)} action{'s' * (len(model.actions) > 1)}"
    beside = "" if other is None else f" and <bdi>{as_html(other.name)}</bdi>"
    return (
        f'<h1>What comes next?</h1><p class="bnb-quiet"><bdi>{as_html(model.name)}</bdi>{beside}: {said}. '
        '<span class="bnb-wide">Pick or paste what someone did; see which action on which item is likely to follow, '
        "how soon, and which part of the model said so.</span></p>"
    )


def question_controls(model: LoadedModel) -> tuple[list[Any], Any]:
    """What is asked: the question, then the action it is given, the items and how many; and the fold around the last
    three."""
    question = gr.Radio(list(QUESTIONS), value="Action and item", label="Rank", elem_id="rank")
    with gr.Accordion("Options", open=False, elem_id="options") as options:
        with gr.Row():
            given = gr.Dropdown(
                [("any action", ANY_ACTION), *action_choices(model)],
                value=ANY_ACTION,
                label="If the next action is",
                min_width=140,
            )
            top_k = gr.Slider(3, 50, value=TOP_K, step=1, label="Answers", min_width=160)
        exclude_seen = gr.Checkbox(False, label="Leave out items of the history")
    return [question, given, exclude_seen, top_k], options


def build(model: LoadedModel, other: LoadedModel | None = None) -> gr.Blocks:
    """The page for a model, beside another one if there is one."""
    page = Page(model, other)
    title = shown(model.name) if other is None else f"{shown(model.name)} and {shown(other.name)}"
    with gr.Blocks(title=f"Next behavior: {title}", analytics_enabled=False, fill_width=other is not None) as blocks:
        gr.HTML(heading_html(model, other), elem_id="heading")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=320, elem_id="build"):
                with gr.Accordion("Change the history", open=True) as fold, gr.Tabs():
                    with gr.Tab("Pick items"):
                        query = gr.Textbox(
                            label="Find an item", placeholder="a part of its title, or its id", max_length=1_000
                        )
                        item = gr.Radio(model.catalog.search(""), show_label=False, container=False, elem_id="matches")
                        none = gr.HTML(elem_id="none")
                        with gr.Row():
                            action = gr.Dropdown(
                                action_choices(model), value=model.actions[0], label="Action", min_width=120
                            )
                            gap = gr.Dropdown(list(GAPS), label="When", min_width=120, visible=model.has_time)
                        add = gr.Button("Add event", variant="primary", size="sm")
                    with gr.Tab("Paste events"):
                        text = gr.Textbox(
                            page.example(),
                            lines=8,
                            max_lines=16,
                            max_length=MAX_TEXT,
                            label="CSV (item,action,timestamp) or JSON, oldest first",
                            elem_id="events",
                        )
                gr.HTML("<h2>History, newest first</h2>")
                history = gr.HTML('<p class="bnb-empty">Loading …</p>', elem_id="history")
                with gr.Row(elem_id="edit"):
                    undo = gr.Button("Remove last", size="sm", min_width=70)
                    clear = gr.Button("Clear", size="sm", min_width=60)
                    again = gr.Button("Example", size="sm", min_width=60)
            with gr.Column(scale=3, min_width=320, elem_id="asked"):
                asked, options = question_controls(model)
                answers = gr.HTML('<p class="bnb-empty">Asking the model …</p>', elem_id="answers")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        slow = quiet | {"show_progress": "minimal", "show_progress_on": answers}
        changes = [text.change, *(control.change for control in asked)]
        gr.on([blocks.load, *changes], page.ask, [text, *asked], [history, answers], trigger_mode="always_last", **slow)
        blocks.load(None, None, [options, fold], js=FOLDS_JS, **quiet)
        asked[0].change(page.which_apply, asked[0], [asked[1], asked[2]], **quiet)
        # `input` does not see a paste.
        query.change(page.matches, query, [item, none], js=PAUSE_JS, trigger_mode="always_last", **quiet)
        add.click(page.add, [text, item, action, gap], text, **quiet)
        undo.click(page.without_last, text, text, **quiet)
        clear.click(lambda: "", None, text, **quiet)
        again.click(page.example, None, text, **quiet)
    return blocks
