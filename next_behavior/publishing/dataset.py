"""The prepared sequences as a `datasets` repository: one row per user, without the user.

    stage_dataset(published, "ana/shop", "ana/shop-sequences", None, "day", staged)
    python train_accelerate.py --events ana/shop-sequences --output_dir out/again     # reads it back

Rows are in a random order that only the holder of the data can repeat. Items that the published vocabulary lacks get
names that hold within their row alone, so that they link no two users. Times are rounded to days unless exact times are
asked for: exact times and items together identify a user to anyone who holds another log of the same people.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from huggingface_hub import DatasetCard, DatasetCardData

from next_behavior.data.sequences import Sequences
from next_behavior.model.special_ids import NONE
from next_behavior.publishing.publication import Publication

DAY = 86_400_000_000  # microseconds
CARD = """---
{{ card_data }}
---

# {{ name }}

The histories of {{ users }} users, {{ events }} events, that [{{ repo_id }}](https://huggingface.co/{{ repo_id }}) was
trained and tested on, as ids of items and as the model's token ids. One row is one user, oldest event first.

| column | what |
|:--|:--|
| `user_id` | number of the row; it is no user's id elsewhere |
| `item_id` | items; null where an event names none |
| `action` | actions |
{% if has_time -%}
| `timestamp` | microseconds since 1970{% if times == "day" %}, rounded down to the day (UTC){% endif %} |
{% endif -%}
| `input_ids`, `token_type_ids`, `time_gap_ids` | the same as token ids of the tokenizer in `tokenizer/` |
| `part` | 0 training, 1 validation, 2 test |

```python
import datasets

histories = datasets.load_dataset("{{ dataset_id }}", split="train")
```

`python train_accelerate.py --events {{ dataset_id }} --output_dir OUT` trains on it; streaming works.

Privacy: ids of users were removed and the rows were shuffled. {{ unknown }} events name an item outside the published
vocabulary; such an item is called `unknown ROW-NUMBER`, a name that holds within its row only.
{% if not has_time -%}
The log has no times.
{%- elif times == "day" -%}
Times are days: a model that is trained on them learns the order of events, but not how soon one follows another within
a day.
{%- else -%}
Times are exact: with them, anyone who holds another log of the same people may recognize a user.
{%- endif %}
Sequences of behavior remain personal data where they can be linked to a person: do not try to, and keep the repository
private unless you have the right to share it.
"""


def as_rows(published: Publication, times: str) -> pl.DataFrame:
    """One row per user in the columns of the card.

    Args:
        times: "day" or "exact".
    """
    sequences, tokenizer = published.sequences, published.tokenizer
    order = np.random.default_rng(content_seed(sequences)).permutation(sequences.num_users)
    names = np.array([None] * sequences.first_item_id + tokenizer.item_vocabulary, dtype=object)
    actions = np.array([tokenizer.decode_action(index) for index in range(tokenizer.num_actions)], dtype=object)
    rows: dict[str, list[object]] = {name: [] for name in ("user_id", "item_id", "action", "timestamp")}
    rows |= {name: [] for name in ("input_ids", "token_type_ids", "time_gap_ids", "part")}
    for row, user in enumerate(order.tolist()):
        mine = slice(sequences.offsets[user], sequences.offsets[user + 1])
        items = sequences.items[mine].astype(np.int64)
        unknown = items >= sequences.vocab_size
        distinct, first = np.unique(items[unknown], return_index=True)
        number = {int(code): index for index, code in enumerate(distinct[np.argsort(first)])}
        slots = [number[int(code)] for code in items[unknown]]
        items[unknown] = sequences.vocab_size + np.array(slots, dtype=np.int64)
        item_ids = names[np.where(unknown, NONE, items)]
        item_ids[unknown] = [f"unknown {row}-{slot + 1}" for slot in slots]
        moments = sequences.timestamps[mine]
        rows["user_id"].append(row)
        rows["item_id"].append(item_ids.tolist())
        rows["action"].append(actions[sequences.actions[mine]].tolist())
        rows["timestamp"].append((moments // DAY * DAY if times == "day" else moments).tolist())
        rows["input_ids"].append(items.tolist())
        rows["token_type_ids"].append(sequences.actions[mine].tolist())
        rows["time_gap_ids"].append(sequences.time_gaps[mine].tolist())
        rows["part"].append(sequences.parts[mine].tolist())
    schema: dict[str, pl.DataType] = {
        "user_id": pl.Int64(),
        "item_id": pl.List(pl.String()),
        "action": pl.List(pl.String()),
        "timestamp": pl.List(pl.Int64()),
        "input_ids": pl.List(pl.Int32()),
        "token_type_ids": pl.List(pl.Int16()),
        "time_gap_ids": pl.List(pl.Int16()),
        "part": pl.List(pl.Int8()),
    }
    frame = pl.DataFrame(rows, schema=schema)
    return frame if has_times(sequences) else frame.drop("timestamp")


def has_times(sequences: Sequences) -> bool:
    return bool(len(sequences.timestamps)) and bool((sequences.timestamps >= 0).all())


def content_seed(sequences: Sequences) -> int:
    """A seed made from the events: the same log gives the same order, and nobody without the log can undo it."""
    return int(sequences.digest(), 16)


def stage_dataset(
    published: Publication, repo_id: str, dataset_id: str, license: str | None, times: str, staged: Path
) -> None:
    """Writes the data set's files to `staged`: Parquet, tokenizer and card."""
    rows = as_rows(published, times)
    (staged / "data").mkdir(parents=True)
    rows.write_parquet(staged / "data" / "train-00000-of-00001.parquet", statistics=False)
    published.tokenizer.save_pretrained(staged / "tokenizer")
    sequences = published.sequences
    card_data = DatasetCardData(
        license=license,
        pretty_name=dataset_id.split("/")[-1],
        tags=["next-behavior", "recommendation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    card = DatasetCard.from_template(
        card_data,
        template_str=CARD,
        name=dataset_id.split("/")[-1],
        repo_id=repo_id,
        dataset_id=dataset_id,
        users=f"{sequences.num_users:,}",
        events=f"{len(sequences.items):,}",
        unknown=f"{int((sequences.items >= sequences.vocab_size).sum()):,}",
        times=times,
        has_time=has_times(sequences),
    )
    (staged / "README.md").write_text(str(card), encoding="utf-8")
