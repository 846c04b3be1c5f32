# Every target makes its own environment in .venv, from nothing but python3; the second time it is quick.

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV := .venv
BIN  := $(VENV)/bin
RUN  := $(BIN)/python -m
PIP  := $(RUN) pip install --quiet --disable-pip-version-check

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# An environment whose Python is gone, or that was made for another folder, is made again.
$(shell [ -x $(BIN)/python ] && [ "$$(cat $(VENV)/.python 2>/dev/null)" = "$(CURDIR)" ] \
	|| rm -f $(VENV)/.python $(VENV)/.demo $(VENV)/.dev)

.DEFAULT_GOAL := help
.PHONY: help demo test tiny check format lint types docs wheel clean

help:  ## this list
	@echo "Sumfold. Each target makes its own environment in .venv; the second time it is quick."
	@echo
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@echo "  make PYTHON=python3.12 ...        another interpreter for a new .venv (3.11 or later)"
	@echo "  make test ARGS='tests/core -x'    options for pytest; WORKERS=8 for more processes"

demo: $(VENV)/.demo  ## four hospitals train a model together: a table, and curve.png in sumfold-demo/
	@$(BIN)/sumfold demo $(ARGS)

test: $(VENV)/.dev  ## every test, and every example in a docstring
	@JAX_PLATFORMS=cpu KERAS_BACKEND=jax $(RUN) pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

tiny: $(VENV)/.dev  ## the tests that gate a commit, a few seconds
	@JAX_PLATFORMS=cpu KERAS_BACKEND=jax $(RUN) pytest --quiet -m tiny tests $(ARGS)

check: lint types docs wheel  ## the gate beside the tests: lint, types, docs and wheel, as below

format: $(VENV)/.dev  ## write every file in the house's format
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

lint: $(VENV)/.dev  ## ruff: format and rules
	@echo "== format and lint"
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .

types: $(VENV)/.dev  ## mypy, strict
	@echo "== types"
	@$(RUN) mypy --strict

docs: $(VENV)/.dev  ## the documentation, warnings as errors, into docs/_build/html
	@echo "== documentation"
	@JAX_PLATFORMS=cpu KERAS_BACKEND=jax $(RUN) sphinx --quiet --fail-on-warning --keep-going \
		--fresh-env --builder html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(VENV)/.dev  ## the wheel, installed alone outside this folder, runs the demo in a short form
	@echo "== wheel"
	@.ci/wheel $(BIN)/python

clean:  ## remove what these targets made, .venv included
	rm -rf $(VENV) build dist docs/_build sumfold-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard src tests docs examples benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "Sumfold needs Python 3.11 or later, and there is no '$(PYTHON)' here." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Sumfold needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name a later one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "Making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -c 'import pip, venv' 2>/dev/null; then \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
	else \
		echo "'$(PYTHON)' came without the parts that make an environment (venv and ensurepip)." >&2; \
		echo "On Debian and Ubuntu: apt install python3-venv. Then run make again." >&2; exit 1; \
	fi
	@echo "$(CURDIR)" > $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	@echo "Installing Sumfold with plots into $(VENV): a minute or two, once"
	@$(PIP) --editable '.[plot]'
	@touch $@

# PyTorch is in no extra but its own: its newest build may bring gigabytes of CUDA packages. Of this version there is
# one for the CPU alone where an index offers it. Where there is none at all, the tests of PyTorch models are skipped.
TORCH ?= torch==2.13.0

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	@echo "Installing Sumfold with every extra and the development tools into $(VENV): some minutes, once"
	@$(PIP) --editable '.[dev]'
	@$(PIP) $(TORCH) || echo "Without $(TORCH): tests of PyTorch models will be skipped" >&2
	@touch $(VENV)/.demo $@
