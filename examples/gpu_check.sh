#!/usr/bin/env bash
# Everything that needs a GPU, in one go: vLLM's rollouts, a training step's speed, MFU and peak
# memory against TRL's, a round of the loop, and two steps of verl.
#
#   examples/gpu_check.sh [MODEL] [FOLDER]     # Qwen/Qwen3-0.6B and out/gpu
#
# Run it from a clone of the repository on a machine with a GPU, Python and a network connection. It
# makes two environments (some 15 GB) beside the others. Checks that passed before are skipped;
# delete FOLDER to start over. Every check runs, and the last lines name those that failed.
set -uo pipefail
cd "$(dirname "$0")/.."
model=${1:-Qwen/Qwen3-0.6B}
out=${2:-out/gpu}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || {
  echo "gpu_check.sh: nvidia-smi finds no GPU; run it on a machine that has one" >&2
  exit 2
}
mkdir -p "$out"
failed=()

# check NAME COMMAND...: run a command once and log its output.
check() {
  local name=$1
  shift
  [ -e "$out/$name.done" ] && { echo "done before: $name"; return; }
  echo "== $name: $*"
  if "$@" 2>&1 | tee "$out/$name.log"; then touch "$out/$name.done"; else failed+=("$name"); fi
}

environment() { # FOLDER PACKAGES...
  [ -e "$1/.ready" ] && return
  python3 -m venv "$1" && "$1/bin/pip" install --quiet "${@:2}" && touch "$1/.ready"
}

check environment environment .venv-gpu --editable '.[dev,train,vllm]' trl
irc=.venv-gpu/bin/irc-cli
check vllm "$irc" rollout --env airline-mini --split train --fresh --sample-tasks 32 --group-size 8 \
  --policy vllm --model "$model" --concurrency 128 --max-turns 20 -o "$out/rollouts.jsonl"
check score "$irc" score "$out/rollouts.jsonl" -o "$out/turns.parquet"
check calibrate "$irc" calibrate "$out/turns.parquet" --advantage potential \
  -o "$out/calibration.yaml"
check train "$irc" train --model "$model" --rollouts "$out/rollouts.jsonl" \
  --turns "$out/turns.parquet" --calibration "$out/calibration.yaml" --advantage potential \
  --bf16 -o "$out/policy"
check beside-trl env BENCH_MODEL="$model" .venv-gpu/bin/python -m tests.bench gpu
check eval "$irc" eval --env airline-mini --split test --policy vllm --model "$out/policy" \
  --max-tasks 100 --concurrency 128 --max-turns 20 -o "$out/eval.json"

check verl-environment environment .venv-gpu-verl --editable '.[verl]' 'verl[vllm]'
check verl-export .venv-gpu-verl/bin/irc-cli export verl --env airline-mini --model "$model" \
  --max-tasks 16 --tasks-per-step 4 --group-size 4 --gpus 1 -o "$out/verl"
check verl .venv-gpu-verl/bin/python -m verl.trainer.main_ppo --config-path "$(realpath "$out")/verl" \
  --config-name irc trainer.total_training_steps=2 trainer.test_freq=-1 trainer.save_freq=-1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
  actor_rollout_ref.model.use_remove_padding=False \
  +actor_rollout_ref.model.override_config.attn_implementation=sdpa # flash-attn is not installed

[ ${#failed[@]} -eq 0 ] && echo "all checks passed: $out" && exit
echo "failed: ${failed[*]}; see $out/NAME.log" >&2
exit 1
