"""Calls whose arguments are plain text between tags."""

from __future__ import annotations

import re

from stages.messages.tool_parsers.calls import (
    Reader,
    Reading,
    TextCall,
    Tools,
    after_space,
    broken_until,
    typed_call,
)
from stages.messages.tool_parsers.json_text import named_json, printed_block

# A model may forget to close a parameter before it opens the next.
PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]*)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=))", re.DOTALL
)
FUNCTION = re.compile(r"\s*<function=([^>\n]*)>")
CUT_FUNCTION = re.compile(r"\s*<function=([^>\s]*)")
FUNCTION_END = re.compile(r"\s*</function>")
ARGUMENT = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
GLM_NAME = re.compile(r"\s*([\w.\-/:]+)\s*(?=<arg_key>|</tool_call>|\Z)")
PROSE = re.compile(r"\s*[^\s<{\[]+\s+[^\s<]")
WORDS = re.compile(r"[^\n<{\[]*")  # in one line
# Anthropic, MiniMax M2, DeepSeek V3.2 and Step3 differ in what stands before "invoke".
INVOKE = re.compile(
    r"""(?:<[^\s<>/]*(?:function_calls|tool_calls?)>\s*|<｜tool_calls?_begin｜>\s*)*"""
    r"""(?:function)?\s*(?:<｜tool_sep｜>)?\s*"""
    r"""<[^\s<>/]*invoke\s+name\s*=\s*(["']?)([^"'>]*)\1\s*>"""
)
TOOL_NAME = re.compile(
    r"(?:<function_calls>)?\s*<invoke>\s*<tool_name>(.*?)</tool_name>\s*"
    r"(?:<parameters>(.*?)</parameters>)?\s*</invoke>(?:\s*</function_calls>)?",
    re.DOTALL,
)
ELEMENT = re.compile(r"<([\w\-]+)>(.*?)</\1>", re.DOTALL)
VALUE = re.compile(
    r"""\s*<[^\s<>/]*parameter\s+name\s*=\s*(["']?)([^"'>]*)\1(?:\s+string="(true|false)")?\s*>"""
    r"""(.*?)(?:</[^\s<>]*parameter>|(?=<[^\s<>/]*parameter\s+name\s*=))""",
    re.DOTALL,
)
INVOKE_END = re.compile(r"\s*</[^\s<>]*invoke>")
BLOCK_END = re.compile(
    r"\s*(?:</[^\s<>]*(?:function_calls|tool_calls?)>|<｜tool_call_end｜>|<｜tool_calls_end｜>)"
)

_llama = named_json(r"\s*([^>\n]*)>\s*", r"\s*</function>\s*;?", "</function>")
_hermes = printed_block("</tool_call>")


def read_functions(close: str) -> Reader:
    """Return a reader of `<function=..><parameter=..>..</parameter></function>` inside a tag."""

    def read(text: str, opening: re.Match[str], tools: Tools) -> Reading:
        calls, at = [], opening.end()
        while named := FUNCTION.match(text, at):
            call, at = _function(text, named, tools)
            if call is None:
                break
            calls.append(call)
        tail = after_space(text, at)
        if calls and text.startswith(close, tail):
            return Reading(tail + len(close), calls)
        if calls and tail == len(text):
            return Reading(tail, calls)
        cut = CUT_FUNCTION.match(text, opening.end())
        return broken_until(text, opening.end(), close, cut[1].strip() if cut else "")

    return read


def _function(
    text: str, named: re.Match[str], tools: Tools
) -> tuple[TextCall, int] | tuple[None, int]:
    """Read one function and return where it ends; None if it does not end properly."""
    pairs, at = [], named.end()
    while parameter := PARAMETER.match(text, at):
        pairs.append((parameter[1], parameter[2]))
        at = parameter.end()
    closed = FUNCTION_END.match(text, at)
    if closed is None:
        return None, at
    return typed_call(named[1].strip(), pairs, tools), closed.end()


def read_function(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
    """Read a function without a tag around it: Llama's with JSON, or Qwen's with parameters."""
    named = FUNCTION.match(text, opening.start())
    if named is None:
        cut = CUT_FUNCTION.match(text, opening.start())
        return broken_until(text, opening.start(), "", cut[1]) if cut else None
    if text.startswith("{", after_space(text, named.end())):
        return _llama(text, opening, tools)
    call, end = _function(text, named, tools)
    if call is None and is_mention(text, named.end(), "</function>"):
        return None
    if call is None:
        return broken_until(text, opening.start(), "</function>", named[1].strip())
    return Reading(end, [call])


def is_mention(text: str, at: int, close: str) -> bool:
    """Return whether a text only mentions a tag: words follow, and the tag is never closed."""
    place = after_space(text, at)
    return text[place : place + 1] not in {"", "<"} and text.find(close, at) < 0


def read_glm(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
    """Read `<tool_call>name<arg_key>..</arg_key><arg_value>..</arg_value></tool_call>`."""
    close = "</tool_call>"
    named = GLM_NAME.match(text, opening.end())
    if named is None:
        return broken_until(text, opening.end(), close)
    pairs, at = [], named.end()
    while argument := ARGUMENT.match(text, at):
        pairs.append((argument[1], argument[2]))
        at = argument.end()
    at = after_space(text, at)
    if text.startswith(close, at):
        return Reading(at + len(close), [typed_call(named[1], pairs, tools)])
    return broken_until(text, opening.end(), close, named[1])


def read_tool_call(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
    """Read `<tool_call>` with whatever is inside: JSON, functions or GLM's keys and values."""
    at = after_space(text, opening.end())
    if text.startswith("<function=", at):
        return _functions(text, opening, tools)
    if GLM_NAME.match(text, at):
        return read_glm(text, opening, tools)
    stop = text.find("</tool_call>", at)
    if PROSE.match(text, at) and (stop < 0 or WORDS.fullmatch(text, opening.end(), stop)):
        return None  # the text only mentions the tag
    return _hermes(text, opening, tools)


_functions = read_functions("</tool_call>")


def read_invoke(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
    """Read `<invoke name=".."><parameter name="..">..</parameter></invoke>`, however prefixed."""
    named = INVOKE.match(text, opening.start())
    if named is None:
        return _read_tool_name(text, opening, tools)
    name = named[2].strip()
    pairs, verbatim, at = [], {}, named.end()
    while value := VALUE.match(text, at):
        pairs.append((value[2], value[4]))
        if value[3] == "true":  # DeepSeek marks the values that are text
            verbatim[value[2].strip()] = {"type": "string"}
        at = value.end()
    closed = INVOKE_END.match(text, at)
    if closed is None and not pairs and is_mention(text, at, "invoke>"):
        return None
    if closed is None:
        return broken_until(text, named.start(), "invoke>", name)
    end = closed.end()
    while wrapper := BLOCK_END.match(text, end):
        end = wrapper.end()
    if verbatim:
        schema = {"name": name, "parameters": {"properties": verbatim}}
        tools = [{"type": "function", "function": schema}]
    return Reading(end, [typed_call(name, pairs, tools)])


def _read_tool_name(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
    """Read Anthropic's older `<invoke><tool_name>..</tool_name><parameters>..</parameters>`."""
    if named := TOOL_NAME.match(text, opening.start()):
        pairs = ELEMENT.findall(named[2] or "")
        return Reading(named.end(), [typed_call(named[1].strip(), pairs, tools)])
    place = after_space(text, opening.end())
    is_mentioned = text[place : place + 1] not in {"", "<", "="}
    return None if is_mentioned else broken_until(text, opening.start(), "")
