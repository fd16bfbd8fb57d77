"""The user `llm`: a language model that plays the customer of a task."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from stages.envs.env import OUT_OF_SCOPE, STOP, TRANSFER, Task, UserError
from stages.errors import InputError
from stages.messages.message import Message
from stages.policies.local_model import LocalModel
from stages.serving.answers import Answer
from stages.serving.endpoint import Endpoint, EndpointError, plain_text
from stages.settings import Setting

ATTEMPTS = 3  # at a reply that does not speak as the agent
TOOL_CALLS = 20  # most calls of the user in one reply
GREETING = "Hi! How can I help you today?"  # opens the user's side; the episode begins after it

RULES = f"""\
You are a customer who talks to a customer service agent by text chat. Stay in this role.
- Write one short message at a time, as a person would, and nothing but the message.
- Follow your instructions. Tell what you know only when it is needed, and step by step.
- Make nothing up: what your instructions do not say, you do not know.
- You are never the agent: you look nothing up and change nothing, you ask for it.
- When all you wanted is done or has been finally refused, write {STOP}.
- When the agent hands you over to a human, write {TRANSFER}.
- When your instructions do not say enough to go on, write {OUT_OF_SCOPE}.
Write such a marker by itself, without any other text."""
EQUIPPED = """\
You have tools: they are what you can check and do yourself, at the agent's request. Call one when
the agent asks for what it does, then tell what it showed. Never claim what no tool has shown."""

# tau2-bench's fields of a scenario, with their headings in the user's prompt.
FIELDS = {
    "persona": "Who you are",
    "domain": "Where you call",
    "reason_for_call": "Why you write",
    "known_info": "What you know",
    "unknown_info": "What you do not know",
    "task_instructions": "How you behave",
}

# Patterns of text that an agent would write, or a model that plays both parts.
AGENT_SPEAKS = {
    "it opens as the agent": r"^\W*(assistant|agent|representative|support|system|tool)\W*:",
    "it goes on as the agent": r"\n\W*(assistant|agent|representative|system|tool)\W*:",
    "it calls a tool": r"<tool_call>|<function[=_]|<\|tool|\"arguments\"\s*:|```json",
    "it offers help": r"how (can|may|could) i (help|assist) you|(help|assist) you (with|further)"
    r"|anything else (that )?i can (help|assist|do)",
    "it thanks the customer": r"thank(s| you) for (calling|contacting|reaching out|your patience)",
    "it serves the customer": r"\bi('ve| have)( now| just| successfully)*"
    r" (cancel|process|updat|book|chang|refund|issu|upgrad)\w+ your\b"
    r"|\blet me (check|look up|pull up|verify) your\b",
}


USERS = ("scripted", "llm")
USER = "User"  # panel of the help


@dataclass(frozen=True)
class UserOptions:
    """Who the user is, and what it may spend."""

    user: Annotated[
        str, Setting("Simulated user that the policy talks to.", USER, choices=USERS)
    ] = "scripted"
    user_model: Annotated[str | None, Setting("Model of --user llm.", USER, metavar="NAME|DIR")] = (
        None
    )
    user_base_url: Annotated[
        str | None, Setting("OpenAI-compatible server of --user llm.", USER, metavar="URL")
    ] = None
    user_tokens: Annotated[
        int | None, Setting("Maximum tokens of --user llm in the run.", USER, low=1)
    ] = None
    user_cost: Annotated[
        float | None,
        Setting("Maximum cost of --user llm in the run.", USER, low=0, metavar="USD"),
    ] = None
    user_price: Annotated[
        str | None,
        Setting("Price of --user llm, in USD per million tokens.", USER, metavar="IN/OUT"),
    ] = None


@dataclass
class Budget:
    """What the users of a run may spend; when it is spent, every further episode fails."""

    tokens: int | None = None  # None: no limit
    cost_usd: float | None = None
    usd_in: float = 0.0  # per million tokens of prompts
    usd_out: float = 0.0  # per million tokens of replies
    spent_tokens: int = 0
    spent_usd: float = 0.0

    @classmethod
    def of(cls, tokens: int | None, cost_usd: float | None, price: str | None) -> Budget:
        """Return the budget that the options set.

        Raises:
            InputError: a cost limit without a price, or a price that is not IN/OUT.
        """
        if price is None:
            if cost_usd is not None:
                todo = "give '--user-price IN/OUT' in USD per million tokens"
                raise InputError("--user-cost", "what a token costs is unknown", todo)
            return cls(tokens)
        try:
            usd_in, usd_out = map(float, price.split("/"))
        except ValueError:
            what, todo = f"'{price}' is no price", "give IN/OUT, such as 0.15/0.6"
            raise InputError("--user-price", what, todo) from None
        return cls(tokens, cost_usd, usd_in, usd_out)

    def check(self) -> None:
        """Raise UserError if a limit is reached."""
        if self.tokens is not None and self.spent_tokens >= self.tokens:
            raise UserError(f"the budget of {self.tokens} tokens is spent")
        if self.cost_usd is not None and self.spent_usd >= self.cost_usd:
            raise UserError(f"the budget of {self.cost_usd:g} USD is spent")

    def spend(self, body: Mapping[str, Any], answer: Answer) -> None:
        """Count an answer; if the server reports no usage, four characters count as a token."""
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        read, wrote = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(read, int) or not isinstance(wrote, int):
            read = len(json.dumps(body)) // 4
            wrote = len(json.dumps(answer["choices"][0]["message"])) // 4
        self.spent_tokens += read + wrote
        self.spent_usd += (read * self.usd_in + wrote * self.usd_out) / 1e6


def is_local(model: str | None, base_url: str | None) -> bool:
    """Return whether the user's model is a folder, which this process loads."""
    return model is not None and base_url is None and Path(model).is_dir()


class LlmUsers:
    """Makes the users of a run, who share a model and a budget."""

    def __init__(
        self,
        model: str | None,
        base_url: str | None,
        budget: Budget,
        timeout_s: float = 120.0,
        retries: int = 5,
        concurrency: int = 32,
    ) -> None:
        """Load the model if it `is_local`; a server gets no request yet.

        Raises:
            InputError: no model is named, a package or an API key is missing, or there is no
                such model.
        """
        if model is None:
            raise InputError("--user-model", "missing", "give the model that plays the user")
        self._budget = budget
        if is_local(model, base_url):
            player = LocalModel.load(model, concurrency)
            self.close, self._answer = player.close, player.complete
        else:
            server = Endpoint(base_url, timeout_s, retries, "--user llm")
            self.close = server.close
            self._answer = lambda name, body: server.complete({"model": model, **body})

    def new(self, task: Task, seed: int) -> LlmUser:
        """Return the user of an episode.

        Call this in a running event loop, which sends the user's requests. Call the user from any
        other thread.
        """
        loop = asyncio.get_running_loop()

        def ask(body: dict[str, Any]) -> Answer:
            answer = self._complete(f"{task.task_id}/{seed}", body)
            return asyncio.run_coroutine_threadsafe(answer, loop).result()

        return LlmUser(task.scenario, ask, seed)

    async def _complete(self, name: str, body: dict[str, Any]) -> Answer:
        self._budget.check()
        try:
            answer = await self._answer(name, body)
        except EndpointError as error:
            raise UserError(str(error)) from None
        self._budget.spend(body, answer)
        return answer


class LlmUser:
    """A user of one episode.

    Roles are swapped for the model: it is the assistant, and the agent is its user.
    """

    def __init__(self, scenario: Any, ask: Callable[[dict[str, Any]], Answer], seed: int) -> None:
        """Make the system prompt of a scenario.

        Args:
            scenario: the task's, tau2-bench's {persona, instructions} or any other JSON value.
            ask: answers a chat request that names no model; raises UserError.
            seed: seed of the episode.
        """
        self._ask, self._seed = ask, seed
        self._dialog: list[Message] = [{"role": "system", "content": prompt_of(scenario)}]
        self._tools: list[dict[str, Any]] = []
        self._call: Callable[[str, Any], str] | None = None
        self._asked = 0

    def equip(self, tools: list[dict[str, Any]], call: Callable[[str, Any], str], /) -> None:
        """Take the user's own tools, as in telecom, and the function that calls one."""
        self._tools, self._call = tools, call
        prompt = self._dialog[0]
        self._dialog[0] = {**prompt, "content": f"{prompt['content']}\n\n{EQUIPPED}"}

    def open(self) -> str:
        """Return the user's first message."""
        return self._answer(GREETING)

    def reply(self, agent: str, history: Sequence[Message]) -> str:
        """Answer the agent's text; see `User`."""
        return self._answer(agent)

    def _answer(self, agent: str) -> str:
        self._dialog.append({"role": "user", "content": agent})
        wrong: str | None = None
        for _ in range(ATTEMPTS):
            text = self._speak()
            wrong = fault(text)
            if wrong is None:
                self._dialog.append({"role": "assistant", "content": text})
                return text
        raise UserError(f"the user does not speak as a customer: {wrong}")

    def _speak(self) -> str:
        """Return the next text, after executing the tool calls that precede it."""
        for _ in range(TOOL_CALLS):
            said = self._request()
            calls = said.get("tool_calls")
            if not self._call or not isinstance(calls, list) or not calls:
                content = said.get("content")
                return plain_text(content).strip() if isinstance(content, str) else ""
            self._dialog.append({"role": "assistant", "content": None, "tool_calls": calls})
            for call in calls:
                self._dialog.append(self._result(call))
        raise UserError(f"the user made {TOOL_CALLS} calls without a word")

    def _result(self, call: Any) -> Message:
        assert self._call is not None
        try:
            function = call["function"]
            name, arguments = str(function["name"]), function.get("arguments")
            call_id = str(call["id"])
        except (LookupError, TypeError, AttributeError):
            raise UserError("the user's tool call has no name or id") from None
        text = self._call(name, plain_text(arguments) if isinstance(arguments, str) else arguments)
        return {"role": "tool", "tool_call_id": call_id, "content": text}

    def _request(self) -> dict[str, Any]:
        self._asked += 1  # changes the seed, so that a second attempt differs from the first
        body: dict[str, Any] = {"messages": self._dialog, "seed": self._seed + self._asked}
        if self._tools:
            body["tools"] = self._tools
        said: dict[str, Any] = self._ask(body)["choices"][0]["message"]
        return said


def prompt_of(scenario: Any) -> str:
    """Return the system prompt for a scenario."""
    others = dict(scenario) if isinstance(scenario, Mapping) else {"instructions": scenario}
    instructions = others.pop("instructions", None)
    others |= (
        instructions if isinstance(instructions, Mapping) else {"task_instructions": instructions}
    )
    known = {key: others.pop(key, None) for key in FIELDS}
    parts = [f"{FIELDS[key]}:\n{_text(value)}" for key, value in known.items() if value]
    parts += [
        f"{key.replace('_', ' ').capitalize()}:\n{_text(value)}" for key, value in others.items()
    ]
    return "\n\n".join([RULES, *parts])


def fault(text: str) -> str | None:
    """Return why a text can't be a customer's; None if it can."""
    if not text:
        return "it is empty"
    for what, pattern in AGENT_SPEAKS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return what
    return None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
