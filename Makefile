# `make demo` and `make test` do all the set-up that they need, in a virtual environment of this folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q

.PHONY: demo demo-pendulum test test-examples test-slow attack mutants benchmark lint clean

demo: $(VENV)/.demo
	$(BIN)/python examples/music.py --out runs/demo

demo-pendulum: $(VENV)/.demo
	$(BIN)/python examples/pendulum.py --out runs/demo-pendulum

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-examples: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow \
		tests/behaviour/test_examples.py tests/behaviour/test_notebooks.py tests/behaviour/test_readme.py \
		tests/behaviour/test_devices.py tests/unit/training/test_distributed.py

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow --ignore=tests/attack --ignore=tests/contract/test_mutants.py

# Everything that can go wrong from outside, many times over, and one table of how often it did.
attack: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow or not slow" tests/attack

# Thirty faults, planted in the core one at a time, and the test of the default run that finds each.
mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants.py

benchmark: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m benchmark tests/benchmarks --benchmark-disable-gc

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and pinned: the extras then find it installed and bring no second one.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e ".[music,plots]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
