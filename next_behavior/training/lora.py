"""Adapters instead of the encoder's own weights (`--lora_r`).

    with_lora = with_adapters(model, lora_config(8, new_items), train_the_rest=False)
    save_with_adapter(with_lora, folder, final)

Reference: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"; library PEFT.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model

from next_behavior.model.modeling_behavior import BertForNextBehavior

# The adapted matrices: attention's queries and values in the encoder, as in the paper.
LORA_TARGETS = r".*bert\.encoder\..*\.(query|value)"


def lora_config(rank: int, new_items: list[int]) -> LoraConfig:
    """The adapters of a run. Rows of added items (their token ids) are trained as single rows, so that the adapter
    does not hold the item table."""
    return LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=LORA_TARGETS,
        trainable_token_indices={"embed_tokens": new_items} if new_items else None,
    )


def with_adapters(model: BertForNextBehavior, config: LoraConfig, train_the_rest: bool) -> PeftModel:
    """Puts adapters into the model, in place. `train_the_rest`: everything outside the encoder is new and is trained
    too; it is saved with the base, never with the adapter."""
    adapted_model = get_peft_model(model, config)
    if train_the_rest:
        for name, weight in model.named_parameters():
            if not name.startswith("bert.encoder."):
                weight.requires_grad_(True)
    assert isinstance(adapted_model, PeftModel)
    return adapted_model


def save_with_adapter(model: PeftModel, folder: Path, final: Path) -> None:
    """Writes the merged model to `folder`, what the adapter sits on to `folder/base`, then `folder/adapter`, which
    names its base where it will lie, `final/base`."""
    inner: Any = model.get_base_model()
    copies = [copy.deepcopy(model).merge_and_unload(), copy.deepcopy(model).unload()]
    for merged_or_base, target in zip(copies, (folder, folder / "base"), strict=True):
        merged_or_base.config = copy.deepcopy(inner.config)
        merged_or_base.save_pretrained(target)
    model.peft_config["default"].base_model_name_or_path = os.fspath(final.resolve() / "base")
    # The base holds the item table. Unless told so, PEFT looks for the base to find out, and it is not there yet.
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
