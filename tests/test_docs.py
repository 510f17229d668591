"""The README and the pages of docs/: their code runs, their command lines parse, what they quote and link to exists.

Python blocks run as they stand, in a folder that holds one small trained model under the names that the pages use. Of
the command lines, the core path is executed in the same folder. Every other line is parsed by the command's own parser
and stands in `NOT_EXECUTED` with the reason.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import polars as pl
import pytest
from golden import SIZES, write_log
from peft import LoraConfig, get_peft_model
from processes import fork_checks_of_publishing, run_training

from next_behavior.commands.__main__ import main_of
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.serving.app import OPERATIONS
from next_behavior.serving.messages import options_of_query
from next_behavior.training.lora import LORA_TARGETS
from next_behavior.training.settings import settings_from_arguments

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Its commands are parsed too; its figures were measured with them.
BENCHMARKS = ROOT / "benchmarks" / "README.md"
ANSWER = ROOT / "docs" / "images" / "answer.json"

TRAIN = "python train_accelerate.py --events events.csv --items items.csv --output_dir out/shop"
# Executed in this order, as they stand.
CORE_PATH = (
    "python evaluate_behavior.py --model out/shop --events events.csv --json result.json",
    "python -m tokenizer_build events.csv --output tokenizer",
    "python add_items.py --model out/shop --items new.csv --output_dir out/shop-today",
    "python publish.py --model out/shop --repo_id ana/shop --dry_run --output staged",
)
# Beginnings of command lines, or of Python blocks, and why no test executes them.
NOT_EXECUTED = {
    "make": "installs an environment or takes minutes; the target exists",
    "pip install": "installs; the extra exists",
    ". .venv/bin/activate": "changes the shell",
    "accelerate launch train_accelerate.py": "starts processes; test_training.py trains with two",
    "from pyspark.sql import SparkSession": "starts Java; test_spark.py prepares a table",
    "from next_behavior.serving.score import Options": "starts Java; test_spark.py scores a table",
    "next-behavior prepare": "needs a log of its own; test_prepare.py runs it",
    "next-behavior train": "the same function as train_accelerate.py, which is executed",
    "next-behavior average": "needs two models; test_several_models.py runs it",
    "next-behavior calibrate": "test_training.py calibrates a trained model again",
    'predict({"events": history}, of="item", coverage=0.9)': "needs many validation events; test_calibration.py asks",
    "next-behavior tune-text": "trains for minutes; test_text_tuning.py runs it with few steps",
    "python train_accelerate.py": "trains for minutes; one variant is executed with small sizes",
    "python evaluate_behavior.py": "one variant is executed; test_evaluate.py runs the others",
    "python add_items.py": "one variant is executed; test_add_items.py runs the change in place",
    "python publish.py": "sends; one variant is executed as a dry run, test_publish.py sends to a Hub on loopback",
    "python examples/finetune_with_trainer.py": "test_examples.py runs it",
    "next-behavior serve": "serves until it is stopped; test_serve_command.py starts it",
    "next-behavior score": "exports, which takes long; test_score.py runs it",
    "from next_behavior.serving.export import bundle_for": "exports, which takes long; test_export.py asks a bundle",
    "next-behavior explain": "needs users of a log; test_explain_command.py runs it",
    "next-behavior drift": "needs a log after the training; test_drift.py runs it",
    "curl": "asks a service that runs; its path and its body are checked",
    "python space/app.py": "serves until it is stopped; test_space.py asks it",
    "python -m benchmarks.readme_table": "trains for hours on public logs",
    "python -m benchmarks.new_days": "trains three models on a public log",
    '"""Recall@10 of each ranker': "reads dumped predictions, from which test_dump.py computes every number",
    '"""Fine-tune a saved model': "is examples/finetune_with_trainer.py, which test_examples.py runs",
}
SCRIPTS = {
    "train_accelerate.py": "train",
    "evaluate_behavior.py": "evaluate",
    "add_items.py": "add-items",
    "publish.py": "publish",
}
# Files of a published model, not of this repository.
OF_A_MODEL = {"handler.py"}


class Block(NamedTuple):
    page: Path
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [Block(page, language, code) for language, code in found]


def command_lines(pages: list[Path]) -> list[str]:
    """The command lines of all bash blocks, without comments, each once."""
    code = [block.code.replace("\\\n", " ") for page in pages for block in blocks(page) if block.language == "bash"]
    lines = [shlex.join(shlex.split(line, comments=True)) for text in code for line in text.splitlines()]
    return list(dict.fromkeys(filter(None, lines)))


def python_blocks(page: Path) -> list[str]:
    return [block.code for block in blocks(page) if block.language == "python"]


def reason_of(code: str) -> str | None:
    """The key of `NOT_EXECUTED` that the code begins with, the longest one."""
    return max((key for key in NOT_EXECUTED if f"{code} ".startswith(f"{key} ")), key=len, default=None) or next(
        (key for key in NOT_EXECUTED if key.startswith(('"""', "from ")) and code.startswith(key)), None
    )


# ----------------------------------------------------------------------------------------------------------------------
# What the pages' code runs on
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name: a log, item tables, and `out/shop`, trained by the line of the
    manual with small sizes."""
    folder = tmp_path_factory.mktemp("shop")
    events, items = write_log(folder)
    names = {"i0": "84", "i1": "7", "i2": "9", "i3": "1096036"}
    for path in (events, items):
        pl.read_csv(path).with_columns(pl.col("item_id").replace(names)).write_csv(path)
    with events.open("a") as log:  # actions of the pages' histories that no other event has
        log.writelines(f"u0,84,{action},1690000000\n" for action in ("cart", "buy_discounted"))
    pl.DataFrame({"item_id": ["120", "121"], "title": ["red comb", None]}).write_csv(folder / "new.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = shlex.split(TRAIN)[2:]
        run_training(Path("events.csv"), Path("out/shop"), *arguments, *SIZES, "--text_encoder", bert)
    lora = folder / "out" / "lora"
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=LORA_TARGETS)
    (lora / "base").parent.mkdir()
    (lora / "base").symlink_to(folder / "out" / "shop")
    adapted: Any = get_peft_model(BertForNextBehavior.from_pretrained(lora / "base"), config)
    adapted.save_pretrained(str(lora / "adapter"))
    return folder


@pytest.fixture
def workplace(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of what is executed: it may add files, and changes none of `shop`."""
    (tmp_path / "out").mkdir()
    (tmp_path / ".demo").mkdir()
    for path in [*shop.glob("*.csv"), *shop.glob("out/*")]:
        (tmp_path / path.relative_to(shop)).symlink_to(path)
    (tmp_path / ".demo" / "model").symlink_to(shop / "out" / "shop")
    (tmp_path / "metric").symlink_to(ROOT / "metric")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, workplace: Path) -> None:
    names: dict[str, Any] = {}  # later blocks of a page use what earlier ones made
    for code in python_blocks(page):
        if reason_of(code) is None:
            exec(compile(code, page.name, "exec"), names)


def test_the_core_path_of_the_manual_is_executed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_checks_of_publishing(monkeypatch)
    assert {TRAIN, *CORE_PATH} <= set(command_lines(PAGES))
    for line in CORE_PATH:
        command, arguments = command_of(shlex.split(line))
        main_of(command)(arguments)
    assert json.loads((workplace / "result.json").read_text())["rankers"][0] == "model"
    assert (workplace / "tokenizer" / "vocabulary.tsv").is_file()
    folders = (workplace / "out" / name for name in ("shop", "shop-today"))
    before, grown = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert grown["vocab_size"] == before["vocab_size"] + 2
    assert (workplace / "staged" / "README.md").is_file()


# ----------------------------------------------------------------------------------------------------------------------
# What is not executed
# ----------------------------------------------------------------------------------------------------------------------


def test_what_is_not_executed_is_listed_with_a_reason_and_nothing_else_is() -> None:
    lines = [line for line in command_lines(PAGES) if line not in (TRAIN, *CORE_PATH)]
    assert [line for line in lines if reason_of(line) is None] == []
    skipped = {reason_of(code) for code in [*lines, *(code for page in PAGES for code in python_blocks(page))]}
    assert set(NOT_EXECUTED) - skipped == set()


class Parsed(Exception):
    """Ends a command after its arguments are parsed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.arguments = arguments


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop when their arguments are parsed."""
    parse_args: Any = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        raise Parsed(parse_args(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """The command of `next-behavior` that a line calls, "" for another one, and its arguments."""
    words = [word for word in words if word not in ("accelerate", "launch", "python")]
    match words:
        case ["next-behavior", command, *arguments]:
            return command, arguments
        case ["-m", "tokenizer_build", *arguments]:
            return "tokenize", arguments
        case [script, *arguments] if script in SCRIPTS:
            return SCRIPTS[script], arguments
    return "", []


def begin(words: list[str]) -> None:
    """Starts the command of a line, with `sys.argv` set."""
    command, arguments = command_of(words)
    if command:
        main_of(command)(arguments)
    elif words[1] == "-m":
        importlib.import_module("benchmarks.__main__" if words[2] == "benchmarks" else words[2]).main()
    else:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")


def check_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the line's command until its arguments are parsed."""
    words = shlex.split(line)
    command, _ = command_of(words)
    monkeypatch.setattr(sys, "argv", words[2:] if words[1] == "-m" else words[1:])
    with pytest.raises(Parsed) as parsed:
        begin(words)
    if command == "train":
        settings_from_arguments(parsed.value.arguments)


def check_request(arguments: list[str]) -> None:
    """The path of a request is one of the service's, and its body is read."""
    url = next(argument for argument in arguments if argument.startswith("localhost:8000"))
    path, _, query = url.removeprefix("localhost:8000").partition("?")
    method = arguments[arguments.index("-X") + 1] if "-X" in arguments else "POST" if "-d" in arguments else "GET"
    paths = {(one.method, re.sub(r"\{\w+\}", "ann", one.path)): one for one in OPERATIONS}
    request = paths[method, path].request
    if request is not None:
        msgspec.json.decode(arguments[arguments.index("-d") + 1], type=request)
    options_of_query(parse_qsl(query))


def check_other_line(line: str) -> None:
    """Lines that are no command with a parser of ours, or one that is slow to import."""
    match shlex.split(line):
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        case ["pip", "install", what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(re.findall(r"[\w-]+", what)) <= set(extras)
        case ["python", "space/app.py", *arguments]:
            source = (ROOT / "space" / "app.py").read_text()
            assert [word for word in arguments if word.startswith("--") and f'"{word}"' not in source] == []
        case ["curl", *arguments]:
            check_request(arguments)
        case ["pytest", "-m", marker]:
            assert f'"{marker}: ' in (ROOT / "pyproject.toml").read_text()
        case [".", _]:
            pass
        case _:
            pytest.fail("no check for this line")


@pytest.mark.parametrize("line", command_lines([*PAGES, BENCHMARKS]))
def test_a_command_line_parses(line: str, monkeypatch: pytest.MonkeyPatch, parse_only: None) -> None:
    if line.startswith(("make", "pip", "curl", "pytest", ".", "python space/app.py")):
        check_other_line(line)
    else:
        check_parses(line, monkeypatch)


def test_a_misspelt_flag_does_not_parse(monkeypatch: pytest.MonkeyPatch, parse_only: None) -> None:
    with pytest.raises(SystemExit):
        check_parses(f"{TRAIN} --max_minuets 3", monkeypatch)


# ----------------------------------------------------------------------------------------------------------------------
# What the pages name, quote and link to
# ----------------------------------------------------------------------------------------------------------------------


def python_files(*folders: str) -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]


def test_scripts_and_options_that_the_pages_name_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    programs = ("next_behavior", "tokenizer_build", "examples", "space", "demo", "benchmarks")
    places = {path.relative_to(ROOT).as_posix() for path in python_files(*programs, "docs", "tests")}
    examples = {Path(place).name for place in places if place.startswith("examples/")}
    scripts = set(re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`", text)) - OF_A_MODEL
    assert len(scripts) >= 6
    assert scripts - places - examples == set()
    source = "\n".join(path.read_text("utf-8") for path in python_files(*programs))
    options = set(re.findall(r"--([a-z_0-9]+)", text)) - {"help"}
    assert [name for name in options if not re.search(rf"\b{name}\b", source)] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*PAGES, BENCHMARKS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def messages() -> str:
    """All texts of the package's sources, one per line, with … where a value stands."""
    texts = []
    for path in (ROOT / "next_behavior").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_errors_that_the_faq_explains_are_raised() -> None:
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert len(quoted) >= 25
    source = messages()
    assert [message for message in quoted if message not in source] == []


def test_the_manual_shows_the_trainer_example_as_it_is() -> None:
    shown = [code for code in python_blocks(ROOT / "docs" / "finetune.md") if reason_of(code)]
    assert [code.strip() for code in shown] == [(ROOT / "examples/finetune_with_trainer.py").read_text("utf-8").strip()]


# ----------------------------------------------------------------------------------------------------------------------
# The answer that the README shows
# ----------------------------------------------------------------------------------------------------------------------


def test_the_readme_shows_the_answer_that_was_drawn() -> None:
    asked = json.loads(ANSWER.read_text(encoding="utf-8"))
    (code,) = python_blocks(ROOT / "README.md")
    (printed,) = [block.code for block in blocks(ROOT / "README.md") if block.language == "text"]
    names: dict[str, Any] = {}
    exec(code[code.index("history = ") : code.index("predict = ")], names)
    assert names["history"] == asked["history"]
    answers = [answer for ranked in asked["answers"].values() for answer in ranked]
    lines = [f"{answer['probability']:.1%}  {answer['action']}  {answer['title']}" for answer in answers]
    assert printed.splitlines() == lines


def test_the_picture_is_drawn_from_the_answer() -> None:
    draw: Any = runpy.run_path(str(ROOT / "docs" / "draw_answer.py"))["draw"]
    asked = json.loads(ANSWER.read_text(encoding="utf-8"))
    assert ANSWER.with_suffix(".svg").read_text(encoding="utf-8") == draw(asked)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 135
