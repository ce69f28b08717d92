# `make help` lists the targets. The environment is made on demand and again when
# pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# One process a core, up to four; they must see sets of parameters in one order.
PYTEST := PYTHONHASHSEED=0 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

.PHONY: help demo lint test test-all bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z.][a-z-]*\):.*## \(.*\)/  make \1 - \2/p' $(MAKEFILE_LIST)

.venv: $(INSTALLED)  ## the environment, from constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(INSTALLED)  ## tune a small network on the digits, then ask for the answer
	$(BIN)/droptune optimize studies/digits.py
	$(BIN)/droptune best --study digits

lint: $(INSTALLED)  ## style and import direction
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

test: lint  ## lint and the fast tests
	$(PYTEST) -m "not slow and not gpu"

test-all: lint  ## lint and all tests; those that need a GPU skip without one
	$(PYTEST)

bench: $(INSTALLED)  ## measure throughput against training one trial at a time
	$(BIN)/python benchmarks/throughput.py

clean:  ## remove caches and builds; the environment and databases stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find droptune alembic tests studies benchmarks -name __pycache__ -prune -exec rm -rf {} +
