"""From a trained folder to a repository on the Hub, step by step.

    publish(Request(model=Path("out/shop"), repo_id="ana/shop"), Phases(time.monotonic(), print))

1. Load the model and its log, and check that its own code answers as the code installed here (`check.py`).
2. Remove rare items and rarely shared pairs, and search what is left for personal data (`privacy.py`, `shrink.py`).
3. Evaluate what is left, and measure its calibration (`measures.py`).
4. Put the folder together, with its card (`staging.py`, `card.py`).
5. Load the folder in a clean process, which must give the same answers (`check.py`).
6. Send what differs from the remote, in one commit (`hub.py`). The text encoder goes first, the data set last.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.constants import is_offline_mode

from next_behavior.publishing import check
from next_behavior.publishing.adapter import check_adapter, check_vocabulary, stage_adapter
from next_behavior.publishing.dataset import stage_dataset
from next_behavior.publishing.hub import Sent, send, token_or_error
from next_behavior.publishing.measures import examine
from next_behavior.publishing.privacy import Privacy, look_for_people, without_rare
from next_behavior.publishing.publication import Publication, load_publication
from next_behavior.publishing.record import Record, hub_id
from next_behavior.publishing.request import Delivery, Request
from next_behavior.publishing.staging import check_no_local_names, listing, stage_card, stage_model
from next_behavior.publishing.text_encoder import stage_own_encoder
from next_behavior.training.phases import Phases


def publish(request: Request, phases: Phases) -> None:
    """Publishes a model or an adapter, and prints what is done.

    Args:
        phases: says what takes long, when it begins and how long it took.

    Raises:
        ValueError, FileNotFoundError: what was asked cannot be done. Nothing was sent, unless it is a SendError, which
            says what was.
    """
    if is_offline_mode() and not request.delivery.dry_run:
        raise ValueError("HF_HUB_OFFLINE is set; expected a connection: unset it, or use --dry_run")
    is_adapter = (request.model / "adapter_config.json").is_file()
    if is_adapter and request.text_encoder is not None:
        raise ValueError("got --text_encoder for an adapter; expected it for the base, which reads text: leave it out")
    if not is_adapter and request.base_repo_id is not None:
        raise ValueError("got --base_repo_id for a model that is no adapter; expected none: leave it out")
    api = HfApi() if request.delivery.dry_run else HfApi(token=token_or_error())
    with tempfile.TemporaryDirectory(prefix="publish-") as scratch:
        if is_adapter:
            publish_adapter(request, api, Path(scratch) / "adapter", phases)
        else:
            publish_model(request, api, Path(scratch), phases)


def publish_adapter(request: Request, api: HfApi, staged: Path, phases: Phases) -> None:
    base_id = stage_adapter(request.model, request.repo_id, request.base_repo_id, request.provenance.license, staged)
    check_vocabulary(request.model, base_id, api)
    with phases("Loading the adapter in a clean process, on its base from the Hub"):
        note = check_adapter(request.model, staged, None if api.token is None else str(api.token))
    if note is not None:
        print(
            f"note: {note}\nThat is so where the base was published with fewer items than the adapter was trained on."
        )
    deliver(api, staged, request.repo_id, request.delivery)


def publish_model(request: Request, api: HfApi, scratch: Path, phases: Phases) -> None:
    record = Record.read(request.model)
    with phases(f"Loading {request.model} and its log"):
        trained = load_publication(request.model, record.split, request.events, request.read_options)
        others = check.check_same_with_its_own_code(request.model, trained.model, trained.tokenizer)
    if others:
        print(
            f"note: {request.model} holds {', '.join(others)} of another version, which answers the same; what is "
            "installed here is published."
        )
    with phases(f"Removing rare ones of {len(trained.item_facts):,} items, and rarely shared pairs"):
        published, privacy = without_rare(trained, record.split.how, request.min_item_users, request.min_pair_users)
    check_enough_left(privacy, request.little_is_fine)
    with phases(f"Looking for personal data in {len(published.item_facts):,} items, and for what events give away"):
        privacy = look_for_people(trained, published, privacy)
    with phases("Evaluating what is published"):
        findings = examine(published, privacy, record.evaluation, record.split)
    print(findings.privacy.summary())

    staged, staged_encoder = scratch / "model", scratch / "text-encoder"
    encoder_id = stage_own_encoder(
        published.model, request.text_encoder, record.is_local("text_encoder"), request.repo_id, staged_encoder
    )
    provenance = replace(
        request.provenance,
        data_id=request.dataset_id if request.push_dataset else hub_id(record.run, "events"),
        base_model=hub_id(record.run, "base_model"),
    )
    with phases("Writing the folder and its card"):
        stage_model(published, record.split, findings, staged)
        stage_card(published, record, findings, provenance, request.repo_id, request.delivery.load_revision, staged)
        check_no_local_names(staged, request.model)
    with phases("Loading the folder in a clean process"):
        histories = check.golden_histories(published.tokenizer)
        expected = check.golden_answers(published.model, published.tokenizer, histories)
        check.check_folder(staged, histories, expected)
    print(f"A clean process loads the folder and gives the same answers to {len(histories)} histories.")

    if encoder_id is not None:
        check_no_local_names(staged_encoder, request.model)
        # Its name says which encoder it is, so it needs no branch and no tag.
        deliver(api, staged_encoder, encoder_id, replace(request.delivery, revision="main", tag=None), "text-encoder")
    deliver(api, staged, request.repo_id, request.delivery)
    if request.verify and not request.delivery.dry_run:
        revision = request.delivery.revision
        with phases(f"Downloading {request.repo_id} and loading it by its id"):
            files = check.check_sent(request.repo_id, revision, str(api.token), staged, histories, expected)
        print(f"Loaded {request.repo_id} by its id with an empty cache: {len(files)} files, the same answers.")
    if request.push_dataset:
        publish_dataset(request, published, api, scratch / "dataset", phases)


def check_enough_left(privacy: Privacy, little_is_fine: bool) -> None:
    """Where nearly nothing is left, says so and asks; without a terminal to ask on it is an error.

    Raises:
        ValueError: nearly nothing is left, and nobody has said that this is fine.
    """
    if little_is_fine or not privacy.nearly_nothing_left:
        return
    little = (
        f"got a model of which nearly nothing is left without what fewer than {privacy.min_item_users} users touched: "
        f"{privacy.left()}"
    )
    has_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if has_terminal and input(f"{little}.\nPublish it all the same? [y/N] ").strip().lower() in ("y", "yes"):
        return
    raise ValueError(
        f"{little}; expected a tenth of the items and of the events at least: train on more users, lower "
        "--min_item_users, or pass --yes to publish it all the same. Nothing was sent"
    )


def publish_dataset(request: Request, published: Publication, api: HfApi, staged: Path, phases: Phases) -> None:
    license = request.provenance.data_license
    with phases(f"Writing the sequences of {published.sequences.num_users:,} users"):
        stage_dataset(published, request.repo_id, request.dataset_id, license, request.dataset_times, staged)
    deliver(api, staged, request.dataset_id, request.delivery, "dataset")


def deliver(api: HfApi, staged: Path, repo_id: str, delivery: Delivery, companion: str = "") -> None:
    """Shows a folder, keeps a copy if asked, and sends it unless it is a dry run.

    Args:
        companion: what it is, if not the model or the adapter: dataset or text-encoder.
    """
    print(listing(staged, repo_id))
    if delivery.output is not None:
        kept = delivery.output
        if companion:
            kept = kept.with_name(f"{kept.name}-{companion}")
        shutil.copytree(staged, kept, dirs_exist_ok=True)
        print(f"Kept in {kept}")
    if delivery.dry_run:
        print("Dry run: nothing was sent.")
        return
    print(f"Sending to {repo_id} what differs from its files ...", flush=True)
    try:
        sent = send(
            api,
            staged,
            repo_id,
            repo_type="dataset" if companion == "dataset" else "model",
            private=not delivery.public,
            revision=delivery.revision,
            tag=delivery.tag,
            message="Publish with BertForNextBehavior",
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted while sending to {repo_id}; a commit is made whole or not at all: run the same command again"
        ) from None
    print(summary(sent, f"{api.endpoint}/{'datasets/' if companion == 'dataset' else ''}{repo_id}"))


def summary(sent: Sent, url: str) -> str:
    who = "private" if sent.private else "public"
    if sent.changed:
        text = f"Sent {len(sent.changed)} files in commit {sent.commit[:8]}: {url} ({who})"
    else:
        text = f"Nothing has changed since commit {sent.commit[:8]}, nothing was sent: {url} ({who})"
    return f"{text}\nLeft alone, not part of the model: {', '.join(sent.others)}" if sent.others else text
