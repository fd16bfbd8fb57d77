# `make demo` and `make test` set themselves up: they need Python >= 3.11 with pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The environment with the packages of the extras, for tests that skip without them.
EXTRAS := .venv-extras
VLLM := .venv-vllm
TRACE := data/examples/airline-24x8.jsonl
OUT ?= out/demo

.PHONY: demo test test-extras test-vllm lint bench clean
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

$(EXTRAS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/python -m pip install --quiet --upgrade pip
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[dev,openai,train]'
	# Of tau2's hundred packages its domains need these; to resolve all takes pip many minutes.
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt inspect-ai toml
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps inspect-evals
	touch $@

test-extras: $(EXTRAS)/.ready
	$(EXTRAS)/bin/pytest tests/test_tau2.py tests/test_replay.py tests/test_rollout.py \
	  tests/test_openai_policy.py tests/test_llm_user.py tests/test_local_model.py \
	  tests/test_dialects.py tests/test_chat.py tests/test_tiny_model.py tests/test_transformers_policy.py \
	  tests/test_train.py tests/test_train_command.py tests/test_train_resume.py \
	  tests/test_training_*.py

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# vLLM itself, on the CPU, in an environment of 3 GB. Its imports warn.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/pytest -W default --durations=3 tests/vllm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) $(EXTRAS)/.ready $(VLLM)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m tests.bench
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt trl
	$(EXTRAS)/bin/python -m tests.bench worlds decoding training
	$(VLLM)/bin/python -m tests.bench generation

clean:
	rm -rf $(VENV) $(EXTRAS) $(VLLM) out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
