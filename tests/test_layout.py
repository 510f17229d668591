"""The import rules of the layout, read from the source: nothing is imported here, so a broken file is seen too.

The package flows one way: model <- data (special ids alone) <- text <- evaluation <- training <- publishing; serving
takes from model and data, preparation from data and training, and the commands call them. Scoring with Spark takes
the engine that prepares with it. Nothing goes back, no circle, not under TYPE_CHECKING either.
`model/` is the folder that is pushed to the Hub.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "next_behavior"

# What of preparation Spark needs to read and to clean a log; nothing of it imports training.
SPARK_ENGINE = ("outcome", "partition", "spark", "spark_rows", "spark_source")
# What a room may import from the package: whole rooms, or single modules of one.
MAY_IMPORT = {
    "model": set(),  # siblings by one dot, checked apart
    "data": {"data", "model.special_ids", "model.times"},
    "text": {"text", "data", "model"},
    "evaluation": {"evaluation", "text", "data", "model"},
    "training": {"training", "evaluation", "text", "data", "model"},
    "publishing": {"publishing", "training", "evaluation", "text", "data", "model"},
    "preparation": {"preparation", "training", "data", "model"},
    "serving": {"serving", "data", "model", *(f"preparation.{module}" for module in SPARK_ENGINE)},
    "commands": {"commands", "serving", "preparation", "publishing", "training", "evaluation", "text", "data", "model"},
}
ROOT_MODULES = {
    "modeling_behavior": {"model"},
    "train_accelerate": {"commands"},
    "evaluate_behavior": {"commands"},
    "add_items": {"commands"},
    "publish": {"commands"},
}
# Folders beside the package that a stranger runs: they know the model from its folder or from the Hub, not from here.
STRANGERS = {"demo": set(), "examples": {"modeling_behavior"}, "metric": set(), "space": set()}

# What a process that only loads the model from the Hub has.
HUB_USER_HAS = {
    *sys.stdlib_module_names,
    *("torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy"),
    "model2vec",  # by import_module: only models trained with static text vectors need it
}
FRONT_DOORS = ("next_behavior", "tokenizer_build", *ROOT_MODULES)


@functools.cache
def imports_of(source: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """Every import of a source, wherever in it: level (dots), module, imported names.

    `importlib.import_module("x")` and `__import__("x")` count as an import of x, and of "?" if x is not a literal.
    """
    found: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            match node.args:
                case [ast.Constant(value=str(name)), *_]:
                    found.append((0, name, ()))
                case _:
                    found.append((0, "?", ()))
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def ours_imported_by(path: Path) -> set[str]:
    """Full names of the modules of this repository that a file imports, relative ones resolved."""
    found = set()
    for level, module, names in imports_of(path.read_text(encoding="utf-8")):
        if level:
            base = module_name(path.parent / "__init__.py").split(".")[: -level + 1 or None]
            module = ".".join([*base, *([module] if module else [])])
        if module.split(".")[0] not in FRONT_DOORS and module != "?":
            continue
        inside = [name for name in names if (ROOT / module.replace(".", "/") / f"{name}.py").is_file()]
        found |= {f"{module}.{name}" for name in inside} if inside else {module}
    return found


def files_of(room: str) -> list[Path]:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files, f"next_behavior/{room} is part of the layout and is missing"
    return files


def product_files() -> list[Path]:
    return [
        *sorted(PACKAGE.rglob("*.py")),
        *sorted((ROOT / "tokenizer_build").glob("*.py")),
        *sorted(ROOT.glob("*.py")),
    ]


def our_python_files() -> list[Path]:
    folders = ("tests", "benchmarks", *STRANGERS)
    return [*product_files(), *(path for name in folders for path in sorted((ROOT / name).rglob("*.py")))]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn.functional as F", (0, "torch.nn.functional", ())),
        ("from next_behavior.data.events import read_events", (0, "next_behavior.data.events", ("read_events",))),
        ("def f():\n    if True:\n        import next_behavior", (0, "next_behavior", ())),
        ("if TYPE_CHECKING:\n    from next_behavior import training", (0, "next_behavior", ("training",))),
        ("from . import events", (1, "", ("events",))),
        ("from .events import read_events", (1, "events", ("read_events",))),
        ("importlib.import_module('next_behavior.text')", (0, "next_behavior.text", ())),
        ("__import__(name)", (0, "?", ())),
    ],
)
def test_every_form_of_import_is_seen(source: str, found: tuple[int, str, tuple[str, ...]]) -> None:
    assert imports_of(source) == [found]


# -- the folder that is pushed -----------------------------------------------------------------------------------------


def test_the_model_folder_is_flat() -> None:
    assert not [path for path in (PACKAGE / "model").iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("path", files_of("model"), ids=lambda path: path.stem)
def test_model_files_import_what_a_hub_user_has_and_siblings_by_one_dot(path: Path) -> None:
    for level, module, _ in imports_of(path.read_text(encoding="utf-8")):
        if level:
            assert level == 1
            assert re.fullmatch(r"\w+", module), f"{path.name}: the Hub's loader wants `from .name import x`"
            assert (path.parent / f"{module}.py").is_file()
        else:
            assert module.split(".")[0] in HUB_USER_HAS, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", files_of("model"), ids=lambda path: path.stem)
def test_no_text_in_a_model_file_looks_like_an_import_to_the_hubs_loader(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    # transformers/dynamic_module_utils.py finds imports by these expressions, in docstrings too.
    seen = re.findall(r"^\s*import\s+\.(\S+)\s*$", source, flags=re.MULTILINE)
    seen += re.findall(r"^\s*from\s+\.(\S+)\s+import", source, flags=re.MULTILINE)
    assert set(seen) == {module for level, module, _ in imports_of(source) if level}


@pytest.mark.parametrize("name", ["special_ids", "vocabulary", "times", "histories", "integrity"])
def test_reading_histories_needs_neither_torch_nor_transformers(name: str) -> None:
    light = {"special_ids", "vocabulary", "times", "histories", "integrity"}
    for level, module, _ in imports_of((PACKAGE / "model" / f"{name}.py").read_text(encoding="utf-8")):
        assert module in light if level else module.split(".")[0] in {*sys.stdlib_module_names, "numpy"}


# -- one home for each fact --------------------------------------------------------------------------------------------


def assigned_names(path: Path) -> set[str]:
    """What a file defines at its top by assignment."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            found |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


def test_special_ids_and_the_names_of_paths_are_defined_once() -> None:
    home = PACKAGE / "model" / "special_ids.py"
    reserved = assigned_names(home)
    assert {"PAD", "NONE", "FIRST_NEW", "FIRST_ACTION", "FIRST_GAP", "IGNORED", "PATHS"} <= reserved
    for path in product_files():
        assert path == home or not assigned_names(path) & reserved, path.relative_to(ROOT)


def test_nothing_writes_the_number_of_an_ignored_label() -> None:
    for path in product_files():
        numbers = [node.operand.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                   if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)]  # fmt: skip
        assert 100 not in numbers or path.name == "special_ids.py", path.relative_to(ROOT)


# -- the rooms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if room != "model"])
def test_each_room_imports_only_what_flows_into_it(room: str) -> None:
    for path in files_of(room):
        for module in ours_imported_by(path):
            inside = module.removeprefix("next_behavior.")
            allowed = any(inside == name or inside.startswith(f"{name}.") for name in MAY_IMPORT[room])
            assert allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_no_import_goes_round_in_a_circle() -> None:
    names = {module_name(path): path for path in product_files()}
    follows = {name: ours_imported_by(path) & names.keys() - {name} for name, path in names.items()}
    done: set[str] = set()
    while ready := {name for name in follows.keys() - done if follows[name] <= done}:
        done |= ready
    assert not {name: sorted(follows[name] - done) for name in follows.keys() - done}


@pytest.mark.parametrize("name", ROOT_MODULES)
def test_the_root_holds_front_doors_alone(name: str) -> None:
    for module in ours_imported_by(ROOT / f"{name}.py"):
        assert module.split(".")[:2] in [["next_behavior", room] for room in ROOT_MODULES[name]], module


def test_the_root_holds_no_python_file_outside_the_layout() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(ROOT_MODULES)


def test_nobody_imports_a_command() -> None:
    commands = {*ROOT_MODULES} - {"modeling_behavior"}
    for path in our_python_files():
        imported = ours_imported_by(path)
        assert not imported & commands, path.relative_to(ROOT)
        may_import = path.is_relative_to(PACKAGE / "commands") or path.parent.name in ("tests", "tokenizer_build")
        if not may_import and path.stem not in commands:
            assert not {name for name in imported if name.startswith("next_behavior.commands")}, path.relative_to(ROOT)


def test_no_command_imports_another() -> None:
    commands = {module_name(path) for path in files_of("commands")}
    for path in files_of("commands"):
        if path.stem != "__main__":  # which calls the one that is asked for
            assert not ours_imported_by(path) & commands, path.relative_to(ROOT)


@pytest.mark.parametrize("name", STRANGERS)
def test_what_a_stranger_runs_takes_the_model_from_its_folder(name: str) -> None:
    for path in (ROOT / name).rglob("*.py"):
        assert ours_imported_by(path) <= STRANGERS[name], path.relative_to(ROOT)


# -- names -------------------------------------------------------------------------------------------------------------


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


def test_nothing_is_unpickled() -> None:
    for path in product_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {module.split(".")[0] for _, module, _ in imports_of(path.read_text(encoding="utf-8"))}
        assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path.relative_to(ROOT)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            assert keywords.get("weights_only") != "False", path.relative_to(ROOT)
            assert keywords.get("allow_pickle") != "True", path.relative_to(ROOT)
            assert not called.endswith((".load_state", ".save_state", ".register_for_checkpointing")), path.name
            assert called != "torch.load" or keywords.get("weights_only") == "True", path.relative_to(ROOT)
