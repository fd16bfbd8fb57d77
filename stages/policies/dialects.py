"""How models write tool calls and thoughts as text, read into OpenAI's form of a message.

Reading never fails. A call that breaks its dialect becomes a call with arguments that no JSON
parser takes, so that the environment answers with an error that the model sees.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from stages.worlds.world import Message

Dialect = Literal["hermes", "xml"]  # Hermes and Qwen3 write JSON, Qwen3.5 and Qwen3-Coder XML
Tools = Sequence[Mapping[str, Any]]

CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"')
ARGUMENTS = re.compile(r'"arguments"\s*:\s*')
FUNCTION = re.compile(r"<function=([^>\n]*)>(.*)</function>", re.DOTALL)
OPENING = re.compile(r"<function=([^>\n]*)")
PARAMETER = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>", re.DOTALL)
WORDS = {"true": True, "false": False, "null": None, "none": None}


def dialect_of(template: str) -> Dialect:
    """Return the dialect of a chat template; Hermes where it shows none."""
    return "xml" if "<function=" in template else "hermes"


def read_message(
    text: str,
    dialect: Dialect = "hermes",
    tools: Tools = (),
    call_id: str = "call",
    thinking: bool = False,
) -> Message:
    """Read what a model wrote, without its end token, as an assistant message.

    Args:
        text: content, thoughts and calls, in any order.
        dialect: of the calls.
        tools: OpenAI definitions; XML leaves types to them.
        call_id: what the ids of calls start with.
        thinking: the prompt has opened the thoughts already.

    Returns:
        The message: `content` (null beside calls if nothing else was written), `tool_calls` with
        arguments as text, and `reasoning_content`, where there are any. JSON arguments are as
        written, to the letter.
    """
    thoughts, rest = _split_thoughts(text, thinking)
    read = _read_json if dialect == "hermes" else _read_xml
    calls = [read(body.strip(), tools) for body in CALL.findall(rest)]
    content = CALL.sub("", rest).strip() if calls else rest.strip()
    message: Message = {"role": "assistant", "content": content or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = thoughts
    return _with_calls(message, calls, call_id)


def _split_thoughts(text: str, thinking: bool) -> tuple[str, str]:
    """Return the thoughts and the rest; thoughts that never end leave no rest."""
    opened = text.lstrip().startswith("<think>")
    if not (thinking or opened):
        return "", text
    inner = text.lstrip().removeprefix("<think>")
    thoughts, _, rest = inner.partition("</think>")
    return thoughts.strip(), rest


def _with_calls(message: Message, calls: Iterable[tuple[str, str]], call_id: str) -> Message:
    made = [
        {
            "id": f"{call_id}_{place}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for place, (name, arguments) in enumerate(calls)
    ]
    return {**message, "tool_calls": made} if made else message


def _read_json(body: str, _tools: Tools) -> tuple[str, str]:
    """Return name and arguments of `{"name": ..., "arguments": {...}}`."""
    call = _loads(body)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        found = NAME.search(body)
        return (found[1] if found else ""), body
    given = call.get("arguments")
    if isinstance(given, dict):
        return call["name"], _verbatim(body, given)
    return call["name"], _as_text(given)


def _verbatim(body: str, value: dict[str, Any]) -> str:
    """Return the text of the arguments as the model wrote it, spaces and doubled keys included."""
    for found in ARGUMENTS.finditer(body):
        try:
            read, end = json.JSONDecoder().raw_decode(body, found.end())
        except ValueError:
            continue
        if read == value:
            return body[found.end() : end]
    return json.dumps(value, ensure_ascii=False)  # the key is written with escapes


def _read_xml(body: str, tools: Tools) -> tuple[str, str]:
    """Return name and arguments of `<function=..><parameter=..> value </parameter></function>`."""
    whole = FUNCTION.fullmatch(body)
    if whole is None or PARAMETER.sub("", whole[2]).strip():
        opening = OPENING.match(body)
        return (opening[1].strip() if opening else ""), body
    name = whole[1].strip()
    types = _types(tools, name)
    pairs = ((key.strip(), value) for key, value in PARAMETER.findall(whole[2]))
    arguments = {key: _typed(value, types.get(key)) for key, value in pairs}
    return name, json.dumps(arguments, ensure_ascii=False)


def _types(tools: Tools, name: str) -> dict[str, Any]:
    """Return the types of a tool's parameters, as its schema names them."""
    for tool in tools:
        if tool["function"]["name"] == name:
            properties = (tool["function"].get("parameters") or {}).get("properties", {})
            return {key: schema.get("type") for key, schema in properties.items()}
    return {}


def _typed(text: str, kind: Any) -> Any:
    """Return a parameter's value: text where the schema says so, else JSON if it is any."""
    if kind == "string":
        return text
    if text.strip().lower() in WORDS:  # templates write Python's True and None
        return WORDS[text.strip().lower()]
    value = _loads(text)
    return text if value is _BROKEN else value


_BROKEN = object()


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _BROKEN


def _as_text(arguments: Any) -> str:
    """Return arguments as text; none at all are an empty object."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
