"""Find the messages in a GenAI span, in any version of the conventions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.traces.calls import object_in

Messages = list[Any]

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
SYSTEMS = ("gen_ai.system_instructions", "gen_ai.system.instructions")
ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
CHOICE = "gen_ai.choice"
# Version 1.27 and earlier: one event for the whole input and one for the output.
PROMPT, COMPLETION = "gen_ai.content.prompt", "gen_ai.content.completion"
# Numbered messages, with one attribute per key: names of OpenLLMetry, then of OpenInference.
NUMBERED = (
    (
        re.compile(r"gen_ai\.prompt\.(\d{1,9})\.(.+)"),
        re.compile(r"gen_ai\.completion\.(\d{1,9})\.(.+)"),
    ),
    (
        re.compile(r"llm\.input_messages\.(\d{1,9})\.message\.(.+)"),
        re.compile(r"llm\.output_messages\.(\d{1,9})\.message\.(.+)"),
    ),
)
CALL_KEY = re.compile(r"tool_calls\.(\d{1,9})\.(?:tool_call\.)?(.+)")
CONTENT_KEY = re.compile(r"contents\.(\d{1,9})\.message_content\.(.+)")


def messages_of(span: Mapping[str, Any]) -> tuple[Messages, Messages]:
    """Return the input and output messages of a span; both are empty if it holds no output.

    Of several choices only the first is returned, because the conversation continues with it.
    """
    attributes = span["attributes"]
    for read in (_of_attributes, _of_events, _of_event_attribute, _of_numbers, _of_ai_sdk):
        heard, said = read(attributes, span["events"])
        if said:
            return [*_system(attributes), *heard], _counted(said[:1], attributes)
    return [], []


def finish_reason(span: Mapping[str, Any], said: Messages) -> Any:
    """Return why the model stopped, from its message or else from its span."""
    if said and isinstance(said[0], dict) and said[0].get("finish_reason"):
        return said[0]["finish_reason"]
    reasons = value_of(span["attributes"].get("gen_ai.response.finish_reasons"))
    return reasons[0] if isinstance(reasons, list) and reasons else None


def value_of(attribute: Any) -> Any:
    """Return the value of an attribute, parsed if it is JSON text."""
    return object_in(attribute)


def _of_attributes(attributes: Mapping[str, Any], events: Any) -> tuple[Messages, Messages]:
    return _list(attributes.get(INPUT)), _list(attributes.get(OUTPUT))


def _of_events(attributes: Any, events: Iterable[Mapping[str, Any]]) -> tuple[Messages, Messages]:
    return _by_role((event["name"], _body(event)) for event in events)


def _of_event_attribute(attributes: Mapping[str, Any], events: Any) -> tuple[Messages, Messages]:
    """Read Pydantic AI's and Logfire's events, which are JSON text in one attribute."""
    held = [event for event in _list(attributes.get("events")) if isinstance(event, dict)]
    return _by_role((str(event.get("event.name")), event) for event in held)


def _by_role(events: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[Messages, Messages]:
    heard, said = Messages(), Messages()
    for name, body in events:
        if name in ROLES:
            heard.append(_message(ROLES[name], body))
        elif name == CHOICE:
            inner = object_in(body.get("message"))
            reason = {key: body[key] for key in ("finish_reason",) if key in body}
            said.append({**_message("assistant", inner or body), **reason})
        elif name == PROMPT:
            heard += _list(body.get("gen_ai.prompt"))
        elif name == COMPLETION:
            said += _list(body.get("gen_ai.completion"))
    return heard, said


def _message(role: str, body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        return {"role": role, "content": body}
    content = object_in(body.get("content"))
    if isinstance(content, dict) and "parts" in content:  # ADK: Gemini's content object
        return {"role": role, "parts": content["parts"]}
    stated = {key: value for key, value in body.items() if value is not None}
    known = ("content", "tool_calls", "id", "name", "tool_call_id")
    inner = {key: object_in(stated[key]) for key in known if key in stated}
    if isinstance(stated.get("content"), str):
        inner["content"] = stated["content"]
    return {"role": stated.get("role") or role, **inner}


def _body(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the content of an event: its body, its content in JSON text, or its attributes."""
    attributes: Mapping[str, Any] = event["attributes"]
    for body in (event.get("body"), attributes.get("gen_ai.event.content")):
        body = object_in(body)
        if isinstance(body, dict):
            return body
    return attributes


def _of_numbers(attributes: Mapping[str, Any], events: Any) -> tuple[Messages, Messages]:
    for heard, said in NUMBERED:
        if answers := list(_numbered(attributes, said)):
            return list(_numbered(attributes, heard)), answers
    return [], []


def _of_ai_sdk(attributes: Mapping[str, Any], events: Any) -> tuple[Messages, Messages]:
    """Read Vercel AI SDK's attributes: the prompt as JSON text, and the answer's text and calls."""
    heard = attributes.get("ai.prompt.messages")
    text, calls = (attributes.get(f"ai.response.{key}") for key in ("text", "toolCalls"))
    if heard is None or (text is None and calls is None):
        return [], []
    reason = {"finish_reason": attributes.get("ai.response.finishReason")}
    said = {"role": "assistant", "content": text or "", "tool_calls": value_of(calls)}
    return _list(heard), [{key: value for key, value in (said | reason).items() if value}]


def _numbered(attributes: Mapping[str, Any], pattern: re.Pattern[str]) -> Iterator[dict[str, Any]]:
    """Yield the messages whose keys are numbered attributes, in order."""
    matches = ((pattern.fullmatch(key), value) for key, value in attributes.items())
    messages: dict[int, dict[str, Any]] = {}
    for match, value in matches:
        if match is not None:
            messages.setdefault(int(match[1]), {})[match[2]] = value
    for _, flat in sorted(messages.items()):
        calls: dict[int, dict[str, Any]] = {}
        message: dict[str, Any] = {}
        for key, value in flat.items():
            if call := CALL_KEY.fullmatch(key):
                calls.setdefault(int(call[1]), {})[call[2].removeprefix("function.")] = value
            elif part := CONTENT_KEY.fullmatch(key):
                if part[2] == "text":
                    message["content"] = message.get("content", "") + str(value)
            elif key in ("role", "content", "tool_call_id", "name", "finish_reason"):
                message[key] = value
        if calls:
            message["tool_calls"] = [call for _, call in sorted(calls.items())]
        yield {"role": "assistant", **message}


def _system(attributes: Mapping[str, Any]) -> Messages:
    parts = (value_of(attributes.get(name)) for name in SYSTEMS)
    return [{"role": "system", "content": part} for part in parts if part][:1]


def _counted(said: Messages, attributes: Mapping[str, Any]) -> Messages:
    tokens = attributes.get("gen_ai.usage.output_tokens")
    if not isinstance(tokens, int) or not said or not isinstance(said[0], dict):
        return said
    return [{"role": "assistant", **said[0], "n_tokens": tokens}]


def _list(value: Any) -> Messages:
    value = value_of(value)
    if isinstance(value, dict):
        return [value]
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    return value if isinstance(value, list) else []
