"""Read tau-bench's `act` and `react` strategies: a call is the text `Action:` followed by JSON.

The parser follows tau-bench (`ChatReActAgent.generate_next_step`): the text after the last
`Action:` is the action if it is JSON, else it is speech. The action `respond` is speech too. A
tool's answer is in a user message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.traces.calls import UnreadableCallError, Written
from stages.traces.envelopes import text_of

ACTION = "Action:"
# tau-bench writes "API output:"; other harnesses of this form write "Observation:".
ANSWER = re.compile(r"\s*(?:API output|Observation)\s*:[ \n]?", re.IGNORECASE)
RESPOND = "respond"
# Anything else after "Action:" is prose.
OPENING = re.compile(r"(?:^|\n)\s*Action:\s*(?:```(?:json)?\s*)?\{")


class Step(NamedTuple):
    """An assistant message of these strategies: a tool call, or speech."""

    call: Written | None
    speech: str | None = None
    is_prose: bool = False  # speech without an action


def is_react(messages: Sequence[Any]) -> bool:
    """Return whether a conversation uses these strategies; one with `tool_calls` does not."""
    signs = False
    for message in messages:
        if not isinstance(message, dict):
            continue
        if message.get("tool_calls"):
            return False
        content = message.get("content")
        if type(content) is not str:
            if type(content) is not list:
                continue
            content = text_of(content)
        if message.get("role") == "assistant":
            signs = signs or (ACTION in content and OPENING.search(content) is not None)
        elif message.get("role") == "user":
            signs = signs or content.startswith("API output:")
    return signs


def read_step(text: str) -> Step:
    """Read one assistant message.

    Raises:
        UnreadableCallError: the action lacks its name or its arguments; tau-bench stops there.
    """
    written = text.split(ACTION)[-1].strip()
    try:
        action = json.loads(written)
    except (ValueError, RecursionError):
        return Step(None, written, is_prose=True)
    if not isinstance(action, dict):
        return Step(None, written, is_prose=True)
    if not isinstance(action.get("name"), str) or "arguments" not in action:
        raise UnreadableCallError("an action without a name or without arguments")
    arguments = action["arguments"]
    if action["name"] == RESPOND:
        said = arguments.get("content") if isinstance(arguments, dict) else arguments
        return Step(None, said if isinstance(said, str) else written)
    return Step(Written(action["name"], arguments, None))
