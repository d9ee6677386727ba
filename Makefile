# `make test` and `make demo` work from a bare clone; a second call repeats no installation.
PYTHON ?= python3
# Installed first and at one version: this is the build everything was measured with, and left to
# itself a plain install could replace it by another one of several gigabytes.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup test lint demo docs figures peers

setup: $(STAMP)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; name a Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("make: Python 3.10 or newer is needed, but $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.11")'
	@# An interrupted creation leaves an environment without pip: make it again.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes of one thread each: the models are small, and threads would wait for each other. In the
# order of tests/conftest.py: left to itself xdist begins with the files that have the most tests, not the longest.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

demo: setup
	$(BIN)/hessian-lr validate --method lora --method rslora --method pissa --method olora \
		--batch-size 2 --steps 16 --samples 4 --out runs/demo

figures: setup
	$(BIN)/python -m experiments.draw

# Into site/, which opens from disk.
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[docs]"
	@touch $@

# Curvature tools side by side, hours at the default size; `make peers PEERS=--quick` takes minutes.
peers: $(VENV)/.peers
	$(BIN)/python -m experiments.peers.run $(PEERS)

$(VENV)/.peers: $(STAMP)
	@# Named again, so that no peer moves it.
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[peers]"
	@# Why without its dependencies: see pyproject.toml.
	$(BIN)/python -m pip install --quiet --no-deps curvlinops-for-pytorch==3.0.1
	@touch $@
