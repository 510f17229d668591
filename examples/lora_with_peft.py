"""Adapt a saved model to another log with LoRA: the adapter is some 10 kB to 1 MB, the model stays as it is.

python examples/lora_with_peft.py MODEL EVENTS OUTPUT [--push_to_hub USER/NAME]

MODEL is a folder or a Hub id. An adapter names its base by where the base was loaded from: whoever loads it from the
Hub needs a base that is there, so publish the model first and give its Hub id as MODEL.
"""

import argparse
from pathlib import Path
from typing import Any

import polars as pl
from datasets import Dataset
from huggingface_hub import HfApi
from peft import AutoPeftModelForFeatureExtraction, LoraConfig, TaskType, get_peft_model
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

parser = argparse.ArgumentParser()
for name in ("source", "events", "output", "--push_to_hub"):
    parser.add_argument(name)
source, events, output, repo_id = vars(parser.parse_args()).values()
if repo_id is not None and Path(source).is_dir():
    parser.error(f"got --push_to_hub with the base in the folder {source}; expected its Hub id: publish the base first")
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
base = AutoModel.from_pretrained(source, trust_remote_code=True)

# The attention of the encoder alone: the item table is tied to the output, and a low-rank change of it would not merge.
# What the memory has counted is no weight, and an adapter does not carry it: counts stay the base's.
attention = r"bert\.encoder\..*\.(query|value)"
lora = LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, target_modules=attention, r=8, lora_alpha=16)
model = get_peft_model(base, lora)
model.print_trainable_parameters()

text = {"user_id": pl.String, "item_id": pl.String}  # "007" stays "007"
log = pl.read_parquet(events) if events.endswith(".parquet") else pl.read_csv(events, schema_overrides=text)
log = log.select("user_id", "action", "timestamp", item=pl.col("item_id").cast(pl.String))
users = log.sort("timestamp", maintain_order=True).partition_by("user_id", maintain_order=True)
histories = [user.drop("user_id").to_dicts()[-tokenizer.model_max_length :] for user in users if len(user) > 1]


def example(history: list[dict]) -> dict[str, list[int]]:
    """Inputs are all events but the last; the label of a position is the event after it."""
    ids = {name: rows[0] for name, rows in tokenizer(history).items()}
    labels = {"labels": ids["input_ids"], "action_labels": ids["token_type_ids"], "time_labels": ids["time_gap_ids"]}
    return {name: row[:-1] for name, row in ids.items()} | {name: row[1:] for name, row in labels.items()}


labels = ["labels", "action_labels", "time_labels"]
arguments = TrainingArguments(output, num_train_epochs=3, learning_rate=1e-3, label_names=labels, save_strategy="no")
data = Dataset.from_list([example(history) for history in histories])
# PEFT has put its layers into `base`: training that trains the adapter alone.
Trainer(base, arguments, DataCollatorWithPadding(tokenizer), data).train()
model.save_pretrained(output)  # the adapter
if repo_id is not None:
    # Not model.push_to_hub: it would put transformers' empty card over the one that names the base.
    HfApi().create_repo(repo_id, private=True, exist_ok=True)
    HfApi().upload_folder(repo_id=repo_id, folder_path=output)

# Anyone loads it so, from the folder or the Hub; the base comes along. `merge_and_unload()` makes one model of both.
loaded = AutoPeftModelForFeatureExtraction.from_pretrained(repo_id or output, trust_remote_code=True).eval()
adapted: Any = loaded.get_base_model()
batch = tokenizer(histories[:1], return_tensors="pt")
before, after = (one.predict(**batch, top_k=3, of="item") for one in (base.eval(), adapted))
change = (before.probabilities - after.probabilities).abs().max()
print(f"loaded again, differs by {change:.1e}; next: {[tokenizer.decode_item(item) for item in after.item_ids[0]]}")
