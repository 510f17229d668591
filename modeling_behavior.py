"""The front door: the public classes, registered with transformers' Auto classes.

    from modeling_behavior import BehaviorConfig, BehaviorTokenizer, BertForNextBehavior, NextBehaviorPipeline

They live in `next_behavior/model/`, the folder that is pushed to the Hub byte for byte.
"""

from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.encoder import BehaviorEmbeddings
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.tokenization_behavior import BehaviorTokenizer

__all__ = [
    "BehaviorConfig",
    "BehaviorEmbeddings",
    "BehaviorTokenizer",
    "BertForNextBehavior",
    "NextBehaviorPipeline",
]
