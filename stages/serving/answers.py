"""Validation of servers' answers: a completion is checked before anything is taken from it.

The checks only reject what a server can get wrong, never what a model wrote, because a broken
answer says nothing about the policy.
"""

from __future__ import annotations

import json
import math
from typing import Any

from stages.core.limits import LARGEST, LEAST_LOGPROB, LOGPROB_SLACK

Answer = dict[str, Any]  # JSON values

CHAT, COMPLETIONS = "/chat/completions", "/completions"
KINDS = {CHAT: "chat completion", COMPLETIONS: "completion"}
# Known values of finish_reason: ended by the model or a call, and (CUTS) by a limit; None: unknown.
ENDS = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls", None})
CUTS = frozenset({"length", "max_tokens", "model_length"})


class AnswerError(ValueError):
    """An answer is malformed; the text says how."""


def checked(answer: Any, path: str) -> Answer:
    """Check a completion and normalise it: message content is text or None, arguments are text.

    Args:
        answer: JSON values; normalised in place.
        path: CHAT or COMPLETIONS.

    Returns:
        The answer.

    Raises:
        AnswerError: the answer is malformed.
    """
    try:
        choice = _only_choice(answer)
        _check_end(choice)
        if path == CHAT:
            choice["message"] = _message(choice)
        else:
            _want(isinstance(choice.get("text"), str), "it has no text")
        _check_counts(answer)
        _check_ids(answer, "prompt_token_ids")
        _check_ids(choice, "token_ids")
        _check_logprobs(choice.get("logprobs"))
        if path == CHAT:
            _check_sampled(answer, choice)
    except (AnswerError, RecursionError) as error:
        wrong = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise AnswerError(f"the answer is no {KINDS[path]}: {wrong}") from None
    return answer  # type: ignore[no-any-return]  # a dict, as _only_choice checks


def is_cut(choice: dict[str, Any]) -> bool:
    """Return whether a limit ended the message of a choice.

    Args:
        choice: choice of a checked answer.

    Returns:
        True if it was cut off.
    """
    return choice.get("finish_reason") in CUTS


def _want(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AnswerError(otherwise)


def _only_choice(answer: Any) -> dict[str, Any]:
    _want(isinstance(answer, dict), "it is no object")
    if error := answer.get("error"):
        raise AnswerError(f"it holds an error, {_quoted(error)}")
    choices = answer.get("choices")
    _want(isinstance(choices, list), "it has no list of choices")
    _want(len(choices) == 1, f"it has {len(choices):,} choices, not one")
    choice = choices[0]
    if not isinstance(choice, dict):
        raise AnswerError("its choice is no object")
    if error := choice.get("error"):
        raise AnswerError(f"its choice holds an error, {_quoted(error)}")
    return choice


def _check_end(choice: dict[str, Any]) -> None:
    reason = choice.get("finish_reason")
    known = reason is None or isinstance(reason, str)
    _want(known and (reason in ENDS or reason in CUTS), f"its finish_reason is {_quoted(reason)}")


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    """Return the message of a choice, with normalised text and calls."""
    message = choice.get("message")
    if not isinstance(message, dict):
        raise AnswerError("it has no message")
    role = message.get("role", "assistant")
    _want(role in ("assistant", None), f"its message is of the role {_quoted(role)}")
    content, refusal = _text(message.get("content")), message.get("refusal")
    if content is None and isinstance(refusal, str):
        content = refusal
    calls = message.get("tool_calls")
    _want(calls is None or isinstance(calls, list), "its tool_calls are no list")
    lost = choice.get("finish_reason") == "tool_calls" and not calls
    _want(not lost, "its finish_reason is 'tool_calls', and it has none")
    return {**message, "content": content, "tool_calls": [_call(call) for call in calls or ()]}


def _text(content: Any) -> str | None:
    """Return content as a single text; it may come in parts."""
    if content is None or isinstance(content, str):
        return content
    _want(isinstance(content, list), "its content is no text")
    return "".join(_text_of_part(part) for part in content)


def _text_of_part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") in ("text", "output_text", "refusal"):
        text = part.get("refusal" if part["type"] == "refusal" else "text")
        if isinstance(text, str):
            return text
    raise AnswerError("its content has a part that is no text")


def _call(call: Any) -> dict[str, Any]:
    """Return a tool call with its arguments as text; their content is up to the model."""
    function = call.get("function") if isinstance(call, dict) else None
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise AnswerError("a call of a tool has no name")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        _want(arguments is None or isinstance(arguments, dict), "arguments of a call are no text")
        arguments = json.dumps(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _check_counts(answer: Answer) -> None:
    usage = answer.get("usage")
    _want(usage is None or isinstance(usage, dict), "its usage is no object")
    for name in ("prompt_tokens", "completion_tokens"):
        count = (usage or {}).get(name)
        _want(count is None or _whole(count), f"its {name} are {_quoted(count)}")


def _check_ids(holder: dict[str, Any], name: str) -> None:
    ids = holder.get(name)
    if ids is not None:
        _want(isinstance(ids, list) and len(ids) > 0, f"its {name} are no list of ids")
        wrong = [token for token in ids if not _whole(token)]
        _want(not wrong, f"its {name} hold {_quoted(wrong[0]) if wrong else ''}")


def _check_logprobs(given: Any) -> None:
    """Check the logprobs of sampled tokens, in the formats of chats and of completions."""
    if not isinstance(given, dict):
        return
    content, values = given.get("content"), given.get("token_logprobs")
    logprobs = [token.get("logprob") for token in _objects(content)]
    logprobs += values if isinstance(values, list) else []
    for logprob in logprobs:
        _want(logprob is None or _possible(logprob), f"a logprob is {_quoted(logprob)}")


def _objects(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _check_sampled(answer: Answer, choice: dict[str, Any]) -> None:
    """Check that a message was sampled; it may be empty, but a model samples at least one token."""
    message, usage = choice["message"], answer.get("usage") or {}
    if not (message["content"] or message["tool_calls"] or message.get("reasoning_content")):
        counted = usage.get("completion_tokens")
        _want(counted != 0, "no token was sampled")
        known = counted or choice.get("token_ids") or message["content"] is not None
        _want(bool(known), "its message is empty")


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _possible(logprob: Any) -> bool:
    return type(logprob) in (int, float) and LEAST_LOGPROB <= logprob <= LOGPROB_SLACK


def _quoted(value: Any) -> str:
    """Return a server's value for an error: shortened, and of an error object its message only."""
    if isinstance(value, dict) and isinstance(value.get("message"), str):
        value = value["message"]
    if isinstance(value, int) and not isinstance(value, bool):
        # Python refuses to print integers with thousands of digits.
        return str(value) if abs(value) < 10**18 else f"about 10^{math.log10(abs(value)):.0f}"
    return f"{value!r:.80}"
