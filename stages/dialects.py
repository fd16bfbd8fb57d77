"""How models write tool calls and thoughts as text, read into OpenAI's form of a message.

Reading never fails. A call that breaks its dialect becomes a call with arguments that no JSON
parser takes, so that the environment answers with an error that the model sees.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

from stages.domains import definitions
from stages.worlds.world import Message

Dialect = Literal["hermes", "xml"]  # Hermes and Qwen3 write JSON, Qwen3.5 and Qwen3-Coder XML
Tools = Sequence[Mapping[str, Any]]

CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
NAME = re.compile(r"""(["'])name\1\s*:\s*(["'])(.*?)\2""")
ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
FUNCTION = re.compile(r"<function=([^>\n]*)>(.*)</function>", re.DOTALL)
OPENING = re.compile(r"<function=([^>\n]*)")
PARAMETER = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>", re.DOTALL)
WORDS = {"true": True, "false": False, "null": None, "none": None}


class TextCall(NamedTuple):
    """A call that a model wrote as text."""

    name: str  # "" where the text shows none
    arguments: Any  # text; of a broken call all of it; an object where Python wrote the call
    broken: bool = False


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
    calls = _calls(rest, read, tools)
    content = CALL.sub("", rest).strip() if calls else rest.strip()
    message: Message = {"role": "assistant", "content": content or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = thoughts
    return _with_calls(message, calls, call_id)


def recorded_calls(text: str, tools: Tools = ()) -> list[TextCall]:
    """Read the calls in a recorded text of an unknown model, each in its own dialect.

    A call that is written as Python's dict is read too: some harness may have printed it.

    Args:
        text: content, thoughts and calls; thoughts that end without a beginning were begun by the
            prompt.
        tools: as for `read_message`, where they are known.
    """
    _, rest = _split_thoughts(text, "</think>" in text.partition("<think>")[0])
    return _calls(rest, _read_any, tools)


def _calls(text: str, read: Callable[[str, Tools], TextCall], tools: Tools) -> list[TextCall]:
    return [read(body.strip(), tools) for body in CALL.findall(text)]


def _split_thoughts(text: str, thinking: bool) -> tuple[str, str]:
    """Return the thoughts and the rest; thoughts that never end leave no rest."""
    opened = text.lstrip().startswith("<think>")
    if not (thinking or opened):
        return "", text
    inner = text.lstrip().removeprefix("<think>")
    thoughts, _, rest = inner.partition("</think>")
    return thoughts.strip(), rest


def _with_calls(message: Message, calls: Iterable[TextCall], call_id: str) -> Message:
    made = [
        {
            "id": f"{call_id}_{place}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for place, call in enumerate(calls)
    ]
    return {**message, "tool_calls": made} if made else message


def _read_any(body: str, tools: Tools) -> TextCall:
    """Read a call of whatever dialect."""
    if body.startswith("<function="):
        return _read_xml(body, tools)
    call = _read_json(body, tools)
    if call.broken and _is_call(entry := _literal(body)):
        return TextCall(entry["name"], _given(entry))
    return call


def _read_json(body: str, _tools: Tools) -> TextCall:
    """Read `{"name": ..., "arguments": {...}}`."""
    entry = _loads(body)
    if not _is_call(entry):
        found = NAME.search(body)
        return TextCall(found[3] if found else "", body, broken=True)
    given = _given(entry)
    text = _verbatim(body, given) if isinstance(given, dict) else _as_text(given)
    return TextCall(entry["name"], text)


def _is_call(entry: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str)


def _given(entry: dict[str, Any]) -> Any:
    return entry.get("arguments", entry.get("parameters"))


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


def _read_xml(body: str, tools: Tools) -> TextCall:
    """Read `<function=..><parameter=..> value </parameter></function>`."""
    whole = FUNCTION.fullmatch(body)
    if whole is None or PARAMETER.sub("", whole[2]).strip():
        opening = OPENING.match(body)
        return TextCall(opening[1].strip() if opening else "", body, broken=True)
    name = whole[1].strip()
    types = _types(tools, name)
    pairs = ((key.strip(), value) for key, value in PARAMETER.findall(whole[2]))
    arguments = {key: _typed(value, types.get(key)) for key, value in pairs}
    return TextCall(name, json.dumps(arguments, ensure_ascii=False))


def _types(tools: Tools, name: str) -> dict[str, Any]:
    """Return the types of a tool's parameters, as its schema names them."""
    schema = definitions(tools).get(name, {}).get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {key: part.get("type") for key, part in properties.items() if isinstance(part, dict)}


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


def _literal(text: str) -> Any:
    """Return the value of a Python literal, or what marks a broken text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, on odd escapes in the text
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _BROKEN


def _as_text(arguments: Any) -> str:
    """Return arguments as text; none at all are an empty object."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
