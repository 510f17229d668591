"""Try a next-behavior model in a browser: pick or paste a history, see what comes next, compare two models.

    python space/app.py --model DIR_OR_HUB_ID [--compare DIR_OR_HUB_ID]       # needs gradio, torch and transformers

As a Space it takes both from the Space's variables MODEL and COMPARE. The folder's files are the whole Space: the
models are loaded like anyone's, through `pipeline("next-behavior", trust_remote_code=True)`. Which models are loaded is
decided at the start and never in the page: remote code is run only where whoever starts this trusts it.

The catalog stays on the server, which looks items up; the browser gets a handful of matches.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; on a Space, which has none, the variables MODEL and COMPARE."""
    parser = argparse.ArgumentParser(description="Try a next-behavior model in a browser.")
    parser.add_argument("--model", default=os.environ.get("MODEL"), help="folder or Hub id (default: variable MODEL)")
    parser.add_argument("--compare", default=os.environ.get("COMPARE"), help="a second model, shown beside the first")
    parser.add_argument("--host", default=None, help="address to serve on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=None, help="port (default: the first free one from 7860)")
    found = parser.parse_args(given)
    if not found.model:
        parser.error("got no --model; expected a model's folder or Hub id (on a Space: set the variable MODEL)")
    return found


def say(words: str) -> None:
    """At once, also where the output is a Space's log."""
    print(words, flush=True)


def load(source: str) -> Any:
    """The model, with a line before and after."""
    from loaded_model import LoadedModel

    say(f"Loading {source} ...")
    begin = time.monotonic()
    try:
        model = LoadedModel(source)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{source} was not loaded, expected the folder or the Hub id of a model trained with BertForNextBehavior: "
            f"{error}"
        ) from error
    took = time.monotonic() - begin
    say(f"Loaded {source} in {took:.1f} s: {len(model.catalog.items):,} items, {len(model.actions):,} actions.")
    return model


def main() -> None:
    args = arguments()
    say("Importing gradio, torch and transformers: up to half a minute the first time ...")
    import gradio as gr
    from page import STYLE, build

    model = load(args.model)
    other = load(args.compare) if args.compare else None
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    theme.set(checkbox_border_color_dark="*neutral_500")  # can be seen
    page = build(model, other)
    try:
        page.launch(
            server_name=args.host, server_port=args.port, theme=theme, head=f"<style>{STYLE}</style>", footer_links=[]
        )
    except OSError as error:  # a port that is taken, an address that is not this machine's
        raise SystemExit(f"The page is not served: {error}") from error


if __name__ == "__main__":
    main()
