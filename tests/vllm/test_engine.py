from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make test-vllm sets vLLM up")

import torch
from vllm import envs

from stages.policies.policy import Action, ContextOverflowError, Policy, PolicyError, Sampling
from stages.policies.transformers_policy import TransformersPolicy
from stages.policies.vllm_policy import VLLMPolicy
from tests.vllm.playing import CLOSE, Recorder, after, pairs, play, worst_difference

CONTEXT = 1024
# Nothing is compiled, and the worker needs no process of its own.
QUICK_START: dict[str, Any] = {"enforce_eager": True, "distributed_executor_backend": "uni"}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for all tests: the engine lives in it."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def engine(checkpoint: Path, loop: asyncio.AbstractEventLoop) -> Iterator[VLLMPolicy]:
    policy = VLLMPolicy.load(checkpoint, context=CONTEXT, **QUICK_START)
    yield policy
    loop.run_until_complete(policy.close())


def test_logprobs_are_those_of_transformers(
    engine: VLLMPolicy, model: Any, loop: asyncio.AbstractEventLoop
) -> None:
    recorder = Recorder(engine)
    sampling = Sampling(temperature=0.8, max_tokens=32)
    played = loop.run_until_complete(play(recorder, pairs(), sampling))
    assert [episode.row["status"] for episode in played].count("error") == 0
    assert all(episode.row["tokens_recorded"] for episode in played)
    # After the first turn a prompt is what was seen and sampled before, and more.
    assert all(row["appended"] == (row["turn"] > 0) for one in played for row in one.tokens)
    assert worst_difference(model, recorder.actions, 0.8) < CLOSE


def test_the_log_leaves_standard_output_to_results() -> None:
    assert envs.VLLM_LOGGING_STREAM == "ext://sys.stderr"
    assert envs.VLLM_LOGGING_LEVEL == "WARNING"


def test_logprobs_in_a_nucleus_are_of_the_nucleus(
    engine: VLLMPolicy, model: Any, loop: asyncio.AbstractEventLoop
) -> None:
    from stages.policies.nucleus import nucleus

    recorder = Recorder(engine)
    loop.run_until_complete(play(recorder, pairs(2, 1), Sampling(1.0, 0.5, 16)))
    for action in recorder.actions:
        assert action.prompt_ids and action.token_ids and action.logprobs
        plain = after(model, action.prompt_ids, action.token_ids, 1.0)
        cut = nucleus(plain, torch.full((len(plain),), 0.5))
        expected = cut.gather(1, torch.tensor(action.token_ids)[:, None])[:, 0].tolist()
        assert action.logprobs == pytest.approx(expected, abs=CLOSE)


def test_greedy_ids_are_those_of_the_transformers_policy(
    engine: VLLMPolicy, checkpoint: Path, loop: asyncio.AbstractEventLoop
) -> None:
    """Where the two part, the likeliest tokens must have been equally likely."""

    async def greedy(policy: Policy) -> dict[str, list[list[int]]]:
        played = await play(policy, pairs(4, 1), Sampling(0.0, max_tokens=24))
        return {
            episode.row["episode_id"]: [row["token_ids"] for row in episode.tokens]
            for episode in played
        }

    plain = TransformersPolicy.load(checkpoint, rows=8, context=CONTEXT, device="cpu")
    ours = loop.run_until_complete(greedy(plain))
    loop.run_until_complete(plain.close())
    assert loop.run_until_complete(greedy(engine)) == ours


def test_a_seed_gives_the_same_message(engine: VLLMPolicy, loop: asyncio.AbstractEventLoop) -> None:
    def ask(seed: int) -> list[int] | None:
        messages = [{"role": "user", "content": "hello."}]
        act = engine.act(f"seed {seed}", messages, [], Sampling(max_tokens=16), seed)
        return loop.run_until_complete(act).token_ids

    assert ask(2**48 - 1) == ask(2**48 - 1) != ask(1)


def test_the_context_ends_a_message_and_then_the_episode(
    engine: VLLMPolicy, loop: asyncio.AbstractEventLoop
) -> None:
    def ask(letters: int) -> tuple[str, int]:
        messages = [{"role": "user", "content": "z" * letters}]
        act = engine.act(f"{letters} letters", messages, [], Sampling(), 0)
        action = loop.run_until_complete(act)
        return action.finish, len(action.token_ids or ())

    around = 3  # tokens of the template
    assert ask(CONTEXT - around - 1) == ("length", 1)
    with pytest.raises(ContextOverflowError):
        ask(CONTEXT - around)


def test_more_prompts_than_the_engine_reads_at_once(
    engine: VLLMPolicy, loop: asyncio.AbstractEventLoop
) -> None:
    async def ask(letter: str) -> Action:
        messages = [{"role": "user", "content": letter * 900}]
        return await engine.act(letter, messages, [], Sampling(max_tokens=4), 1)

    async def ask_all() -> list[Action]:
        return await asyncio.gather(*map(ask, "abcdefgh"))

    actions = loop.run_until_complete(ask_all())
    at_once = engine._engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert sum(len(action.prompt_ids or ()) for action in actions) > at_once
    assert all(action.token_ids for action in actions)


def test_a_dead_engine_fails_the_message(
    engine: VLLMPolicy, loop: asyncio.AbstractEventLoop
) -> None:
    """The last test: nothing can be played afterwards."""
    engine._engine.engine_core.shutdown()
    messages = [{"role": "user", "content": "hello."}]
    with pytest.raises(PolicyError):
        loop.run_until_complete(engine.act("dead", messages, [], Sampling(max_tokens=4), 0))
