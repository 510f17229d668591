"""What is published: a model, its tokenizer, and the log it was trained on, which users are counted in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets
import torch

from next_behavior.data.events import read_events
from next_behavior.data.known import check_known
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import PREPARED, Sequences, tokenize_log
from next_behavior.data.splits import Split, assign_parts
from next_behavior.model.integrity import check_agreement, check_folder
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.model.vocabulary import VOCABULARY_FILE, VocabularyTable

# Count and title of an item, None where the vocabulary says nothing.
ItemFact = tuple[int | None, str | None]


@dataclass(frozen=True)
class Publication:
    """A model, its tokenizer, and the log it was trained on in their token ids.

    Attributes:
        item_facts: count and title of every item in id order, as vocabulary.tsv has them.
    """

    model: BertForNextBehavior
    tokenizer: BehaviorTokenizer
    item_facts: list[ItemFact]
    sequences: Sequences


def load_publication(folder: Path, split: Split, events: str | None, options: ReadOptions) -> Publication:
    """The model of a folder and the log it was trained on.

    Args:
        events: the log; None takes the folder's own copy.

    Raises:
        FileNotFoundError, ValueError: there is no such model, it is damaged, or there is no log to count users in.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"got --model {folder} without a config.json; expected the folder of a trained model.")
    check_folder(folder)
    model = BertForNextBehavior.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = BehaviorTokenizer.from_pretrained(folder)
    check_agreement(model.config, tokenizer)
    if events is not None:
        log = read_events(events, options).events
        check_known(log, tokenizer.item_vocabulary, tokenizer.action_vocabulary)
        dataset = tokenize_log(assign_parts(log, split), tokenizer)
    elif (folder / PREPARED).is_dir():
        dataset = datasets.Dataset.load_from_disk(str(folder / PREPARED))
    else:
        raise ValueError(
            f"got {folder} without its prepared/ folder; expected the training log, to count users in: pass --events."
        )
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    return Publication(model, tokenizer, read_item_facts(folder / VOCABULARY_FILE), sequences)


def read_item_facts(vocabulary: Path) -> list[ItemFact]:
    """Count and title of every item of a vocabulary.tsv, in id order."""
    table = VocabularyTable(vocabulary.read_bytes())
    rows = (table.fields(line) for line in range(1, len(table.line_starts) - 1))
    return [(int(count) if count else None, title or None) for _, _, count, title in rows]
