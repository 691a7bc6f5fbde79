# Every target works on a fresh machine with Python (3.10 or newer) and make: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart install check fix test bench bench-gpu docs clean

help:
	@echo "make quickstart   install, then watch a tiny model learn to point (minutes on a laptop, no download of data)"
	@echo "make install      v1lit and the tools to work on it, in $(VENV)"
	@echo "make check        ruff and mypy"
	@echo "make fix          let ruff mend what it can"
	@echo "make test         all tests"
	@echo "make bench        measure speed and memory (ten minutes on a CPU) and write docs/benchmarks.md"
	@echo "make bench-gpu    the same for what needs a GPU"
	@echo "make docs         build the pages of docs/ into site/"
	@echo "make clean        remove caches and built files; data, runs and $(VENV) stay"

quickstart: $(VENV)/.base
	PATH="$(abspath $(BIN)):$$PATH" lightning run recipes/tiny_qwen.yaml

install: $(VENV)/.dev

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.dev
	$(BIN)/python -m pytest

bench: $(VENV)/.dev
	$(BIN)/python tools/bench/run.py

bench-gpu: $(VENV)/.dev
	$(BIN)/python tools/bench/gpu.py

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find v1lit tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what is installed; a changed pyproject.toml installs again.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("v1lit needs Python 3.10 or newer; name one: make PYTHON=python3.12") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.base

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@ $(VENV)/.base
