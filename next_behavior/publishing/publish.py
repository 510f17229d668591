"""Turn a trained folder into a Hub repository that a stranger can load, trust and try.

    python publish.py --model out/shop --repo_id ana/shop --dry_run --output staged   # look at it first
    python publish.py --model out/shop --repo_id ana/shop                             # private; one commit
    python publish.py --model out/shop --repo_id ana/shop --public --tag v1
    python publish.py --model out/shop --repo_id ana/shop --push_dataset              # the sequences too
    python publish.py --model out/lora --repo_id ana/shop-lora --base_repo_id ana/shop

What is sent is put together in a folder of its own: weights, configuration, tokenizer, the code files, handler.py,
requirements.txt, the card (README.md), evaluation.json and plots. Rare items and rarely shared pairs of items stay out
(`publishing/privacy.py`). Before anything is sent, a clean process that knows nothing of this project loads the folder
and must give the same answers as here. Then only files that differ from the remote's are sent, in one commit; a second
run with nothing changed sends nothing. A text encoder that is a folder here gets a repository of its own.

The log is read from the model's own `prepared/` folder, which never leaves; `--events` reads it anew. The token comes
from HF_TOKEN or `hf auth login`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.constants import is_offline_mode
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from next_behavior.data.batches import target_positions
from next_behavior.data.events import ReadOptions, add_event_arguments, options_from_arguments, read_events
from next_behavior.data.sequences import TEST, Sequences
from next_behavior.data.splits import Split, assign_parts
from next_behavior.evaluation.evaluator import MODEL, evaluate_model, format_table, recorded_split, tokenize_log
from next_behavior.model import modeling_behavior
from next_behavior.model.configuration_behavior import CODE_FILES
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.model.vocabulary import VOCABULARY_FILE
from next_behavior.publishing.adapter import check_vocabulary, stage_adapter
from next_behavior.publishing.card import CardFacts, Provenance, draw_calibration, draw_results, model_card
from next_behavior.publishing.check import (
    Answers,
    answers_in_a_clean_process,
    check_answers,
    golden_answers,
    golden_histories,
    ranked_by_model,
)
from next_behavior.publishing.dataset import stage_dataset
from next_behavior.publishing.hub import SendError, Sent, content_ids, folder_files, is_hub_id, send, token_or_error
from next_behavior.publishing.measures import by_action, reliability, score_targets
from next_behavior.publishing.privacy import (
    Publication,
    learned_events,
    membership_inference,
    personal_traces,
    read_item_facts,
    shrink,
    users_per_item,
    users_per_pair,
)
from next_behavior.publishing.text_encoder import local_folder, stage_text_encoder
from next_behavior.text.encoders import split_mark
from next_behavior.training.initial_model import own_encoder
from next_behavior.training.loop import RunSettings

# What the repository's code needs; the versions are those of pyproject.toml.
REQUIREMENTS = "torch>=2.6\ntransformers>=5.20,<6\n"
# Test targets that calibration and the slices by action are measured on, about.
MEASURED_TARGETS = 4000
# What the removals may change, and under which name the card says so.
COSTS = {
    "Recall@10": ("kept", "recall@10"),
    "NDCG@10": ("kept", "ndcg@10"),
    "NDCG@10 with seen items removed": ("removed", "ndcg@10"),
}


@dataclass(frozen=True)
class Record:
    """What a run wrote beside its model; None where it wrote nothing."""

    run: dict[str, Any] | None
    cleaning: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    split: Split

    @classmethod
    def read(cls, folder: Path) -> Record:
        def found(name: str) -> dict[str, Any] | None:
            path = folder / name
            return json.loads(path.read_text()) if path.exists() else None

        split = recorded_split(folder)
        return cls(
            found("run.json"),
            found("cleaning_report.json"),
            found("evaluation.json"),
            Split("none") if split is None else split,
        )


@dataclass
class Privacy:
    """What was removed, what that cost, and what can still be learned; for the card.

    Attributes:
        items, removed_items, pairs, removed_pairs: numbers before, and of them removed.
        traces: {kind: item ids} that look like personal data.
        membership, membership_as_trained: AUC after and before the removals, None where not measured.
        cost: {metric: (as trained, as published)} on the same test events.
    """

    min_item_users: int
    min_pair_users: int
    items: int = 0
    removed_items: int = 0
    pairs: int = 0
    removed_pairs: int = 0
    traces: dict[str, list[str]] = field(default_factory=dict)
    membership: dict[str, Any] | None = None
    membership_as_trained: dict[str, Any] | None = None
    cost: dict[str, tuple[float, float]] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------------------
# The model and its log
# ----------------------------------------------------------------------------------------------------------------------


def load_trained(folder: Path, record: Record, events: str | None, options: ReadOptions) -> Publication:
    """The model of a folder and the log it was trained on.

    Raises:
        FileNotFoundError, ValueError: there is no such model, or no log to count users in.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"got --model {folder} without a config.json; expected the folder of a trained model.")
    model = BertForNextBehavior.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = BehaviorTokenizer.from_pretrained(folder)
    if events is not None:
        log = read_events(events, options)
        dataset = tokenize_log(assign_parts(log.events, record.split), tokenizer)
    elif (folder / "prepared").is_dir():
        dataset = datasets.Dataset.load_from_disk(str(folder / "prepared"))
    else:
        raise ValueError(
            f"got {folder} without its prepared/ folder; expected the training log, to count users in: pass --events."
        )
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    return Publication(model, tokenizer, read_item_facts(folder / VOCABULARY_FILE), sequences)


def check_same_with_its_own_code(folder: Path, trained: Publication) -> None:
    """The code that is published is this installation's. Where the folder was saved by another version, that version's
    answers, in a clean process, must be the same.

    Raises:
        ValueError: they are not, so what was evaluated would not be what is published.
    """
    here = Path(modeling_behavior.__file__).parent
    others = [
        name
        for name in CODE_FILES
        if (folder / name).exists() and (folder / name).read_bytes() != (here / name).read_bytes()
    ]
    if not others:
        return
    histories = golden_histories(trained.tokenizer)
    found = answers_in_a_clean_process(str(folder), histories, {"HF_HUB_OFFLINE": "1"})
    try:
        check_answers(found, golden_answers(trained.model, trained.tokenizer, histories), str(folder))
    except ValueError as error:
        raise ValueError(
            f"got {folder} with other versions of {', '.join(others)}, which answer differently from those installed "
            "here; expected the same answers: publish with the version of this project that trained the model, or "
            f"train it again with this one. ({error})"
        ) from error
    print(
        f"note: {folder} holds {', '.join(others)} of another version, which answers the same; what is installed here "
        "is published."
    )


def without_rare(trained: Publication, how: str, privacy: Privacy) -> Publication:
    """The model without rare items and rarely shared pairs; what that removed is noted in `privacy`."""
    memory = trained.model.associate_path
    first, keys = trained.tokenizer.first_item_id, memory.pair_keys.numpy()
    learned = learned_events(trained.sequences, how)
    users = users_per_item(trained.sequences, learned)
    counted = np.pad(memory.item_counts.numpy(), (0, max(0, len(users) - len(memory.item_counts))))[: len(users)]
    # What nobody has touched came in with `add_items`: a catalogue tells nothing of users.
    keep_items = (users >= privacy.min_item_users) | ((users == 0) & (counted == 0))
    keep_pairs = np.ones(len(keys), dtype=bool)
    if privacy.min_pair_users > 1:
        distance = trained.model.config.memory_distance
        keep_pairs = users_per_pair(trained.sequences, learned, keys, distance) >= privacy.min_pair_users
    if privacy.min_item_users <= 1:
        keep_items[:] = True
    privacy.items, privacy.pairs = len(keep_items) - first, len(keys)
    if keep_items[first:].all() and keep_pairs.all():
        return trained
    published = shrink(trained, keep_items, keep_pairs)
    privacy.removed_items = privacy.items - (len(published.tokenizer) - first)
    privacy.removed_pairs = privacy.pairs - len(published.model.associate_path.pair_keys)
    return published


def evaluated(published: Publication, record: Record, privacy: Privacy) -> dict[str, Any] | None:
    """The published model beside the baselines on test events: the run's own evaluation where nothing was removed,
    else a new one on the same targets, whose distance from the run's is the cost noted in `privacy`."""
    if not len(target_positions(published.sequences, TEST)):
        return None
    was = record.evaluation
    if was is not None and not privacy.removed_items and not privacy.removed_pairs:
        return was
    result = evaluate_model(
        published.model,
        published.sequences,
        TEST,
        published.tokenizer.model_max_length,
        max_targets=was["targets"] if was is not None and was["sampled"] else None,
        seed=0 if was is None else was["seed"],
        split=record.split,
        actions=published.tokenizer.action_vocabulary,
    )
    if was is not None:
        for name, (way, metric) in COSTS.items():
            before, after = (found[MODEL][way]["items"]["all"][metric] for found in (was, result))
            if before is not None and after is not None:
                privacy.cost[name] = (before, after)
    return result


def measure(published: Publication) -> dict[str, Any] | None:
    """Calibration and slices on test events, None if there are none."""
    positions = target_positions(published.sequences, TEST, MEASURED_TARGETS)
    if not len(positions):
        return None
    scored = score_targets(published.model, published.sequences, positions, published.tokenizer.model_max_length)
    named = ~np.isnan(scored.item_confidence)
    return {
        "targets": len(positions),
        "action_calibration": reliability(scored.action_confidence, scored.action_correct),
        "item_calibration": reliability(scored.item_confidence[named], scored.item_correct[named]),
        "by_action": by_action(scored, published.tokenizer.action_vocabulary),
    }


def local_settings(run: dict[str, Any]) -> list[str]:
    """The settings that named a file or folder where the run took place: to others it is only a name."""
    # Runs before November 2026 did not note it.
    return run.get("files", ["events"] if run["events_sha256"] else [])


def hub_id(run: dict[str, Any], setting: str) -> str | None:
    """What a setting of a run names on the Hub; None if it named a file or folder where the run took place."""
    name = run["settings"].get(setting) or ""
    return name if setting not in local_settings(run) and is_hub_id(name) else None


def command_of(run: dict[str, Any] | None) -> str | None:
    """The command that repeats a run: what differs from the defaults, with file names instead of paths."""
    if run is None:
        return None
    parts = ["python train_accelerate.py"]
    for settings, kind in ((run["settings"], RunSettings), (run["read_options"], ReadOptions)):
        for entry in dataclasses.fields(kind):
            value = settings.get(entry.name, entry.default)
            if value == entry.default or entry.name == "resume":
                continue
            if entry.name in ("items", "output_dir", *local_settings(run)):
                value = Path(value).name
            parts.append(f"--{entry.name}" if value is True else f"--{entry.name} {value}")
    return " ".join(parts)


# ----------------------------------------------------------------------------------------------------------------------
# The folder to send
# ----------------------------------------------------------------------------------------------------------------------


def stage_model(
    published: Publication,
    record: Record,
    result: dict[str, Any] | None,
    privacy: Privacy,
    provenance: Provenance,
    repo_id: str,
    staged: Path,
) -> None:
    """Writes exactly the files that belong to the repository."""
    published.model.save_pretrained(staged)
    published.tokenizer.save_pretrained(staged)
    (staged / "requirements.txt").write_text(REQUIREMENTS)
    if record.split.how != "none":
        (staged / "split.json").write_text(json.dumps(record.split.to_dict(), indent=1))
    measured, has_plot = measure(published), False
    if result is not None:
        whole = {**result, "measured": measured, "privacy": shown_privacy(privacy)}
        (staged / "evaluation.json").write_text(json.dumps(whole, indent=1))
        (staged / "evaluation.md").write_text(format_table(result))
        draw_results(result, staged / "plots" / "results.png")
    if measured is not None:
        has_plot = draw_calibration(
            measured, published.tokenizer.action_vocabulary, staged / "plots" / "calibration.png"
        )
    history = golden_histories(published.tokenizer)[0]
    answers = golden_answers(published.model, published.tokenizer, [history])["pipeline"][0]
    facts = CardFacts(
        repo_id=repo_id,
        provenance=provenance,
        run=record.run,
        cleaning=record.cleaning,
        result=result,
        command=command_of(record.run),
        config=published.model.config,
        actions=published.tokenizer.action_vocabulary,
        num_items=len(published.tokenizer) - published.tokenizer.first_item_id,
        has_time=published.tokenizer.has_time,
        measured=measured,
        has_calibration_plot=has_plot,
        privacy=dataclasses.asdict(privacy),
        history=history,
        answers=answers,
        parameters=sum(weight.numel() for weight in published.model.parameters()),
    )
    (staged / "README.md").write_text(model_card(facts), encoding="utf-8")


def name_text_encoder(
    published: Publication, record: Record, given: str | None, repo_id: str, staged: Path
) -> str | None:
    """Gives the model the name by which others find its text encoder.

    Args:
        given: where the encoder lies now, if not under its own name.

    Returns:
        The Hub id of the encoder that is written to `staged`; None if there is none, or it is on the Hub.

    Raises:
        ValueError: it cannot be found, or is another one than the model was trained with.
    """
    config = published.model.config
    if not config.text_size:
        if given is not None:
            raise ValueError(f"got --text_encoder {given} for a model that reads no words; expected none: leave it out")
        return None
    assert config.text_encoder is not None, "a model with item text names its encoder"
    mark, named = split_mark(config.text_encoder)
    name = named if given is None else given.removeprefix(mark)
    was_local = given is None and record.run is not None and "text_encoder" in local_settings(record.run)
    folder = local_folder(name, was_local)
    if folder is None:
        config.text_encoder = mark + name
        return None
    own_encoder(published.model, f"{mark}{folder}")
    encoder_id = stage_text_encoder(folder, repo_id, bool(mark), staged)
    config.text_encoder = mark + encoder_id
    return encoder_id


def shown_privacy(privacy: Privacy) -> dict[str, Any]:
    """For evaluation.json: without the very items that look like personal data."""
    return dataclasses.asdict(privacy) | {"traces": {kind: len(items) for kind, items in privacy.traces.items()}}


def check_no_local_names(staged: Path, model: Path) -> None:
    """ValueError if a file names a folder of this machine: nobody else has it, and it may say who you are."""
    for name, path in folder_files(staged).items():
        for local in (str(model.resolve()), f"{Path.home()}{os.sep}"):
            if path.suffix in (".json", ".md", ".txt") and local in path.read_text(encoding="utf-8"):
                raise ValueError(
                    f"got the folder {local} in {name}; expected no name of this machine in what is sent: remove it "
                    f"from the file of that name in {model}."
                )


def show_tree(staged: Path, repo_id: str) -> None:
    """Prints every file with its size."""
    files = folder_files(staged)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    print(f"\n{repo_id}: {len(files)} files, {sum(sizes.values()):,} bytes")
    for name, size in sizes.items():
        print(f"  {size:>13,}  {name}")


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, ReadOptions]:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="folder of a trained model, or of a PEFT adapter")
    parser.add_argument("--repo_id", required=True, help="USER/NAME on the Hub")
    parser.add_argument("--events", help="the training log; default: the model's prepared/ folder")
    parser.add_argument("--dry_run", action="store_true", help="put together and check, show files and sizes, stop")
    parser.add_argument("--output", type=Path, help="keep the folder that is sent here")
    parser.add_argument("--public", action="store_true", help="make a new repository public; default: private")
    parser.add_argument("--revision", default="main", help="branch; made from main if it does not exist")
    parser.add_argument("--tag", help="name the commit")
    parser.add_argument("--verify", action="store_true", help="download what was sent and check its answers too")
    parser.add_argument("--text_encoder", help="where the model's text encoder lies now, if not under its own name")
    parser.add_argument("--base_repo_id", help="adapters: the Hub id of the base, if adapter_config.json has a folder")
    group = parser.add_argument_group("privacy")
    group.add_argument("--min_item_users", type=int, default=5, help="items with fewer users stay out; 1 keeps all")
    group.add_argument(
        "--min_pair_users", type=int, default=2, help="pairs that fewer users share stay out of the memory"
    )
    group = parser.add_argument_group("what only you know")
    group.add_argument("--license", help="licence of the model, as the Hub names it (apache-2.0, other ...)")
    group.add_argument("--data_name", help="name of the data")
    group.add_argument("--data_source", help="where the data comes from")
    group.add_argument("--data_license", help="licence of the data")
    group = parser.add_argument_group("data set")
    group.add_argument("--push_dataset", action="store_true", help="send the prepared sequences as a data set too")
    group.add_argument("--dataset_repo_id", help="its Hub id; default: the model's with -sequences")
    group.add_argument("--dataset_times", choices=["day", "exact"], default="day", help="times as days, or exact")
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    for name in ("repo_id", "dataset_repo_id", "base_repo_id"):
        value = getattr(args, name)
        if value is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", value) is None:
            parser.error(f"--{name} is {value}, expected USER/NAME")
    for name in ("min_item_users", "min_pair_users"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected at least 1 (1 keeps everything)")
    if is_offline_mode() and not args.dry_run:
        parser.error("HF_HUB_OFFLINE is set, expected a connection: unset it, or use --dry_run")
    return args, options_from_arguments(args)


def main(arguments: Sequence[str] | None = None) -> None:
    args, options = parse(arguments)
    disable_transformers_bars()
    is_adapter = (args.model / "adapter_config.json").is_file()
    if is_adapter and args.text_encoder is not None:
        raise ValueError("got --text_encoder for an adapter; expected it for the base, which reads words: leave it out")
    if not is_adapter and args.base_repo_id is not None:
        raise ValueError("got --base_repo_id for a model that is no adapter; expected none: leave it out")
    api = HfApi() if args.dry_run else HfApi(token=token_or_error())
    with tempfile.TemporaryDirectory(prefix="publish-") as scratch:
        if is_adapter:
            publish_adapter(args, api, Path(scratch) / "adapter")
        else:
            publish_model(args, options, api, Path(scratch))


def publish_adapter(args: argparse.Namespace, api: HfApi, staged: Path) -> None:
    base_id = stage_adapter(args.model, args.repo_id, args.base_repo_id, args.license, staged)
    check_vocabulary(args.model, base_id, api)
    check_adapter(args.model, staged, api)
    publish(api, args, staged, args.repo_id)


def publish_model(args: argparse.Namespace, options: ReadOptions, api: HfApi, scratch: Path) -> None:
    record = Record.read(args.model)
    trained = load_trained(args.model, record, args.events, options)
    check_same_with_its_own_code(args.model, trained)
    privacy = Privacy(args.min_item_users, args.min_pair_users)
    published = without_rare(trained, record.split.how, privacy)
    look_for_persons(trained, published, privacy)
    result = evaluated(published, record, privacy)
    print_privacy(privacy)

    staged, dataset_id = scratch / "model", args.dataset_repo_id or f"{args.repo_id}-sequences"
    provenance = provenance_of(args, record, dataset_id)
    encoder_id = name_text_encoder(published, record, args.text_encoder, args.repo_id, scratch / "text-encoder")
    stage_model(published, record, result, privacy, provenance, args.repo_id, staged)
    check_no_local_names(staged, args.model)
    histories = golden_histories(published.tokenizer)
    expected = golden_answers(published.model, published.tokenizer, histories)
    found = answers_in_a_clean_process(str(staged), histories, {"HF_HUB_OFFLINE": "1"})
    check_answers(found, expected, str(staged))
    print(f"A clean process loads the folder and gives the same answers to {len(histories)} histories.")
    if encoder_id is not None:
        check_no_local_names(scratch / "text-encoder", args.model)
        publish(api, args, scratch / "text-encoder", encoder_id, "text-encoder")
    publish(api, args, staged, args.repo_id)
    if args.verify and not args.dry_run:
        verify(args, str(api.token), staged, histories, expected)
    if args.push_dataset:
        folder = scratch / "dataset"
        stage_dataset(published, args.repo_id, dataset_id, args.data_license, args.dataset_times, folder)
        publish(api, args, folder, dataset_id, "dataset")


def look_for_persons(trained: Publication, published: Publication, privacy: Privacy) -> None:
    """Notes in `privacy` how well training events can be told from others, and what looks like personal data."""
    window = published.tokenizer.model_max_length
    privacy.membership = membership_inference(published.model, published.sequences, window)
    if published is not trained:
        privacy.membership_as_trained = membership_inference(trained.model, trained.sequences, window)
    titles = [title for _, title in published.item_facts]
    privacy.traces = personal_traces(zip(published.tokenizer.item_vocabulary, titles, strict=True))
    for kind, items in privacy.traces.items():
        warnings.warn(
            f"{len(items):,} items look like personal data ({kind}), e.g. {items[:3]}: do you want them public?",
            stacklevel=1,
        )


def provenance_of(args: argparse.Namespace, record: Record, dataset_id: str) -> Provenance:
    """What the publisher says of the data, and which Hub ids the run names."""
    run = record.run
    return Provenance(
        license=args.license,
        data_name=args.data_name,
        data_source=args.data_source,
        data_license=args.data_license,
        data_id=dataset_id if args.push_dataset else hub_id(run, "events") if run else None,
        base_model=hub_id(run, "base_model") if run else None,
    )


def print_privacy(privacy: Privacy) -> None:
    print(
        f"Removed {privacy.removed_items:,} of {privacy.items:,} items (fewer than {privacy.min_item_users} users) and "
        f"{privacy.removed_pairs:,} of {privacy.pairs:,} counted pairs (fewer than {privacy.min_pair_users} users)."
    )
    for name, (before, after) in privacy.cost.items():
        print(f"  {name}: {before:.4f} as trained, {after:.4f} as published")
    for name, found in (("as trained", privacy.membership_as_trained), ("as published", privacy.membership)):
        if found is not None:
            print(f"  membership inference {name}: AUC {found['auc']:.3f} (0.5 is guessing)")


def publish(api: HfApi, args: argparse.Namespace, staged: Path, repo_id: str, companion: str = "") -> None:
    """Shows the folder and, unless it is a dry run, sends it.

    Args:
        companion: what it is, if not the model: dataset or text-encoder.
    """
    show_tree(staged, repo_id)
    repo_type = "dataset" if companion == "dataset" else "model"
    if args.output is not None:
        kept = args.output.with_name(f"{args.output.name}-{companion}") if companion else args.output
        shutil.copytree(staged, kept, dirs_exist_ok=True)
        print(f"Kept in {kept}")
    if args.dry_run:
        print("Dry run: nothing was sent.")
        return
    sent = send(
        api,
        staged,
        repo_id,
        repo_type=repo_type,
        private=not args.public,
        # Its name says which encoder it is.
        revision="main" if companion == "text-encoder" else args.revision,
        tag=None if companion == "text-encoder" else args.tag,
        message="Publish with BertForNextBehavior",
    )
    print_sent(sent, f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}")


def print_sent(sent: Sent, url: str) -> None:
    who = "private" if sent.private else "public"
    if sent.changed:
        print(f"Sent {len(sent.changed)} files in commit {sent.commit[:8]}: {url} ({who})")
    else:
        print(f"Nothing has changed since commit {sent.commit[:8]}, nothing was sent: {url} ({who})")
    if sent.others:
        print(f"Left alone, not part of the model: {', '.join(sent.others)}")


def child_environment(token: str | None) -> dict[str, str]:
    """This process's environment for a child that shall use the Hub: without Python's settings and with no cache."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        found.pop(name, None)
    return found if token is None else {**found, "HF_TOKEN": token}


def check_adapter(adapter: Path, staged: Path, api: HfApi) -> None:
    """Loads the staged adapter with its base from the Hub in a clean process. Where the base that it was trained on
    lies here and has the same vocabulary, the answers must be the same."""
    from peft import PeftModel

    local = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    environment = child_environment(None if api.token is None else str(api.token))
    if not local.is_dir():
        answers_in_a_clean_process(str(staged), [[]], environment, is_adapter=True)
        return
    tokenizer = BehaviorTokenizer.from_pretrained(local)
    histories = golden_histories(tokenizer)
    found = answers_in_a_clean_process(str(staged), histories, environment, is_adapter=True)
    model = PeftModel.from_pretrained(BertForNextBehavior.from_pretrained(local), adapter).eval()
    wanted = ranked_by_model(model, tokenizer, histories)
    try:
        check_answers(found, {"model": wanted, "auto": wanted}, str(staged))
    except ValueError as error:
        print(
            f"note: {error}\nThat is so where the base was published with fewer items than the adapter was trained on."
        )


def verify(args: argparse.Namespace, token: str, staged: Path, histories: list[Any], expected: Answers) -> None:
    """Loads what was sent, by its Hub id in a clean process with an empty cache, and compares answers and files.

    Raises:
        SendError: it does not load, answers otherwise, or a file came back with another content.
    """
    with tempfile.TemporaryDirectory(prefix="publish-verify-") as home:
        trouble = None
        try:
            environment = {**child_environment(token), "HF_HOME": home}
            found = answers_in_a_clean_process(args.repo_id, histories, environment, args.revision)
            check_answers(found, expected, args.repo_id)
        except ValueError as error:
            trouble = error
        local = folder_files(staged)
        came = {name: path for snapshot in Path(home).glob("hub/*/snapshots/*")
                for name, path in folder_files(snapshot).items()}  # fmt: skip
        wrong = [name for name, path in came.items() if name in local and content_ids(path) != content_ids(local[name])]
    if wrong:
        raise SendError(
            f"{', '.join(wrong)} of {args.repo_id} came back with another content than was sent: corrupted on the way "
            "down, or changed by somebody. The commit is as it was sent; run again with --verify."
        )
    if trouble is not None:
        raise SendError(f"sent, but {trouble}") from trouble
    print(f"Loaded {args.repo_id} by its id with an empty cache: {len(came)} files, the same answers.")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, SendError) as error:
        sys.exit(f"publish.py: {error}")
