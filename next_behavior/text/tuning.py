"""Tune a text encoder on a log, so that texts are alike whose items one user takes after the other.

    encoder = TunedEncoder("sentence-transformers/all-MiniLM-L6-v2", layers=2)
    training, held_out, texts = user_histories(events, item_texts(items))
    losses = tune(encoder, training, texts)          # what `next-behavior tune-text` does

A pretrained encoder knows which texts say the same. Which of them people go on to is in the log, and what is learned of
some items' words holds for the words of others, those that nobody has taken yet above all (benchmarks/README.md has the
effect). With a split, only its training events are read.

A step draws users until enough different items are named, and reads each item's text once. The decayed mean of the
texts that a user has had must find the text of the next new item among those of the step: InfoNCE (van den Oord et al.
2018) with a temperature, frequent items discounted as they stand in more steps (Yi et al. 2019). The last layers of the
encoder are trained, the others stay; what those make of a text is kept as long as there is room.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import BertModel
from transformers.masking_utils import create_bidirectional_mask

from next_behavior.data.files import whole_file, whole_folder
from next_behavior.model.item_text import mean_pooled, tokenized
from next_behavior.text.encoders import BertTextEncoder, computes_in_bfloat16

TEMPERATURE = 0.05
# The k-th text from the end weighs DECAY ** k.
DECAY = 0.7
# An item that is drawn n times as often has log(n) * DISCOUNT less in the softmax.
DISCOUNT = 0.5
# Events of a user in one step, a random stretch of the history.
MOST_EVENTS = 12
WARMUP_STEPS = 50
READ_AT_ONCE = 48
EMBEDDED_AT_ONCE = 10 * READ_AT_ONCE
# States below the trained layers that are kept, 1 GiB: some 80,000 texts of MiniLM.
KEPT_ELEMENTS = 2**29
# Steps after which what was learned is written down.
SAVED_STEPS = 25
# Validation events that recall is measured on; more texts than these would take longer to read than to learn from.
MEASURED_EVENTS, MEASURED_TEXTS = 4000, 50_000


def user_histories(events: pl.DataFrame, texts: pl.DataFrame) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Training histories, and the same users' histories up to each validation event, as rows of the texts: items that
    have a text, each once, where the user first had it, and two at least.

    Args:
        events: user_id, item_id and part (0 train, 1 validation), a user's events together and in order.
        texts: item_id and text, a row for each item.
    """
    texts = texts.drop_nulls("text").unique("item_id", keep="first", maintain_order=True).with_row_index("text_row")
    known = events.select("user_id", "item_id", "part").join(
        texts.select("item_id", "text_row"), on="item_id", how="inner", maintain_order="left"
    )
    known = known.unique(["user_id", "text_row"], keep="first", maintain_order=True)
    training, held_out = list[np.ndarray](), list[np.ndarray]()
    for _, user in known.group_by("user_id", maintain_order=True):
        rows, part = user["text_row"].to_numpy().astype(np.int64), user["part"].to_numpy()
        if np.count_nonzero(part == 0) > 1:
            training.append(rows[part == 0])
        held_out.extend(rows[: place + 1] for place in np.flatnonzero(part == 1) if place)
    return training, held_out, texts["text"].to_list()


def drawn_users(
    histories: Sequence[np.ndarray], items: int, generator: np.random.Generator
) -> Iterator[list[np.ndarray]]:
    """All users once in random order, each with a stretch of the history, in steps of at least `items` items; what is
    left over at the end is no step, unless it is the only one."""
    step: list[np.ndarray] = []
    named, complete = set[int](), False
    for user in generator.permutation(len(histories)):
        history = histories[user]
        begin = int(generator.integers(0, max(1, len(history) - MOST_EVENTS + 1)))
        step.append(history[begin : begin + MOST_EVENTS])
        named.update(step[-1].tolist())
        if len(named) >= items:
            yield step
            step, named, complete = [], set(), True
    if not complete:
        yield step


def decays(length: int) -> np.ndarray:
    """(length,) float32 weights of a history, the oldest first."""
    return DECAY ** np.arange(length - 1, -1, -1, dtype=np.float32)


def decayed_means(histories: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """For every event but the first of each history, (N, size) float32 weights of the items before it, zero for others,
    and (N,) int64 its own item; histories hold numbers below `size`, none twice."""
    weights = np.zeros((sum(len(history) - 1 for history in histories), size), dtype=np.float32)
    targets = np.concatenate([history[1:] for history in histories])
    row = 0
    for history in histories:
        for place in range(1, len(history)):
            weights[row, history[:place]] = decays(place)
            row += 1
    return weights, targets


def contrastive_loss(
    embeddings: torch.Tensor, histories: Sequence[np.ndarray], log_frequency: torch.Tensor
) -> torch.Tensor:
    """() float32: mean of -log p(next item | decayed mean of the items before), among the items of the step.

    Args:
        embeddings: (M, D) float32, rows of length one; histories hold row numbers; log_frequency: (M,) float32.
    """
    weights, targets = (
        torch.from_numpy(array).to(embeddings.device) for array in decayed_means(histories, len(embeddings))
    )
    query = F.normalize(weights @ embeddings, dim=-1)  # (N, D)
    logits = query @ embeddings.T / TEMPERATURE - DISCOUNT * log_frequency  # (N, M)
    return F.cross_entropy(logits.masked_fill(weights > 0, -torch.inf), targets)


class TunedEncoder:
    """A BERT text encoder, the last layers of which are trained.

    Args:
        name: folder or Hub id; max_tokens: as the encoder will read; layers: how many layers are trained, from the end.

    Raises:
        ValueError: no BERT checkpoint, or fewer layers.
    """

    def __init__(self, name: str, layers: int, max_tokens: int = 64) -> None:
        # Small steps get lost in bfloat16 weights; autocast computes in it all the same.
        self.encoder = BertTextEncoder(name, max_tokens, dtype=torch.float32)
        model = self.encoder.model
        if not isinstance(model, BertModel):
            raise ValueError(
                f"got the text encoder {name} of the type {model.config.model_type}; expected a BERT checkpoint "
                "(model_type bert)"
            )
        if not 1 <= layers <= len(model.encoder.layer):
            raise ValueError(f"got layers={layers}; expected 1 to {len(model.encoder.layer)}, the layers of {name}")
        self.model = model
        self.model.requires_grad_(False)
        self.frozen_layers, self.trained_layers = model.encoder.layer[:-layers], model.encoder.layer[-layers:]
        self.trained_layers.requires_grad_(True)
        self.kept: dict[str, torch.Tensor] = {}
        self.room = KEPT_ELEMENTS

    def read(self, texts: list[str]) -> torch.Tensor:
        """(N, D) float32, rows of length one, with gradients for the trained layers."""
        states = self._states(texts)
        # Texts of like length share a batch: padding would be half of it all.
        order = sorted(range(len(texts)), key=lambda row: len(states[row]))
        embeddings = []
        for begin in range(0, len(order), READ_AT_ONCE):
            part = [states[row] for row in order[begin : begin + READ_AT_ONCE]]
            mask = pad_sequence([state.new_ones(len(state), dtype=torch.long) for state in part], batch_first=True)
            hidden = pad_sequence(part, batch_first=True).float()  # (B, T, D)
            embeddings.append(mean_pooled(self._through(self.trained_layers, hidden, mask), mask))
        back = torch.tensor(order, device=self.encoder.device).argsort()
        return torch.cat(embeddings)[back]

    @torch.no_grad()
    def embed(self, texts: list[str], bar: Any) -> np.ndarray:
        """(N, D) float32, rows of length one; `bar.update(n)` is called as texts are done."""
        embeddings = np.empty((len(texts), self.encoder.dimensions), dtype=np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for rows in np.split(order, range(EMBEDDED_AT_ONCE, len(order), EMBEDDED_AT_ONCE)):
            embeddings[rows] = self.read([texts[row] for row in rows]).cpu().numpy()
            bar.update(len(rows))
        return embeddings

    @torch.no_grad()
    def _states(self, texts: list[str]) -> list[torch.Tensor]:
        """What the frozen layers make of each text: N of (T, D) float16, T its tokens."""
        fresh = dict[str, torch.Tensor]()
        missing = sorted({text for text in texts if text not in self.kept}, key=lambda text: (len(text), text))
        for begin in range(0, len(missing), READ_AT_ONCE):
            part = missing[begin : begin + READ_AT_ONCE]
            batch = tokenized(self.encoder.tokenizer, part, self.encoder.max_tokens, self.encoder.device)
            mask = batch.pop("attention_mask")
            hidden = self._through(self.frozen_layers, self.model.embeddings(**batch), mask)  # (B, T, D)
            states_of_batch = hidden.half()[mask.bool()].split(mask.sum(dim=1).tolist())
            fresh |= {text: state.clone() for text, state in zip(part, states_of_batch, strict=True)}
        states = [fresh[text] if text in fresh else self.kept[text] for text in texts]
        for text, state in fresh.items():
            if state.numel() <= self.room:
                self.kept[text] = state
                self.room -= state.numel()
        return states

    def _through(self, layers: nn.ModuleList, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T, D) states through some layers; mask (B, T) int64, zero for padding."""
        device = self.encoder.device
        attention_mask = create_bidirectional_mask(config=self.model.config, inputs_embeds=hidden, attention_mask=mask)
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(device)):
            for layer in layers:
                hidden = layer(hidden, attention_mask)
        return hidden

    def save(self, folder: Path) -> None:
        """Writes the checkpoint whole or not at all."""
        with whole_folder(folder) as unfinished:
            self.model.save_pretrained(unfinished)
            self.encoder.tokenizer.save_pretrained(unfinished)


def tune(
    encoder: TunedEncoder,
    histories: Sequence[np.ndarray],
    texts: list[str],
    steps: int = 600,
    max_minutes: float | None = None,
    batch_items: int = 192,
    learning_rate: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> list[float]:
    """Trains for so many steps, or until the time is up; the learning rate falls to zero by then. Users are drawn again
    when all were.

    Args:
        checkpoint: a file that is written every SAVED_STEPS steps; if it is there, its run is continued, exactly.

    Returns:
        The loss of each step, in nats.

    Raises:
        ValueError: the checkpoint is of a run with other settings or on another log.
    """
    generator, started, losses = np.random.default_rng(seed), time.monotonic(), list[float]()
    torch.manual_seed(seed)
    counts = np.bincount(np.concatenate(histories), minlength=len(texts))
    log_frequency = torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum())).float()
    optimizer = torch.optim.AdamW(encoder.trained_layers.parameters(), lr=learning_rate, weight_decay=0.01)
    limit = math.inf if max_minutes is None else 60 * max_minutes
    settings = {
        **{"steps": steps, "max_minutes": max_minutes, "batch_items": batch_items, "learning_rate": learning_rate},
        **{"seed": seed, "layers": len(encoder.trained_layers), "events": int(counts.sum())},
        "texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
    }
    if checkpoint is not None and checkpoint.exists():
        seconds, losses = go_on(checkpoint, settings, encoder, optimizer)
        started -= seconds
    encoder.trained_layers.train()
    drawn = (step for _ in itertools.count() for step in drawn_users(histories, batch_items, generator))
    with tqdm(total=steps, initial=len(losses), unit=" steps", desc="tuning", disable=not progress) as bar:
        for step in itertools.islice(drawn, len(losses), None):
            left = 1 - max(len(losses) / steps, (time.monotonic() - started) / limit)
            if left <= 0:
                break
            optimizer.param_groups[0]["lr"] = learning_rate * left * min(1.0, (len(losses) + 1) / WARMUP_STEPS)
            items, inverse = np.unique(np.concatenate(step), return_inverse=True)
            local = np.split(inverse, np.cumsum([len(history) for history in step])[:-1])
            embeddings = encoder.read([texts[item] for item in items])
            loss = contrastive_loss(embeddings, local, log_frequency[items].to(embeddings.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            bar.update()
            bar.set_postfix_str(f"loss {np.mean(losses[-50:]):.3f}")
            if checkpoint is not None and len(losses) % SAVED_STEPS == 0:
                write_down(checkpoint, settings, encoder, optimizer, time.monotonic() - started, losses)
    encoder.trained_layers.eval()
    return losses


def write_down(
    checkpoint: Path,
    settings: dict[str, Any],
    encoder: TunedEncoder,
    optimizer: torch.optim.Optimizer,
    seconds: float,
    losses: list[float],
) -> None:
    """Writes what `go_on` needs, whole or not at all."""
    cuda = encoder.encoder.device.type == "cuda"
    state = {
        **{"settings": settings, "seconds": seconds, "losses": losses},
        **{"layers": encoder.trained_layers.state_dict(), "optimizer": optimizer.state_dict()},
        **{"random": torch.get_rng_state(), "random_cuda": torch.cuda.get_rng_state() if cuda else None},
    }
    with whole_file(checkpoint) as unfinished:
        torch.save(state, unfinished)


def go_on(
    checkpoint: Path, settings: dict[str, Any], encoder: TunedEncoder, optimizer: torch.optim.Optimizer
) -> tuple[float, list[float]]:
    """Takes up a run where it was written down; the seconds it had taken, and its losses."""
    state = torch.load(checkpoint, map_location=encoder.encoder.device, weights_only=True)
    others = [f"{name} {old}, not {settings[name]}" for name, old in state["settings"].items() if old != settings[name]]
    if others:
        raise ValueError(
            f"got the checkpoint {checkpoint} of another run ({'; '.join(others)}); expected one with these settings "
            "on this log: repeat them as they were, or delete the file to begin anew"
        )
    encoder.trained_layers.load_state_dict(state["layers"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"].cpu())
    if state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"].cpu())
    return state["seconds"], state["losses"]


def recall_of_words(embeddings: np.ndarray, histories: Sequence[np.ndarray]) -> float:
    """Recall@10 of the last item of histories by their decayed mean text alone; all items, seen ones removed, ties
    against it.

    Args:
        embeddings: (M, D) float32, rows of length one.
    """
    hits = []
    for history in histories:
        before = history[:-1]
        scores = embeddings @ (decays(len(before)) @ embeddings[before])
        scores[before] = -np.inf
        hits.append(np.count_nonzero(scores >= scores[history[-1]]) <= 10)
    return float(np.mean(hits))


def measured_recall(encoder: TunedEncoder, texts: list[str], histories: Sequence[np.ndarray]) -> float | None:
    """`recall_of_words` with an encoder; None without histories, or with too many texts to read."""
    if not histories or len(texts) > MEASURED_TEXTS:
        return None
    with tqdm(total=len(texts), unit=" texts", desc="embedding") as bar:
        return recall_of_words(encoder.embed(texts, bar), histories)
