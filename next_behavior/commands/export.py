"""Export a trained model for serving: once for each model, kept beside it.

    next-behavior export --model out/shop

`serve` and `score` do the same by themselves when they meet a model for the first time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained model, or a Hub id")
    parser.add_argument("--revision", help="of a Hub id: a branch, a tag or a commit")
    args = parser.parse_args(arguments)

    from next_behavior.serving.export import bundle_for

    print(bundle_for(args.model, args.revision, say=lambda line: print(line, flush=True)))
