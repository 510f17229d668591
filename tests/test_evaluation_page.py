"""The page of an evaluation: its verdict, what it shows of hostile names, and that it stands alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import chromium
from tiny import sequences_of

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import TEST, TRAIN, Sequences
from next_behavior.evaluation.baselines import fit_baselines
from next_behavior.evaluation.evaluator import evaluate
from next_behavior.evaluation.page import page_of
from next_behavior.evaluation.rankers import UPDATED, UPDATED_SUFFIX
from next_behavior.evaluation.shared_catalog import Ensemble
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW

FIRST_ITEM, VOCAB = 6, 40
ACTIONS = ["view", "</td><script>alert('a')</script>", "購入" * 40 + "\u202e|&\"'"]
HOSTILE_NAME = 'shop"><img src=x onerror=alert(1)>'
TYPICAL_ERRORS = {"model": 3.25, "user_median_gap": 2.5, "training_gaps": 4.0}
VOID = {"meta", "line", "rect", "circle", "br"}


def log() -> Sequences:
    """Thirty users who walk through the items, and return to some."""
    generator = np.random.default_rng(0)
    users = []
    for _ in range(30):
        items = generator.integers(FIRST_ITEM, VOCAB, size=3)
        chosen = [*items, *generator.choice(items, 4), generator.integers(FIRST_ITEM, VOCAB)]
        users.append([(int(item), int(generator.integers(3, 6)), TRAIN if step < 5 else TEST)
                      for step, item in enumerate(chosen)])  # fmt: skip
    return sequences_of(users, VOCAB, FIRST_ITEM)


class Guess:
    """Gives the target the highest score so often, and the right action so high a probability."""

    def __init__(self, share: float) -> None:
        self.share = share

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = np.random.default_rng(1).random((len(batch), VOCAB)).astype(np.float32)
        scores[:, :FIRST_NEW] = -np.inf
        known = np.flatnonzero((batch.target_item >= FIRST_NEW) & (np.arange(len(batch)) % 100 < 100 * self.share))
        scores[known, batch.target_item[known]] = 2
        return scores

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        probabilities = np.full((len(batch), FIRST_ACTION + 3), (1 - self.share) / 2)
        probabilities[:, :FIRST_ACTION] = 0
        probabilities[np.arange(len(batch)), batch.target_action] = self.share
        return probabilities


def result_of(models: Mapping[str, Guess]) -> dict[str, Any]:
    sequences = log()
    items, actions = fit_baselines(sequences, FIRST_ACTION + 3)
    result = evaluate(
        sequences, TEST, {**models, **items}, {**models, **actions}, max_length=20, actions=ACTIONS,
        models=list(models), progress=False,
    )  # fmt: skip
    return json.loads(json.dumps(result))


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return result_of({"model": Guess(1.0)})


@pytest.fixture(scope="module")
def several() -> dict[str, Any]:
    return result_of({"model a": Guess(1.0), "model " + "b" * 70: Guess(0.5), "ensemble": Guess(0.8)})


class Tags(HTMLParser):
    """Which tags stand in a page; every one that is opened is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.seen = list[str](), set[str]()
        self.attributes: set[str] = set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("of", ["good", "several"])
def test_the_page_is_whole_loads_nothing_and_escapes_every_name(of: str, request: pytest.FixtureRequest) -> None:
    page = page_of(request.getfixturevalue(of), HOSTILE_NAME)
    tags = Tags(page)
    assert not tags.seen & {"script", "img", "link", "iframe", "object", "a", "form"}
    assert not {name for name in tags.attributes if name.startswith("on") or name in ("src", "href")}
    assert "http://" not in page
    assert "https://" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("change", "headline"),
    [
        ({"difference": 0.2, "difference_interval": [0.1, 0.3], "beats": True}, "Better than the best simple rule"),
        ({"difference": -0.2, "difference_interval": [-0.3, -0.1], "beats": False}, "A simple rule is better"),
        ({"difference": 0.2, "difference_interval": [-0.1, 0.3], "beats": True}, "Not surely better than a simple"),
    ],
)
def test_the_headline_follows_the_interval(good: dict[str, Any], change: dict[str, Any], headline: str) -> None:
    result = copy.deepcopy(good)
    result["comparison"][0] |= change
    page = page_of(result, "shop")
    assert f"<h1>{headline}" in page
    low, high = change["difference_interval"]
    assert f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f})" in page


def test_what_a_model_loses_is_said(good: dict[str, Any]) -> None:
    assert "It beats the best simple rule in every comparison" not in page_of(result_of({"model": Guess(0.0)}), "shop")
    lost = copy.deepcopy(good)
    for row in lost["comparison"]:
        row |= {"beats": False, "difference": -0.1, "difference_interval": [-0.2, -0.05]}
    page = page_of(lost, "shop")
    losses = page[page.index("What does it not beat?") : page.index("What was not tested?")]
    assert losses.count('<b class="retrain">worse than</b>') == len(lost["comparison"])


def test_all_numbers_stand_in_the_page(good: dict[str, Any]) -> None:
    page = page_of(good, "shop")
    for name in good["rankers"]:
        if "kept" in good[name]:
            assert f"{good[name]['kept']['items']['all']['mrr']:.4f}".replace("0.", ".", 1) in page, name
    assert "Items taken again" in page
    assert "Items new to the user" in page


def test_what_the_leak_audit_says_stands_in_the_page(good: dict[str, Any]) -> None:
    page = page_of(good | {"audit": {"checked": ["times"], "undecided": ["item '<b>'"]}}, "out/shop")
    assert "<li>Leak audit passed: times. Not decidable: item &#x27;&lt;b&gt;&#x27;.</li>" in page
    assert "Leak audit" not in page_of(good, "out/shop")


def test_a_result_with_one_action_has_no_part_about_actions(good: dict[str, Any]) -> None:
    result = copy.deepcopy(good) | {"actions": ["view"]}
    page = page_of(result, "shop")
    assert "Does it know the next action?" not in page
    assert "this log has a single one" in page


def test_several_models_stand_side_by_side(several: dict[str, Any]) -> None:
    page = page_of(several, "a, b")
    assert "<h1>3 models on the same events</h1>" in page
    assert "Next item: model a is better than model bbb" in page
    assert page.count("beat the best simple rule?</h2>") == 3


def test_rankers_that_go_on_counting_stand_apart_from_those_that_do_not(good: dict[str, Any]) -> None:
    assert "learns from each event?" not in page_of(good, "shop")
    result = copy.deepcopy(good)
    for name in ("model", "popularity"):
        result["rankers"].append(name + (UPDATED_SUFFIX if name == "popularity" else UPDATED.removeprefix("model")))
        result[result["rankers"][-1]] = {"kept": result[name]["kept"], "removed": result[name]["removed"]}
    result["comparison_updated"] = result["comparison"][:1]
    page = page_of(result, "shop")
    apart = page[page.index("learns from each event?") :].partition("</section>")[0]
    together = page[page.index("How does it stand") :].partition("</section>")[0]
    assert (apart.count("updated"), together.count("updated")) == (2, 0)


def test_what_was_measured_of_probabilities_times_and_sets_stands_in_the_page(good: dict[str, Any]) -> None:
    for title in ("First item: off by", "Does it know when?", "Do sets keep their promise?"):
        assert title not in page_of(good, "shop")
    bins = [{"confidence": 0.2, "accuracy": 0.1, "count": 9}, {"confidence": 0.6, "accuracy": 0.5, "count": 40}]
    curve = {"count": 49, "confidence": 0.5, "accuracy": 0.4, "ece": 0.123, "bins": bins}
    a_set = {"count": 49, "coverage": 0.876, "median_size": 12.0, "mean_size": 13.5}
    page = page_of(
        good
        | {
            "calibration": {"action": curve, "item": curve, "top10": {"ece": 0.1, "repeat": curve, "new": curve}},
            "time": {"count": 49, **{name: {"hours_error": hours} for name, hours in TYPICAL_ERRORS.items()}},
            "prediction_sets": {"item": {"unnameable": 0.25, "90": a_set}, "action": {"90": a_set}},
        },
        "shop",
    )
    Tags(page)
    assert "Next action: off by 12.3" in page
    assert page.count("<circle") == 2  # a bin of nine says too little
    assert "no closer than the better simple rule, the user's own median gap" in page
    assert page.count("87.6\u00a0%") == 2
    assert "cannot name are left out: 25.0" in page


def test_an_ensemble_needs_two_models() -> None:
    with pytest.raises(ValueError, match="got 1 models for an ensemble"):
        Ensemble([object()])  # type: ignore[list-item]


@pytest.mark.browser
def test_the_page_fits_a_narrow_window_and_is_dark_where_the_system_is(several: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(several, HOSTILE_NAME))
    with chromium() as browser:
        grounds = set()
        for scheme in ("light", "dark"):
            for width in (360, 1280):
                shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                complaints: list[str] = []
                shown.on("console", lambda message, complaints=complaints: complaints.append(message.text))
                shown.goto(path.as_uri())
                shown.evaluate("document.querySelector('details').open = true")
                assert shown.evaluate("document.documentElement.scrollWidth") <= width
                assert not complaints
                grounds.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
