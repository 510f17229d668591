"""Fine-tune a saved model on another log (CSV or Parquet: user_id, item_id, action, timestamp in seconds).

python examples/finetune_with_trainer.py MODEL EVENTS OUTPUT [--push_to_hub USER/NAME]
"""

import argparse

import polars as pl
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

parser = argparse.ArgumentParser()
for name in ("source", "events", "output", "--push_to_hub"):
    parser.add_argument(name)
source, events, output, repo_id = vars(parser.parse_args()).values()
model = AutoModel.from_pretrained(source, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)

text = {"user_id": pl.String, "item_id": pl.String}  # "007" stays "007"
log = pl.read_parquet(events) if events.endswith(".parquet") else pl.read_csv(events, schema_overrides=text)
log = log.select("user_id", "action", "timestamp", item=pl.col("item_id").cast(pl.String))
users = log.sort("timestamp", maintain_order=True).partition_by("user_id", maintain_order=True)
histories = [user.drop("user_id").to_dicts() for user in users]
size = tokenizer.model_max_length
windows = [user[start : start + size] for user in histories for start in range(0, len(user) - 1, size - 1)]


def example(window: list[dict]) -> dict[str, list[int]]:
    """Inputs are all events but the last; the label of a position is the event after it."""
    ids = {name: rows[0] for name, rows in tokenizer(window).items()}
    labels = {"labels": ids["input_ids"], "action_labels": ids["token_type_ids"], "time_labels": ids["time_gap_ids"]}
    return {name: row[:-1] for name, row in ids.items()} | {name: row[1:] for name, row in labels.items()}


# Which items follow each other is counted, not trained: the network learns without the memory.
model.update_memory(**tokenizer(windows, return_tensors="pt"), pairs="all", trained=True)
labels = ["labels", "action_labels", "time_labels"]
arguments = TrainingArguments(
    output, num_train_epochs=3, learning_rate=3e-4, label_names=labels, save_strategy="no",
    push_to_hub=repo_id is not None, hub_model_id=repo_id, hub_private_repo=True,
)  # fmt: skip
data = Dataset.from_list([example(window) for window in windows])
trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), data, processing_class=tokenizer)
trainer.train()
trainer.save_model(output)  # the whole model folder; with --push_to_hub it is sent, too
