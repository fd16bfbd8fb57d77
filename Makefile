# `make demo` and `make test` set themselves up: they need Python >= 3.11 with pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The environment that trains; then, with the other extras, that of the tests that skip without.
EXTRAS := .venv-extras
VLLM := .venv-vllm
VERL := .venv-verl
RAY := .venv-ray
VERIFIERS := .venv-verifiers
REAL := .venv-real
OUT ?= out/demo
SEED ?= 0

.PHONY: demo study gradients real validate test test-extras test-vllm test-fleet test-verl test-verifiers test-ray lint bench seed-policy clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Five iterations of the loop on airline-mini, from the seed policy.
demo: $(EXTRAS)/.trains
	mkdir -p $(dir $(OUT))
	$(EXTRAS)/bin/irc-cli loop --config data/recipes/demo.yaml --seed $(SEED) -o $(OUT)

# Half an hour on one core. What it makes is in the repository.
seed-policy: $(EXTRAS)/.trains
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m examples.seed_policy.make

# Hours on two cores; BUDGET ends it after so many minutes, and it goes on next time.
study: $(EXTRAS)/.trains
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m examples.study.make $(if $(BUDGET),--budget $(BUDGET))

# Which estimator's gradient points where the pass rate rises: half an hour on one core.
gradients: $(EXTRAS)/.trains
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m examples.study.gradients

# SmolLM2-135M-Instruct, from its package to RL: hours on two cores, in an environment of 3.3 GB;
# BUDGET as above.
real: $(REAL)/.ready
	VLLM_CPU_KVCACHE_SPACE=4 VLLM_LOGGING_LEVEL=ERROR $(REAL)/bin/python -m examples.real.make $(if $(BUDGET),--budget $(BUDGET))

test: lint
	$(BIN)/pytest

$(EXTRAS)/.trains: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/python -m pip install --quiet --upgrade pip
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	touch $@

$(EXTRAS)/.ready: $(EXTRAS)/.trains
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[browser,dev,openai,oracles]' trl
	# Of tau2's hundred packages its domains need these; to resolve all takes pip many minutes.
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt toml
	$(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps inspect-evals
	touch $@

test-extras: $(EXTRAS)/.ready
	$(EXTRAS)/bin/pytest tests/test_tau2.py tests/test_replay.py tests/test_rollout.py \
	  tests/test_openai_policy.py tests/test_server_faults.py tests/test_address.py \
	  tests/test_server_pool.py tests/test_llm_user.py tests/test_local_model.py \
	  tests/test_tool_parser.py tests/test_renderer.py tests/test_template*.py tests/test_tiny_model.py tests/test_transformers_policy.py \
	  tests/test_train.py tests/test_train_command.py tests/test_train_resume.py \
	  tests/test_training_*.py tests/test_plan.py tests/test_induction.py tests/test_seed_policy.py tests/test_loop.py \
	  tests/test_exports_trl.py tests/test_trl_turns.py tests/test_readme.py tests/test_gradients.py \
	  tests/test_report_page.py tests/test_api_logs.py tests/test_observability.py tests/test_otel.py \
	  tests/test_inspect_log.py tests/test_atif.py tests/test_export_atif.py tests/test_dumps.py tests/test_kill.py tests/test_model_code.py \
	  tests/test_model_folder.py tests/test_corpus.py

# Environments that hold what their file lists, and no more: dependencies are not followed.
$(VLLM)/.ready $(VERL)/.ready $(RAY)/.ready $(VERIFIERS)/.ready $(REAL)/.ready: .venv-%/.ready: pyproject.toml constraints-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement constraints-$*.txt
	$(@D)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# Both examples of Ray, on a local cluster: sums by Ray Data, and rollouts with Ray Serve LLM. Its
# start takes a quiet machine.
test-ray: $(RAY)/.ready
	$(RAY)/bin/pytest -W default tests/test_shards.py tests/vllm/test_ray_serve.py

# vLLM itself, on the CPU, in an environment of 3 GB. Its imports warn.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/pytest -W default --durations=3 --ignore tests/vllm/test_server_pool.py tests/vllm

# Two of vLLM's servers: how even their load is, new weights, one killed. Too long for CI.
test-fleet: $(VLLM)/.ready
	$(VLLM)/bin/pytest -W default tests/vllm/test_server_pool.py

# verl itself, which wants an older transformers, in an environment of 2.1 GB. Its imports warn.
test-verl: $(VERL)/.ready
	$(VERL)/bin/pytest -W default --durations=3 tests/verl

# Our environments in verifiers' own evaluation command, in an environment of its own.
test-verifiers: $(VERIFIERS)/.ready
	$(VERIFIERS)/bin/pytest -W default tests/test_verifiers_env.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) $(EXTRAS)/.ready $(VLLM)/.ready $(REAL)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m tests.bench
	$(EXTRAS)/bin/python -m tests.bench worlds decoding training
	$(VLLM)/bin/python -m tests.bench generation
	$(REAL)/bin/python -m tests.bench real

# How often calibration errs, by simulation: minutes on one core.
validate: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.validate

# Mutated inputs to every reader: two minutes; `make fuzz N=1000000 SEED=1` for a night. What fails
# is kept in tests/corpus. KINDS names some of the readers.
.PHONY: fuzz
fuzz: $(EXTRAS)/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m tests.fuzz $(or $(N),20000) $(SEED) $(KINDS)

# Commands killed at random moments, N times each, and what they leave: `make kill N=1000
# COMMANDS=rollout`.
.PHONY: kill
kill: $(EXTRAS)/.ready
	$(EXTRAS)/bin/python -m tests.kill --kills $(or $(N),10) --seed $(SEED) $(COMMANDS)

clean:
	rm -rf $(VENV) $(EXTRAS) $(VLLM) $(VERL) $(RAY) $(VERIFIERS) $(REAL) out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
