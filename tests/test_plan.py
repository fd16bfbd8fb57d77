"""`irc-cli train --plan`: counts against the model cards, memory against what was measured."""

from __future__ import annotations

import gc
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="needs irc-cli[train]")
pytest.importorskip("peft", reason="needs irc-cli[train]")

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from irc_cli.train_plan import LONGEST
from stages.training.batches import MOST_PACKED
from stages.training.logprobs import CHUNK
from stages.training.model import learner
from stages.training.pass_size import fitting_tokens
from stages.training.plan import Architecture, Setup, describe, fits, memory, read_config, remedies
from tests.conftest import Cli

RECIPES = Path(__file__).resolve().parents[1] / "data/recipes"
NAMES = ("qwen3.5-4b", "qwen3-30b-a3b")
CARD: dict[str, Any] = {"devices": 8, "device_gb": 80.0}
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
}
DENSE = Qwen3Config(**SMALL, tie_word_embeddings=True)
MIXTURE = Qwen3MoeConfig(**SMALL, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128)


@cache
def described(name: str, bf16: bool = True, lora_rank: int | None = None) -> Architecture:
    config = read_config(str(RECIPES / name))
    return describe(config, Setup(0, bf16=bf16, lora_rank=lora_rank))


def of_recipe(name: str, **changes: Any) -> Setup:
    return replace(Setup(16_384, bf16=True, gradient_checkpointing=True, **CARD), **changes)


def measured_peak(config: Any, setup: Setup) -> int:
    """Bytes that a second step's pass holds at most, by torch's own allocator."""
    torch.manual_seed(0)
    model = learner(
        AutoModelForCausalLM.from_config(config),
        lora_rank=setup.lora_rank,
        gradient_checkpointing=setup.gradient_checkpointing,
    ).train()
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights)
    at = torch.arange(setup.tokens)

    def go_there_and_back() -> None:
        values = model(at % 512, at, [setup.tokens], at[1:], torch.ones(setup.tokens - 1))
        values.logprobs.sum().backward()

    go_there_and_back()
    optimizer.step()
    held = [*model.parameters(), *(one.grad for one in weights)]
    held += [x for state in optimizer.state.values() for x in state.values()]
    gc.collect()
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        go_there_and_back()
    events = profile.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak + sum(x.numel() * x.element_size() for x in held if x is not None)


@pytest.mark.filterwarnings("ignore:The following:RuntimeWarning")  # peft's, on experts
@pytest.mark.parametrize("lora_rank", [None, 8])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_the_estimate_is_what_a_step_takes(
    config: Any, checkpointing: bool, lora_rank: int | None
) -> None:
    """Never much less, and at most a tenth more: a run that is told to fit should."""
    setup = Setup(512, gradient_checkpointing=checkpointing, lora_rank=lora_rank)
    estimate = memory(describe(config, setup), setup).peak
    assert 0.95 <= estimate / measured_peak(config, setup) <= 1.1


def test_the_mixture_is_the_one_of_its_card() -> None:
    """https://huggingface.co/Qwen/Qwen3-30B-A3B: 30.5B in total and 3.3B activated."""
    found = described("qwen3-30b-a3b")
    assert round(found.parameters / 1e9, 1) == 30.5
    assert found.parameters == pytest.approx(30e9, rel=0.02)
    assert found.active == pytest.approx(3.3e9, rel=0.02)


def test_the_dense_model_is_counted() -> None:
    """Its name is rounded down: text part 4.2B, of which the embeddings are 0.6B."""
    found = described("qwen3.5-4b")
    embeddings = 248_320 * 2_560
    linear = 2560 * (8192 + 4096 + 2 * 32 + 4096) + 8192 * 4 + 2 * 32 + 128
    full = 2560 * (8192 + 2 * 1024 + 4096) + 2 * 256
    each = 3 * 2560 * 9216 + 2 * 2560
    assert found.parameters == embeddings + 24 * linear + 8 * full + 32 * each + 2560
    assert found.parameters == pytest.approx(4.2e9, rel=0.02)
    assert found.active == found.parameters
    assert [layer.times for layer in found.layers] == [24, 8]
    assert not found.packable


def test_adapters_alone_are_trained() -> None:
    setup = Setup(512, lora_rank=8)
    found, whole = describe(DENSE, setup), describe(DENSE, Setup(512))
    # Each linear layer gets two matrices: rank x inputs and outputs x rank.
    shapes = [(128, 128), (128, 64), (128, 64), (128, 128), *[(128, 384)] * 3]
    assert found.trained == 4 * 8 * sum(map(sum, shapes))
    assert found.parameters == whole.parameters + found.trained
    assert found.active == whole.parameters
    assert memory(found, setup).moments == 8 * found.trained


def test_devices_share_weights_gradients_and_moments() -> None:
    found = described("qwen3-30b-a3b")
    one, eight = (memory(found, of_recipe("", devices=n)) for n in (1, 8))
    assert one.weights + one.gradients + one.moments == 16 * found.parameters
    for name in ("weights", "gradients", "moments"):
        assert getattr(one, name) == 8 * getattr(eight, name)
    assert one.gathered == eight.copies == 0 < eight.gathered
    assert one.activations == eight.activations


def test_logits_are_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    found, setup = described("qwen3-30b-a3b"), of_recipe("")
    assert memory(found, setup).logits == pytest.approx(16 * CHUNK, rel=0.01)
    monkeypatch.setattr("stages.training.plan.CHUNK", CHUNK // 4)
    assert memory(found, setup).logits == pytest.approx(4 * CHUNK, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_to_turn_makes_it_fit(name: str) -> None:
    def describe_it(setup: Setup) -> Architecture:
        return described(name, setup.bf16, setup.lora_rank)

    keys = {"pack-tokens": "tokens", "lora-rank": "lora_rank", "devices": "devices"}
    tight = of_recipe(name, devices=1, device_gb=24.0)
    told = remedies(tight, describe_it)
    assert told
    for line in told:
        turned = tight
        for option in line.split("--")[1:]:
            key, value = option.split()
            change: dict[str, Any] = {keys[key]: int(value)}
            turned = replace(turned, **change)
        assert fits(memory(describe_it(turned), turned).peak, turned)


def test_what_can_not_be_helped() -> None:
    found = described("qwen3-30b-a3b")
    assert remedies(of_recipe("", devices=1, device_gb=1.0), lambda _: found) == []


WHOLE = of_recipe("", gradient_checkpointing=False)


def test_a_gpu_gets_the_tokens_that_fit_beside_the_rest() -> None:
    found = described("qwen3.5-4b")
    tokens = fitting_tokens(found, WHOLE, 1)
    assert fits(memory(found, replace(WHOLE, tokens=tokens)).peak, WHOLE)
    assert not fits(memory(found, replace(WHOLE, tokens=tokens + 1)).peak, WHOLE)


def test_a_cpu_spends_a_tenth_of_its_memory_on_a_pass() -> None:
    found, setup = described("qwen3.5-4b"), replace(WHOLE, cpu=True)
    tokens = fitting_tokens(found, setup, 1)
    one, more = (memory(found, replace(setup, tokens=n)) for n in (tokens, tokens + 1))
    assert one.activations + one.layer <= 0.1 * 80e9 < more.activations + more.layer


@pytest.mark.parametrize("cpu", [True, False])
def test_the_longest_sequence_has_its_pass(cpu: bool) -> None:
    tight = replace(WHOLE, device_gb=1.0, cpu=cpu)
    assert fitting_tokens(described("qwen3.5-4b"), tight, 5000) == 5000


@given(st.integers(1, 100_000), st.floats(1, 1e6))
def test_no_more_tokens_than_what_they_are_worth(longest: int, device_gb: float) -> None:
    setup = replace(WHOLE, device_gb=device_gb)
    tokens = fitting_tokens(described("qwen3.5-4b"), setup, longest)
    assert longest <= tokens <= max(longest, MOST_PACKED)


def plan_recipe(run: Cli, name: str, *args: str) -> Any:
    recipe, model = RECIPES / f"{name}-airline.yaml", RECIPES / name
    result = run("train", "--config", recipe, "--model", model, "--plan", *args)
    assert result.code == 0, result.err
    return result


@pytest.mark.parametrize(
    ("name", "devices", "memory_gb", "verdict", "tokens"),
    [
        ("qwen3.5-4b", "8", "80", True, MOST_PACKED),  # sequences cannot share a pass
        ("qwen3.5-4b", "1", "24", False, MOST_PACKED),
        ("qwen3-30b-a3b", "8", "80", True, 6338),
        ("qwen3-30b-a3b", "1", "24", False, LONGEST),
    ],
)
def test_recipes(
    run: Cli, name: str, devices: str, memory_gb: str, verdict: bool, tokens: int
) -> None:
    card = ("--devices", devices, "--device-memory", memory_gb, "--json")
    document = plan_recipe(run, name, *card).json()
    assert document["fits"] is verdict
    planned = of_recipe(name, tokens=tokens, devices=int(devices), device_gb=float(memory_gb))
    assert document["setup"] == asdict(planned)
    assert document["parameters"]["parameters"] == described(name).parameters
    assert bool(document["turn"]) is not verdict
    assert document["bytes"]["reference"] is None


def test_the_report(run: Cli) -> None:
    args = ("--devices", "8", "--device-memory", "80", "--pack-tokens", "16384")
    out = plan_recipe(run, "qwen3-30b-a3b", *args).out.decode()
    assert "30,532,122,624 parameters, 30,532,122,624 trained, 3,353,032,704 active" in out
    assert "full fine-tuning, bf16, 16,384 tokens a pass, gradient checkpointing" in out
    assert "does not fit 8 x 80 GB, 10% of it kept free" in out
    assert "turn: --pack-tokens 4096; or --lora-rank 16; or --devices 16" in out


def test_a_reference_is_run_before_the_first_step(run: Cli, tmp_path: Path) -> None:
    DENSE.save_pretrained(tmp_path)
    args = ("train", "--plan", "--json", "--model", tmp_path, "--kl", "0.1")
    with_it = run(*args, "--reference", tmp_path).json()
    found = with_it["bytes"]
    assert found["reference"] > 2 * found["weights"]
    assert found["peak"] > found["reference"]
    assert run(*args).json()["bytes"] == found | {"reference": None}
    assert with_it["setup"]["devices"] >= 1
    assert with_it["setup"]["device_gb"] > 0


def test_no_config(run: Cli, tmp_path: Path) -> None:
    result = run("train", "--plan", "--model", tmp_path)
    assert result.code == 2
    assert result.err.startswith(f"error: {tmp_path}: ")
    assert result.err.endswith("; give a folder that holds the config.json\n")


@pytest.mark.parametrize("name", NAMES)
def test_rollouts_of_a_recipe(run: Cli, name: str) -> None:
    recipe = RECIPES / f"{name}-airline-rollout.yaml"
    ours = ("--env", "airline-mini", "--policy", "expert", "--user", "scripted")  # no extras
    settings = run("rollout", "--config", recipe, *ours, "--dry-run", "--json").json()["settings"]
    wanted = {"group_size": 4, "max_turns": 40, "temperature": 0.9}
    assert {key: settings[key] for key in wanted} == wanted
