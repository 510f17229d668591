"""The folder that is sent: exactly the files that belong to a model's repository.

stage_model(published, record.split, findings, staged)                      # all files but the card
stage_card(published, record, findings, provenance, "ana/shop", None, staged)
check_no_local_names(staged, model)
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from next_behavior.data.splits import Split
from next_behavior.evaluation.tables import format_table
from next_behavior.publishing.card import CardFacts, model_card
from next_behavior.publishing.check import contributions_to_first_answer, golden_answers, golden_histories
from next_behavior.publishing.hub import folder_files
from next_behavior.publishing.measures import Findings
from next_behavior.publishing.plots import draw_calibration, draw_results
from next_behavior.publishing.publication import Publication
from next_behavior.publishing.record import Record
from next_behavior.publishing.request import Provenance

# What the repository's code needs; the versions are those of pyproject.toml.
REQUIREMENTS = "torch>=2.6\ntransformers>=5.20,<6\n"
RESULTS_PLOT, CALIBRATION_PLOT = "plots/results.png", "plots/calibration.png"


def stage_model(published: Publication, split: Split, findings: Findings, staged: Path) -> None:
    """Writes all files but the card."""
    published.model.save_pretrained(staged)
    published.tokenizer.save_pretrained(staged)
    (staged / "requirements.txt").write_text(REQUIREMENTS)
    if split.how != "none":
        (staged / "split.json").write_text(json.dumps(split.to_dict(), indent=1))
    if findings.result is not None:
        whole = {**findings.result, "measured": findings.measured, "privacy": findings.privacy.to_dict()}
        (staged / "evaluation.json").write_text(json.dumps(whole, indent=1))
        (staged / "evaluation.md").write_text(format_table(findings.result), encoding="utf-8")
        draw_results(findings.result, staged / RESULTS_PLOT)
    if findings.measured is not None:
        draw_calibration(findings.measured, published.tokenizer.action_vocabulary, staged / CALIBRATION_PLOT)


def stage_card(
    published: Publication,
    record: Record,
    findings: Findings,
    provenance: Provenance,
    repo_id: str,
    revision: str | None,
    staged: Path,
) -> None:
    """Writes README.md beside the other files.

    Args:
        revision: the branch or tag that the files are sent to, None if only main names them.
    """
    model, tokenizer = published.model, published.tokenizer
    history = golden_histories(tokenizer)[0]
    facts = CardFacts(
        repo_id=repo_id,
        revision=revision,
        provenance=provenance,
        run=record.run,
        cleaning=record.cleaning,
        result=findings.result,
        config=model.config,
        parameters=sum(weight.numel() for weight in model.parameters()),
        actions=tokenizer.action_vocabulary,
        num_items=len(tokenizer) - tokenizer.first_item_id,
        has_time=tokenizer.has_time,
        measured=findings.measured,
        has_calibration_plot=(staged / CALIBRATION_PLOT).is_file(),
        privacy=findings.privacy,
        history=history,
        answers=golden_answers(model, tokenizer, [history])["pipeline"][0],
        contributions=contributions_to_first_answer(model, tokenizer, history),
    )
    (staged / "README.md").write_text(model_card(facts), encoding="utf-8")


def check_no_local_names(staged: Path, model: Path) -> None:
    """ValueError if a file names a folder of this machine: nobody else has it, and it may name its owner."""
    for name, path in folder_files(staged).items():
        for local in (str(model.resolve()), f"{Path.home()}{os.sep}"):
            if path.suffix in (".json", ".md", ".txt") and local in path.read_text(encoding="utf-8"):
                raise ValueError(
                    f"got the folder {local} in {name}; expected no name of this machine in what is sent: remove it "
                    f"from the file of that name in {model}."
                )


def listing(staged: Path, repo_id: str) -> str:
    """Every file with its size."""
    sizes = {name: path.stat().st_size for name, path in folder_files(staged).items()}
    head = f"\n{repo_id}: {len(sizes)} files, {sum(sizes.values()):,} bytes"
    return "\n".join([head, *(f"  {size:>13,}  {name}" for name, size in sizes.items())])
