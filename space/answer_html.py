"""The page's HTML: histories, answers, hints and errors.

Whatever a model or a visitor wrote goes through `as_html`. Every bar has one scale, 0 to 100 %, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from history_text import Event
from loaded_model import Catalog, LoadedModel
from shown_text import as_html, duration, factor, moment_text, percent

PATHS = {
    "generate": ("generated", "from the whole catalog"),
    "repeat": ("repeated", "from this history"),
    "associate": ("associated", "often together with recent items"),
}
# A weaker effect has no color.
LEAST_EFFECT = 0.1
# Unknown actions that a hint names, and known ones that it lists.
MOST_UNKNOWN, MOST_KNOWN = 3, 8
# An error holds ids and a remedy at its end.
MOST_ERROR = 600

SCALE = '<span class="bnb-scale" aria-hidden="true"><i>0</i><i>100 %</i></span>'
LEGEND = (
    '<p class="bnb-legend">'
    + "".join(f'<span><i class="bnb-{path}"></i><b>{name}</b> {what}</span>' for path, (name, what) in PATHS.items())
    + "</p>"
)


# ----------------------------------------------------------------------------------------------------------------------
# Pieces
# ----------------------------------------------------------------------------------------------------------------------


def item_html(item: str | None, catalog: Catalog) -> str:
    """An item for people: its title and its id, or its id as the title."""
    if item is None:
        return '<span class="bnb-quiet">no item</span>'
    title = catalog.title(item)
    name = f'<bdi class="bnb-title">{as_html(item if title is None else title)}</bdi>'
    identity = "" if title is None else f' <bdi class="bnb-id">{as_html(item)}</bdi>'
    new = "" if catalog.holds(item) else ' <span class="bnb-new">new to the model</span>'
    return f"{name}{identity}{new}"


def action_html(action: str | None, known: bool = True) -> str:
    if action is None:
        return ""
    mark = "" if known else ' bnb-unknown" title="unknown to the model'
    return f'<bdi class="bnb-action{mark}">{as_html(action)}</bdi>'


def bar_html(share: float) -> str:
    filled = f'<i style="width:{100 * share:.1f}%"></i>' if share > 0 else ""
    return f'<div class="bnb-bar">{filled}</div>'


def paths_html(paths: dict[str, float] | None) -> str:
    """Which path named an item: a bar of three parts, and in words the largest."""
    if paths is None:
        return ""
    parts = "".join(f'<i class="bnb-{path}" style="width:{100 * share:.1f}%"></i>' for path, share in paths.items())
    largest = max(paths, key=paths.__getitem__)
    every = ", ".join(f"{PATHS[path][0]} {percent(share)}" for path, share in paths.items())
    words = f"{PATHS[largest][0]} {percent(paths[largest])}"
    return f'<small>{words}</small><div class="bnb-paths" title="{every}">{parts}</div>'


def error_html(error: ValueError) -> str:
    message = as_html(str(error), MOST_ERROR)
    return f'<div class="bnb-error" role="alert"><b>That did not work.</b> <bdi>{message}</bdi></div>'


# ----------------------------------------------------------------------------------------------------------------------
# The history
# ----------------------------------------------------------------------------------------------------------------------


def parts_of(event: Event) -> tuple[str | None, str | None]:
    """Item and action of an event as text, also where they are numbers."""
    item, action = (None if event.get(name) is None else str(event[name]) for name in ("item", "action"))
    return item, action


def effect_html(contribution: float) -> str:
    """What an event does to the first answer."""
    side = "" if abs(contribution) < LEAST_EFFECT else " bnb-up" if contribution > 0 else " bnb-down"
    words = as_html(factor(contribution))
    return f'<b class="bnb-effect{side}" title="the first answer is {words} as probable with it">{words}</b>'


def history_html(events: Sequence[Event], model: LoadedModel, contributions: Sequence[float] | None) -> str:
    """The history, newest first, as a list; with what each event contributes to the first answer."""
    if not events:
        return '<p class="bnb-empty">No events yet. The answers are those for a new user.</p>'
    rows = []
    effects = [""] * len(events) if contributions is None else [effect_html(one) for one in contributions]
    for event, effect in zip(reversed(events), reversed(effects), strict=True):
        item, action = parts_of(event)
        what = f"{action_html(action, action in model.actions)}{item_html(item, model.catalog)}"
        rows.append(f"<li>{effect}<div>{what}</div><time>{as_html(moment_text(event.get('timestamp')))}</time></li>")
    said = (
        ""
        if contributions is None
        else '<p class="bnb-quiet">×: with the event, the first answer is so many times as probable.</p>'
    )
    return f'{said}<ol class="bnb-history" tabindex="0" aria-label="History, newest first">{"".join(rows)}</ol>'


def context_html(events: Sequence[Event], model: LoadedModel) -> str:
    """What the answers are about, in a line: for screens where the history stands below them."""
    after = "For a new user"
    if events:
        item, action = parts_of(events[-1])
        what = f"{action_html(action, action in model.actions)}{item_html(item, model.catalog)}"
        after = f"After {what}" if len(events) == 1 else f"After {len(events):,} events, the last: {what}"
    return f'<p class="bnb-context">{after} <a href="#build">Change</a></p>'


def unknown_html(events: list[Event], model: LoadedModel) -> str:
    """A hint at the actions of the history that the model does not know, and at those that it does."""
    unknown = model.unknown_actions(events)
    if not unknown:
        return ""
    named = []
    for action in unknown[:MOST_UNKNOWN]:
        near = model.nearest_action(action)
        meant = "" if near is None else f" (did you mean {action_html(near)}?)"
        named.append(f"{action_html(action, known=False)}{meant}")
    more = f" and {len(unknown) - MOST_UNKNOWN:,} more" if len(unknown) > MOST_UNKNOWN else ""
    known = ", ".join(f"<bdi>{as_html(action)}</bdi>" for action in model.actions[:MOST_KNOWN])
    rest = f" and {len(model.actions) - MOST_KNOWN:,} more" if len(model.actions) > MOST_KNOWN else ""
    plural = "s" if len(unknown) > 1 else ""
    return (
        f'<div class="bnb-hint" role="status"><b>Unknown action{plural}</b> {", ".join(named)}{more}. '
        f"Known: {known}{rest}. Spelling counts.</div>"
    )


# ----------------------------------------------------------------------------------------------------------------------
# The answers
# ----------------------------------------------------------------------------------------------------------------------


def answers_html(answers: Sequence[Event], catalog: Catalog, others: Sequence[Event] | None) -> str:
    """The ranked answers as a table; with the other model's answers, their rank there."""
    if not answers:
        return '<p class="bnb-empty">No candidate is left to rank.</p>'
    elsewhere = {(answer["action"], answer["item"]): rank for rank, answer in enumerate(others or [], 1)}
    with_paths = "paths" in answers[0]
    rows = []
    for rank, answer in enumerate(answers, 1):
        item = answer["item"]
        what = action_html(answer["action"]) + (item_html(item, catalog) if with_paths else "")
        if others is not None:
            there = elsewhere.get((answer["action"], item))
            what += f'<small class="bnb-also">{f"other model: #{there}" if there else "not in the other list"}</small>'
        named_by = f'<td class="bnb-named">{paths_html(answer["paths"])}</td>' if with_paths else ""
        rows.append(
            f'<tr><td class="bnb-rank">{rank}</td><td class="bnb-what">{what}</td>'
            f'<td class="bnb-probability"><b>{percent(answer["probability"])}</b>{bar_html(answer["probability"])}</td>'
            f"{named_by}</tr>"
        )
    named = f'<th class="bnb-named">Named by{SCALE}</th>' if with_paths else ""
    kind = "Action" if not with_paths else "Item" if answers[0]["action"] is None else "Action and item"
    head = f'<tr><th>#</th><th>{kind}</th><th class="bnb-probability">Probability{SCALE}</th>{named}</tr>'
    return f'<table class="bnb-table"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def when_html(when: dict[str, float] | None) -> str:
    """How soon the next event comes."""
    if when is None:
        return '<p class="bnb-when bnb-quiet">This model was trained on a log without times.</p>'
    horizons = [(name.removeprefix("within_").replace("_", " "), p) for name, p in when.items() if "within" in name]
    bars = "".join(f"<dt>within {name}</dt><dd>{bar_html(p)}<b>{percent(p)}</b></dd>" for name, p in horizons)
    median = duration(when["median_seconds"])
    scale = f"<dt>Probability</dt><dd>{SCALE}<b></b></dd>"
    words = f"<p>The next event: half of the time within <b>{median}</b></p>"
    return f'<div class="bnb-when">{words}<dl>{scale}{bars}</dl></div>'


def panel_html(
    model: LoadedModel,
    events: list[Event],
    answers: Sequence[Event] | ValueError,
    others: Sequence[Event] | ValueError | None,
) -> str:
    """What one model says; with another model's answers, under its name."""
    name = "" if others is None else f'<h3 class="bnb-model" title="{as_html(model.name)}">{as_html(model.name)}</h3>'
    hint = unknown_html(events, model)
    if isinstance(answers, ValueError):
        return f"<section>{name}{hint}{error_html(answers)}</section>"
    table = answers_html(answers, model.catalog, [] if isinstance(others, ValueError) else others)
    when = when_html(answers[0]["when"]) if answers else ""
    legend = LEGEND if answers and "paths" in answers[0] else ""
    return f"<section>{name}{hint}{table}{legend}{when}</section>"
