"""Event log to tokenizer files: `build_tokenizer` from Python, `python -m tokenizer_build` from a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from next_behavior.training.vocabulary import build_tokenizer as build_tokenizer


def __getattr__(name: str) -> Any:
    """Imports the builder when it is asked for: the command's `--help` does without torch."""
    if name != "build_tokenizer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from next_behavior.training.vocabulary import build_tokenizer

    return build_tokenizer
