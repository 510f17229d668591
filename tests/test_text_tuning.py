"""Tuning a text encoder on a log: what it learns, what it reads, what stays as it was."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORDS, write_events
from transformers import BertModel

from next_behavior.commands.tune_text import main
from next_behavior.text import tuning as text_tuning
from next_behavior.text.encoders import BertTextEncoder, load_encoder
from next_behavior.text.tuning import (
    DECAY,
    DISCOUNT,
    MOST_EVENTS,
    TEMPERATURE,
    TunedEncoder,
    contrastive_loss,
    drawn_users,
    recall_of_words,
    tune,
    user_histories,
)

COLORS, THINGS = WORDS[:3], WORDS[3:]
TEXTS = [f"{color} {thing}" for color, thing in itertools.product(COLORS, THINGS)]
NOBODYS = [row for row, text in enumerate(TEXTS) if text.endswith("comb")]


def one_color_histories(users: int) -> list[np.ndarray]:
    """Users who stay with a color; nobody takes a comb."""
    generator = np.random.default_rng(0)
    of_color = [[row for row, text in enumerate(TEXTS) if text.startswith(c) and row not in NOBODYS] for c in COLORS]
    return [generator.permutation(of_color[user % 3])[:4] for user in range(users)]


def likeness_of_a_color(encoder: TunedEncoder, rows: list[int]) -> float:
    """How much more alike texts of one color are than texts of two, by cosine, seen from `rows`."""
    embeddings = encoder.encoder.embed(TEXTS).astype(np.float32)
    color = np.array([COLORS.index(text.split()[0]) for text in TEXTS])
    cosines = embeddings[rows] @ embeddings.T
    same = color[rows][:, None] == color
    same_but_itself = same & (np.array(rows)[:, None] != np.arange(len(TEXTS)))
    return float(cosines[same_but_itself].mean() - cosines[~same].mean())


def test_texts_become_alike_whose_items_users_take_together_and_so_do_those_of_items_that_nobody_took(
    bert: str,
) -> None:
    encoder = TunedEncoder(bert, layers=2, max_tokens=8)
    others = [row for row in range(len(TEXTS)) if row not in NOBODYS]
    before = [likeness_of_a_color(encoder, rows) for rows in (others, NOBODYS)]
    options: dict[str, Any] = {"steps": 240, "batch_items": 12, "learning_rate": 3e-3, "progress": False}
    losses = tune(encoder, one_color_histories(300), TEXTS, **options)
    after = [likeness_of_a_color(encoder, rows) for rows in (others, NOBODYS)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert after[0] > before[0] + 0.15
    assert after[1] > before[1] + 0.15


def test_only_the_last_layers_change_and_the_folder_is_a_text_encoder(bert: str, tmp_path: Path) -> None:
    encoder = TunedEncoder(bert, layers=1, max_tokens=8)
    tune(encoder, one_color_histories(60), TEXTS, steps=10, batch_items=12, progress=False)
    encoder.save(tmp_path / "tuned")
    old, new = BertModel.from_pretrained(bert).state_dict(), BertModel.from_pretrained(tmp_path / "tuned").state_dict()
    changed = {name.split(".")[2] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"1"}, "the second of two layers"
    saved = BertTextEncoder(str(tmp_path / "tuned"), max_tokens=8, dtype=torch.float32)
    np.testing.assert_allclose(saved.embed(TEXTS), encoder.encoder.embed(TEXTS), atol=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_it_reads_as_the_encoder_does_whether_or_not_there_is_room_for_what_the_frozen_layers_made(
    bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tuning, "computes_in_bfloat16", lambda device: False)
    texts = [*TEXTS, TEXTS[0], " ".join(TEXTS)]
    for room in (text_tuning.KEPT_ELEMENTS, 100):
        monkeypatch.setattr(text_tuning, "KEPT_ELEMENTS", room)
        encoder = TunedEncoder(bert, layers=1, max_tokens=8)
        first, again = encoder.read(texts), encoder.read(texts[::-1]).flip(0)
        np.testing.assert_allclose(first.detach(), encoder.encoder.embed(texts), atol=2e-3)
        torch.testing.assert_close(again, first)
        assert sum(state.numel() for state in encoder.kept.values()) + encoder.room == room
        assert (len(encoder.kept) == len(TEXTS) + 1) == (room > 100)


def test_all_texts_are_embedded_in_their_order_a_few_at_a_time(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tuning, "computes_in_bfloat16", lambda device: False)
    monkeypatch.setattr(text_tuning, "EMBEDDED_AT_ONCE", 4)
    texts = [" ".join(TEXTS), *TEXTS, TEXTS[0]]
    encoder, done = TunedEncoder(bert, layers=1, max_tokens=8), list[int]()
    embedded = encoder.embed(texts, SimpleNamespace(update=done.append))
    np.testing.assert_allclose(embedded, encoder.encoder.embed(texts), atol=2e-3)
    assert set(encoder.kept) == set(texts), "training has them already"
    assert sum(done) == len(texts)
    assert max(done) == 4


def test_a_seed_decides_everything(bert: str) -> None:
    found = []
    for seed in (0, 0, 1):
        encoder = TunedEncoder(bert, layers=1, max_tokens=8)
        found.append(tune(encoder, one_color_histories(30), TEXTS, steps=5, batch_items=12, seed=seed, progress=False))
    assert found[0] == found[1] != found[2]


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tuning, "SAVED_STEPS", 3)
    histories, checkpoint = one_color_histories(30), tmp_path / "checkpoint"
    options: dict[str, Any] = {"steps": 8, "batch_items": 12, "progress": False}
    whole = TunedEncoder(bert, layers=1, max_tokens=8)
    expected = tune(whole, histories, TEXTS, **options)

    def interrupted(*arguments: Any) -> torch.Tensor:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(contrastive_loss(*arguments))
        return done[-1]

    done: list[torch.Tensor] = []
    first, second = (TunedEncoder(bert, layers=1, max_tokens=8) for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(text_tuning, "contrastive_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(first, histories, TEXTS, **options, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"another run \(steps 8, not 9\); expected one with these settings"):
        tune(first, histories, TEXTS, **{**options, "steps": 9}, checkpoint=checkpoint)
    assert tune(second, histories, TEXTS, **options, checkpoint=checkpoint) == expected
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_the_time_limit_ends_it(bert: str) -> None:
    encoder = TunedEncoder(bert, layers=1, max_tokens=8)
    assert tune(encoder, one_color_histories(30), TEXTS, max_minutes=1e-9, batch_items=12, progress=False) == []


def test_the_loss_is_that_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    log_frequency = torch.randn(6, generator=generator)
    histories = [np.array([0, 3, 1]), np.array([5, 2])]
    losses = []
    for history in histories:
        for place in range(1, len(history)):
            query = sum(DECAY**back * embeddings[history[place - 1 - back]] for back in range(place))
            assert isinstance(query, torch.Tensor)
            candidates = [item for item in range(6) if item not in history[:place]]
            cosines = embeddings[candidates] @ query / query.norm()
            logits = cosines / TEMPERATURE - DISCOUNT * log_frequency[candidates]
            losses.append(-logits.log_softmax(0)[candidates.index(int(history[place]))])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(contrastive_loss(embeddings, histories, log_frequency), expected)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=20), items=st.integers(2, 40), seed=st.integers(0, 99))
def test_users_are_drawn_once_each_and_steps_hold_items_enough(lengths: list[int], items: int, seed: int) -> None:
    starts = np.cumsum([0, *lengths])
    histories = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    steps = list(drawn_users(histories, items, np.random.default_rng(seed)))
    drawn = [int(np.searchsorted(starts, stretch[0], side="right")) for step in steps for stretch in step]
    assert len(set(drawn)) == len(drawn)
    for step in steps:
        assert len(np.unique(np.concatenate(step))) >= items or len(steps) == 1
        for stretch in step:
            assert (np.diff(stretch) == 1).all()
            assert len(stretch) == min(MOST_EVENTS, lengths[int(np.searchsorted(starts, stretch[0], side="right")) - 1])


def test_training_events_alone_are_read_each_item_once_and_only_items_with_a_text() -> None:
    rows = [
        *(("u", "a", 0), ("u", "b", 0), ("u", "a", 0), ("u", "x", 0), ("u", "c", 0), ("u", "d", 1), ("u", "a", 1)),
        *(("u", "b", 2), ("v", "a", 0), ("v", "c", 1), ("w", "y", 0), ("w", "d", 1)),
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "part"], orient="row").with_row_index("row")
    texts = pl.DataFrame({"item_id": ["d", "c", "x", "b", "a"], "text": ["D", "C", None, "B", "A"]})
    training, held_out, names = user_histories(events, texts)
    assert names == ["D", "C", "B", "A"]
    assert [[names[row] for row in history] for history in training] == [["A", "B", "C"]]
    assert [[names[row] for row in history] for history in held_out] == [["A", "B", "C", "D"], ["A", "C"]]


def test_recall_by_words_counts_ties_against_it() -> None:
    embeddings = np.eye(12, dtype=np.float32)
    embeddings[1] = embeddings[0]
    history = [np.array([0, 1]), np.array([0, 2])]  # the twin of what was had; one of ten that nothing speaks for
    assert recall_of_words(embeddings, history) == 0.5


def test_the_command_writes_an_encoder_that_training_takes(
    bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = one_color_histories(60)
    rows = [
        (f"u{user}", str(item), "view", place)
        for user, items in enumerate(histories)
        for place, item in enumerate(items)
    ]
    events = write_events(tmp_path / "events.csv", rows)
    items = tmp_path / "items.csv"
    pl.DataFrame({"item_id": [str(row) for row in range(len(TEXTS))], "title": TEXTS}).write_csv(items)
    command = ["--events", str(events), "--items", str(items), "--split", "leave_one_out", "--text_encoder", bert]
    command += ["--steps", "9"]
    with pytest.warns(UserWarning, match="leaks the future"):
        main([*command, "--batch_items", "12", "--output_dir", str(tmp_path / "encoder")])
    said = capsys.readouterr().out
    assert "Recall@10 of the next item by item text alone, 60 validation events" in said
    assert f"--text_encoder {tmp_path / 'encoder'}" in said
    assert load_encoder(str(tmp_path / "encoder")).embed(["red lip"]).shape == (1, 20)
    main([*command, "--split", "none", "--batch_items", "12", "--output_dir", str(tmp_path / "all")])
    assert "was not measured: no validation events" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "encoder", "events.csv", "items.csv"]
    with pytest.raises(ValueError, match="--resume without the file"):
        main([*command, "--resume", "--output_dir", str(tmp_path / "other")])
    (tmp_path / ".other.checkpoint").touch()
    with pytest.raises(ValueError, match="go on with it by --resume, or delete it"):
        main([*command, "--output_dir", str(tmp_path / "other")])
    (tmp_path / ".other.checkpoint").unlink()
    with pytest.raises(ValueError, match="there already"):
        main([*command, "--output_dir", str(tmp_path / "encoder")])
    with pytest.raises(ValueError, match="layers=3; expected 1 to 2"):
        main([*command, "--layers", "3", "--output_dir", str(tmp_path / "other")])
    items.write_text("item_id,title\nnobody's,red lip\n")
    with (
        pytest.warns(UserWarning, match="leaks the future"),
        pytest.raises(ValueError, match="0 users with two training events of items"),
    ):
        main([*command, "--output_dir", str(tmp_path / "other")])
    with pytest.raises(SystemExit):
        main([*command, "--steps", "0", "--output_dir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_another_architecture_is_refused(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(torch.nn.Module):
        config = BertModel.from_pretrained(bert).config

    class Reader:
        model = Other()

    monkeypatch.setattr(text_tuning, "BertTextEncoder", lambda *_, **__: Reader())
    with pytest.raises(ValueError, match="expected a BERT checkpoint"):
        TunedEncoder(bert, layers=1)
