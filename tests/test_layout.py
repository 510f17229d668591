"""The import rules of the layout, read from the source: nothing is imported here, so a broken file is seen too.

Model side (pushed to the Hub), data side and scripts: the two sides never import each other, only scripts join them.
"""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MODEL_FILES = ("modeling_behavior", "tokenization_behavior", "pipeline_behavior", "handler")
SCRIPTS = ("calibration", "initial_model", "train_accelerate", "evaluate_behavior", "add_items", "publish")
PACKAGES = (
    *("behavior", "tokenizer_build", "publishing", "serving", "benchmarks", "demo", "examples", "metric", "space"),
    "tests",
)
OURS = {*MODEL_FILES, *SCRIPTS, *PACKAGES}

# What a process that only loads the model from the Hub has.
MODEL_FILES_MAY_IMPORT = {
    *sys.stdlib_module_names,
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "model2vec",  # inside a function: only models trained with static text vectors need it
}
# Of ours, what each part may import; scripts, serving, benchmarks and tests join the sides and may import all.
MAY_IMPORT_OF_OURS = {
    "behavior": {"behavior"},
    "tokenizer_build": {"tokenizer_build", "behavior", "tokenization_behavior"},
    # What a stranger runs, from a checkout or from the Hub.
    "demo": set(),
    "examples": {"modeling_behavior"},  # a subclass of the model needs its base; the others take it from the Hub
    "metric": set(),
    "space": set(),
}

# Parts that an issue has not brought yet. Whoever adds the file removes its line; the last test sees to that.
TO_COME = {"serving"}


def imported_modules(source: str) -> set[str]:
    """Top-level names of everything the source imports, wherever in the file; "." for a relative import.

    `importlib.import_module("x")` and `__import__("x")` count as an import of x, and of "?" if x is not a literal.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            match node.args:
                case [ast.Constant(value=str(name)), *_]:
                    found.add(name.split(".")[0] or ".")
                case _:
                    found.add("?")
    return found


def source_files(name: str) -> list[Path]:
    """The Python files of a root module or of a root package; skips the test if the part is still to come."""
    module, package = ROOT / f"{name}.py", ROOT / name
    files = [module] if module.is_file() else sorted(package.rglob("*.py"))
    if not files and name in TO_COME:
        pytest.skip(f"{name} is still to come")
    assert files, f"{name} is part of the layout and is missing"
    return files


def our_python_files() -> list[Path]:
    packages = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *packages])


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch.nn.functional as F", {"torch"}),
        ("from behavior.events import read_events", {"behavior"}),
        ("def f():\n    if True:\n        import behavior", {"behavior"}),
        ("from . import events", {"."}),
        ("from .events import read_events", {"."}),
        ("import importlib\nimportlib.import_module('behavior.events')", {"importlib", "behavior"}),
        ("__import__(name)", {"?"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, names: set[str]) -> None:
    assert imported_modules(source) == names


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_import_only_what_a_hub_user_has(name: str) -> None:
    (path,) = source_files(name)
    assert imported_modules(path.read_text(encoding="utf-8")) <= MODEL_FILES_MAY_IMPORT


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_import_nothing_of_ours_not_even_each_other(name: str) -> None:
    (path,) = source_files(name)
    assert not imported_modules(path.read_text(encoding="utf-8")) & {*OURS, "."}


@pytest.mark.parametrize("name", sorted(MAY_IMPORT_OF_OURS))
def test_each_part_imports_of_ours_only_what_flows_into_it(name: str) -> None:
    for path in source_files(name):
        imported = imported_modules(path.read_text(encoding="utf-8")) & {*OURS, "?"}
        assert imported <= MAY_IMPORT_OF_OURS[name], f"{path.relative_to(ROOT)} imports {sorted(imported)}"


@pytest.mark.parametrize("name", sorted({*MODEL_FILES, "behavior", "tokenizer_build"}))
def test_nothing_below_the_scripts_imports_a_script(name: str) -> None:
    for path in source_files(name):
        imported = imported_modules(path.read_text(encoding="utf-8"))
        assert not imported & {*SCRIPTS, "publishing", "serving", "benchmarks", "demo", "tests"}, path.relative_to(ROOT)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_do_not_import_tests_or_demo(name: str) -> None:
    for path in source_files(name):
        assert not imported_modules(path.read_text(encoding="utf-8")) & {"tests", "demo", "."}


def test_the_root_holds_no_python_file_outside_the_layout() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} <= {*MODEL_FILES, *SCRIPTS}


def test_no_root_module_is_named_after_a_library() -> None:
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    # An editable installation of this repository lists our own modules; those do not count.
    installed = {
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() != "bert-for-next-behavior" for owner in owners)
    }
    assert {"torch", "evaluate", "datasets"} <= installed, "the list of installed libraries is not to be trusted"
    assert not ours & (installed | set(sys.stdlib_module_names))


def test_there_is_no_utils_module() -> None:
    names = [path for path in our_python_files() if path.stem in ("utils", "util", "helpers", "misc", "common")]
    assert not names


def test_no_star_import_and_no_change_of_the_module_path() -> None:
    for path in our_python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), f"star import in {path.relative_to(ROOT)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sys.path":
                assert node.attr not in ("append", "insert", "extend"), f"{path.relative_to(ROOT)} changes sys.path"


def test_what_is_to_come_has_not_come_already() -> None:
    present = {name for name in TO_COME if (ROOT / f"{name}.py").is_file() or list((ROOT / name).glob("*.py"))}
    assert not present, f"remove {sorted(present)} from TO_COME, so that its rules can no longer be skipped"
