"""The families of models: the signs of each in a chat template, and what opens its calls."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from stages.messages.tool_parsers.calls import Reader
from stages.messages.tool_parsers.harmony import OPENING, read_harmony
from stages.messages.tool_parsers.json_text import (
    json_block,
    named_json,
    read_apertus,
    read_mistral,
)
from stages.messages.tool_parsers.python_text import gemma_block, python_block, read_python_tag
from stages.messages.tool_parsers.tagged import (
    read_function,
    read_functions,
    read_glm,
    read_invoke,
    read_tool_call,
)


class Family(NamedTuple):
    """How some models write calls.

    Attributes:
        signs: texts that only the chat templates of these models contain.
        readers: readers by the pattern that opens a call.
        bare: whether a text without any opening may be calls too.
    """

    signs: tuple[str, ...]
    readers: Mapping[str, Reader]
    bare: bool = False


DEEPSEEK = named_json(
    r"(?:\s*<｜tool▁call▁begin｜>)?"
    r"(?:\s*function<｜tool▁sep｜>([^\n<]*)\n```json\s*"
    r"|\s*(?!function<｜tool▁sep｜>(?!\s*\{))([^<\n]+)<｜tool▁sep｜>\s*)",
    r"\s*(?:```)?\s*<｜tool▁call▁end｜>(?:\s*<｜tool▁calls▁end｜>)?",
    "<｜tool▁call▁end｜>",
)
HARMONY = named_json(r"([\w.\-]+)\s*(?:json)?\s*(?=\{)", r"", "")
KIMI = named_json(
    r"(?:\s*<\|tool_call_begin\|>)?\s*(?:functions\.)?([^\s:<]+)(?::\d+)?\s*"
    r"<\|tool_call_argument_begin\|>\s*",
    r"\s*<\|tool_call_end\|>(?:\s*<\|tool_calls_section_end\|>)?",
    "<|tool_call_end|>",
)
# The lookaheads exclude texts that only mention the token.
MISTRAL = (
    r"\[TOOL_CALLS\](?=\s*[\[{]|\s*[\w.\-/:]+\s*(?:\[(?:ARGS|CALL_ID)\]|[{(]|\[[A-Z_]*\Z)"
    r"|\s*[\w.\-/:]*\Z)"
)
FUNCTION = r"<function=(?=[^\s<>]+>|[^\s<>]*\Z)"
JSON_FOLLOWS = r"(?=\s*(?:[\[{]|\Z))"
PYTHON_FOLLOWS = r"(?=\s*[A-Za-z_][\w.]*\()"
INVOKE = r"<(?:antml:)?invoke\s+name|<invoke>(?=\s*<tool_name>)"

# The first family with a sign in the template is used, so that specific signs come first.
FAMILIES: dict[str, Family] = {
    "harmony": Family(
        ("<|channel|>",),
        # The second pattern is for texts whose special tokens were deleted.
        {OPENING: read_harmony, r"(?:assistant)?(?:commentary|analysis)? to=functions\.": HARMONY},
    ),
    "kimi": Family(
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        {r"<\|tool_calls_section_begin\|>|<\|tool_call_begin\|>": KIMI},
    ),
    "dsml": Family(
        ("｜DSML｜",),
        {r"<｜DSML｜(?:function|tool)_calls>|<｜DSML｜invoke\s+name": read_invoke},
    ),
    "deepseek": Family(
        ("<｜tool▁sep｜>", "<｜tool▁call▁begin｜>"),
        {r"<｜tool▁calls▁begin｜>|<｜tool▁call▁begin｜>": DEEPSEEK},
    ),
    "step3": Family(
        ("steptml:",),
        {r"<｜tool_calls?_begin｜>|<steptml:invoke\s+name": read_invoke},
    ),
    "minimax": Family(("<minimax:tool_call>",), {rf"<minimax:tool_call>|{INVOKE}": read_invoke}),
    "glm": Family(("<arg_key>",), {r"<tool_call>": read_glm}),
    "seed_oss": Family(
        ("<seed:tool_call>",), {r"<seed:tool_call>": read_functions("</seed:tool_call>")}
    ),
    "mistral": Family(("[TOOL_CALLS]",), {MISTRAL: read_mistral}),
    "lfm2": Family(
        ("<|tool_call_start|>",),
        {r"<\|tool_call_start\|>": python_block("<|tool_call_end|>")},
    ),
    "gemma4": Family(("<tool_call|>",), {r"<\|tool_call>": gemma_block("<tool_call|>", '<|"|>')}),
    "functiongemma": Family(
        ("<start_function_call>",),
        {r"<start_function_call>": gemma_block("<end_function_call>", "<escape>")},
    ),
    "internlm": Family(
        ("<|action_start|>",), {r"<\|action_start\|>\s*<\|plugin\|>": json_block("<|action_end|>")}
    ),
    "cohere": Family(("<|START_ACTION|>",), {r"<\|START_ACTION\|>": json_block("<|END_ACTION|>")}),
    "apertus": Family(("<|tools_prefix|>",), {r"<\|tools_prefix\|>": read_apertus}),
    "longcat": Family(
        ("<longcat_tool_call>",), {r"<longcat_tool_call>": json_block("</longcat_tool_call>")}
    ),
    "gigachat": Family(
        ("function call<|role_sep|>",), {r"function call<\|role_sep\|>\s*": json_block()}
    ),
    "llama": Family(
        ("<|python_tag|>", "<|python_start|>", "dictionary of argument name and its value"),
        {
            r"<\|python_tag\|>": read_python_tag,
            r"<\|python_start\|>": python_block("<|python_end|>"),
            FUNCTION: read_function,
        },
        bare=True,
    ),
    "phi4_mini": Family(("functools",), {r"functools(?=\[\s*(?:[{\]]|\Z))": json_block()}),
    "granite": Family(
        ("<|tool_call|>",),
        {
            r"<\|tool_call\|>": json_block("<|/tool_call|>"),
            r"<tool_call>": json_block("</tool_call>"),
        },
    ),
    "granite_20b": Family(("<function_call>",), {r"<function_call>" + JSON_FOLLOWS: json_block()}),
    "nemotron": Family(("<TOOLCALL>",), {r"<TOOLCALL>": json_block("</TOOLCALL>")}),
    "jamba": Family(  # Hunyuan and MiniMax M1 as well
        ("<tool_calls>",),
        {r"<tool_calls>" + JSON_FOLLOWS: json_block("</tool_calls>", several=True)},
    ),
    "anthropic": Family(  # Olmo 3 writes Python inside
        ("<function_calls>",),
        {
            r"<function_calls>" + PYTHON_FOLLOWS: python_block("</function_calls>"),
            rf"<(?:antml:)?function_calls>|{INVOKE}": read_invoke,
        },
    ),
    "xml": Family(  # Qwen3-Coder, Qwen3.5, Step 3.5
        ("<function=",),
        {r"<tool_call>": read_functions("</tool_call>"), FUNCTION: read_function},
    ),
    "hermes": Family(("<tool_call>",), {r"<tool_call>": json_block("</tool_call>")}),
}


class Grammar(NamedTuple):
    """The pattern that opens calls, and the reader of each opening."""

    opening: re.Pattern[str]  # a group for each reader
    readers: Mapping[str, Reader]  # by the group's name
    bare: bool


@functools.cache
def grammar_of(tool_parser: str) -> Grammar:
    """Return the grammar of a family."""
    family = FAMILIES[tool_parser]
    return _grammar(family.readers, family.bare)


@functools.cache
def any_grammar() -> Grammar:
    """Return the grammar of all families, for a text whose model is unknown."""
    readers: dict[str, Reader] = {}
    for family in FAMILIES.values():
        readers |= family.readers
    return _grammar({**readers, r"<tool_call>": read_tool_call}, bare=True)


def _grammar(readers: Mapping[str, Reader], bare: bool) -> Grammar:
    names = {f"reader_{place}": pattern for place, pattern in enumerate(readers)}
    opening = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in names.items()))
    return Grammar(opening, {name: readers[names[name]] for name in names}, bare)
