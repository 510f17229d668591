"""A catalog that changes: items are added to a trained model without training, and retired ones are not answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .answer_tables import CHANGE_LOCK, TABLES_LOCK
from .explaining import ExplainingModel
from .integrity import check_agreement
from .item_text import PROBE_TEXT, ItemText, embed_texts, is_missing, text_of_item
from .neighbor_lists import NeighborLists
from .special_ids import PAD


class ChangingCatalog(ExplainingModel):
    """What `BertForNextBehavior` does with its catalog."""

    lm_head: nn.Linear

    @torch.no_grad()
    def add_items(
        self,
        tokenizer: Any,
        items: Sequence[Mapping[str, Any]] | Sequence[str],
        text_encoder: str | None = None,
        embed: Callable[[list[str]], torch.Tensor] | None = None,
    ) -> list[int]:
        """Gives items a row and a token at once, without training; model and tokenizer are then saved together.

        An item with text starts from it: its row is the projected text, it is linked to the items with the most similar
        texts, and until it is counted it borrows their neighbors. An item without text gets the mean row of the items
        that are there, so it is told apart only once it is trained or counted. What was known keeps its row and its
        counts: within each path old items keep their proportions, only the normalizers change. A retired item comes
        back; other known items are left as they are. Another text encoder than the model's own is an error.

        May run beside questions in other threads. Changes wait for each other.

        Args:
            tokenizer: the model's `BehaviorTokenizer`; it learns the items too.
            items: ids, or a dict for each with `item_id`, the columns that `config.text_columns` names, and `title`.
            text_encoder: where the checkpoint `config.text_encoder` lies now, if not under that name.
            embed: reads the texts instead, (N,) texts to (N, E): for embeddings that are there already.

        Returns:
            The token ids of `items`, in their order.

        Raises:
            ValueError: an item without an id; a tokenizer of another model; another text encoder than the model's own.
        """
        rows = [item if isinstance(item, Mapping) else {"item_id": item} for item in items]
        for row in rows:
            if is_missing(row.get("item_id")):
                raise ValueError(f"the item {row!r:.100} has no item_id, expected an id and text columns.")
        item_text, embeddings = self.bert.embeddings.item_text, None
        if type(self.bert.embeddings.embed_tokens) is not nn.Embedding:
            got = type(self.bert.embeddings.embed_tokens).__name__
            raise ValueError(f"embed_tokens is a {got}, expected nn.Embedding: merge the adapter before adding items.")
        with CHANGE_LOCK:
            known = len(tokenizer)
            check_agreement(self.config, tokenizer)
            # Texts are read before anything changes: whatever fails leaves model and tokenizer as they were.
            texts = {} if item_text is None else self._new_texts(tokenizer, rows)
            if item_text is not None and texts:
                embeddings = self._embedded(item_text, list(texts.values()), text_encoder, embed)
            titles = [None if is_missing(title := row.get("title")) else str(title) for row in rows]
            new = tokenizer.with_items([row["item_id"] for row in rows], titles)
            place = dict(zip((str(row["item_id"]) for row in rows), new.ids, strict=True))
            written = torch.tensor([place[name] for name in texts], dtype=torch.long, device=self.device)
            self._grow(known, new.size, written, embeddings)
            lists = None
            memory = self.associate_path
            borrow_ids, borrow_weights = memory.borrow_ids, memory.borrow_weights
            if item_text is not None and texts:
                borrow_ids, borrow_weights = memory.links(item_text)
                if memory.made_neighbors is not None:
                    tables = memory.tables()._replace(borrow_ids=borrow_ids, borrow_weights=borrow_weights)
                    lists = NeighborLists(self.config, tables)
            with TABLES_LOCK:
                # It can read what the model answers before it can ask.
                tokenizer.announce(new)
                if item_text is not None and texts:
                    memory.borrow_ids, memory.borrow_weights = borrow_ids, borrow_weights
                    memory.changed(lists)
                self.config.vocab_size = new.size
                self.config.retired_items = sorted(set(self.config.retired_items) - set(new.ids))
                tokenizer.take(new)
            self.config.vocabulary_digest = tokenizer.vocabulary_digest
        return new.ids

    def retire_items(self, tokenizer: Any, items: list[str]) -> None:
        """Leaves items out of every later answer; they are still understood in a history. May run beside questions in
        other threads.

        Raises:
            ValueError: the vocabulary lacks one of them.
        """
        with CHANGE_LOCK:
            ids = [tokenizer.encode_item(item) for item in items]
            unknown = [item for item, index in zip(items, ids, strict=True) if index < self.config.first_item_id]
            if unknown:
                raise ValueError(
                    f"the vocabulary does not hold {[str(item)[:80] for item in unknown[:5]]}: nothing was retired."
                )
            self.config.retired_items = sorted({*self.config.retired_items, *ids})

    def _new_texts(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """The text of each item that has one and is not in the vocabulary."""
        columns, template = self.config.text_columns or [], self.config.text_template
        read = {str(row["item_id"]): text_of_item(row, columns, template) for row in rows}
        first = self.config.first_item_id
        return {name: text for name, text in read.items() if text and tokenizer.encode_item(name) < first}

    def _embedded(
        self,
        item_text: ItemText,
        texts: list[str],
        text_encoder: str | None,
        embed: Callable[[list[str]], torch.Tensor] | None,
    ) -> torch.Tensor:
        """(N, E) embeddings of texts, by the model's own encoder or by `embed`."""
        encoder = text_encoder or self.config.text_encoder
        if embed is None:
            assert encoder is not None, "a model with item text names its encoder"
            probe, *embedded = embed_texts([PROBE_TEXT, *texts], encoder, self.config.text_max_tokens, self.device)
            item_text.check(probe, encoder)
            return torch.stack(embedded)
        embeddings = embed(texts).to(self.device)
        if embeddings.shape[1] != self.config.text_encoder_size:
            sizes = f"{embeddings.shape[1]}; expected {self.config.text_encoder_size}"
            raise ValueError(f"got embeddings of size {sizes}, that of {encoder}, which this model reads with")
        return embeddings

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As in transformers; added items have no text."""
        before = self.config.vocab_size
        embed_tokens = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.vocab_size != before:
            self.config.vocabulary_digest = None  # that of a vocabulary which is not known here
        item_text = self.bert.embeddings.item_text
        if item_text is not None:
            missing = self.config.vocab_size - len(item_text.vectors)
            item_text.vectors = F.pad(item_text.vectors, (0, 0, 0, missing))
        return embed_tokens

    @torch.no_grad()
    def _grow(self, known: int, size: int, written: torch.Tensor, embeddings: torch.Tensor | None) -> None:
        """Gives the tables of items `size` rows. Answers go on as before: the configuration says how many are read.

        Args:
            known: rows there are.
            written: (N,) int64, the new items that have a text, with the text embeddings (N, E); the others get the
                mean row.
        """
        first, old, item_text = (
            self.config.first_item_id,
            self.bert.embeddings.embed_tokens,
            self.bert.embeddings.item_text,
        )
        if item_text is not None:
            vectors = F.pad(item_text.vectors, (0, 0, 0, size - len(item_text.vectors)))
            if embeddings is not None:
                vectors[written] = item_text.reduced(embeddings)
            item_text.vectors = vectors
        trained = old.weight[first:known]
        mean = trained[trained.any(dim=-1)].mean(dim=0)
        embed_tokens = nn.Embedding(size, old.weight.shape[1], PAD, dtype=old.weight.dtype, device=self.device)
        embed_tokens.weight[:known] = old.weight[:known]
        embed_tokens.weight[known:] = mean
        embed_tokens.weight[written] = 0
        self.set_input_embeddings(embed_tokens)
        self.lm_head = nn.Linear(old.weight.shape[1], size, bias=False, device="meta")
        self.lm_head.weight = embed_tokens.weight
