"""Fine-tune a saved model on another log (CSV or Parquet: user_id, item_id, action, timestamp in seconds).

python examples/finetune_with_trainer.py MODEL EVENTS OUTPUT
"""

import sys

import polars as pl
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

source, events, output = sys.argv[1:]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)

log = pl.read_parquet(events) if events.endswith(".parquet") else pl.read_csv(events, infer_schema_length=None)
log = log.select("user_id", "action", "timestamp", item=pl.col("item_id").cast(pl.String)).sort("timestamp")
histories = [user.drop("user_id").to_dicts() for user in log.partition_by("user_id", maintain_order=True)]
size = tokenizer.model_max_length
windows = [user[start : start + size] for user in histories for start in range(0, len(user) - 1, size - 1)]


def example(window: list[dict]) -> dict[str, list[int]]:
    """Inputs are all events but the last. The label of a position is the event after it; -100 is not learned from."""
    ids = {name: rows[0] for name, rows in tokenizer(window).items()}
    items, actions, gaps = ids["input_ids"], ids["token_type_ids"], ids["time_gap_ids"]
    # An item can be named if the vocabulary holds it, or (as [NEW_1], [NEW_2] ..., ids from 4 on) the history does.
    known = [item >= tokenizer.first_item_id or (item >= 4 and item in items[:at]) for at, item in enumerate(items)]
    return {name: row[:-1] for name, row in ids.items()} | {
        "labels": [item if named else -100 for item, named in zip(items, known, strict=True)][1:],
        "action_labels": [action if action >= 3 else -100 for action in actions[1:]],
        "time_labels": [gap if gap >= 2 else -100 for gap in gaps[1:]],
    }


# Which items follow each other is counted, not trained; in training every target leaves its own counts out.
model.update_memory(**tokenizer(windows, return_tensors="pt"), pairs="all")
labels = ["labels", "action_labels", "time_labels"]
arguments = TrainingArguments(output, num_train_epochs=3, learning_rate=3e-4, label_names=labels, save_strategy="no")
data = Dataset.from_list([example(window) for window in windows])
trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), data, processing_class=tokenizer)
trainer.train()
trainer.save_model(output)
