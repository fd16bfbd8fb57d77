"""Random episodes, and writers of them in every form and container that traces have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A call and its answer."""

    name: str
    arguments: Json
    result: str | None = "ok"
    failed: bool = False  # by the flag, in forms that have one


@dataclass(frozen=True)
class Talk:
    """An episode as it is to be read: per turn its text and calls."""

    turns: list[tuple[str, list[Asked]]]
    outcome: float = 1.0
    gold: list[tuple[str, Json]] = field(default_factory=list)
    task: str = "t"
    trial: int = 0


_WORDS = st.text("abcxyz é", min_size=1, max_size=5).map(str.strip).filter(bool)
_VALUES = st.none() | st.booleans() | st.integers(-9, 99) | _WORDS | st.lists(_WORDS, max_size=2)
ARGUMENTS = st.dictionaries(
    _WORDS, _VALUES | st.dictionaries(_WORDS, _VALUES, max_size=1), max_size=3
)
_NAMES = st.sampled_from(["get", "put", "cancel_order"])
_CALLS = st.builds(Asked, _NAMES, ARGUMENTS, _WORDS, st.booleans())


@st.composite
def talks(draw: st.DrawFn, most_calls: int = 3) -> Talk:
    """Draw an episode; where calls have no answer, nothing follows and nothing was said."""
    calls = st.lists(_CALLS, max_size=most_calls)
    turns = draw(st.lists(st.tuples(_WORDS, calls), min_size=1, max_size=4))
    if draw(st.booleans()):
        turns.append(("", [replace(draw(_CALLS), result=None, failed=False)]))
    gold = draw(st.lists(st.tuples(_NAMES, ARGUMENTS), max_size=2))
    return Talk(turns, draw(st.sampled_from([0.0, 0.25, 1.0])), gold)


# --- messages -------------------------------------------------------------------------------------


def _answered(calls: list[Asked], first: int) -> Iterator[tuple[str, Asked, str]]:
    """(id, call, result) of each answered call, the last one first: ids tell them apart."""
    for place, call in reversed(list(enumerate(calls, first))):
        if call.result is not None:
            yield f"c{place}", call, call.result


def openai(talk: Talk) -> list[Json]:
    def said(text: str, calls: list[Asked], first: int) -> list[Json]:
        entries = [
            {
                "id": f"c{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for place, call in enumerate(calls, first)
        ]
        return [{"role": "assistant", "content": text or None, "tool_calls": entries or None}]

    def answers(calls: list[Asked], first: int) -> list[Json]:
        return [
            {"role": "tool", "tool_call_id": id, "name": call.name, "content": result}
            for id, call, result in _answered(calls, first)
        ]

    return _messages(talk, said, answers, {"role": "user", "content": "go on"})


def flat(talk: Talk) -> list[Json]:
    """Write tau2-bench's messages."""

    def said(text: str, calls: list[Asked], first: int) -> list[Json]:
        entries = [
            {
                "id": f"c{k}",
                "name": call.name,
                "arguments": call.arguments,
                "requestor": "assistant",
            }
            for k, call in enumerate(calls, first)
        ]
        return [{"role": "assistant", "content": text or None, "tool_calls": entries or None}]

    def answers(calls: list[Asked], first: int) -> list[Json]:
        tool = {"role": "tool", "requestor": "assistant"}
        return [
            {**tool, "id": id, "content": result, "error": call.failed}
            for id, call, result in _answered(calls, first)
        ]

    return _messages(talk, said, answers, {"role": "user", "content": "go on", "tool_calls": None})


def anthropic(talk: Talk) -> list[Json]:
    def said(text: str, calls: list[Asked], first: int) -> list[Json]:
        blocks: list[Json] = [{"type": "text", "text": text}] if text else []
        blocks += [
            {"type": "tool_use", "id": f"c{k}", "name": call.name, "input": call.arguments}
            for k, call in enumerate(calls, first)
        ]
        return [{"role": "assistant", "content": blocks}]

    def answers(calls: list[Asked], first: int) -> list[Json]:
        blocks = [
            {
                "type": "tool_result",
                "tool_use_id": id,
                "content": [{"type": "text", "text": result}],
                "is_error": call.failed,
            }
            for id, call, result in _answered(calls, first)
        ]
        return [{"role": "user", "content": blocks}] if blocks else []

    return _messages(talk, said, answers, {"role": "user", "content": "go on"})


def langchain(talk: Talk) -> list[Json]:
    def said(text: str, calls: list[Asked], first: int) -> list[Json]:
        entries = [
            {"name": call.name, "args": call.arguments, "id": f"c{k}", "type": "tool_call"}
            for k, call in enumerate(calls, first)
        ]
        return [{"type": "ai", "content": text, "tool_calls": entries}]

    def answers(calls: list[Asked], first: int) -> list[Json]:
        return [
            {
                "type": "tool",
                "content": result,
                "tool_call_id": id,
                "status": "error" if call.failed else "success",
            }
            for id, call, result in _answered(calls, first)
        ]

    return _messages(talk, said, answers, {"type": "human", "content": "go on"})


def langchain_serialised(talk: Talk) -> list[Json]:
    classes = {"ai": "AIMessage", "tool": "ToolMessage", "human": "HumanMessage"}
    path = ["langchain", "schema", "messages"]
    return [
        {
            "lc": 1,
            "type": "constructor",
            "id": [*path, classes[message["type"]]],
            "kwargs": {key: value for key, value in message.items() if key != "type"},
        }
        for message in langchain(talk)
    ]


def responses(talk: Talk) -> list[Json]:
    def said(text: str, calls: list[Asked], first: int) -> list[Json]:
        parts = [{"type": "output_text", "text": text}]
        items: list[Json] = [{"type": "reasoning", "summary": []}]
        items += [{"type": "message", "role": "assistant", "content": parts}] if text else []
        return items + [
            {
                "type": "function_call",
                "id": f"fc_{k}",
                "call_id": f"c{k}",
                "name": call.name,
                "arguments": json.dumps(call.arguments),
            }
            for k, call in enumerate(calls, first)
        ]

    def answers(calls: list[Asked], first: int) -> list[Json]:
        return [
            {"type": "function_call_output", "call_id": id, "output": result}
            for id, _, result in _answered(calls, first)
        ]

    return _messages(talk, said, answers, {"role": "user", "content": "go on"})


def gemini(talk: Talk) -> list[Json]:
    def said(text: str, calls: list[Asked], first: int) -> list[Json]:
        parts: list[Json] = [{"text": text}] if text else []
        parts += [{"functionCall": {"name": c.name, "args": c.arguments}} for c in calls]
        return [{"role": "model", "parts": parts}]

    def answers(calls: list[Asked], first: int) -> list[Json]:
        parts = [
            {"functionResponse": {"name": call.name, "response": {"result": call.result}}}
            for call in calls
            if call.result is not None
        ]
        return [{"role": "user", "parts": parts}] if parts else []

    return _messages(talk, said, answers, {"role": "user", "parts": [{"text": "go on"}]})


def react(talk: Talk) -> list[Json]:
    def said(text: str, calls: list[Asked], first: int) -> list[Json]:
        name, arguments = "respond", {"content": text}
        if calls:
            name, arguments = calls[0].name, calls[0].arguments
        action = json.dumps({"name": name, "arguments": arguments})
        return [{"role": "assistant", "content": f"Thought:\n{text}\nAction:\n{action}"}]

    def answers(calls: list[Asked], first: int) -> list[Json]:
        answered = _answered(calls, first)
        return [{"role": "user", "content": f"API output: {result}"} for _, _, result in answered]

    return _messages(talk, said, answers, {"role": "user", "content": "go on"})


Said = Callable[[str, list[Asked], int], list[Json]]
Answers = Callable[[list[Asked], int], list[Json]]


def _messages(talk: Talk, said: Said, answers: Answers, user: Json) -> list[Json]:
    messages, first = [user], 0
    for text, calls in talk.turns:
        messages += said(text, calls, first)
        messages += answers(calls, first) if calls else [user]
        first += len(calls)
    return messages


Writer = Callable[[Talk], list[Json]]
FLAGGED: dict[str, Writer] = {  # the forms whose results have a flag
    "flat": flat,
    "anthropic": anthropic,
    "langchain": langchain,
    "langchain serialised": langchain_serialised,
}
FORMS: dict[str, Writer] = FLAGGED | {
    "openai": openai,
    "responses": responses,
    "gemini": gemini,
    "react": react,
}


# --- records --------------------------------------------------------------------------------------


def tau_bench(talk: Talk, write: Writer) -> Json:
    actions = [{"name": name, "kwargs": arguments} for name, arguments in talk.gold]
    return {
        "task_id": talk.task,
        "trial": talk.trial,
        "reward": talk.outcome,
        "traj": write(talk),
        "info": {"task": {"user_id": "u", "actions": actions, "outputs": []}},
    }


def _action(name: str, arguments: Json) -> Json:
    action: Json = {"name": name, "arguments": arguments, "requestor": "assistant"}
    return action | {"compare_args": None}


def simulation(talk: Talk) -> Json:
    checks = [
        {"action": _action(name, arguments), "action_match": True, "action_reward": 1.0}
        for name, arguments in talk.gold
    ]
    return {
        "id": f"{talk.task}-{talk.trial}",
        "task_id": talk.task,
        "trial": talk.trial,
        "termination_reason": "user_stop",
        "reward_info": {"reward": talk.outcome, "action_checks": checks},
        "messages": flat(talk),
    }


def results_header(*all_talks: Talk) -> Json:
    tasks = {
        talk.task: {
            "id": talk.task,
            "evaluation_criteria": {"actions": [_action(*action) for action in talk.gold]},
        }
        for talk in all_talks
    }
    environment = {"domain_name": "retail"}
    return {"info": {"environment_info": environment}, "tasks": list(tasks.values())}


def conversation(talk: Talk, write: Writer) -> Json:
    return {
        "episode_id": f"{talk.task}/{talk.trial}",
        "task_id": talk.task,
        "trial": talk.trial,
        "group_id": f"g/{talk.task}",
        "status": "truncated",
        "outcome": talk.outcome,
        "gold_actions": [{"name": name, "arguments": given} for name, given in talk.gold],
        "messages": write(talk),
    }
