"""A log full of ids that would write on a terminal or into a card: no command shows one of them as it is."""

from __future__ import annotations

import unicodedata
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from processes import reset_accelerate

from next_behavior.commands.__main__ import main_of
from next_behavior.commands.errors import run
from next_behavior.data.shown import HIDDEN, JOINER, LONGEST_LINE
from next_behavior.publishing import check

ITEMS = [
    "\x1b[31mred\x1b[0m", "line\nbreak\n# Heading\n```\n![i](http://example.org/i.png)", "bi\u202edi",
    "tick`tick``` |pipe|", "<img src=x onerror=alert(1)>", "L" * 20_000,
    "a\rb\x07", "par\u2029a\u2028", "nul\x00l", "it\x9b2J",
]  # fmt: skip
ACTIONS = ["view\x1b[2J", "buy\nnow`|", "\u202ecart" + "A" * 20_000]
SMALL = [
    *("--hidden_size", "20", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--max_epochs", "1", "--cpu"),
    *("--text_encoder", "none", "--precision", "no", "--validation_targets", "20"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and item tables, all of them hostile: one that is fine, and one for each kind of refusal."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        (f"u{user}{ITEMS[user % 10]}", ITEMS[(user + step + step * step % 3) % 10], ACTIONS[(user + step) % 3],
         str(1_700_000_000 + 9_000 * step + user))
        for user in range(20) for step in range(8)
    ]  # fmt: skip
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "action", "timestamp"], orient="row")
    log = log.with_columns(pl.lit("x").alias("more\x1b[31m\nevent_kind"))
    first = pl.int_range(pl.len()) < 5

    def text(column: str) -> pl.Expr:
        return pl.concat_str(pl.lit("un\x1bknown"), pl.col(column)).alias(column)

    logs = {
        "log": log,
        "some": log.with_columns(pl.when(first).then(pl.lit("7\x1b[31m")).otherwise("timestamp").alias("timestamp")),
        "times": log.with_columns(pl.lit("12/13\x1b[31m\n" + "9" * 20_000).alias("timestamp")),
        "users": log.with_columns(pl.lit(None, dtype=pl.String).alias("user_id")),
        "single": log.with_columns(pl.concat_str(pl.col("user_id"), pl.int_range(pl.len())).alias("user_id")),
        "column": log.rename({"item_id": "it\x1b[31m\nem" + "z" * 20_000}),
        "items": log.with_columns(text("item_id")),
        "actions": log.with_columns(text("action")),
    }
    for name, frame in logs.items():
        frame.write_parquet(folder / f"{name}.parquet")
    log.write_csv(folder / "fi\x1b[31mle.csv")
    table = pl.DataFrame({"item_id": ITEMS, "title": [f"red {item}" for item in ITEMS]})
    table.write_parquet(folder / "titles.parquet")
    table.with_columns(text("item_id")).write_parquet(folder / "others.parquet")
    (folder / "retire").write_text("bi\u202edi\n")
    (folder / "unheard").write_text("no\x1b[31msuch" + "N" * 20_000)
    return folder


def check_shown(text: str) -> None:
    """Nothing of `text` is hidden, and no line of it is long; bars return to the start of their line."""
    for line in text.replace("\r", "\n").split("\n"):
        assert len(line) <= LONGEST_LINE, line[:200]
        assert not {c for c in line if unicodedata.category(c) in HIDDEN and c != JOINER}, ascii(line)
        assert not line.startswith(("# Heading", "![i]", "![i](")), line


def said_by(command: str, capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """All that a command prints, its last line included."""
    reset_accelerate()
    end = ""
    try:
        run(command, partial(main_of(command), [str(argument) for argument in arguments]))
    except SystemExit as stopped:
        end = str(stopped.code)
    printed = capsys.readouterr()
    said = f"{printed.out}\n{printed.err}\n{end}"
    check_shown(said)
    return said


@pytest.mark.filterwarnings("default:.* look like personal data")
def test_no_command_shows_an_id_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "answers_in_a_clean_process", lambda *_: {})
    log, model = place / "log.parquet", place / "model"
    said = said_by("train", capsys, "--events", log, "--items", place / "titles.parquet", "--output_dir", model, *SMALL)
    assert r"view\x1b[2J" in said
    assert "The model is in" in said
    said = said_by("tokenize", capsys, log, "--output", place / "tokenizer", "--items", place / "titles.parquet")
    assert r"buy\nnow" in said
    assert "All tables are in" in said_by("evaluate", capsys, "--model", model, "--events", log)
    more = ["--items", place / "others.parquet", "--retire", place / "retire", "--output_dir", place / "grown"]
    assert "came back" in said_by("add-items", capsys, "--model", model, *more)
    few = ["--min_item_users", "2", "--dry_run", "--output", place / "card"]
    assert "Dry run" in said_by("publish", capsys, "--model", model, "--repo_id", "ana/shop", *few)
    for file in (model / "evaluation.md", place / "card" / "README.md", place / "card" / "evaluation.md"):
        check_shown(file.read_text(encoding="utf-8"))

    for name, what in (("items", "knows no item"), ("actions", "knows no action")):
        assert what in said_by("evaluate", capsys, "--model", model, "--events", place / f"{name}.parquet")
    said = said_by("add-items", capsys, "--model", model, "--retire", place / "unheard", "--output_dir", place / "new")
    assert "does not hold" in said
    other = ["--items", place / "others.parquet", "--output_dir", place / "new", *SMALL]
    assert "the log names none" in said_by("train", capsys, "--events", log, *other)
    base = ["--base_model", model, "--output_dir", place / "newer", "--max_epochs", "1", "--cpu"]
    assert "train a new model" in said_by("train", capsys, "--events", place / "actions.parquet", *base)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("some.parquet", r"timestamp='7\x1b[31m'"),
        ("times.parquet", "cannot be used"),
        ("users.parquet", "rows without a user"),
        ("single.parquet", "at most one per user"),
        ("column.parquet", "none of which is an item column"),
        ("fi\x1b[31mle.csv", "zero bytes"),
        ("nosuch\x1b[31m.csv", "does not exist"),
    ],
)
def test_no_refusal_shows_text_of_a_log_as_it_is(
    name: str, what: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert what in said_by("tokenize", capsys, place / name, "--output", place / "unused")


def test_a_warning_of_a_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        run("evaluate", lambda: warnings.warn("ids such as \x1b[31mred", stacklevel=1))
        assert warnings.showwarning is before
    assert capsys.readouterr().err == "evaluate: warning: ids such as \\x1b[31mred\n"
