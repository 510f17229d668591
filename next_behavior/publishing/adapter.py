"""The repository of a PEFT adapter: its weights, the Hub id of its base, and a card.

    base_id = stage_adapter(Path("out/lora"), "ana/shop-lora", "ana/shop", None, staged)
    check_vocabulary(Path("out/lora"), base_id, api)
    note = check_adapter(Path("out/lora"), staged, token)

An adapter names the folder that it was trained on as its base; on the Hub it must name the base's Hub id. It holds no
vocabulary and no code of its own: both are the base's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData

from next_behavior.model.integrity import check_folder
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.publishing.check import (
    answers_in_a_clean_process,
    check_answers,
    golden_histories,
    hub_environment,
    ranked_by_model,
)
from next_behavior.publishing.hub import is_hub_id
from next_behavior.publishing.results_text import results

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CARD = """---
{{ card_data }}
---

# {{ name }}

A PEFT adapter for [{{ base }}](https://huggingface.co/{{ base }}), a `BertForNextBehavior` that predicts what a user
does next: {{ what }}, {{ size }} bytes. Read the base's card first. What is predicted, for whom, the limits and the
privacy measures are the same.

```python
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{{ base }}", trust_remote_code=True)
base = AutoModel.from_pretrained("{{ base }}", trust_remote_code=True)
model = PeftModel.from_pretrained(base, "{{ repo_id }}").eval()
history = [{"item": tokenizer.item_vocabulary[0], "action": tokenizer.action_vocabulary[0]}]
ranked = model.predict(**tokenizer([history], return_tensors="pt"), top_k=5)
```

## Results

{% if results -%}
{{ results.protocol }} The adapter was merged into the base that it was trained on.
{% for table in results.tables %}
{{ table.title }}

{{ table.text }}
{% endfor %}
Against the best of the baselines:

{{ results.verdict }}
{%- else -%}
No results were recorded beside its folder, so none are stated here.
{%- endif %}
"""


def stage_adapter(adapter: Path, repo_id: str, base_repo_id: str | None, license: str | None, staged: Path) -> str:
    """Writes the repository's files to `staged`.

    Args:
        base_repo_id: Hub id of the base; None takes the name in the adapter's configuration, which must then be one.

    Returns:
        The base's Hub id.

    Raises:
        ValueError: the base has no Hub id, or the adapter has no safetensors weights.
    """
    config: dict[str, Any] = json.loads((adapter / CONFIG).read_text())
    named = config["base_model_name_or_path"]
    base = base_repo_id or named
    if not is_hub_id(base):
        raise ValueError(
            f"got an adapter of {named}, a folder; expected the Hub id of its base, which others can load: publish the "
            "base first and pass --base_repo_id USER/BASE."
        )
    if not (adapter / WEIGHTS).is_file():
        raise ValueError(f"got {adapter} without {WEIGHTS}; expected an adapter saved by PEFT's save_pretrained.")
    staged.mkdir(parents=True)
    (staged / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}, indent=2, sort_keys=True))
    shutil.copyfile(adapter / WEIGHTS, staged / WEIGHTS)
    modules = config.get("target_modules") or []
    where = modules if isinstance(modules, str) else ", ".join(sorted(modules))
    rank = f" of rank {config['r']}" if "r" in config else ""
    card_data = ModelCardData(
        base_model=base,
        library_name="peft",
        license=license,
        tags=["next-behavior", "recommendation", "bert-next-behavior"],
    )
    evaluation = adapter.parent / "evaluation.json"  # training saves an adapter into the merged model's folder
    card = ModelCard.from_template(
        card_data,
        template_str=CARD,
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        base=base,
        what=f"{config['peft_type']}{rank} on {where}",
        size=f"{(staged / WEIGHTS).stat().st_size:,}",
        results=results(json.loads(evaluation.read_text())) if evaluation.is_file() else None,
    )
    (staged / "README.md").write_text(str(card), encoding="utf-8")
    return base


def check_vocabulary(adapter: Path, base_id: str, api: HfApi) -> None:
    """An adapter with rows of added items knows these by their ids, so its base must have the same vocabulary.

    Raises:
        ValueError: the base on the Hub has other items than the base that the adapter was trained on.
    """
    config = json.loads((adapter / CONFIG).read_text())
    local = Path(config["base_model_name_or_path"])
    if not config.get("trainable_token_indices") or not local.is_dir():
        return
    mine = BehaviorTokenizer.from_pretrained(local).item_vocabulary
    folder = api.snapshot_download(base_id, allow_patterns="tokenizer*")
    theirs = BehaviorTokenizer.from_pretrained(folder).item_vocabulary
    if mine != theirs:
        raise ValueError(
            f"got an adapter with rows of added items, trained on {len(mine):,} items, for the base {base_id} with "
            f"{len(theirs):,}; expected the same items in the same order: publish the base with --min_item_users 1, or "
            f"the merged model in {adapter.parent}."
        )


def check_adapter(adapter: Path, staged: Path, token: str | None) -> str | None:
    """Loads the staged adapter with its base from the Hub in a clean process.

    Returns:
        How the answers differ from those with the base that the adapter was trained on. None if they are the same, or
        that base is not here.

    Raises:
        ValueError: it does not load.
    """
    from peft import PeftModel

    local = Path(json.loads((adapter / CONFIG).read_text())["base_model_name_or_path"])
    if not local.is_dir():
        answers_in_a_clean_process(str(staged), [[]], hub_environment(token), is_adapter=True)
        return None
    check_folder(local)
    tokenizer = BehaviorTokenizer.from_pretrained(local)
    histories = golden_histories(tokenizer)
    answers = answers_in_a_clean_process(str(staged), histories, hub_environment(token), is_adapter=True)
    model = PeftModel.from_pretrained(BertForNextBehavior.from_pretrained(local), adapter).eval()
    expected = ranked_by_model(model, tokenizer, histories)
    try:
        check_answers(answers, {"model": expected, "auto": expected}, str(staged))
    except ValueError as error:
        return str(error)
    return None
