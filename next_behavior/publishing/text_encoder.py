"""The repository of a model's text encoder, for one that is a folder here, such as `next_behavior.text.tuning` writes.

    folder = local_folder("out/encoder", named_locally=True)                # None for an encoder that is on the Hub
    repo_id = stage_text_encoder(folder, "ana/shop", False, staged)         # "ana/shop-text-encoder-1a2b3c4d"

A model needs its encoder to read the words of new items, and the very one that it was trained with. So the repository's
name ends with a digest of its files: another encoder gets another repository, and none is ever replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from next_behavior.publishing.hub import content_ids, folder_files

# What loading needs; a folder may hold more: checkpoints, logs, weights that run code when they are loaded.
NEEDED = ("*.json", "*.txt", "*.model", "*.safetensors")
DIGITS = 8
CARD = """---
{{ card_data }}
---

# {{ name }}

Reads the words of items for [{{ model_id }}](https://huggingface.co/{{ model_id }}), a `BertForNextBehavior`, whose
`add_items` loads it by its name to give new items a row. Its licence is that of the encoder it comes from; if it was
tuned, then on the same log as the model, whose card says what is known of that.

{% if is_static -%}
```python
from model2vec import StaticModel

embeddings = StaticModel.from_pretrained("{{ repo_id }}").encode(["Red lip balm"], normalize=True)
```
{%- else -%}
The embedding of a text is the mean of the last states over its tokens, at length one:

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


def local_folder(name: str, named_locally: bool) -> Path | None:
    """The folder of an encoder, None if its name is of the Hub.

    Args:
        name: as in `config.text_encoder`, without the mark of static vectors.
        named_locally: the run noted that it was a folder.

    Raises:
        ValueError: it was a folder, and it is gone or has no weights as safetensors.
    """
    folder = Path(name)
    if not (named_locally or folder.exists() or os.path.isabs(name)):
        return None
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"got a model whose items' words are read by the text encoder {name}, a folder without config.json or "
            "safetensors weights, or gone; expected the encoder that it was trained with: pass --text_encoder, the "
            "folder where it lies now or its Hub id"
        )
    return folder


def stage_text_encoder(folder: Path, model_id: str, is_static: bool, staged: Path) -> str:
    """Writes the repository's files to `staged`.

    Args:
        model_id: Hub id of the model that reads with it; is_static: an encoder of Model2Vec.

    Returns:
        The encoder's Hub id.
    """
    staged.mkdir(parents=True)
    for path in sorted({path for pattern in NEEDED for path in folder.glob(pattern)}):
        shutil.copyfile(path, staged / path.name)
    config = json.loads((staged / "config.json").read_text())
    config.pop("_name_or_path", None)  # where it came from may be a folder of this machine
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
