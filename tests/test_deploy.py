"""The files of deploy/ name what is there: requirements, copied files and options. Images are not built here."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from next_behavior.commands import serve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"


def test_what_the_image_installs_has_the_bounds_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {*project["dependencies"], *project["optional-dependencies"]["serve"]}
    bounds = {re.split(r"[<>=!~ ;]", line)[0]: line.replace("'", '"') for line in ours}
    for line in (DEPLOY / "requirements.txt").read_text().splitlines():
        name = re.split(r"[<>=!~ ;]", line)[0]
        if line.startswith("#") or name not in bounds:
            assert line.startswith("#") or name == "huggingface-hub", f"{name} is none of ours"
        else:
            assert line == bounds[name]


def test_what_the_image_copies_is_there() -> None:
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), line


def test_every_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    unit = re.search(r"ExecStart=(.*)", (DEPLOY / "next-behavior.service").read_text())
    assert unit is not None
    lines = re.findall(r"^(?:ENTRYPOINT|CMD) (.*)", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    used = [*shlex.split(unit[1]), *compose["services"]["service"]["command"]]
    used += [word for line in lines for word in yaml.safe_load(line)]
    options = {word for word in used if word.startswith("--")}
    assert options <= known
    assert len(options) >= 5
