"""The repository of a model's text encoder, if that is a folder here, such as `next-behavior tune-text` writes.

    encoder_id = stage_own_encoder(model, given, was_local, "ana/shop", staged)     # "ana/shop-text-encoder-1a2b3c4d"

A model needs its encoder to read the text of new items, and exactly the one that it was trained with. So the name of
the repository ends with a digest of its files: another encoder gets another repository, and none is ever replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from next_behavior.model.item_text import split_mark
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.publishing.hub import content_ids, folder_files
from next_behavior.training.item_text import own_encoder

# What loading needs. A folder may hold more: checkpoints, logs, weights that run code when they are loaded.
NEEDED = ("*.json", "*.txt", "*.model", "*.safetensors")
DIGITS = 8
CARD = """---
{{ card_data }}
---

# {{ name }}

Embeds the item text of [{{ model_id }}](https://huggingface.co/{{ model_id }}), a `BertForNextBehavior`, whose
`add_items` loads it by its name to give new items a row. Its license is that of the encoder that it was made from. If
it was tuned, it was tuned on the model's event log, which the model's card describes.

{% if is_static -%}
```python
from model2vec import StaticModel

embeddings = StaticModel.from_pretrained("{{ repo_id }}").encode(["Red lip balm"], normalize=True)
```
{%- else -%}
The embedding of a text is the mean of the last hidden states over its tokens, scaled to length one:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, encoder = (auto.from_pretrained("{{ repo_id }}") for auto in (AutoTokenizer, AutoModel))
batch = tokenizer(["Red lip balm", "Comb"], padding=True, return_tensors="pt")
with torch.inference_mode():
    states = encoder(**batch).last_hidden_state
weights = batch["attention_mask"].unsqueeze(-1)
embeddings = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
```
{%- endif %}
"""


def stage_own_encoder(
    model: BertForNextBehavior, given: str | None, was_local: bool, model_id: str, staged: Path
) -> str | None:
    """Gives the model the name by which others find its text encoder.

    Args:
        given: where the encoder is now, if not under its own name.
        was_local: whether the run was given a folder.
        model_id: the model's Hub id.

    Returns:
        The Hub id of the encoder that is written to `staged`; None if the model has none, or it is on the Hub already.

    Raises:
        ValueError: it cannot be found, or is not the one that the model was trained with.
    """
    config = model.config
    if not config.text_size:
        if given is not None:
            raise ValueError(
                f"got --text_encoder {given} for a model that reads no item text; expected none: leave it out"
            )
        return None
    mark, named = split_mark(config.text_encoder or "")
    name = named if given is None else given.removeprefix(mark)
    folder = local_folder(name, given is None and was_local)
    if folder is None:
        config.text_encoder = mark + name
        return None
    own_encoder(model, f"{mark}{folder}")
    encoder_id = stage_text_encoder(folder, model_id, bool(mark), staged)
    config.text_encoder = mark + encoder_id
    return encoder_id


def local_folder(name: str, was_local: bool) -> Path | None:
    """The folder of an encoder; None if its name is a Hub id.

    Args:
        name: as in `config.text_encoder`, without the mark of static vectors.
        was_local: whether the run was given a folder.

    Raises:
        ValueError: it was a folder, and it is gone or has no weights as safetensors.
    """
    folder = Path(name)
    if not (was_local or folder.exists() or os.path.isabs(name)):
        return None
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"got a model with the text encoder {name}, a folder without config.json or safetensors weights, or gone; "
            "expected the encoder that it was trained with: pass --text_encoder, its folder or its Hub id"
        )
    return folder


def stage_text_encoder(folder: Path, model_id: str, is_static: bool, staged: Path) -> str:
    """Writes the repository's files to `staged`.

    Args:
        model_id: Hub id of the model that uses it.
        is_static: whether it is an encoder of Model2Vec.

    Returns:
        The encoder's Hub id.
    """
    staged.mkdir(parents=True)
    for path in sorted({path for pattern in NEEDED for path in folder.glob(pattern)}):
        shutil.copyfile(path, staged / path.name)
    config = json.loads((staged / "config.json").read_text())
    config.pop("_name_or_path", None)  # its source may be a folder of this machine
    (staged / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    digest = hashlib.sha256()
    for name, path in folder_files(staged).items():
        digest.update(f"{name} {content_ids(path)[1]}\n".encode())
    repo_id = f"{model_id}-text-encoder-{digest.hexdigest()[:DIGITS]}"
    card_data = ModelCardData(
        library_name="model2vec" if is_static else "transformers",
        pipeline_tag="feature-extraction",
        tags=["next-behavior", "sentence-similarity"],
    )
    card = ModelCard.from_template(
        card_data,
        template_str=CARD,
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        model_id=model_id,
        is_static=is_static,
    )
    (staged / "README.md").write_text(str(card), encoding="utf-8")
    return repo_id
