# `make demo` and `make test` set themselves up: they need Python >= 3.11 with pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRACE := data/examples/airline-24x8.jsonl
OUT ?= out/demo

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# From a trace to calibrated rewards, and a check that they push advantages the intended way.
demo: $(READY)
	mkdir -p $(OUT)
	$(BIN)/irc-cli score $(TRACE) -o $(OUT)/turns.parquet --force
	$(BIN)/irc-cli calibrate $(OUT)/turns.parquet -o $(OUT)/calibration.yaml --force
	$(BIN)/irc-cli score $(TRACE) --rewards $(OUT)/calibration.yaml -o - --quiet \
	  | $(BIN)/irc-cli calibrate - --keep-rewards --check --quiet
	$(BIN)/irc-cli eval $(TRACE) -o $(OUT)/eval.json --force
	@echo 'The calibrated rewards pass the check. Artifacts: $(OUT)'

test: lint
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
