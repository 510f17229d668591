"""The README shows code that runs and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import AutoTokenizer

from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.training.lora import LORA_TARGETS
from next_behavior.training.vocabulary import assemble

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("next_behavior", "tokenizer_build", "examples", "space")  # where the options are that the README names


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shop_model(folder: Path) -> None:
    """A saved model with random weights that knows the ids of the README."""
    tokenizer = assemble(["84", "7", "9"], ["view", "cart", "buy"], [60.0, 3600.0], num_new_items=2, max_length=6)
    tokenizer.describe_items([3, 2, 1], ["Desk lamp", None, None])
    tiny_model(tokenizer, action_weights=[0.0] * 5 + [1.0]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_adapter(folder: Path) -> None:
    """The same model as a base, and an adapter on it."""
    shop_model(folder / "base")
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=LORA_TARGETS)
    adapted: Any = get_peft_model(BertForNextBehavior.from_pretrained(folder / "base"), config)
    adapted.save_pretrained(str(folder / "adapter"))


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    shop_model(tmp_path / "shop")
    save_adapter(tmp_path / "lora")
    load_and_predict, adapters, _, update_memory, catalogue = blocks("python")
    names: dict[str, Any] = {}
    for code in (load_and_predict, adapters, update_memory, catalogue):
        exec(code.replace("out/", f"{tmp_path}/"), names)
    assert names["ranked"].probabilities.shape == (1, 10)
    answers = names["predict"]({"events": names["history"]}, action="buy", of="item", exclude_seen=True)
    assert [answer["item"] for answer in answers if answer["item"] in ("84", "1096036")] == []
    assert names["switched"].active_adapter == "summer"
    today = AutoTokenizer.from_pretrained(tmp_path / "shop-today", trust_remote_code=True)
    assert today.title("120") == "Reading lamp"
    config = BertForNextBehavior.from_pretrained(tmp_path / "shop-today").config
    assert (config.vocab_size, config.retired_items) == (len(today), [today.encode_item("9")])


def test_the_readme_shows_the_trainer_example_as_it_is() -> None:
    assert blocks("python")[2].strip() == (ROOT / "examples/finetune_with_trainer.py").read_text("utf-8").strip()


def test_files_and_options_that_the_readme_names_exist() -> None:
    scripts = set(re.findall(r"(?<![\w/])([a-z_]+(?:/[a-z_]+)*\.py)\b", README)) - {
        "handler.py"
    }  # of a published model
    assert len(scripts) >= 6
    missing = [name for name in scripts if not (ROOT / name).is_file()]
    assert not missing
    source = "\n".join(path.read_text("utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    options = set(re.findall(r"--([a-z_]+)", README))
    unknown = [name for name in options if not re.search(rf"\b{name}\b", source)]
    assert not unknown
