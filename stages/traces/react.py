"""tau-bench's `act` and `react` strategies: a call is text, `Action:` and JSON below it.

Read as tau-bench itself does (`ChatReActAgent.generate_next_step`): what follows the last
`Action:` is the action if it is JSON, and else speech. `respond` is speech, too. The answer of a
tool comes back in a message of the user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.traces.calls import UnreadableCallError, Written
from stages.traces.envelopes import text_of

ACTION = "Action:"
# tau-bench's own; other harnesses of this form write "Observation:".
ANSWER = re.compile(r"\s*(?:API output|Observation)\s*:[ \n]?", re.IGNORECASE)
RESPOND = "respond"
# Anything else that may stand after "Action:" is prose.
OPENING = re.compile(r"(?:^|\n)\s*Action:\s*(?:```(?:json)?\s*)?\{")


class Step(NamedTuple):
    """What an assistant message of these strategies does: it calls a tool, or it speaks."""

    call: Written | None
    speech: str | None = None
    is_prose: bool = False  # it speaks without an action


def is_react(messages: Sequence[Any]) -> bool:
    """Whether a conversation is of these strategies; one with calls of its own kind is not."""
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
        UnreadableCallError: the action lacks its name or its arguments, where tau-bench stops.
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
