# The commands of this repository. `make help` lists them.
# PYTHON chooses the interpreter that .venv is built from (3.10 or newer): make test PYTHON=python3.12
# DATA is the log that `make bench` and `make peers` measure:               make bench DATA=path/to/events.parquet
# SPLIT is how `make peers` holds out:                                     make peers DATA=... SPLIT=leave_one_out

PYTHON ?= python3
DATA ?=
SPLIT ?= time
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := .demo
PEERS := .bench/venv-peers
CLASSIC := .bench/venv-peers-classic
LOWEST := .bench/venv-lowest
TESTED_LOWEST := modeling questions pipeline trainer tokenizer sequences events training initial_model add_items golden publish
# LibRecommender's TensorFlow needs Python 3.10; where there is none, its server is left out of `make bench-serving`.
PYTHON310 ?= python3.10

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install demo demo-plan test test-slow test-browser test-spark test-versions check bench bench-data bench-serving \
  peers peers-install peers-serving-install clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv and install the project into it

# One stamp for the environment: it is rebuilt only when a dependency file changes.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "got no '$(PYTHON)'; expected Python 3.10 or newer. Install it, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "got $$($(PYTHON) --version 2>&1); expected Python 3.10 or newer. Name a newer one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: install the venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo,text,serve]'
	@touch $@

define DEMO_PLAN
make demo trains a model that predicts what households buy next, on two cores in about 4 minutes,
and at first another 1 to 3 for the installation:
  1. prepare   a year of groceries of 100 households, simulated by its authors        a few seconds
  2. train     at least one pass over the log, then a test beside counting baselines  3 minutes
  3. predict   what three households buy next, the first one explained                20 seconds
endef

define DEMO_END

The model is in $(DEMO)/model. To try next, your own log, and what would be published of this model:
  $(BIN)/next-behavior train --events YOUR_LOG.csv --output_dir out/model --max_minutes 10
  $(BIN)/next-behavior publish --model $(DEMO)/model --repo_id me/groceries --dry_run --output $(DEMO)/card
endef
export DEMO_PLAN DEMO_END

# Rare products are left out, so that a pass over the log takes little time on a busy machine, too.
demo: demo-plan $(STAMP)  ## train on a grocery log, evaluate, explain a prediction
	@printf '\nStep 1 of 3: prepare\n'
	$(BIN)/python demo/prepare.py --output $(DEMO) --households 100
	@printf '\nStep 2 of 3: train\n'
	$(BIN)/python train_accelerate.py --events $(DEMO)/events.parquet --items $(DEMO)/items.parquet \
	  --output_dir $(DEMO)/model --min_item_count 3 --min_epochs 1 --max_minutes 3 --test_targets 3000
	@printf '\nStep 3 of 3: predict\n'
	$(BIN)/python demo/predict.py --model $(DEMO)/model --events $(DEMO)/events.parquet
	@printf '%s\n' "$$DEMO_END"

# Before the installation, which takes minutes.
demo-plan:
	@printf '%s\n' "$$DEMO_PLAN"

test: $(STAMP)  ## run the whole test suite
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(STAMP)  ## run the slower tests, which `make test` leaves out
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'slow and not alone and not gpu and not peers'
	$(BIN)/python -m pytest -q -m 'slow and alone'

test-browser: $(STAMP)  ## run the tests of the Space and of the service's page in a browser (needs Chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt playwright
	$(BIN)/python -m pytest -q -m browser $(shell grep -l mark.browser tests/*.py)

test-spark: $(STAMP)  ## run the tests of Spark (needs Java 17 or 21)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pyspark
	$(BIN)/python -m pytest -q -m spark tests/test_spark.py

test-versions: $(LOWEST)/.installed  ## run the tests of models, training and publishing with the oldest libraries allowed
	$(LOWEST)/bin/python -m pytest -q -n 2 --dist loadfile $(TESTED_LOWEST:%=tests/test_%.py)

$(LOWEST)/.installed: pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet -c tests/lowest.txt torch==2.13.0 -e '.[demo,text,model2vec,track,publish]' \
	  'pytest>=8.3' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' 'hypothesis>=6.100'
	@touch $@

check: $(STAMP)  ## linter, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

bench: bench-data $(STAMP)  ## measure the model and the baselines on a log: make bench DATA=events.parquet
	$(BIN)/python -m benchmarks --data "$(DATA)"

peers: bench-data $(STAMP) peers-install  ## measure other recommenders beside the model: make peers DATA=... SPLIT=...
	$(BIN)/python -m benchmarks.peers --data "$(DATA)" --split $(SPLIT)

peers-install: $(PEERS)/.installed $(CLASSIC)/.installed

# Environments of their own: RecTools, RecBole and LightFM need older libraries than the project.
# RecBole's own requirements name a ray that no recent Python has; it is imported for tuning only.
$(PEERS)/.installed: benchmarks/peers-constraints.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -c $< 'rectools[torch]' setuptools
	$(PEERS)/bin/python -m pip install --quiet -c $< --no-deps recbole
	$(PEERS)/bin/python -m pip install --quiet -c $< \
	  colorama colorlog plotly psutil pyyaml scikit-learn tabulate tensorboard texttable thop
	@touch $@

# LightFM is built with what is installed first: a C compiler and Python's headers are needed.
$(CLASSIC)/.installed: benchmarks/peers-classic-constraints.txt
	$(PYTHON) -m venv --clear $(CLASSIC)
	$(CLASSIC)/bin/python -m pip install --quiet -c $< cython numpy setuptools wheel
	$(CLASSIC)/bin/python -m pip install --quiet -c $< --no-build-isolation lightfm
	$(CLASSIC)/bin/python -m pip install --quiet -c $< implicit pandas scikit-surprise
	@touch $@

# DATA: the log of batch scoring (a made-up one if absent); MODEL and MODEL_DATA: a trained model and its log.
bench-serving: $(STAMP) peers-serving-install $(PEERS)/.installed  ## measure the service beside other servers: 40 minutes
	$(BIN)/python -m benchmarks.serving --table benchmarks/serving.md $(if $(DATA),--data "$(DATA)") \
	  $(if $(MODEL),--model "$(MODEL)") $(if $(MODEL_DATA),--model_data "$(MODEL_DATA)")

peers-serving-install: .bench/venv-litserve/.installed .bench/venv-bentoml/.installed .bench/venv-librecommender/.installed

.bench/venv-litserve/.installed .bench/venv-bentoml/.installed: .bench/venv-%/.installed: benchmarks/peers_serving/servers-constraints.txt
	$(PYTHON) -m venv --clear .bench/venv-$*
	.bench/venv-$*/bin/python -m pip install --quiet -c $< $* filelock msgspec numpy onnxruntime tokenizers wrapt
	@touch $@

# Two steps: TensorFlow and torch ask for different versions of typing_extensions, and both run with torch's.
.bench/venv-librecommender/.installed: benchmarks/peers_serving/librecommender-constraints.txt
	@mkdir -p $(@D)
	if $(PYTHON310) --version >/dev/null 2>&1; then \
	  $(PYTHON310) -m venv --clear $(@D) && \
	  $(@D)/bin/python -m pip install --quiet -c $< aiohttp cython faiss-cpu librecommender pydantic redis sanic tensorflow-cpu ujson && \
	  $(@D)/bin/python -m pip install --quiet -c $< pandas scikit-learn torch; \
	else echo "got no $(PYTHON310): LibRecommender is left out"; fi
	@touch $@

# Before the installation, so that a mistake shows at once.
bench-data:
	@test -n "$(DATA)" || { \
	  echo "got no DATA; expected an event log (.csv, .csv.gz, .parquet or a folder of them): make bench DATA=path/to/events.parquet" >&2; exit 2; }
	@test -e "$(DATA)" || { echo "got DATA=$(DATA), which does not exist; expected an event log" >&2; exit 2; }

clean:  ## remove the environment, the demo's files and the caches
	rm -rf $(VENV) $(DEMO) .bench build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
