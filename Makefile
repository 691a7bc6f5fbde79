# Every target works on a fresh machine with Python (3.10 to 3.13) and make: it makes .venv and installs what it needs,
# in the exact versions of requirements.lock.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of the environments that `make test-oldest` and the like build: a version of Python or the path of an interpreter,
# and how versions of packages are chosen.
PYTHON_oldest ?= 3.10
PYTHON_locked ?= $(PYTHON)
PYTHON_newest ?= 3.13
RESOLVE_oldest := --resolution lowest-direct
RESOLVE_locked := --constraint requirements.lock
RESOLVE_newest := --upgrade

.PHONY: help quickstart demo install check fix lock bench bench-generate bench-gpu docs verified clean
.PHONY: test test-fast test-oldest test-locked test-newest coverage soak

help:
	@echo "make quickstart   install, then watch a tiny model learn to point (minutes on a laptop, no download of data)"
	@echo "make demo         the same, then a page in the browser to ask it on; trained once"
	@echo "make install      v1lit and the tools to work on it, in $(VENV)"
	@echo "make check        ruff and mypy"
	@echo "make fix          let ruff mend what it can"
	@echo "make test         all tests"
	@echo "make test-fast    those of the loop of work, in two minutes"
	@echo "make test-oldest  those that touch dependencies, in an environment with the lowest allowed versions"
	@echo "make test-locked  the same with those of requirements.lock"
	@echo "make test-newest  the same with the newest; each of the three notes its versions in docs/versions.md"
	@echo "make soak         the longer ones: nodes whose cable is cut, ranks killed at random moments, a server's memory; about an hour"
	@echo "make coverage     all tests, and which lines and branches of v1lit they do not reach"
	@echo "make lock         write requirements.lock again from pyproject.toml, with the newest versions"
	@echo "make bench        measure speed and memory (ten minutes on a CPU) and write docs/benchmarks.md"
	@echo "make bench-generate  the same for generation, in one thread"
	@echo "make bench-gpu    the same for what needs a GPU"
	@echo "make docs         build the pages of docs/ into site/; a link that leads nowhere is an error"
	@echo "make verified     run the tests of all families, and note for docs/backbones.md what they show"
	@echo "make clean        remove caches and built files; data, runs and $(VENV) stay"

quickstart: $(VENV)/.base
	PATH="$(abspath $(BIN)):$$PATH" lightning run recipes/tiny_qwen.yaml

# Trained once; the page is at http://127.0.0.1:7860 until Ctrl-C.
demo: $(VENV)/.demo runs/demo/model/config.json
	$(BIN)/v1lit demo runs/demo/model

runs/demo/model/config.json: | $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" lightning run recipes/tiny_qwen.yaml --run.name=demo --run.resume=auto

install: $(VENV)/.dev

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two processes of one thread each are the fastest on two cores.
PYTEST := OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 8 --dist worksteal
test: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" $(PYTEST)

test-fast: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" $(PYTEST) -m "not slow"

soak: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" V1LIT_SOAK=1 OMP_NUM_THREADS=1 pytest -m soak
	$(BIN)/python tools/soak.py --kills 200
	$(BIN)/python tools/soak.py --ranks 4 --strategy ddp,fsdp2,hsdp,fsdp2_tp --kills 10
	$(BIN)/python tools/soak.py --ranks 4,2,1 --strategy ddp,fsdp2 --kills 6
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak_server.py --requests 2000

# Set up in .coveragerc; the files of which least is reached come first.
coverage: $(VENV)/.dev
	rm -f .coverage .coverage.*
	PATH="$(abspath $(BIN)):$$PATH" $(PYTEST) --cov --cov-report=term

# What `pip install v1lit` brings at the least, with the lock, and today. uv's own settings are those of the lock.
test-oldest test-locked test-newest: test-%: $(VENV)/.dev
	$(BIN)/uv --no-config venv --quiet --clear --python $(PYTHON_$*) $(VENV)-$*
	$(BIN)/uv --no-config pip install --quiet --python $(VENV)-$* $(RESOLVE_$*) --editable '.[dev]'
	PATH="$(abspath $(VENV)-$*/bin):$$PATH" python tools/versions.py run $*

lock: $(VENV)/.dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-annotate --no-header \
		$(foreach extra,dev demo docs wandb s3 gs az,--extra $(extra)) --group build pyproject.toml \
		--output-file requirements.lock.part
	{ echo '# Exact versions for Python 3.10 to 3.13 on Linux and macOS, written by `make lock` from pyproject.toml.'; \
	  echo '# To use them: pip install --constraint requirements.lock v1lit'; \
	  cat requirements.lock.part; } > requirements.lock.new
	rm requirements.lock.part
	mv requirements.lock.new requirements.lock

bench: $(VENV)/.dev
	$(BIN)/python tools/bench/run.py

bench-generate: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench/generate.py

bench-gpu: $(VENV)/.dev
	$(BIN)/python tools/bench/gpu.py

# Material says at every start that a new major version of mkdocs would be another program.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

verified: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" python tools/docs/verified.py

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find v1lit tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what is installed; a changed pyproject.toml or lock installs again.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info[:2] <= (3, 13) else "requirements.lock is for Python 3.10 to 3.13, this is %d.%d; name one: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
# What builds v1lit is locked as well, so it is installed first and used as it is.
define install
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable '.$(1)'
	@touch $@
endef

$(VENV)/.base: pyproject.toml requirements.lock | $(BIN)/python
	$(call install)

$(VENV)/.dev: pyproject.toml requirements.lock | $(BIN)/python
	$(call install,[dev])
	@touch $(VENV)/.base

$(VENV)/.demo: pyproject.toml requirements.lock | $(BIN)/python
	$(call install,[demo])
	@touch $(VENV)/.base

$(VENV)/.docs: pyproject.toml requirements.lock | $(BIN)/python
	$(call install,[docs])
	@touch $(VENV)/.base
