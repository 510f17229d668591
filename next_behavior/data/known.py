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


def check_known(events: pl.DataFrame, items: Sequence[str], actions: Sequence[str]) -> None:
    """Warns where a model knows few items or actions of a log.

    Args:
        events: item_id, action, as `read_events` gives them.
        items, actions: the model's vocabularies.

    Raises:
        ValueError: it knows none.
    """
    for role, what, known in ((ITEM, "item", items), (ACTION, "action", actions)):
        named = events[role].drop_nulls()
        share = float(named.is_in(pl.Series(known, dtype=pl.String).implode()).mean() or 0.0)  # type: ignore[arg-type]
        if share >= FEW or not len(named):
            continue
        ours = f"'{shown(known[0], most=40)}'" if known else "none"
        theirs = f"e.g. '{shown(str(named[0]), most=40)}' in the log, {ours} in the model"
        remedy = f"expected a log of the same {what}s: check --{FLAGS[role]}, and that it is this model's log"
        if share == 0:
            raise ValueError(
                f"got a log of {len(named):,} events of which the model knows no {what} ({theirs}); {remedy}"
            )
        warnings.warn(
            f"the model knows the {what} of {100 * share:.1f} % of the events only ({theirs}); {remedy}", stacklevel=2
        )
