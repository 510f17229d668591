"""A saved folder loads where only torch and transformers are installed: by path, by id, and however it was saved.

The environment of the clean process holds links to those two libraries and what they require, and nothing else: no
package of ours, no checkout, no PEFT, no datasets.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from golden import ANSWERS, ARCHIVE
from hub_server import HubServer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from peft import LoraConfig, PeftModel, get_peft_model
from processes import run_python
from test_golden import check
from tiny import load
from transformers import Trainer, TrainingArguments

from next_behavior.model.configuration_behavior import CODE_FILES
from next_behavior.training.lora import LORA_TARGETS

HUB_ID = "ana/golden"

# Every request is a process of its own, forked before anything of Hugging Face is imported: it reads its environment.
# It answers for every source, and may save and send again what was loaded from the first, and delete that one.
CLEAN = """
import importlib, importlib.util, json, os, shutil, sys, traceback
environment, tests, requests = sys.argv[1:]
sys.path.insert(0, environment)
sys.path.append(tests)
for name in ("next_behavior", "modeling_behavior", "peft", "datasets", "polars", "accelerate"):
    assert importlib.util.find_spec(name) is None, f"{name} is in the clean environment"
for name in ("torch._dynamo", "torch.distributed.tensor", "torch.export"):
    importlib.import_module(name)

def answer(request):
    os.environ.update(request["variables"])
    from golden import answers_of
    from transformers import AutoModel, AutoTokenizer, pipeline

    for source in request["sources"]:
        model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        assert type(model.config) is type(model).config_class, "configuration and model are of two copies of the code"
        predict = pipeline("next-behavior", model=source, trust_remote_code=True)
        print("ANSWERS " + json.dumps([request["name"], source, answers_of(model, tokenizer, predict)]))
    if "save" in request:
        model = AutoModel.from_pretrained(request["sources"][0], trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(request["sources"][0], trust_remote_code=True)
        model.save_pretrained(request["save"])
        tokenizer.save_pretrained(request["save"])
        model.push_to_hub(request["push"])
        tokenizer.push_to_hub(request["push"])
        shutil.rmtree(request["sources"][0])  # a saved copy must not lean on the folder it was loaded from

for request in json.loads(requests):
    child = os.fork()
    if not child:
        try:
            answer(request)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, request["name"]
"""


def requirements_of(names: list[str]) -> set[str]:
    """The distributions that these need, themselves included."""
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return needed


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the module path with torch and transformers alone."""
    folder = tmp_path_factory.mktemp("environment")
    for name in requirements_of(["torch", "transformers"]):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden model, saved by today's code, by Trainer, and merged from an adapter by PEFT."""
    folder = tmp_path_factory.mktemp("folders")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    model, tokenizer = load(folder / "model")
    names = ("saved", "trainer", "merged")
    saved, by_trainer, merged = (folder / name for name in names)
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    arguments = TrainingArguments(str(folder / "run"), report_to="none", use_cpu=True)
    Trainer(load(saved)[0], arguments, processing_class=tokenizer).save_model(str(by_trainer))
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=LORA_TARGETS)
    adapted = get_peft_model(load(saved)[0], config)
    assert isinstance(adapted, PeftModel)
    whole: Any = adapted.merge_and_unload()
    whole.save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    return {name: folder / name for name in names}


def ask(environment: Path, home: Path, requests: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """The answers of clean processes, by name of the request and source."""
    arguments = (str(environment), str(Path(__file__).parent), json.dumps(requests))
    done = run_python(home, "-I", "-S", "-c", CLEAN, *arguments, anew=True)
    printed = [line.removeprefix("ANSWERS ") for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    return {(name, source): answers for name, source, answers in map(json.loads, printed)}


def test_every_code_file_is_listed_and_saved(folders: dict[str, Path]) -> None:
    package = Path(__file__).resolve().parent.parent / "next_behavior" / "model"
    assert set(CODE_FILES) == {path.name for path in package.glob("*.py")} - {"__init__.py"}
    for folder in folders.values():
        assert {path.name for path in folder.glob("*.py")} == set(CODE_FILES)
        assert json.loads((folder / "config.json").read_text())["auto_map"] == {
            "AutoConfig": "modeling_behavior.BehaviorConfig",
            "AutoModel": "modeling_behavior.BertForNextBehavior",
        }


def test_a_folder_loads_with_torch_and_transformers_alone_by_path_by_id_and_saved_again(
    environment: Path, folders: dict[str, Path], hub: HubServer, tmp_path: Path
) -> None:
    again, homes = tmp_path / "again", (tmp_path / "first", tmp_path / "second")
    first, second = (hub.environment(home) for home in homes)
    saved = str(shutil.copytree(folders["saved"], tmp_path / "saved"))
    sources = [str(again), str(folders["trainer"]), str(folders["merged"]), HUB_ID]
    found = ask(environment, tmp_path, [
        {"name": "first", "variables": first, "sources": [saved], "save": str(again), "push": HUB_ID},
        {"name": "again, with an empty cache", "variables": second, "sources": sources},
        {"name": "offline", "variables": hub.environment(homes[1], offline=True), "sources": [HUB_ID]},
    ])  # fmt: skip
    assert len(found) == 6
    assert {path.name for path in again.glob("*.py")} == set(CODE_FILES)
    expected = json.loads(ANSWERS.read_text())["answers"]
    for place, answers in found.items():
        check(answers, expected, str(place))
