"""From a log of events to a Hugging Face model of what a user does next: which action, which item, how soon.

    import next_behavior                                # from now on AutoModel loads such folders without remote code
    from next_behavior import BertForNextBehavior       # or BehaviorConfig, BehaviorTokenizer, NextBehaviorPipeline

Importing this package imports neither torch nor transformers: commands answer `--help` at once, and a service can do
without. The classes register themselves when they are imported. Whoever imports transformers gets them imported beside
it, in either order.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from next_behavior.model.modeling_behavior import BehaviorConfig as BehaviorConfig
    from next_behavior.model.modeling_behavior import BertForNextBehavior as BertForNextBehavior
    from next_behavior.model.pipeline_behavior import NextBehaviorPipeline as NextBehaviorPipeline
    from next_behavior.model.tokenization_behavior import BehaviorTokenizer as BehaviorTokenizer

PUBLIC = {
    "BehaviorConfig": "next_behavior.model.modeling_behavior",
    "BehaviorTokenizer": "next_behavior.model.tokenization_behavior",
    "BertForNextBehavior": "next_behavior.model.modeling_behavior",
    "NextBehaviorPipeline": "next_behavior.model.pipeline_behavior",
}
# The files of the model folder that do not import transformers.
LIGHT = {f"next_behavior.model.{name}" for name in ("special_ids", "vocabulary", "times", "histories", "answers")}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def register(transformers: object) -> None:
    """Imports the public classes, which register themselves with transformers' Auto classes."""
    model_files = {name for name in sys.modules if name.startswith("next_behavior.model.")}
    if model_files - LIGHT:
        return  # one of them is importing transformers: the public ones register themselves at their end
    for name in dict.fromkeys(PUBLIC.values()):
        importlib.import_module(name)


# At once if transformers has been imported already.
wrapt.register_post_import_hook(register, "transformers")
