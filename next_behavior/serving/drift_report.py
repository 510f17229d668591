"""A drift report as one HTML file, for whoever decides about a model: nothing is loaded, nothing runs.

    Path("drift.html").write_text(page_of(drift))

Item ids, titles and actions come from strangers: each is shown by the rule of `data/shown.py` and escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from next_behavior.data.page_pieces import page, percent, section, table, text, tiles
from next_behavior.serving.drift import Drift, ItemShare, Lengths, Period
from next_behavior.serving.drift_predictions import Calibration
from next_behavior.serving.drift_verdict import TOLERATED_LOSS
from next_behavior.serving.shift import LARGE_SHIFT, SMALL_SHIFT, UNKNOWN, meaning

MOST_ACTIONS = 12
HEADLINES = {"retrain": "Train again", "watch": "Train again soon", "keep": "Up to date", "unclear": "Too few events"}
# Of every chart, in its own units; the page scales it.
WIDTH, HEIGHT, BOTTOM, LEFT = 480, 180, 22, 60
# A PSI beyond this is at the end of its scale.
END_OF_SCALE = 0.5


def page_of(drift: Drift) -> str:
    """The whole page."""
    verdict = drift.verdict
    sections = [
        predictions_section(drift),
        unknown_section(drift),
        actions_section(drift),
        popularity_section(drift),
        lengths_section(drift.lengths),
        calibration_section(drift.calibration),
    ]
    reasons = "".join(f"<li>{text(reason, 300)}</li>" for reason in verdict.reasons)
    body = f"""<header class="{verdict.level}"><p class="label">Drift of model {text(drift.model)}</p>
<h1>{HEADLINES[verdict.level]}</h1><p class="lead">{text(verdict.sentence, 300)}</p><ul>{reasons}</ul></header>
{tiles(figures(drift))}
<div class="sections">{"".join(sections)}</div>
{notes(drift)}"""
    return page(f"Drift: {HEADLINES[verdict.level]}", body)


def figures(drift: Drift) -> list[tuple[str, str, str]]:
    """The figures that matter most, each with what it was at the training."""
    said = drift.predictions
    unknown, error, expected = drift.unknown, drift.calibration.error, drift.calibration.training_error
    return [
        ("Next item in the first ten", percent(said.recall), then(said.training_recall)),
        ("Items the model does not know", percent(unknown), then(drift.training_unknown)),
        ("Mix of actions, PSI", number(drift.action_psi), words(drift.action_psi)),
        ("Popularity of items, PSI", number(drift.popularity.psi), words(drift.popularity.psi)),
        ("Error of action probabilities", percent(error), then(expected)),
    ]


def then(share: float | None) -> str:
    return "not recorded at the training" if share is None else f"at the training {percent(share)}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def words(index: float | None) -> str:
    return "not recorded at the training" if index is None else meaning(index)


# -- sections ----------------------------------------------------------------------------------------------------------


def predictions_section(drift: Drift) -> str:
    said = drift.predictions
    if said.recall is None or said.interval is None:
        return section("Are the predictions still right?", "No event that could be predicted names an item.")
    low, high = said.interval
    says = (
        f"The model was asked for the next item before each of {said.item_events:,} events of {said.users:,} users. It "
        f"was among the first ten in <b>{percent(said.recall)}</b> of cases (95 % interval {percent(low)} to "
        f"{percent(high)})."
    )
    limit = None if said.training_recall is None else said.training_recall * (1 - TOLERATED_LOSS)
    chart = columns(drift.periods, [period.recall for period in drift.periods], limit, "recall")
    legend = "" if limit is None else f'<p class="key"><i class="dash"></i>what is tolerated: {percent(limit)}</p>'
    rows = [
        ("Recall@10", percent(said.recall), percent(said.training_recall)),
        ("NDCG@10", number3(said.ndcg), number3(said.training_ndcg)),
    ]
    return section("Are the predictions still right?", says, chart, legend, table(("", "now", "at the training"), rows))


def unknown_section(drift: Drift) -> str:
    says = (
        f"<b>{percent(drift.unknown)}</b> of the events name an item that was not in the training. The model can "
        "repeat such an item within a history, and cannot recommend it to others."
    )
    chart = columns(drift.periods, [period.unknown for period in drift.periods], drift.training_unknown, "unknown")
    key = "" if drift.training_unknown is None else '<p class="key"><i class="dash"></i>at the test of the training</p>'
    rows = [(text(item.item), f"{item.events:,}") for item in drift.popularity.unknown]
    listed = table(("most frequent unknown items", "events"), rows) if rows else ""
    return section("Are there new items?", says, chart, key, listed)


def actions_section(drift: Drift) -> str:
    if drift.action_psi is None:
        says = "The model has no record of the actions in its training, so the shares of today stand alone."
    else:
        says = f"Against the training, the mix of actions is <b>{meaning(drift.action_psi)}</b>."
    bars = [
        f"<tr><th>{action_name(share.action)}</th><td>{bar(share.training, 'then')}{bar(share.now, 'now')}</td>"
        f"<td>{percent(share.now)}<small>{percent(share.training)}</small></td></tr>"
        for share in drift.actions[:MOST_ACTIONS]
    ]
    rest = len(drift.actions) - MOST_ACTIONS
    more = f'<p class="key">and {rest:,} other actions</p>' if rest > 0 else ""
    key = '<p class="key"><i class="now"></i>now <i class="then"></i>in the training</p>'
    scale = "" if drift.action_psi is None else psi_scale(drift.action_psi)
    return section("Do people act as before?", says, scale, key, f'<table class="bars">{"".join(bars)}</table>', more)


def action_name(action: str) -> str:
    return "(unknown to the model)" if action == UNKNOWN else text(action)


def popularity_section(drift: Drift) -> str:
    popularity = drift.popularity
    if popularity.psi is None:
        return section("Are other items popular?", "No event names an item that the model knows.")
    says = (
        f"The items of the training in ten groups, each with a tenth of its events, the most popular first. The shift "
        f"among them is <b>{meaning(popularity.psi)}</b>; the dashed line is the training."
    )
    names = [f"group {place + 1}" for place in range(len(popularity.bands))]
    chart = column_chart(names, popularity.bands, 1 / len(popularity.bands), "now", ("most popular", "least popular"))
    return section("Are other items popular?", says, psi_scale(popularity.psi), chart, risen_table(popularity.risen))


def risen_table(risen: Sequence[ItemShare]) -> str:
    rows = [(item_name(item), percent(item.training, 2), percent(item.now, 2)) for item in risen]
    return table(("items that rose most", "training", "now"), rows) if rows else ""


def item_name(item: ItemShare) -> str:
    return text(item.item) if item.title is None else f"{text(item.title)}<small>{text(item.item)}</small>"


def lengths_section(lengths: Lengths) -> str:
    last = len(lengths.edges) - 1
    names = [
        f"{low}+" if place == last else str(low) if lengths.edges[place + 1] == low + 1
        else f"{low}–{lengths.edges[place + 1] - 1}"
        for place, low in enumerate(lengths.edges)
    ]  # fmt: skip
    total = max(1, sum(lengths.counts))
    trained = lengths.training_user_median
    before = "" if trained is None else f"; in the training log half of them had {trained:g}"
    says = (
        f"Half of the users have at least <b>{lengths.user_median:g}</b> events{before}. Half of the events have at "
        f"least {lengths.median:g} events of the same user before them: users with many events weigh more here. The "
        "columns are shares of the events, by how many are before them."
    )
    chart = column_chart(names, [count / total for count in lengths.counts], None, "now", names)
    return section("How much is known of a user?", says, chart)


def calibration_section(calibration: Calibration) -> str:
    if not calibration.bins:
        return section("Can the probabilities be trusted?", "No predicted event has an action that the model knows.")
    says = (
        "Of the actions that the model calls 30 % probable, 30 % should happen. The probability of the most probable "
        f"action is off by <b>{percent(calibration.error)}</b> on average (expected calibration error)."
    )
    rows = [
        (f"{100 * place // len(calibration.bins)}–{100 * (place + 1) // len(calibration.bins)}\u00a0%",
         f"{each.predictions:,}", percent(each.expected / each.predictions), percent(each.happened / each.predictions))
        for place, each in enumerate(calibration.bins) if each.predictions
    ]  # fmt: skip
    head = ("said", "actions", "said on average", "happened")
    return section("Can the probabilities be trusted?", says, reliability(calibration), table(head, rows))


def notes(drift: Drift) -> str:
    """How the numbers came about, and what the words mean."""
    since = (
        "All events are judged." if drift.since is None
        else f"Events after {clock(drift.since)} are judged, which is where the training ended." if drift.since_training
        else f"Events after {clock(drift.since)} are judged, as was asked."
    )  # fmt: skip
    return f"""<footer><h2>How to read this</h2><ul>
<li>{drift.events:,} events of {drift.users:,} users from {text(drift.source)}, {clock(drift.begin)} to
{clock(drift.end)}. {since} Earlier ones are histories.</li>
<li>A PSI (population stability index) says how far a mix has moved: below {SMALL_SHIFT} it is stable, up to
{LARGE_SHIFT} it is a moderate shift, above it is a large one.</li>
<li>{drift.predictions.events:,} events of {drift.predictions.users:,} users drawn at random were predicted, each from
the events of its user before it, with the memory as it was trained. A service whose memory learns does better.</li>
<li>The figures at the training are those of its own test. If they were measured on other users or another period,
small differences mean nothing.</li>
</ul></footer>"""


def clock(iso: str) -> str:
    """ISO text in UTC, to the minute."""
    return f"{iso[:10]} {iso[11:16]} UTC"


def number3(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# -- pieces ------------------------------------------------------------------------------------------------------------


def bar(share: float | None, kind: str) -> str:
    width = 0.0 if share is None else 100 * share
    return f'<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true"><rect class="{kind}" width="{width:.2f}" height="4"/></svg>'  # noqa: E501


def psi_scale(index: float) -> str:
    """Where a PSI lies between stable and a large shift."""
    place = 100 * min(index, END_OF_SCALE) / END_OF_SCALE
    zones = ((0.0, SMALL_SHIFT, "keep"), (SMALL_SHIFT, LARGE_SHIFT, "watch"), (LARGE_SHIFT, END_OF_SCALE, "retrain"))
    rects = "".join(
        f'<rect class="{kind}" x="{100 * low / END_OF_SCALE:.1f}" width="{100 * (high - low) / END_OF_SCALE:.1f}" height="5"/>'  # noqa: E501
        for low, high, kind in zones
    )
    return (
        f'<figure class="scale"><svg viewBox="0 0 100 5" preserveAspectRatio="none" role="img">'
        f"<title>PSI {index:.2f}</title>{rects}"
        f'<rect class="mark" x="{min(max(0.0, place - 0.4), 99.2):.2f}" width="0.8" height="5"/></svg>'
        f"<figcaption>PSI <b>{index:.2f}</b>: {meaning(index)}</figcaption></figure>"
    )


def columns(periods: Sequence[Period], values: Sequence[float | None], line: float | None, kind: str) -> str:
    """A column for each period, with a dashed line across."""
    names = [f"{clock(period.begin)}, {period.events:,} events" for period in periods]
    return column_chart(names, values, line, kind, (periods[0].begin[:10], periods[-1].begin[:10]))


def column_chart(
    names: Sequence[str], values: Sequence[float | None], line: float | None, kind: str, below: Sequence[str]
) -> str:
    """Columns of shares with a scale; `below` are the labels, from the first column to the last."""
    top = nice_top(max([*(value for value in values if value is not None), line or 0.0, 0.001]))
    room, height = (WIDTH - LEFT) / len(values), HEIGHT - BOTTOM

    def y(share: float) -> float:
        return 8 + (height - 8) * (1 - share / top)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.3g} %</text>'
        for share in (0.0, top / 2, top)
    ]
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        if value is not None:
            x, width, tall = LEFT + room * (place + 0.15), room * 0.7, max(height - y(value), 0.8)
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{height - tall:.1f}" width="{width:.1f}" height="{tall:.1f}">'
                f"<title>{escape(name)}: {percent(value)}</title></rect>"
            )
    if line is not None:
        parts.append(f'<line class="dash" x1="{LEFT}" x2="{WIDTH}" y1="{y(line):.1f}" y2="{y(line):.1f}"/>')
    parts += labels(below, room, len(values))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def labels(below: Sequence[str], room: float, count: int) -> list[str]:
    """One under each column, or two at the ends."""
    if len(below) == count:
        places = [(LEFT + room * (place + 0.5), "middle") for place in range(count)]
    else:
        places = [(LEFT, "start"), (WIDTH, "end")]
    return [f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{escape(label)}</text>'
            for label, (x, anchor) in zip(below, places, strict=True)]  # fmt: skip


def nice_top(value: float) -> float:
    """The end of a scale that holds a share: 1, 2 or 5 times a power of ten, at most 1.

    >>> [nice_top(share) for share in (0.03, 0.11, 0.7)]
    [0.05, 0.2, 1.0]
    """
    for power in (0.001, 0.01, 0.1):
        for step in (1, 2, 5):
            if value <= step * power:
                return step * power
    return 1.0


def reliability(calibration: Calibration) -> str:
    """What happened against what was said; on the diagonal both are equal."""
    size = HEIGHT - BOTTOM - 8
    left = (WIDTH - size) / 2
    most = max(each.predictions for each in calibration.bins)
    parts = [
        f'<rect class="frame" x="{left}" y="8" width="{size}" height="{size}"/>',
        f'<line class="dash" x1="{left}" y1="{8 + size}" x2="{left + size}" y2="8"/>',
        f'<text x="{left - 6}" y="16" text-anchor="end">100 % happened</text>',
        f'<text x="{left - 6}" y="{8 + size}" text-anchor="end">0 %</text>',
        f'<text x="{left + size}" y="{HEIGHT - 5}" text-anchor="end">100 % said</text>',
    ]
    for each in calibration.bins:
        if each.predictions:
            said, came = each.expected / each.predictions, each.happened / each.predictions
            radius = 3 + 6 * (each.predictions / most) ** 0.5
            parts.append(
                f'<circle class="now" cx="{left + size * said:.1f}" cy="{8 + size * (1 - came):.1f}" r="{radius:.1f}">'
                f"<title>said {percent(said)}, happened {percent(came)}, {each.predictions:,} times</title></circle>"
            )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
