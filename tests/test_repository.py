"""The repository itself: pinned environment, commands, and no trace of the machine it was written on."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import run_python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TARGETS = ("demo", "test", "check", "bench", "clean", "help")
COMMANDS = (
    ("demo/prepare.py",),
    ("demo/predict.py",),
    ("-m", "tokenizer_build"),
    ("train_accelerate.py",),
    ("evaluate_behavior.py",),
    ("publish.py",),
)

# Put together here, so that this file does not hold what it looks for.
TRACES = re.compile(
    "|".join(
        [
            "(?<![A-Za-z0-9_.])/(?:root|home|work|opt|Users|mnt)/",
            r"pypi\.org" + "/simple",
            r"files\.python" + r"hosted\.org",
            r"download\." + r"pytorch\.org",
            "--(?:extra-)?index" + "-url",
            "--find" + "-links",
        ]
    )
)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def direct_requirements() -> list[Requirement]:
    table = project()["project"]
    extras = [line for lines in table["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*table["dependencies"], *extras]]


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds() -> None:
    lines = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    required = {canonicalize_name(r.name): r for r in direct_requirements() if applies(r, "3.11")}
    core = {canonicalize_name(Requirement(line).name) for line in project()["project"]["dependencies"]}
    assert set(tested) == core - {"torch"} | {"huggingface-hub"}
    for name, version in tested.items():
        [bound] = [part.version for part in required[canonicalize_name(name)].specifier if part.operator == ">="]
        assert f"{version}.".startswith(f"{bound}."), name


def applies(requirement: Requirement, python: str) -> bool:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def tracked_files() -> list[Path]:
    """What git tracks; the test is skipped where there is no git or no checkout (a source archive)."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_direct_dependency_within_its_range(python: str) -> None:
    pins = [pin for pin in constraints() if applies(pin, python)]
    for wanted in direct_requirements():
        if applies(wanted, python):
            versions = [pin.specifier for pin in pins if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
            assert len(versions) == 1, f"{wanted.name} has {len(versions)} pins on Python {python}, expected one"
            (pin,) = versions[0]
            assert wanted.specifier.contains(pin.version), f"{wanted} excludes the pin {pin.version}"


def test_every_constraint_is_an_exact_pin() -> None:
    loose = [str(pin) for pin in constraints() if [part.operator for part in pin.specifier] != ["=="]]
    assert not loose


def test_every_interpreter_in_range_gets_every_library() -> None:
    for python in PYTHONS:
        names = {wanted.name for wanted in direct_requirements() if applies(wanted, python)}
        assert names == {wanted.name for wanted in direct_requirements()}


def test_three_top_level_names_are_installed() -> None:
    setuptools = project()["tool"]["setuptools"]
    assert setuptools["py-modules"] == ["modeling_behavior"]
    assert setuptools["packages"]["find"]["include"] == ["next_behavior", "next_behavior.*", "tokenizer_build"]


def test_the_trace_pattern_finds_what_it_should() -> None:
    for trace in ["see /" + "work/x.py", "pip install --find" + "-links dir torch", "https://pypi" + ".org/simple"]:
        assert TRACES.search(trace)
    assert not TRACES.search("../shared/data/home/x and tests/" + "work/, https://pypi" + ".org/project/polars")


def test_tracked_files_hold_no_machine_path_and_no_registry_host() -> None:
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content:  # not text
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            if TRACES.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found


def test_what_the_commands_write_is_not_tracked() -> None:
    outputs = (".venv", ".demo", "out", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")
    tracked = [path.relative_to(ROOT) for path in tracked_files()]
    assert not [str(path) for path in tracked if set(path.parts) & set(outputs)]


def test_the_makefile_has_the_documented_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(TARGETS) <= set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    # A suite started by `make test` must not pass its own make options on.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "DATA")}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=60)


def test_make_bench_without_data_fails_and_says_what_it_expects() -> None:
    result = make("bench")
    assert result.returncode != 0
    assert "make bench DATA=" in result.stderr


def test_make_refuses_an_old_interpreter_and_names_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.18; else exit 1; fi\n')
    old.chmod(0o755)
    result = make("install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert "got Python 3.9.18; expected Python 3.10 or newer" in result.stderr


def test_continuous_integration_runs_the_tests_and_then_the_checks() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    commands = [line for line in lines if line.startswith("make")]
    assert commands == ["make test", "make test-slow", "make test-browser", "make test-spark", "make check"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...], tmp_path: Path) -> None:
    name = command[-1]
    if not (ROOT / name).exists():
        pytest.skip(f"{name} is still to come")
    result = run_python(ROOT, *command, "--help", environment={"HF_HOME": str(tmp_path)})
    assert result.stdout.startswith("usage:")
