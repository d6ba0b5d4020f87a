# What a contributor runs; `make` lists it.

PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup
TEST := $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
PARITY := .venv-parity
PARITY_SETUP := $(PARITY)/.setup
TRL := .venv-trl
TRL_SETUP := $(TRL)/.setup
DIST := dist

# Large blocks of memory in large pages, where the C library can (glibc 2.35): a
# program's temporaries are allocated anew at every call, page by page.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# uv ignores pip's settings: where pip is given another index, so is uv.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

.PHONY: help setup demo docs dist exactness faults compare bench-smoke accelerator peers format lint test-fast test test-all mutants parity lock clean
.DELETE_ON_ERROR:

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(SETUP) ## install the locked dependencies and this project in .venv
	@:

demo: setup ## train a control on digits and report how exact it is
	@$(BIN)/python -m experiments.run \
	  --config=experiments/configs/digits.py --workdir=runs/digits

docs: setup ## build the site of docs/ and the reference in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo build/site/index.html

dist: setup ## build a wheel and a source distribution in dist
	@$(BIN)/uv build --quiet --clear --no-create-gitignore --out-dir $(DIST)
	@ls $(DIST)/*

exactness: setup ## hold every exact problem against its answer; about an hour
	@$(BIN)/python -m experiments.exactness --write

faults: setup ## disturb runs in every way and see what is lost; 25 minutes
	@$(BIN)/python -m experiments.faults

compare: setup ## hold every method against the same targets; several hours
	@$(BIN)/python -m experiments.compare --write

bench-smoke: setup ## count what programs cost, without a clock; fails if it grew
	@$(BIN)/python -m experiments.benchmarks.costs

accelerator: ## time everything on a GPU or TPU, by the Python that has JAX for it
	@$(PYTHON) -m experiments.benchmarks.accelerator --jobs 4 --to runs/accelerator

peers: setup $(PARITY_SETUP) $(TRL_SETUP) ## time an update beside PyTorch's
	@$(BIN)/python -m experiments.benchmarks.peers

format: setup ## rewrite the code in the one style
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

lint: setup ## check style and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary ctrl_jax experiments
	@$(BIN)/shellcheck .ci/run experiments/launch/*.sh

test-fast: setup ## run the tests of up to five seconds
	@$(TEST) -m "not slow and not long"

test: setup ## run the tests
	@$(TEST) -m "not long"

test-all: setup $(PARITY_SETUP) $(TRL_SETUP) ## run every test, those that train to a bar too, and mutants
	@$(TEST)
	@$(BIN)/python -m tests.mutants

mutants: setup ## plant faults in the code, all of which tests must notice
	@$(BIN)/python -m tests.mutants

parity: $(PARITY_SETUP) ## compare with diffusers and transformers, on PyTorch
	@$(PARITY)/bin/python -m pytest -q -n auto --dist loadfile tests/parity

lock: $(BIN)/uv ## bring requirements-lock.txt up to date
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet \
	  --universal --python-version 3.11 --all-extras --upgrade \
	  --no-emit-index-url --no-emit-find-links --annotation-style line \
	  --output-file requirements-lock.txt pyproject.toml

clean: ## remove .venv and every cache; results in runs/ stay
	@rm -rf $(VENV) $(PARITY) $(TRL) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@rm -rf build dist *.egg-info
	@find ctrl_jax experiments tests -name __pycache__ -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit( \
	  "Python 3.11 or newer is needed: make PYTHON=python3.11 setup")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv<1"

$(SETUP): $(BIN)/uv pyproject.toml requirements-lock.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python \
	  -r requirements-lock.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

$(PARITY_SETUP): $(BIN)/uv pyproject.toml requirements-lock.txt \
    requirements-parity.txt
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(PARITY)
	@$(BIN)/uv pip install --quiet --python $(PARITY)/bin/python \
	  -r requirements-lock.txt -r requirements-parity.txt
	@# CLIP's vocabulary is in it; the rest of it is not needed.
	@$(BIN)/uv pip install --quiet --python $(PARITY)/bin/python --no-deps \
	  open-clip-torch==3.3.0
	@$(BIN)/uv pip install --quiet --python $(PARITY)/bin/python --no-deps -e .
	@touch $@

$(TRL_SETUP): $(BIN)/uv requirements-trl.txt
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(TRL)
	@$(BIN)/uv pip install --quiet --python $(TRL)/bin/python \
	  -r requirements-trl.txt
	@touch $@
