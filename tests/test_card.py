"""The model card says what was recorded and measured, for any kind of log, and its metadata is valid."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.publishing.card import CardFacts, model_card
from next_behavior.publishing.plots import draw_calibration, draw_results
from next_behavior.publishing.privacy import Privacy
from next_behavior.publishing.record import command_of, hub_id
from next_behavior.publishing.request import Delivery, Provenance
from next_behavior.publishing.run_text import duration

SECTIONS = [
    *("Load it and ask", "For whom", "Data", "Training", "Results", "Calibration", "Where it fails"),
    *("Limits and risks", "Privacy", "Compute", "How to cite"),
]


def ranks(count: int, value: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"count": count, "mrr": value}
    found |= {f"{metric}@{k}": value for metric in ("recall", "ndcg") for k in (1, 5, 10, 20)}
    return found | ({"ndcg@10_interval": [value / 2, 2 * value]} if value else {})


def row(level: float, actions: bool) -> dict[str, Any]:
    """What `evaluate` finds for one ranker."""
    groups = {"all": ranks(80, level), "repeat": ranks(20, 3 * level), "novel": ranks(50, level / 2),
              "cold": ranks(10, 0.0), "switch": ranks(60, level)}  # fmt: skip
    new = {"all": ranks(60, level), "repeat": ranks(0, None), "novel": ranks(50, level), "cold": ranks(10, 0.0),
           "switch": ranks(60, level)}  # fmt: skip
    lists = {"coverage@10": 0.42, "novelty@10": 9.0, "popularity_percentile@10": 0.9, "popularity_bias@10": 0.13}
    found: dict[str, Any] = {"kept": {"items": groups, **lists}, "removed": {"items": new, **lists}}
    if actions:
        found["actions"] = {
            "count": 90, "accuracy": level, "accuracy_interval": [level / 2, level], "macro_f1": level, "log_loss": 0.5,
            "ece": 0.02, "recall": {"view": 0.9, "pay|now": 0.01}, "unknown": 0,
            "changes": {"count": 5, "accuracy": 0.1},
        }  # fmt: skip
    return found


def result(**changes: Any) -> dict[str, Any]:
    split = {"how": "time", "validation_cut": 1_700_000_000_000_000, "test_cut": 1_700_086_400_000_000,
             "validation_quantile": 0.8, "test_quantile": 0.9}  # fmt: skip
    comparison = [
        {"where": "kept", "group": "novel", "metric": "ndcg@10", "model": 0.1, "best_baseline": "item_neighbours",
         "best": 0.15, "difference": -0.05, "difference_interval": [-0.1, -0.01], "beats": False},
    ]  # fmt: skip
    return {
        "model": row(0.2, True), "popularity": row(0.05, False), "item_neighbours": row(0.3, False),
        "rankers": ["model", "popularity", "item_neighbours"], "split": split, "part": 2, "targets": 90,
        "item_targets": 80, "users": 30, "sampled": True, "all_targets": 400, "items": 12,
        "actions": ["view", "pay|now"], "max_length": 8, "seed": 0, "comparison": comparison, **changes,
    }  # fmt: skip


CURVE = {
    "count": 90,
    "ece": 0.031,
    "bins": [
        {"confidence": 0.2, "accuracy": 0.25, "count": 60},
        {"confidence": 0.7, "accuracy": 0.6, "count": 29},
        {"confidence": 0.9, "accuracy": 0.0, "count": 1},
    ],
}
MEASURED = {
    "targets": 90,
    "action_calibration": CURVE,
    "item_calibration": CURVE,
    "by_action": {
        "view": {"count": 70, "accuracy": 0.9, "recall@10": 0.3, "ndcg@10": 0.2},
        "pay|now": {"count": 20, "accuracy": 0.01},
    },
}
CLEANING = {
    "source": "/somewhere/secret/events.csv", "files": ["events.csv"], "rows": 1200, "columns": {}, "notes": [],
    "time_unit": "s", "removed": [{"rule": "missing_user", "rows": 7, "what": "rows without a user", "example": "u9"}],
    "events": 1193, "users": 40, "items": 15, "actions": {"view": 1000, "pay|now": 193},
    "first_time": "2024-01-02T00:00:00+00:00", "last_time": "2024-05-06T00:00:00+00:00", "median_user_events": 9.0,
    "longest_user_events": 44, "repeats": 0.25, "ties": 3, "exact_duplicates": 0, "without_item": 12,
    "suspicious_users": [["customer-77", "11 % of all"]],
}  # fmt: skip
RUN = {
    "settings": {"events": "/somewhere/secret/events.csv", "output_dir": "/somewhere/out", "items": None,
                 "split": "time", "seed": 11, "max_minutes": 30.0, "cpu": True},
    "sizes": {}, "read_options": {"user_column": "who"}, "seconds": 477.2,
    "machine": {"description": "Abacus 9, 2 cores, 1 thread", "cores": 2, "threads": 1},
    "versions": {"torch": "2.13.0"}, "events_sha256": {"events.csv": "ab12"},
}  # fmt: skip


def facts(**changes: Any) -> CardFacts:
    privacy = Privacy(
        min_item_users=5, min_pair_users=2, items=15, removed_items=3, pairs=100, removed_pairs=60,
        membership={"auc": 0.61, "auc_new_items": 0.6, "members": 900, "others": 80},
        membership_as_trained={"auc": 0.93, "auc_new_items": 0.95, "members": 900, "others": 80},
        cost={"NDCG@10": (0.22, 0.2)},
    )  # fmt: skip
    whole: dict[str, Any] = {
        "repo_id": "ana/shop", "revision": None, "run": RUN,
        "provenance": Provenance(license="apache-2.0", data_name="A | B"),
        "cleaning": CLEANING, "result": result(),
        "config": BehaviorConfig(memory_size=40, item_temperature=1.25), "num_items": 12,
        "actions": ["view", "pay|now"], "has_time": True, "measured": MEASURED,
        "has_calibration_plot": True, "privacy": privacy,
        "history": [{"item": "7", "action": "view", "timestamp": 1_700_000_000}],
        "answers": [{"action": "view", "item": "8", "probability": 0.12345}],
        "contributions": [0.7], "parameters": 1234,
    }  # fmt: skip
    return CardFacts(**{**whole, **changes})


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_a_model_with_item_text_says_what_it_reads_and_how_new_items_come_in() -> None:
    text: dict[str, Any] = {"text_size": 4, "text_encoder_size": 8, "text_columns": ["title", "brand"]}
    with_text = model_card(facts(config=BehaviorConfig(**text, text_encoder="/somewhere/secret/some-encoder/")))
    assert "| item text | `title`, `brand`, embedded by `some-encoder` |" in section(with_text, "Training")
    assert "their text (`title`, `brand`) makes them candidates at once" in section(with_text, "Limits and risks")
    assert "secret" not in with_text
    without = model_card(facts())
    assert "item text" not in section(without, "Training")
    assert "they are alike until they are trained on" in section(without, "Limits and risks")


@pytest.mark.parametrize(
    ("delivery", "revision"),
    [(Delivery(), None), (Delivery(tag="v1"), "v1"), (Delivery(revision="trial"), "trial")],
)
def test_the_snippet_loads_what_the_card_describes_or_says_how_to_pin_it(
    delivery: Delivery, revision: str | None
) -> None:
    assert delivery.load_revision == revision
    text = section(model_card(facts(revision=revision)), "Load it and ask")
    assert ('revision="' in text) is (revision is not None)
    assert f'model="ana/shop", revision="{revision}", trust_remote_code=True)' in text or revision is None
    assert "the commit's id from this repository's history" in " ".join(text.split())


def test_the_first_answer_is_explained_by_what_each_event_contributes() -> None:
    assert "explain=True" in section(model_card(facts()), "Load it and ask")
    assert "\n×2.0   view 7\n" in section(model_card(facts()), "Load it and ask")
    hostile = facts(history=[{"item": "```", "action": "view"}], contributions=[-1.0])
    assert "view ```" not in model_card(hostile)


def test_a_model_that_saw_less_than_one_pass_says_so_beside_its_results() -> None:
    short = model_card(facts(run={**RUN, "passes": 0.43}))
    assert "**The model saw 0.43 of a pass over its training events" in section(short, "Results")
    assert "| passes over the training events | 0.43, less than one |" in section(short, "Training")
    for run in (RUN, {**RUN, "passes": 2.5}):
        assert "of a pass" not in section(model_card(facts(run=run)), "Results")


def test_every_section_is_there_with_what_was_recorded() -> None:
    card = model_card(facts())
    assert re.findall(r"^## (.*)$", card, flags=re.MULTILINE) == SECTIONS
    expected = {
        "Load it and ask": ['model="ana/shop"', "view 8 0.1235",
                            '{"item": "7", "action": "view", "timestamp": 170000000'],
        "Data": ["2024-01-02 to 2024-05-06", "1,193", "40, median 9", "15 in the log, 12 in the published", "`ab12`",
                 "1,200 rows were read, 7 removed: 7 rows without a user", "`view` 1,000 (83.8 %)", "25.0 %"],
        "Training": ["--max_minutes 30.0", "--user_column who", "--cpu", "| seed | 11 |", "8 min", "Abacus 9",
                     "torch 2.13.0"],
        "Results": ["Tested on events after 2023-11-15 22:13 UTC", "a sample of 90 of 400", ".2000", ".1000–.4000",
                    "**does not beat** item neighbours"],
        "Calibration": ["3.1 percentage points", "item 1.25", "plots/calibration.png"],
        "Where it fails": ["10 (12.5 %) of the targets are items that the vocabulary lacks",
                           "novel (by item neighbours)", "`pay/now` (.01)"],
        "Limits and risks": ["more popular than what users then took by 13 percentile points", "42 % of the catalog",
                             "(2023-11-14)"],
        "Privacy": ["fewer than 5 users", "3 (20.0 %) of the items", "60 (60.0 %) of the pairs",
                    "NDCG@10 .2200 to .2000",
                    "AUC **0.61** (it was 0.93", "nothing was found"],
        "Compute": ["8 min on Abacus 9, 2 cores, 1 thread"],
        "How to cite": ["@misc{ana_shop"],
    }  # fmt: skip
    missing = {title: [text for text in texts if text not in section(card, title)] for title, texts in expected.items()}
    assert not {title: texts for title, texts in missing.items() if texts}


def test_no_path_no_user_and_no_empty_value_reaches_the_card() -> None:
    for one in (facts(), facts(run=None, cleaning=None)):
        card = model_card(one)
        for trace in ("/somewhere", "secret", "customer-77", "u9", "None.", "| None", "nan", "{{", "{%", "Undefined"):
            assert trace not in card, trace


def test_the_metadata_is_read_back_by_huggingface_hub() -> None:
    data = ModelCard(model_card(facts())).data.to_dict()
    assert (data["license"], data["library_name"]) == ("apache-2.0", "transformers")
    assert "datasets" not in data
    (index,) = data["model-index"]
    assert index["name"] == "shop"
    (found,) = index["results"]
    assert found["dataset"]["name"] == "A | B"
    values = {metric["name"]: metric["value"] for metric in found["metrics"]}
    assert values["NDCG@10"] == 0.2
    assert values["NDCG@10, seen items removed"] == 0.2
    assert values["Expected calibration error of the next action"] == 0.02
    assert data["metrics"] == list(dict.fromkeys(metric["type"] for metric in found["metrics"]))


def test_a_data_set_on_the_hub_is_linked_and_named_in_the_metadata() -> None:
    card = model_card(facts(provenance=Provenance(data_id="ana/shop-log")))
    assert ModelCard(card).data.to_dict()["datasets"] == ["ana/shop-log"]
    assert "https://huggingface.co/datasets/ana/shop-log" in section(card, "Data")
    assert section(card, "Data").count("not stated by the publisher") == 3


def test_a_log_of_one_action_without_times_says_nothing_of_actions_or_times() -> None:
    only = {
        name: {key: value for key, value in result()[name].items() if key != "actions"} for name in result()["rankers"]
    }
    only["model"]["actions"] = {**row(1.0, True)["actions"], "recall": {"interact": 1.0}}
    cleaning = {**CLEANING, "first_time": None, "last_time": None, "actions": {"interact": 1193}}
    split = {"how": "leave_one_out", "validation_cut": None, "test_cut": None, "validation_quantile": 0.8,
             "test_quantile": 0.9}  # fmt: skip
    card = model_card(
        facts(result=result(**only, actions=["interact"], split=split), actions=["interact"], has_time=False,
              cleaning=cleaning)
    )  # fmt: skip
    assert "which of 12 items they turn to next**, as a calibrated" in " ".join(card.split())
    assert "how soon" not in card
    assert "Next action" not in card
    assert "predicted action" not in section(card, "Calibration")
    assert "time 1" not in section(card, "Calibration")
    assert "leave-one-out leaks the future" in section(card, "Results")
    assert "the log has no times" in section(card, "Data")


def test_a_model_without_test_events_says_that_nothing_was_measured() -> None:
    privacy = Privacy(min_item_users=1, min_pair_users=1, items=12, pairs=40)
    card = model_card(facts(result=None, measured=None, has_calibration_plot=False, privacy=privacy))
    assert "model-index" not in card
    assert "Not evaluated: the model was trained on its whole log" in section(card, "Results")
    assert "there are no test events" in section(card, "Calibration").lower()
    assert "plots/" not in card
    assert "was not measured: no events were held out" in section(card, "Privacy")
    assert "however few users touched them" in section(card, "Privacy")


def test_traces_of_persons_are_counted_and_not_repeated() -> None:
    privacy = replace(facts().privacy, traces={"e-mail address": ["jo@example.org"], "URL": ["x", "y"]})
    text = section(model_card(facts(privacy=privacy)), "Privacy")
    assert "1 like an e-mail address, 2 like a URL" in text
    assert "jo@example.org" not in text


def test_plots_are_png_files_that_depend_on_the_numbers_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw_results(result(), tmp_path / name / "results.png")
        assert draw_calibration(MEASURED, ["view", "pay"], tmp_path / name / "calibration.png")
    for plot in ("results.png", "calibration.png"):
        content = (tmp_path / "one" / plot).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content == (tmp_path / "two" / plot).read_bytes()
        assert len(content) < 150_000
    nothing = {**MEASURED, "item_calibration": {"count": 0, "ece": None, "bins": []}}
    assert not draw_calibration(nothing, ["view"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_command_of_a_run_names_files_and_what_differs_from_the_defaults() -> None:
    command = command_of(RUN)
    assert command == (
        "python train_accelerate.py --events events.csv --output_dir out --seed 11 --max_minutes 30.0 --cpu "
        "--user_column who"
    )
    assert command_of(None) is None
    hub = json.loads(json.dumps(RUN))
    hub["settings"]["events"] = "ana/shop-log"
    hub["events_sha256"] = {}
    assert "--events ana/shop-log " in str(command_of(hub))


def test_a_file_of_the_run_is_no_data_set_on_the_hub_even_where_it_is_missing_now() -> None:
    run = json.loads(json.dumps(RUN))
    run["settings"] |= {"events": "logs/march", "base_model": "out/shop", "text_encoder": "encoders/small"}
    assert [hub_id(run, name) for name in ("events", "base_model")] == [None, "out/shop"]
    run["files"] = ["events", "base_model", "text_encoder"]
    assert [hub_id(run, name) for name in ("events", "base_model")] == [None, None]
    command = str(command_of(run))
    assert all(part in command for part in ("--events march ", "--base_model shop ", "--text_encoder small "))
    run["files"] = []
    assert [hub_id(run, name) for name in ("events", "base_model")] == ["logs/march", "out/shop"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (95, "2 min"), (3 * 3600, "3 h 0 min")])
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_facts_are_not_changed_by_writing_the_card() -> None:
    one = facts()
    before = json.dumps({"result": one.result, "privacy": one.privacy.to_dict()}, sort_keys=True)
    assert model_card(one) == model_card(replace(one))
    assert json.dumps({"result": one.result, "privacy": one.privacy.to_dict()}, sort_keys=True) == before


def test_balanced_answers_have_a_row_and_are_explained() -> None:
    assert "Balanced answers" not in model_card(facts())
    rows = {"model, balanced": {"actions": row(0.2, True)["actions"]}}
    text = model_card(
        facts(result=result(**rows, rankers=["model", "model, balanced", "popularity", "item_neighbours"]))
    )
    assert "| this model, balanced |" in text
    assert "Balanced answers (`predict(" in text
