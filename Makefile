# The commands of this repository. `make help` lists them.
# PYTHON chooses the interpreter that .venv is built from (3.10 or newer): make test PYTHON=python3.12
# DATA is the log that `make bench` measures:                              make bench DATA=path/to/events.parquet

PYTHON ?= python3
DATA ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := .demo

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install demo test check bench bench-data clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv and install the project into it

# One stamp for the environment: it is rebuilt only when a dependency file changes.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "got no '$(PYTHON)'; expected Python 3.10 or newer. Install it, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "got $$($(PYTHON) --version 2>&1); expected Python 3.10 or newer. Name a newer one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: install the venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo,text]'
	@touch $@

demo: $(STAMP)  ## train on a grocery log, evaluate, print predictions for three users
	$(BIN)/python demo/prepare.py --output $(DEMO)
	$(BIN)/python train_accelerate.py --events $(DEMO)/events.parquet --items $(DEMO)/items.parquet \
	  --output_dir $(DEMO)/model --max_minutes 6.5
	$(BIN)/python demo/predict.py --model $(DEMO)/model --events $(DEMO)/events.parquet

test: $(STAMP)  ## run the whole test suite
	$(BIN)/python -m pytest -q

check: $(STAMP)  ## linter and types
	$(BIN)/ruff check .
	$(BIN)/mypy .

bench: bench-data $(STAMP)  ## measure the model and the baselines on a log: make bench DATA=events.parquet
	$(BIN)/python -m benchmarks --data "$(DATA)"

# Before the installation, so that a mistake shows at once.
bench-data:
	@test -n "$(DATA)" || { \
	  echo "got no DATA; expected an event log (.csv, .csv.gz, .parquet or a folder of them): make bench DATA=path/to/events.parquet" >&2; exit 2; }
	@test -e "$(DATA)" || { echo "got DATA=$(DATA), which does not exist; expected an event log" >&2; exit 2; }

clean:  ## remove the environment, the demo's files and the caches
	rm -rf $(VENV) $(DEMO) .bench build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
