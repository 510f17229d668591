"""The card's text about the data, the training run and privacy, from what the run recorded; and how text is set.

Every function takes what it reads: a record of the run or None, where the run recorded nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from next_behavior.data.shown import shown
from next_behavior.evaluation.tables import number, saw_little
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.publishing.privacy import Privacy
from next_behavior.publishing.request import Provenance

Rows = list[tuple[str, str]]  # of a table with two columns

# ----------------------------------------------------------------------------------------------------------------------
# How text is set
# ----------------------------------------------------------------------------------------------------------------------


# What makes a link, an image, a tag or an entity of text in Markdown.
MARKUP = str.maketrans({character: f"\\{character}" for character in "[]<>&"})


def unfenced(text: str) -> str:
    """Text from a log that breaks neither a table nor a code block, for a code span or block.

    >>> unfenced("a|b`c")
    "a/b'c"
    """
    return shown(text).replace("|", "/").replace("`", "'")


def plain(text: str) -> str:
    """The same outside of code: it makes no link, image or tag, either.

    >>> plain("![x](http://example.org)")
    '!\\\\[x\\\\](http://example.org)'
    """
    return unfenced(text).translate(MARKUP)


def code(text: str) -> str:
    return f"`{unfenced(text)}`"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names with commas, the first `most` of them.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def share(part: float, whole: float) -> str:
    """
    >>> share(3, 12)
    '3 (25.0 %)'
    """
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def day(time: str | None) -> str | None:
    """The day of an ISO time."""
    return None if time is None else time[:10]


def moment(microseconds: int) -> str:
    """A cut of a split, which is in microseconds since 1970."""
    return datetime.fromtimestamp(microseconds / 1e6, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(477), duration(9000)
    ('42 s', '8 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# ----------------------------------------------------------------------------------------------------------------------
# Data and training
# ----------------------------------------------------------------------------------------------------------------------


def data_rows(
    provenance: Provenance, cleaning: Mapping[str, Any] | None, run: Mapping[str, Any] | None, num_items: int
) -> Rows:
    """What the model was trained on.

    Args:
        num_items: items of the published vocabulary.
    """
    stated = [
        ("name", provenance.data_name),
        ("source", provenance.data_source),
        ("license", provenance.data_license),
    ]
    rows = [(what, plain(said) if said else "not stated by the publisher") for what, said in stated]
    if provenance.data_id:
        rows.append(("on the Hub", f"[{provenance.data_id}](https://huggingface.co/datasets/{provenance.data_id})"))
    if cleaning is None:
        return [*rows, ("contents", "not recorded by the run")]
    events = cleaning["events"]
    period = "the log has no times"
    if cleaning["first_time"]:
        period = f"{day(cleaning['first_time'])} to {day(cleaning['last_time'])} (UTC)"
    longest = f"median {cleaning['median_user_events']:g} events, at most {cleaning['longest_user_events']:,}"
    actions = [f"{code(name)} {share(count, events)}" for name, count in cleaning["actions"].items()]
    rows += [
        ("period", period),
        ("events", f"{events:,}"),
        ("users", f"{cleaning['users']:,}, {longest}"),
        ("items", f"{cleaning['items']:,} in the log, {num_items:,} in the published vocabulary"),
        ("actions", listed(actions)),
        ("repeats", f"{100 * cleaning['repeats']:.1f} % of the events that name an item: their user had it before"),
    ]
    if cleaning["without_item"]:
        rows.append(("without an item", share(cleaning["without_item"], events)))
    for name, digest in (run or {}).get("events_sha256", {}).items():
        rows.append((f"SHA-256 of {code(name)}", code(digest)))
    return rows


def cleaning_text(cleaning: Mapping[str, Any] | None) -> str:
    """What cleaning removed, in the report's own words."""
    if cleaning is None:
        return "The run recorded no cleaning report."
    if not cleaning["removed"]:
        text = f"Cleaning: {cleaning['rows']:,} rows were read and none was removed."
    else:
        removed = sum(entry["rows"] for entry in cleaning["removed"])
        why = "; ".join(f"{entry['rows']:,} {entry['what']}" for entry in cleaning["removed"])
        text = f"Cleaning: {cleaning['rows']:,} rows were read, {removed:,} removed: {why}."
    if cleaning["exact_duplicates"]:
        copies = share(cleaning["exact_duplicates"], cleaning["events"])
        text += f" {copies} events are exact copies of another; they were kept."
    if cleaning["ties"]:
        ties = share(cleaning["ties"], cleaning["events"])
        text += f" {ties} happened at the same time as the user's event before."
    if cleaning["suspicious_users"]:
        text += f" {len(cleaning['suspicious_users'])} users have so many events that they may not be people."
    return text


def training_rows(config: BehaviorConfig, parameters: int, run: Mapping[str, Any] | None) -> Rows:
    """The model's size, and how it was trained.

    Args:
        parameters: how many weights there are.
    """
    shape = f"{config.num_hidden_layers} layer(s) of width {config.hidden_size}"
    history = f"histories of up to {config.max_position_embeddings} events"
    rows = [
        ("architecture", f"{shape}, {history}, {parameters:,} parameters"),
        ("memory", f"{config.memory_size:,} counted pairs of items"),
    ]
    if config.text_size:
        # The last name alone: a folder's path would say something about the machine that trained.
        encoder = str(config.text_encoder).rstrip("/").split("/")[-1]
        rows.append(("item text", f"{text_columns(config)}, embedded by {code(encoder)}"))
    if run is None:
        return [*rows, ("settings", "not recorded")]
    settings = run["settings"]
    machine, versions = run.get("machine"), run.get("versions")
    rows += [
        ("split", settings["split"].replace("_", " ")),
        ("seed", str(settings["seed"])),
        ("time", duration(run["seconds"])),
        *passes_row(run.get("passes")),
        ("machine", plain(machine["description"]) if machine else "not recorded by the run"),
    ]
    if versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def passes_row(passes: float | None) -> Rows:
    """How often training saw its events; nothing for a run that did not record it."""
    if passes is None:
        return []
    return [("passes over the training events", f"{passes:.2f}{', less than one' if saw_little(passes) else ''}")]


def text_columns(config: BehaviorConfig) -> str:
    """The columns of the item text; empty for a model that reads none."""
    return listed([code(column) for column in config.text_columns or []])


def compute_text(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return "The run recorded nothing about it."
    machine = run.get("machine")
    where = f" on {plain(machine['description'])}" if machine else "; the run did not record its machine"
    return (
        f"One training run of {duration(run['seconds'])}{where}; the evaluation comes on top. Earlier runs, energy and "
        "carbon were not measured."
    )


# ----------------------------------------------------------------------------------------------------------------------
# Privacy
# ----------------------------------------------------------------------------------------------------------------------


def privacy_text(privacy: Privacy) -> str:
    """What was removed, what that cost, and what could still be learned about the people in the data."""
    points = [
        "None of these files holds a user's id. Events are in them as weights, as counts of items (`vocabulary.tsv`) "
        "and as counts of pairs of items (the memory).",
        *removed_points(privacy),
    ]
    if privacy.cost:
        changes = [f"{name} {number(before)} to {number(after)}" for name, (before, after) in privacy.cost.items()]
        points.append(
            f"That changed, on the same test events: {', '.join(changes)}. The results above are those after it."
        )
    if privacy.traces:
        kinds = ", ".join(
            f"{len(items)} like {'an' if kind.startswith('e') else 'a'} {kind}"
            for kind, items in privacy.traces.items()
        )
        points.append(f"**Item ids and titles were searched for personal data, and some look like it: {kinds}.**")
    else:
        points.append(
            "Item ids and titles were searched for e-mail addresses, phone numbers and URLs: nothing was found."
        )
    points.append(membership_point(privacy))
    return "\n".join(f"- {point}" for point in points)


def removed_points(privacy: Privacy) -> list[str]:
    items = "Items were published however few users touched them."
    if privacy.min_item_users > 1:
        items = (
            f"Items that fewer than {privacy.min_item_users} users touched were removed from the vocabulary, the item "
            f"table and the memory: {share(privacy.removed_items, privacy.items)} of the items."
        )
    pairs = "Counted pairs of items were published however few users share them."
    if privacy.min_pair_users > 1:
        pairs = (
            f"Pairs of items (one followed by the other) that fewer than {privacy.min_pair_users} users share were "
            f"removed from the memory: {share(privacy.removed_pairs, privacy.pairs)} of the pairs."
        )
    return [items, pairs]


def membership_point(privacy: Privacy) -> str:
    after, before = privacy.membership, privacy.membership_as_trained
    if after is None:
        return "Whether training events can be told from others was not measured: no events were held out."
    was = f" (it was {before['auc']:.2f} before the removals)" if before else ""
    new = "" if after["auc_new_items"] is None else f"; {after['auc_new_items']:.2f} on items new to the user"
    return (
        f"Membership inference by a threshold on the loss: AUC **{after['auc']:.2f}**{was}{new}, on "
        f"{after['members']:,} training and {after['others']:,} held-out events; 0.5 is guessing. The figure says how "
        "well somebody who knows a user's history and next event could tell whether the model was trained on it. In a "
        "log that changes over time it is an upper bound, because held-out events are later ones."
    )
