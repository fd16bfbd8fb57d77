"""Tool calls written in the notation of each family, as the models' chat templates write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Calls = list[tuple[str, dict[str, Any]]]

PROPERTIES = {
    "order_id": {"type": "string"},
    "count": {"type": "integer"},
    "price": {"type": "number"},
    "insured": {"type": "boolean"},
    "note": {"type": "string"},
    "items": {"type": "array"},
    "address": {"type": "object"},
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": PROPERTIES},
        },
    }
    for name in ("cancel_order", "get_user", "list_all")
]

CASES: dict[str, Calls] = {
    "one call": [("cancel_order", {"order_id": "W1"})],
    "two calls": [("cancel_order", {"order_id": "W1"}), ("get_user", {"order_id": "W2"})],
    "no arguments": [("list_all", {})],
    "unicode": [("cancel_order", {"order_id": "#Wé1", "note": "naïve 杭州 🙂"})],
    "nested": [("get_user", {"address": {"city": "Bern", "geo": {"x": [1, 2]}}, "items": ["a"]})],
    "numbers": [("get_user", {"count": 3, "price": -2.5, "insured": True, "order_id": "007"})],
    "brackets": [("cancel_order", {"note": 'a {b} [c] "d" (e), f; g'})],
    "lines": [("cancel_order", {"note": "first\n\n  second", "count": 1})],
}


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def entry(name: str, arguments: Any, key: str = "arguments") -> str:
    return dumps({"name": name, key: arguments})


def each(write: Callable[[str, dict[str, Any]], str], between: str = "") -> Callable[[Calls], str]:
    return lambda calls: between.join(write(name, arguments) for name, arguments in calls)


def listed(calls: Calls) -> str:
    return dumps([{"name": name, "arguments": arguments} for name, arguments in calls])


def python_of(calls: Calls) -> list[str]:
    return [
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    ]


def functions(name: str, arguments: dict[str, Any], line: str = "\n") -> str:
    inner = "".join(
        f"<parameter={key}>{line}{plain(value)}{line}</parameter>{line}"
        for key, value in arguments.items()
    )
    return f"<function={name}>{line}{inner}</function>"


def invokes(prefix: str = "", typed: bool = False) -> Callable[[str, dict[str, Any]], str]:
    def write(name: str, arguments: dict[str, Any]) -> str:
        inner = ""
        for key, value in arguments.items():
            kind = f' string="{str(isinstance(value, str)).lower()}"' if typed else ""
            inner += f'<{prefix}parameter name="{key}"{kind}>{plain(value)}</{prefix}parameter>\n'
        return f'<{prefix}invoke name="{name}">\n{inner}</{prefix}invoke>\n'

    return write


def glm(name: str, arguments: dict[str, Any]) -> str:
    inner = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{plain(value)}</arg_value>\n"
        for key, value in arguments.items()
    )
    return f"<tool_call>{name}\n{inner}</tool_call>"


def gemma(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{gemma(part, quote)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(gemma(part, quote) for part in value) + "]"
    return dumps(value)


def kimi(calls: Calls) -> str:
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{place}<|tool_call_argument_begin|>"
        f"{dumps(arguments)}<|tool_call_end|>"
        for place, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def wrapped(begin: str, write: Callable[[Calls], str], end: str) -> Callable[[Calls], str]:
    return lambda calls: begin + write(calls) + end


# By dialect and variant: how the calls of one message are written.
WRITERS: Mapping[tuple[str, str], Callable[[Calls], str]] = {
    ("hermes", ""): each(lambda n, a: f"<tool_call>\n{entry(n, a)}\n</tool_call>", "\n"),
    ("xml", ""): each(lambda n, a: f"<tool_call>\n{functions(n, a)}\n</tool_call>", "\n"),
    ("xml", "no tag"): each(functions, "\n"),
    ("xml", "one line"): each(lambda n, a: f"<tool_call>{functions(n, a, '')}</tool_call>"),
    ("seed_oss", ""): each(
        lambda n, a: f"<seed:tool_call>\n{functions(n, a)}\n</seed:tool_call>", "\n"
    ),
    ("llama", "json"): each(lambda n, a: entry(n, a, "parameters"), "; "),
    ("llama", "tag"): wrapped(
        "<|python_tag|>", each(lambda n, a: entry(n, a, "parameters"), "; "), ""
    ),
    ("llama", "function"): each(lambda n, a: f"<function={n}>{dumps(a)}</function>"),
    ("llama", "list"): listed,
    ("llama", "python"): lambda calls: f"[{', '.join(python_of(calls))}]",
    ("llama", "python tag"): lambda calls: (
        f"<|python_start|>[{', '.join(python_of(calls))}]<|python_end|>"
    ),
    ("mistral", "list"): wrapped("[TOOL_CALLS] ", listed, ""),
    ("mistral", "args"): each(lambda n, a: f"[TOOL_CALLS]{n}[ARGS]{dumps(a)}"),
    ("mistral", "name"): each(lambda n, a: f"[TOOL_CALLS]{n}{dumps(a)}"),
    ("deepseek", "v3"): wrapped(
        "<｜tool▁calls▁begin｜>",
        each(
            lambda n, a: (
                f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{dumps(a)}\n```"
                "<｜tool▁call▁end｜>"
            ),
            "\n",
        ),
        "<｜tool▁calls▁end｜>",
    ),
    ("deepseek", "v3.1"): wrapped(
        "<｜tool▁calls▁begin｜>",
        each(lambda n, a: f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{dumps(a)}<｜tool▁call▁end｜>"),
        "<｜tool▁calls▁end｜>",
    ),
    ("dsml", "v3.2"): wrapped(
        "<｜DSML｜function_calls>\n", each(invokes("｜DSML｜", True)), "</｜DSML｜function_calls>"
    ),
    ("dsml", "v4"): wrapped(
        "<｜DSML｜tool_calls>\n", each(invokes("｜DSML｜", True)), "</｜DSML｜tool_calls>"
    ),
    ("harmony", ""): each(
        lambda n, a: (
            f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{dumps(a)}<|call|>"
        )
    ),
    ("harmony", "recipient first"): each(
        lambda n, a: (
            f"<|start|>assistant to=functions.{n}<|channel|>commentary json<|message|>{dumps(a)}"
            "<|call|>"
        )
    ),
    ("kimi", ""): kimi,
    ("minimax", "m2"): wrapped("<minimax:tool_call>\n", each(invokes()), "</minimax:tool_call>"),
    ("glm", ""): each(glm, "\n"),
    ("anthropic", ""): wrapped("<function_calls>\n", each(invokes()), "</function_calls>"),
    ("anthropic", "antml"): wrapped(
        "<function_calls>\n", each(invokes("antml:")), "</function_calls>"
    ),
    ("anthropic", "olmo3"): lambda calls: (
        "<function_calls>\n" + "\n".join(python_of(calls)) + "\n</function_calls>"
    ),
    ("step3", ""): wrapped(
        "<｜tool_calls_begin｜>",
        each(
            lambda n, a: (
                f"<｜tool_call_begin｜>function<｜tool_sep｜>{invokes('steptml:')(n, a).strip()}"
                "<｜tool_call_end｜>"
            ),
            "\n",
        ),
        "<｜tool_calls_end｜>",
    ),
    ("phi4_mini", ""): wrapped("functools", listed, ""),
    ("granite", "3.0"): wrapped("<|tool_call|>", listed, ""),
    ("granite", "3.1"): wrapped("<tool_call>", listed, ""),
    ("granite_20b", ""): each(lambda n, a: f"<function_call> {entry(n, a)}", "\n"),
    ("jamba", ""): wrapped("<tool_calls>", listed, "</tool_calls>"),
    ("jamba", "minimax m1"): wrapped("<tool_calls>\n", each(entry, "\n"), "\n</tool_calls>"),
    ("internlm", ""): each(lambda n, a: f"<|action_start|><|plugin|>{entry(n, a)}<|action_end|>"),
    ("lfm2", ""): lambda calls: (
        f"<|tool_call_start|>[{', '.join(python_of(calls))}]<|tool_call_end|>"
    ),
    ("gemma4", ""): each(
        lambda n, a: f"<|tool_call>call:{n}{gemma(a, '<|' + chr(34) + '|>')}<tool_call|>"
    ),
    ("functiongemma", ""): each(
        lambda n, a: f"<start_function_call>call:{n}{gemma(a, '<escape>')}<end_function_call>"
    ),
    ("longcat", ""): each(
        lambda n, a: f"<longcat_tool_call>\n{entry(n, a)}\n</longcat_tool_call>", "\n"
    ),
    ("cohere", ""): wrapped(
        "<|START_ACTION|>",
        lambda calls: dumps(
            [{"tool_call_id": "0", "tool_name": n, "parameters": a} for n, a in calls]
        ),
        "<|END_ACTION|>",
    ),
    ("apertus", ""): wrapped(
        "<|tools_prefix|>", lambda calls: dumps([{n: a} for n, a in calls]), "<|tools_suffix|>"
    ),
    ("gigachat", ""): each(lambda n, a: f"function call<|role_sep|>\n{entry(n, a)}"),
}
