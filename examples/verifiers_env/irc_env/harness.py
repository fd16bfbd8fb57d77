"""Play a task with the model that verifiers serves, and with our tools, users and outcome."""

from __future__ import annotations

import asyncio
from itertools import takewhile
from typing import Any

import verifiers.v1 as vf
from irc_env.taskset import OURS, IrcData
from openai import APIStatusError, AsyncOpenAI

from stages.core.seeds import derived_seed
from stages.envs.env import Session
from stages.envs.llm_user import Budget, LlmUsers
from stages.envs.registry import open_env
from stages.messages.message import Message
from stages.rollout import seen_tools


class IrcHarnessConfig(vf.HarnessConfig):
    """Options below --env.agent.harness."""

    user_model: str | None = None  # model that plays the user; None: scripted, not for tau2
    user_base_url: str | None = None
    max_turns: int = 30


def add_ending(trace: vf.Trace, messages: list[Message]) -> None:
    """Append the messages after the model's last answer, which no request showed to verifiers."""
    if not trace.nodes:
        return
    kinds = {"tool": vf.ToolMessage, "user": vf.UserMessage}
    ending = takewhile(lambda message: message["role"] in kinds, reversed(messages))
    for message in reversed(list(ending)):
        kind = kinds[message["role"]]
        fields = {key: message[key] for key in kind.model_fields if message.get(key) is not None}
        node = vf.MessageNode(parent=len(trace.nodes) - 1, message=kind(**fields))
        trace.nodes.append(node)


class IrcHarness(vf.Harness[IrcHarnessConfig]):
    """A harness that plays a conversation of policy and user with the environment's tools."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: IrcData,
    ) -> vf.ProgramResult:
        """Play one episode; store outcome, messages and tools in `trace.info` for the task."""
        env = open_env(data.env)
        [task] = [task for task in env.tasks(data.split) if task.task_id == data.id]
        seed = derived_seed(data.id, trace.id)
        user = self._users().new(task, seed) if self.config.user_model else None
        session = await asyncio.to_thread(env.reset, task, seed, user)
        tools = seen_tools(env)
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            try:
                await self._play(client, ctx.model, session, tools)
            except APIStatusError as error:
                if trace.stop_condition is None:  # otherwise a limit of verifiers refused the turn
                    return vf.ProgramResult(1, "", str(error))
        add_ending(trace, session.messages)
        outcome = session.outcome()
        trace.info[OURS] = {
            "outcome": outcome.outcome,
            "parts": dict(outcome.parts),
            "messages": session.messages,
            "tools": tools,
        }
        return vf.ProgramResult(0, "", "")

    async def _play(
        self, client: AsyncOpenAI, model: str, session: Session, tools: list[dict[str, Any]]
    ) -> None:
        for _ in range(self.config.max_turns):
            answer = await client.chat.completions.create(
                model=model, messages=session.messages, tools=tools
            )
            message = answer.choices[0].message.model_dump(exclude_none=True)
            await asyncio.to_thread(session.step, {"content": None} | message)
            if session.done:
                return

    def _users(self) -> LlmUsers:
        return LlmUsers(self.config.user_model, self.config.user_base_url, Budget())
