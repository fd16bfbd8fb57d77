"""One episode: takes the model's messages, answers them, and judges the outcome."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from stages.envs.airline_mini.database import Database, Tables
from stages.envs.airline_mini.tools import TOOLS, Schema, call_tool
from stages.envs.env import OUT_OF_SCOPE, STOP, TRANSFER, Outcome, Task, User
from stages.messages.message import Message

TYPES: dict[str, Any] = {"string": str, "integer": int, "array": list, "object": dict}


class AirlineSession:
    """One episode in progress; it owns its database and its user."""

    def __init__(self, tables: Tables, task: Task, policy: str, user: User) -> None:
        self.task = task
        self.done = False
        self.database = Database(tables)
        self._user = user
        self.messages: list[Message] = [{"role": "system", "content": policy}]
        self._hear(user.open())

    def step(self, message: Message) -> list[Message]:
        """Take the assistant's message; see `Session`.

        After the end nothing changes. A hand-off ends the episode; calls after it get errors.
        """
        if self.done:
            return []
        self.messages.append(message)
        calls = message.get("tool_calls")
        if calls:
            return self._answer(calls if isinstance(calls, list) else [calls])
        content = message.get("content")
        return self._hear(self._user.reply(_text(content), self.messages))

    def outcome(self) -> Outcome:
        """Judge the episode so far: the state of the database, and what the user was told."""
        goal = Database(self.database.tables)
        for action in self.task.gold_actions:
            call_tool(goal, action["name"], action["arguments"])
        told = "\n".join(_text(m.get("content")) for m in self.messages if _spoken(m)).lower()
        parts = {
            "database": self.database.state() == goal.state(),
            "told": all(_mentions(told, info) for info in self.task.required_info),
        }
        return Outcome(float(all(parts.values())), parts)

    def _answer(self, calls: list[Any]) -> list[Message]:
        results: list[Message] = []
        for call in calls:
            content = "Error: conversation is over" if self.done else run_call(self.database, call)
            call_id = call.get("id") if isinstance(call, Mapping) else None
            results.append({"role": "tool", "tool_call_id": call_id, "content": content})
            self.done = self.database.handed_off
        self.messages += results
        return results

    def _hear(self, text: str) -> list[Message]:
        if any(end in text for end in (STOP, TRANSFER, OUT_OF_SCOPE)):
            self.done = True
            return []
        heard: Message = {"role": "user", "content": text}
        self.messages.append(heard)
        return [heard]


def run_call(database: Database, call: Any) -> str:
    """Execute a tool call as a model wrote it; never raises.

    Args:
        database: database of the episode; a write that succeeds changes it.
        call: a call in OpenAI's form, or anything else.

    Returns:
        The result, or text that starts with "Error".
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or name not in TOOLS:
        return "Error: unknown tool"
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            return "Error: arguments are not json"
    complaint = problem(TOOLS[name].parameters, arguments, "arguments")
    if complaint or not isinstance(arguments, dict):
        return f"Error: {complaint}"
    return call_tool(database, name, arguments)


def problem(schema: Schema, value: Any, name: str) -> str | None:
    """Return what is wrong with a value, by the part of JSON schema that the tools use, or None.

    The text never repeats the model's value, which may be long and contain anything.
    """
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or isinstance(value, bool):
        return f"{name} must be {kind}"
    if kind == "object":
        for key in schema["required"]:
            if key not in value:
                return f"{key} is missing"
        if not value.keys() <= schema["properties"].keys():
            return f"unknown key in {name}"
        inner = [problem(schema["properties"][key], value[key], key) for key in value]
        return next(filter(None, inner), None)
    if kind == "array":
        if not schema["minItems"] <= len(value) <= schema["maxItems"]:
            return f"{name} has a wrong number of entries"
        return next(filter(None, (problem(schema["items"], item, name) for item in value)), None)
    if kind == "integer" and not schema["minimum"] <= value <= schema["maximum"]:
        return f"{name} is out of range"
    if kind == "string":
        if "enum" in schema and value not in schema["enum"]:
            return f"unknown {name}"
        if len(value) > schema.get("maxLength", len(value)) or not value.isprintable():
            return f"{name} is not readable"
    return None


def _text(content: Any) -> str:
    """Return the text of a message; it may be null, or a list of parts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return " ".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _spoken(message: Message) -> bool:
    """Return whether the user sees a message: text beside tool calls stays with the agent."""
    return message.get("role") == "assistant" and not message.get("tool_calls")


def _mentions(told: str, info: str) -> bool:
    """Return whether a text contains a word or number, not only as part of a longer one."""
    return bool(re.search(rf"(?<![\w-]){re.escape(info.lower())}(?![\w-])", told))
