"""Whether a log is one that a trained model can say something about.

check_known(log.events, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import polars as pl

from next_behavior.data.columns import ACTION, FLAGS, ITEM
from next_behavior.data.shown import shown

# Below this share of events with a known item, or action, the log is likely to be another one, or wrongly read.
FEW = 0.2
EVENTS = "events"


def check_known(events: pl.DataFrame, items: Sequence[str], actions: Sequence[str]) -> None:
    """Warns where a model knows few items or actions of a log.

    Args:
        events: item_id, action, as `read_events` gives them.
        items, actions: the model's vocabularies.

    Raises:
        ValueError: it knows none.
    """
    item_counts, action_counts = (events[role].drop_nulls().value_counts(name=EVENTS) for role in (ITEM, ACTION))
    check_counted(item_counts, action_counts, items, actions)


def check_counted(
    item_counts: pl.DataFrame, action_counts: pl.DataFrame, items: Sequence[str], actions: Sequence[str]
) -> None:
    """`check_known` of counted events: item_id and events, action and events."""
    for role, what, counts, known in (
        (ITEM, "item", item_counts, items),
        (ACTION, "action", action_counts, actions),
    ):
        is_known = pl.col(role).is_in(pl.Series(known, dtype=pl.String).implode())
        total, ours_of_it = int(counts[EVENTS].sum()), int(counts.filter(is_known)[EVENTS].sum())
        if not total or ours_of_it >= FEW * total:
            continue
        most = counts.sort(EVENTS, role, descending=[True, False])[role][0]
        ours = f"'{shown(known[0], most=40)}'" if known else "none"
        theirs = f"e.g. '{shown(str(most), most=40)}' in the log, {ours} in the model"
        remedy = f"expected a log of the same {what}s: check --{FLAGS[role]}, and that it is this model's log"
        if not ours_of_it:
            raise ValueError(f"got a log of {total:,} events of which the model knows no {what} ({theirs}); {remedy}")
        warnings.warn(
            f"the model knows the {what} of {100 * ours_of_it / total:.1f} % of the events only ({theirs}); {remedy}",
            stacklevel=2,
        )
