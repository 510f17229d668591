"""The plots of the model card, as PNG files.

draw_results(result, path)                     # evaluation.json as bars
draw_calibration(measured, actions, path)      # accuracy against probability
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from next_behavior.evaluation.rankers import MODEL
from next_behavior.evaluation.tables import number
from next_behavior.publishing.results_text import WAYS, row_name

# Bins with fewer predictions are not drawn: their accuracy is chance.
FEWEST_IN_A_BIN = 10
MODEL_COLOR, BASELINE_COLOR, INK = "#1f6f8b", "#b8bdc4", "#333333"


def draw_results(result: Mapping[str, Any], path: Path) -> None:
    """NDCG@10 with intervals of the model and the baselines, seen items kept and removed, as bars."""
    plots = pyplot()
    panels = []
    for way, title in WAYS.items():
        names = [name for name in result["rankers"] if way in result[name]]
        rows = {name: result[name][way]["items"]["all"] for name in names}
        if names and rows[names[0]]["count"]:
            panels.append((title, {name: row for name, row in rows.items() if row["ndcg@10"] is not None}))
    figure, axes = plots.subplots(1, len(panels), figsize=(4.6 * len(panels) + 1, 3.4), squeeze=False)
    for axis, (title, rows) in zip(axes[0], panels, strict=True):
        draw_bars(axis, rows)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("NDCG@10, 95 % interval", fontsize=9)
        finish(axis)
    save(figure, path)


def draw_bars(axis: Any, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One bar for each ranker, the best on top."""
    ordered = sorted(rows, key=lambda name: rows[name]["ndcg@10"])
    values = [rows[name]["ndcg@10"] for name in ordered]
    ends = [rows[name].get("ndcg@10_interval") or [value, value] for name, value in zip(ordered, values, strict=True)]
    errors = [
        [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    labels = [row_name(name) for name in ordered]
    colors = [MODEL_COLOR if name == MODEL else BASELINE_COLOR for name in ordered]
    axis.barh(labels, values, color=colors, xerr=errors, ecolor=INK, capsize=2, error_kw={"linewidth": 0.9})
    reach = max((high for _, high in ends), default=0) or 1
    for row, (value, (_, high)) in enumerate(zip(values, ends, strict=True)):
        axis.text(high + 0.02 * reach, row, number(value, 3), va="center", fontsize=8, color=INK)
    axis.set_xlim(0, 1.18 * reach)


def draw_calibration(measured: Mapping[str, Any], actions: Sequence[str], path: Path) -> bool:
    """Accuracy against probability in each bin, with the size of the bins, for the action and the first-ranked item.

    Args:
        measured: as `measures.measure` returns it.
        actions: with a single one, actions have no plot.

    Returns:
        Whether there was anything to draw.
    """
    plots = pyplot()
    curves = {"Next action": measured["action_calibration"], "First-ranked item": measured["item_calibration"]}
    panels = {title: curve for title, curve in curves.items() if drawn_bins(curve)}
    if len(actions) == 1:
        panels.pop("Next action", None)
    if not panels:
        return False
    figure, axes = plots.subplots(1, len(panels), figsize=(3.6 * len(panels) + 0.6, 3.6), squeeze=False)
    for axis, (title, curve) in zip(axes[0], panels.items(), strict=True):
        draw_curve(axis, drawn_bins(curve))
        axis.set_title(f"{title}: off by {100 * curve['ece']:.1f} points", fontsize=10)
        axis.set_xlabel("probability", fontsize=9)
        axis.set_ylabel("share that was right", fontsize=9)
        finish(axis)
    save(figure, path)
    return True


def drawn_bins(curve: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in curve["bins"] if one["count"] >= FEWEST_IN_A_BIN]


def draw_curve(axis: Any, bins: Sequence[Mapping[str, Any]]) -> None:
    """The bins as points on a line, beside the diagonal of perfect calibration."""
    confidence, accuracy = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
    reach = min(1.0, 1.1 * max(*confidence, *accuracy))
    axis.plot([0, reach], [0, reach], color=BASELINE_COLOR, linewidth=1, linestyle="--", zorder=1)
    axis.plot(confidence, accuracy, color=MODEL_COLOR, linewidth=1, zorder=2)
    most = max(one["count"] for one in bins)
    sizes = [12 + 120 * one["count"] / most for one in bins]
    axis.scatter(confidence, accuracy, s=sizes, color=MODEL_COLOR, alpha=0.85, zorder=3)
    axis.set_xlim(-0.04 * reach, 1.04 * reach)
    axis.set_ylim(-0.04 * reach, 1.04 * reach)
    axis.set_aspect("equal")


# ----------------------------------------------------------------------------------------------------------------------
# matplotlib
# ----------------------------------------------------------------------------------------------------------------------


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
