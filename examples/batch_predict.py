"""Predict the next items of every user of a log (CSV or Parquet) with `Dataset.map`.

python examples/batch_predict.py MODEL EVENTS OUTPUT.parquet          # MODEL: a folder or a Hub id
"""

import sys
from typing import Any

import polars as pl
from datasets import Dataset
from transformers import pipeline

source, events, output = sys.argv[1:]
load: Any = pipeline  # transformers' types list its own tasks alone
predict = load("next-behavior", model=source, trust_remote_code=True)

text = {"user_id": pl.String, "item_id": pl.String}  # "007" stays "007"
log = pl.read_parquet(events) if events.endswith(".parquet") else pl.read_csv(events, schema_overrides=text)
event = pl.struct("action", "timestamp", item=pl.col("item_id").cast(pl.String))
log = log.sort("timestamp", maintain_order=True)
users = log.group_by("user_id", maintain_order=True).agg(events=event)


def next_items(batch: dict[str, list]) -> dict[str, list]:
    """The ten most probable items of each history, best first, whatever the action."""
    answers = predict([{"events": history} for history in batch["events"]], of="item", top_k=10)
    return {name: [[answer[name] for answer in ranked] for ranked in answers] for name in ("item", "probability")}


data = Dataset.from_polars(users)
data = data.map(next_items, batched=True, batch_size=256, remove_columns="events")
data.to_parquet(output)
print(data.to_polars().head())
