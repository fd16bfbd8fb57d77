"""The user that a model in this process plays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs irc-cli[transformers]")

from stages.envs.airline_mini import airline_mini
from stages.envs.llm_user import Budget, LlmUsers
from stages.policies.local_model import LocalModel
from stages.policies.policy import Action, ContextOverflowError, PolicyError, Sampling
from stages.policies.transformers_policy import TransformersPolicy
from stages.serving.endpoint import EndpointError
from tests.conftest import Cli
from tests.till import Adder
from tests.tiny import tiny_checkpoint

ROLLOUT = ("rollout", "--env", "airline-mini", "--policy", "expert", "--split", "dev")
USER = ("--user", "llm", "--user-model", "tiny", "--quiet")
ONE = ("--max-tasks", "1", "--group-size", "1", "--max-turns", "1")
SAID = {"role": "assistant", "content": "It is slow."}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


class Says(Adder):
    """Answers always the same, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def answer(self, messages: Sequence[Any], seed: int) -> Action:
        if self.error:
            raise self.error
        return Action(SAID, prompt_ids=[1, 2, 3], token_ids=[4, 5])


def test_it_answers_as_a_server_does() -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "seed": 1}
    answer = asyncio.run(LocalModel(Says()).complete("one", body))
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    assert answer == {"choices": [{"message": SAID}], "usage": usage}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PolicyError("out of memory"), "out of memory"),
        (ContextOverflowError(), "the conversation is too long"),
    ],
)
def test_its_failures_are_those_of_a_server(error: Exception, told: str) -> None:
    with pytest.raises(EndpointError, match=told):
        asyncio.run(LocalModel(Says(error)).complete("one", {"messages": [], "seed": 1}))


def test_the_user_says_what_the_model_writes(checkpoint: Path) -> None:
    """The same prompt and seed, straight to a policy, give the same text."""
    task = replace(airline_mini().tasks("dev")[0], scenario="cancel")
    asked: list[dict[str, Any]] = []

    async def user() -> str:
        users = LlmUsers(str(checkpoint), None, Budget())
        made = users.new(task, seed=6)
        ask = made._ask
        made._ask = lambda body: asked.append(body) or ask(body)  # type: ignore[func-returns-value]
        try:
            return await asyncio.to_thread(made.open)
        finally:
            await users.close()

    async def policy(body: dict[str, Any]) -> str:
        player = TransformersPolicy.load(checkpoint, device="cpu")
        action = await player.act("x", body["messages"][:2], [], Sampling(), body["seed"])
        await player.close()
        return str(action.message["content"]).strip()

    said = asyncio.run(user())
    assert said
    assert said == asyncio.run(policy(asked[-1]))


def test_the_command_with_a_model_as_the_user(run: Cli, checkpoint: Path) -> None:
    Path("tiny").symlink_to(checkpoint)
    for name in ("a.jsonl", "b.jsonl"):
        assert run(*ROLLOUT, *USER, *ONE, "-o", name).code == 0
    assert b'"user":"tiny"' in Path("a.jsonl").read_bytes()
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()
    assert b"tiny/model.safetensors" in Path("a.meta.json").read_bytes()
