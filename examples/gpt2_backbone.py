"""Another encoder: GPT-2's blocks between the same event embedding and the same heads, from scratch.

    from gpt2_backbone import Gpt2BehaviorConfig, Gpt2ForNextBehavior

    model = Gpt2ForNextBehavior(Gpt2BehaviorConfig(vocab_size=len(tokenizer), num_actions=tokenizer.num_actions, ...))
    model.save_pretrained(DIR)

It is trained as in finetune_with_trainer.py, and counts, answers and grows as the other; AutoModel loads the folder
anywhere, with trust_remote_code=True.

The one attribute to replace is `bert`: a module that holds `embeddings` and makes states (B, T, H) of the four
channels, each from its own past; the heads read states and ids alone. Layers' states and attentions are not recorded
here.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

try:
    from .modeling_behavior import BehaviorConfig, BehaviorEmbeddings, BertForNextBehavior  # in a saved folder
except ImportError:
    from modeling_behavior import BehaviorConfig, BehaviorEmbeddings, BertForNextBehavior


class Gpt2BehaviorConfig(BehaviorConfig):
    model_type = "gpt2-next-behavior"
    _auto_class = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "gpt2_backbone.Gpt2BehaviorConfig",
            "AutoModel": "gpt2_backbone.Gpt2ForNextBehavior",
        }


class Gpt2Encoder(nn.Module):
    def __init__(self, config: Gpt2BehaviorConfig) -> None:
        super().__init__()
        self.embeddings = BehaviorEmbeddings(config)
        self.decoder = GPT2Model(
            GPT2Config(
                n_positions=config.max_position_embeddings,
                n_embd=config.hidden_size,
                n_layer=config.num_hidden_layers,
                n_head=config.num_attention_heads,
                n_inner=config.intermediate_size,
                embd_pdrop=0.0,  # the event embedding has dropped already
                attn_pdrop=config.attention_probs_dropout_prob,
                resid_pdrop=config.hidden_dropout_prob,
            )
        )
        self.decoder.set_input_embeddings(nn.Identity())  # it embeds no words

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        time_gap_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        embedded = self.embeddings(input_ids, token_type_ids, time_gap_ids, attention_mask)  # (B, T, H)
        return self.decoder(
            inputs_embeds=embedded, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state


class Gpt2ForNextBehavior(BertForNextBehavior):
    config_class = Gpt2BehaviorConfig
    _auto_class = None
    _can_record_outputs = None

    def __init__(self, config: Gpt2BehaviorConfig) -> None:
        super().__init__(config)
        self.bert = Gpt2Encoder(config)
        self.post_init()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        target = Path(save_directory) / "gpt2_backbone.py"
        if not (target.exists() and target.samefile(__file__)):
            shutil.copyfile(__file__, target)
