# `make demo` and `make test` set themselves up: they need Python >= 3.11 with pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# `.trains` marks the training environment; `.ready` adds the extras that optional tests need.
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

# Takes half an hour on one core. Its output is checked in.
seed-policy: $(EXTRAS)/.trains
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m examples.seed_policy.make

# Takes hours on two cores. BUDGET stops it after that many minutes; the next call resumes it.
study: $(EXTRAS)/.trains
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m examples.study.make $(if $(BUDGET),--budget $(BUDGET))

# Shows which estimator's gradient points towards a higher pass rate: half an hour on one core.
gradients: $(EXTRAS)/.trains
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m examples.study.gradients

# SmolLM2-135M-Instruct, from its package to RL: hours on two cores, in a 3.3 GB environment.
# BUDGET works as above.
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
	# tau2's domains need only these of its hundred packages; resolving all takes pip many minutes.
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

# These environments hold exactly what their file lists; pip resolves no dependencies.
$(VLLM)/.ready $(VERL)/.ready $(RAY)/.ready $(VERIFIERS)/.ready $(REAL)/.ready: .venv-%/.ready: pyproject.toml constraints-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement constraints-$*.txt
	$(@D)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# Both Ray examples on a local cluster: sums with Ray Data, rollouts with Ray Serve LLM. The cluster
# starts reliably only on an otherwise idle machine.
test-ray: $(RAY)/.ready
	$(RAY)/bin/pytest -W default tests/test_shards.py tests/vllm/test_ray_serve.py

# Tests against vLLM itself on the CPU, in a 3 GB environment. Its imports warn.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/pytest -W default --durations=3 --ignore tests/vllm/test_server_pool.py tests/vllm

# Two vLLM servers: load balance, weight updates, a killed server. Too slow for CI.
test-fleet: $(VLLM)/.ready
	$(VLLM)/bin/pytest -W default tests/vllm/test_server_pool.py

# Tests against verl itself, which needs an older transformers, in a 2.1 GB environment. Its imports
# warn.
test-verl: $(VERL)/.ready
	$(VERL)/bin/pytest -W default --durations=3 tests/verl

# Runs our environments under verifiers' own evaluation command, in a separate virtual environment.
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

# Simulates how often calibration errs: minutes on one core.
validate: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.validate

# Feeds mutated inputs to every reader for two minutes; `make fuzz N=1000000 SEED=1` runs overnight.
# Failing inputs are kept in tests/corpus. KINDS selects readers.
.PHONY: fuzz
fuzz: $(EXTRAS)/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m tests.fuzz $(or $(N),20000) $(SEED) $(KINDS)

# Kills commands at random moments, N times each, and checks what they leave behind:
# `make kill N=1000 COMMANDS=rollout`.
.PHONY: kill
kill: $(EXTRAS)/.ready
	$(EXTRAS)/bin/python -m tests.kill --kills $(or $(N),10) --seed $(SEED) $(COMMANDS)

clean:
	rm -rf $(VENV) $(EXTRAS) $(VLLM) $(VERL) $(RAY) $(VERIFIERS) $(REAL) out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
