"""Event log to tokenizer files: `build_tokenizer` from Python, `python -m tokenizer_build` from a shell."""

from next_behavior.training.vocabulary import build_tokenizer

__all__ = ["build_tokenizer"]
