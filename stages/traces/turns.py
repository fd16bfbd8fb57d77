"""Turns from a list of chat messages, whatever dialect of tool calls they use."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stages.dialects import recorded_calls
from stages.traces.episode import Call, Turn
from stages.traces.fields import LARGEST

# Hermes-style results inside plain text; the last one may have been cut off.
TEXT_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?(?:</tool_response>|\Z)", re.DOTALL)

SILENT_ROLES = frozenset({"system", "developer"})

Open = dict[Any, Call | None]  # calls by id; None where a result's id would be ambiguous


def read_turns(
    messages: list[Any], notes: Counter[str], tools: Sequence[Any] | None = None
) -> tuple[list[Turn], list[Call]]:
    """The policy's turns and the simulated user's own calls, in order.

    Each assistant message is one turn. A result belongs to the open call that has its id; where
    ids are missing, repeated or wrong, to the first open call of the last message with calls.

    Args:
        messages: messages of one conversation as recorded; anything malformed is skipped.
        notes: counts what was repaired or skipped.
        tools: definitions, where they are known; calls as XML text leave types to them.
    """
    turns: list[Turn] = []
    user_calls: list[Call] = []
    by_id: Open = {}
    latest: list[Call] = []  # calls of the last message that had any
    latest_of_user: list[Call] = []
    unanswered = 0
    for message in messages:
        try:
            role = message["role"]
            get = message.get
        except (AttributeError, KeyError, TypeError):
            notes["message without a role"] += 1
            continue
        if role == "assistant":
            entries = get("tool_calls")
            if entries:
                calls = _structured_calls(entries, by_id, notes)
            else:
                content = get("content")
                if type(content) is list:
                    content = text_of(content)
                    notes["content in parts"] += 1
                calls = []
                if type(content) is str and "<tool_call>" in content:
                    calls = _text_calls(content, tools or (), notes)
                if not calls and (legacy := get("function_call")):
                    calls = _legacy_call(legacy, notes)
            if calls:
                latest = calls
                unanswered += len(calls)
            n_tokens = None
            if "n_tokens" in message:
                n_tokens = message["n_tokens"]
            elif "usage" in message and type(message["usage"]) is dict:
                n_tokens = message["usage"].get("completion_tokens")
            if n_tokens is not None and type(n_tokens) is not int:
                notes["token count not an integer"] += 1
                n_tokens = None
            elif n_tokens is not None and not 0 <= n_tokens <= LARGEST:
                notes["token count out of range"] += 1
                n_tokens = None
            turns.append(Turn(calls, n_tokens, get("content"), len(user_calls)))
        elif role == "tool" or role == "function":
            # OpenAI names the call in `tool_call_id`, tau2-bench in the result's own `id`.
            call_id = get("tool_call_id") or get("id")
            call = by_id.get(call_id) if type(call_id) is str else None
            of_user = get("requestor") == "user"
            if call is None or call.result is not None:
                for call in latest_of_user if of_user else latest:
                    if call.result is None:
                        break
                else:
                    notes["result without a call"] += 1
                    continue
            result = get("content")
            if type(result) is not str:
                result = text_of(result)
            call.result = result
            if get("error") or get("is_error"):
                call.flagged = True
            if result.startswith("Error") or call.flagged:
                call.failed = True
            if not of_user:
                unanswered -= 1
        elif role == "user":
            if entries := get("tool_calls"):
                latest_of_user = _structured_calls(entries, by_id, notes)
                user_calls += latest_of_user
            elif unanswered:
                content = get("content")
                if type(content) is str and "<tool_response>" in content:
                    unanswered -= _text_results(content, latest, notes)
        elif type(role) is not str or role not in SILENT_ROLES:
            notes[f"unknown role {role!r:.40}"] += 1
    if unanswered:
        notes["call without a result"] += unanswered
    return turns, user_calls


def text_of(content: Any) -> str:
    """Plain text of a message's content: text, null, a list of parts, or any JSON value."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(part is None or isinstance(part, str) for part in parts):
            return "".join(part or "" for part in parts)
    return json.dumps(content, ensure_ascii=False, default=str)


def _structured_calls(entries: Any, by_id: Open, notes: Counter[str]) -> list[Call]:
    """Calls of `tool_calls`: entries are {id, function: {name, arguments}} or flat."""
    if type(entries) is not list:
        notes["tool_calls not a list"] += 1
        return []
    calls = []
    for entry in entries:
        try:
            function = entry.get("function") or entry
            name = function.get("name")
            call = Call(name, function.get("arguments"))
            call_id = entry.get("id")
        except AttributeError:
            notes["tool call not an object"] += 1
            continue
        if type(name) is not str:
            notes["call without a name"] += 1
            call.name = ""
        if type(call_id) is not str or not call_id:
            notes["call id missing"] += 1
        elif call_id in by_id:
            notes["call id repeated"] += 1
            earlier = by_id[call_id]
            by_id[call_id] = call if earlier and earlier.result is not None else None
        else:
            by_id[call_id] = call
        calls.append(call)
    return calls


def _legacy_call(function: Any, notes: Counter[str]) -> list[Call]:
    """The one call of OpenAI's old `function_call`, which has no id."""
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        notes["call without a name"] += 1
        return [Call("", function)]
    notes["legacy function_call"] += 1
    return [Call(function["name"], function.get("arguments"))]


def _text_calls(content: str, tools: Sequence[Any], notes: Counter[str]) -> list[Call]:
    """Calls written as `<tool_call>...</tool_call>`, in order of the text."""
    calls = []
    for written in recorded_calls(content, tools):
        notes["call read from text"] += 1
        if written.broken:
            notes["broken call in text"] += 1
        calls.append(Call(written.name, written.arguments))
    return calls


def _text_results(content: str, calls: list[Call], notes: Counter[str]) -> int:
    """Give the results in a text to the open calls, in order; how many found theirs."""
    results = TEXT_RESULT.findall(content)
    still_open = [call for call in calls if call.result is None]
    for call, result in zip(still_open, results, strict=False):
        call.result, call.failed = result, result.startswith("Error")
    if len(results) > len(still_open):
        notes["result without a call"] += len(results) - len(still_open)
    return min(len(results), len(still_open))
