"""Turn a trained folder into a Hub repository that others can load, trust and try.

    python publish.py --model out/shop --repo_id ana/shop --dry_run --output staged   # look at it first
    python publish.py --model out/shop --repo_id ana/shop                             # private; one commit
    python publish.py --model out/shop --repo_id ana/shop --public --tag v1
    python publish.py --model out/shop --repo_id ana/shop --push_dataset              # the sequences too
    python publish.py --model out/lora/adapter --repo_id ana/shop-lora --base_repo_id ana/shop
    next-behavior publish ...                       the same, once the package is installed

The repository holds weights, configuration, tokenizer, the code files, requirements.txt, the card (README.md),
evaluation.json and plots. Rare items and rarely shared pairs of items are removed first. Before anything is sent, a
clean process that knows nothing of this project loads the folder and must give the same answers as here. Only files
that differ from the remote's are sent, in one commit; a second run with nothing changed sends nothing. A text encoder
that is a folder here gets a repository of its own.

The log is read from the model's own `prepared/` folder, which is never sent; `--events` reads it anew. The token comes
from HF_TOKEN or `hf auth login`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from next_behavior.data.read_options import add_event_arguments, options_from_arguments
from next_behavior.publishing.request import Delivery, Provenance, Request


def parse(arguments: Sequence[str] | None) -> Request:
    parser = options()
    args = parser.parse_args(arguments)
    read_options = options_from_arguments(args)
    try:
        return Request(
            model=args.model,
            repo_id=args.repo_id,
            events=args.events,
            read_options=read_options,
            min_item_users=args.min_item_users,
            min_pair_users=args.min_pair_users,
            provenance=Provenance(args.license, args.data_name, args.data_source, args.data_license),
            delivery=Delivery(args.dry_run, args.output, args.public, args.revision, args.tag),
            text_encoder=args.text_encoder,
            base_repo_id=args.base_repo_id,
            little_is_fine=args.yes,
            verify=args.verify,
            push_dataset=args.push_dataset,
            dataset_repo_id=args.dataset_repo_id,
            dataset_times=args.dataset_times,
        )
    except ValueError as error:
        parser.error(str(error))


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="folder of a trained model, or of a PEFT adapter")
    parser.add_argument("--repo_id", required=True, help="USER/NAME on the Hub")
    parser.add_argument("--events", help="the training log (default: the model's prepared/ folder)")
    parser.add_argument("--dry_run", action="store_true", help="build and check the folder, show its files, stop")
    parser.add_argument("--output", type=Path, help="keep the folder that is sent here")
    parser.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    parser.add_argument(
        "--revision",
        default=Delivery.revision,
        help="branch, made from main if it does not exist (default: %(default)s)",
    )
    parser.add_argument("--tag", help="name the commit")
    parser.add_argument("--verify", action="store_true", help="download what was sent and check its answers too")
    parser.add_argument("--text_encoder", help="where the model's text encoder is now, if not under its own name")
    parser.add_argument("--base_repo_id", help="adapters: the Hub id of the base, if adapter_config.json has a folder")
    group = parser.add_argument_group("privacy")
    group.add_argument(
        "--min_item_users",
        type=int,
        default=Request.min_item_users,
        help="items with fewer users are removed; 1 keeps all (default: %(default)s)",
    )
    group.add_argument(
        "--min_pair_users",
        type=int,
        default=Request.min_pair_users,
        help="pairs that fewer users share are removed from the memory; 1 keeps all (default: %(default)s)",
    )
    group.add_argument("--yes", action="store_true", help="publish even if nearly nothing is left of the model")
    group = parser.add_argument_group("what only you know")
    group.add_argument("--license", help="license of the model, as the Hub names it (apache-2.0, other ...)")
    group.add_argument("--data_name", help="name of the data")
    group.add_argument("--data_source", help="where the data comes from")
    group.add_argument("--data_license", help="license of the data")
    group = parser.add_argument_group("data set")
    group.add_argument("--push_dataset", action="store_true", help="send the prepared sequences as a data set too")
    group.add_argument("--dataset_repo_id", help="its Hub id (default: the model's with -sequences)")
    group.add_argument(
        "--dataset_times",
        choices=["day", "exact"],
        default=Request.dataset_times,
        help="times as days, or exact (default: %(default)s)",
    )
    add_event_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    request = parse(arguments)

    from next_behavior.data.outputs import check_output_folder

    if request.delivery.output is not None:
        inputs = {"--events": request.events}
        check_output_folder(request.delivery.output, "--output", inputs)
        if request.delivery.output.resolve() in (request.model.resolve(), *request.model.resolve().parents):
            raise ValueError(
                f"got --output {request.delivery.output}, which is or holds --model {request.model}; expected a folder "
                "of its own: the model would be overwritten"
            )
        for companion in ("", "-text-encoder", "-dataset"):
            kept = request.delivery.output.with_name(f"{request.delivery.output.name}{companion}")
            if kept.is_dir() and any(kept.iterdir()):
                raise ValueError(
                    f"got --output {request.delivery.output}, but {kept} is there already; expected a new or an empty "
                    "folder: remove it, or name another"
                )

    from transformers.utils.logging import disable_progress_bar

    from next_behavior.publishing.publish import publish
    from next_behavior.training.phases import Phases

    disable_progress_bar()
    publish(request, Phases(started, partial(print, flush=True)))
