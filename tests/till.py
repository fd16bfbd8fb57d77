"""A tiny environment for tests of the runner, and policies that play it.

The customer wants the till to hold a number; each call of `add` adds one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from stages.envs.env import STOP, Outcome, Task, User
from stages.messages.message import Message
from stages.policies.policy import Action, Sampling
from stages.rollout import Config, Pair, Played, Run, plan, rollout

ADD: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "x-kind": "write", "parameters": {"type": "object"}},
}
CALL = {"id": "call", "type": "function", "function": {"name": "add", "arguments": "{}"}}
ADDS: Message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
SAYS: Message = {"role": "assistant", "content": "Done."}


class TillUser:
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted

    def open(self) -> str:
        return f"Make it {self.wanted}."

    def reply(self, agent: str, history: Sequence[Message]) -> str:
        return STOP


class TillSession:
    def __init__(self, task: Task, user: User) -> None:
        self.done = False
        self.till = 0
        self._wanted, self._user = int(task.scenario), user
        self.messages: list[Message] = [{"role": "user", "content": user.open()}]

    def step(self, message: Message) -> list[Message]:
        self.messages.append(message)
        if not message.get("tool_calls"):
            self.done = STOP in self._user.reply(message["content"], self.messages)
            return []
        self.till += 1
        result = {"role": "tool", "tool_call_id": "call", "content": str(self.till)}
        self.messages.append(result)
        return [result]

    def outcome(self) -> Outcome:
        held = self.till == self._wanted
        return Outcome(float(held), {"database": held})


class Till:
    name = "till"
    policy = ""

    def __init__(self, tasks: int = 3) -> None:
        self.tools = [ADD]
        gold = {"name": "add", "arguments": {}}
        self._tasks = [Task(f"t{n}", "add", "train", (gold,) * n, (), n) for n in range(tasks)]

    def tasks(self, split: str) -> list[Task]:
        return self._tasks

    def reset(self, task: Task, seed: int, user: User | None = None) -> TillSession:
        return TillSession(task, user or TillUser(int(task.scenario)))


class Adder:
    """Adds as often as is wanted, with ids of tokens, then says so."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.live = self.most_live = 0
        self.closed = False

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        self.live += 1
        self.most_live = max(self.live, self.most_live)
        # Later trials end earlier, so that episodes do not end in their order.
        await asyncio.sleep(self.pause_s * (seed % 7))
        self.live -= 1
        return self.answer(messages, seed)

    def answer(self, messages: Sequence[Message], seed: int) -> Action:
        wanted = int(messages[0]["content"].removeprefix("Make it ").removesuffix("."))
        added = sum(message["role"] == "tool" for message in messages)
        message = ADDS if added < wanted else SAYS
        ids = [seed % 1000, added]
        prompt = [token for n in range(added) for token in (n, n)]
        return Action(message, prompt, ids, [-seed / 2**48, -0.1])

    async def close(self) -> None:
        self.closed = True


def play(
    policy: Any, environment: Any = None, config: Config | None = None, **more: Any
) -> list[Played]:
    """All episodes of a run, in the order in which they ended."""
    config = config or Config()
    concurrency = more.pop("concurrency", 4)
    run = Run("run", environment or Till(), policy, config, "adder", **more)
    pairs: list[Pair] = plan(run.environment.tasks("train"), config.group_size)

    async def played() -> list[Played]:
        return [one async for one in rollout(run, pairs, concurrency)]

    return asyncio.run(played())
