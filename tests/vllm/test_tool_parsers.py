"""Calls read from text equal those of vLLM's own parsers; the differences are listed as data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make test-vllm sets vLLM up")

from stages.messages.tool_parser import TextCall, read_message, recorded_calls
from tests.written_calls import CASES, TOOLS, WRITERS

# vLLM's parser of each notation. Harmony has none: vLLM reads gpt-oss from token ids.
PARSERS = [
    (("hermes", ""), "hermes"),
    (("hermes", ""), "granite4"),
    (("hermes", ""), "ernie45"),
    (("hermes", ""), "qwen3_json"),
    (("xml", ""), "qwen3_coder"),
    (("xml", ""), "qwen3_xml"),
    (("xml", ""), "step3p5"),
    (("xml", "no tag"), "qwen3_coder"),
    (("xml", "one line"), "qwen3_coder"),
    (("xml", "one line"), "mimo"),
    (("seed_oss", ""), "seed_oss"),
    (("llama", "json"), "llama3_json"),
    (("llama", "tag"), "llama3_json"),
    (("llama", "list"), "xlam"),
    (("llama", "python"), "pythonic"),
    (("llama", "python"), "llama4_pythonic"),
    (("llama", "python tag"), "llama4_pythonic"),
    (("mistral", "list"), "mistral before v11"),
    (("mistral", "args"), "mistral"),
    (("mistral", "name"), "mistral"),
    (("deepseek", "v3"), "deepseek_v3"),
    (("deepseek", "v3.1"), "deepseek_v31"),
    (("dsml", "v3.2"), "deepseek_v32"),
    (("dsml", "v4"), "deepseek_v4"),
    (("kimi", ""), "kimi_k2"),
    (("minimax", "m2"), "minimax_m2"),
    (("glm", ""), "glm45"),
    (("glm", ""), "glm47"),
    (("anthropic", "olmo3"), "olmo3"),
    (("step3", ""), "step3"),
    (("phi4_mini", ""), "phi4_mini_json"),
    (("granite", "3.0"), "granite"),
    (("granite", "3.1"), "granite"),
    (("granite_20b", ""), "granite-20b-fc"),
    (("jamba", ""), "jamba"),
    (("jamba", ""), "hunyuan_a13b"),
    (("internlm", ""), "internlm"),
    (("lfm2", ""), "lfm2"),
    (("gemma4", ""), "gemma4"),
    (("functiongemma", ""), "functiongemma"),
    (("longcat", ""), "longcat"),
    (("apertus", ""), "apertus"),
    (("gigachat", ""), "gigachat3"),
]

# Valid calls that vLLM reads otherwise than the model wrote them.
MISREAD = {
    ("step3", "nested"): "arguments that are objects or lists stay text",
    ("phi4_mini_json", "nested"): "the list ends at the first bracket, be it in an argument",
    ("phi4_mini_json", "brackets"): "the list ends at the first bracket, be it in a text",
    ("internlm", "two calls"): "raises on a second call",
    ("gemma4", "nested"): "numbers in a list become text",
    ("functiongemma", "nested"): "only arguments in escape marks are read",
    ("functiongemma", "numbers"): "only arguments in escape marks are read",
    ("functiongemma", "lines"): "only arguments in escape marks are read",
    ("gigachat3", "two calls"): "no call is read from a text with two",
}

# Parsers that drop a call whose closing marker is missing, though its arguments are whole.
WANT_CLOSING = {
    *("granite4", "ernie45", "deepseek_v3", "deepseek_v31", "jamba", "hunyuan_a13b", "olmo3"),
    *("step3", "internlm", "gigachat3"),
}

# Parsers that close what was cut off by themselves, or pass on what no JSON parser takes.
COMPLETE_CUT_CALLS = {
    *("qwen3_coder", "qwen3_xml", "step3p5", "mimo", "seed_oss", "mistral", "deepseek_v32"),
    *("deepseek_v4", "kimi_k2", "minimax_m2", "glm45", "glm47", "granite", "gemma4"),
    *("functiongemma", "apertus"),
}

# Texts that begin a call and are no valid one, by vLLM's parser.
BROKEN = [
    ("hermes", '<tool_call>\n{"name": "get_user", "arguments": {"order_id": W1}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "get_user", "arguments": {"order_id": "W1"}\n</tool_call>'),
    ("hermes", "<tool_call>\n{'name': 7, 'arguments': {}}\n</tool_call>"),
    ("hermes", "<tool_call>\nget_user(order_id='W1')\n</tool_call>"),
    ("llama3_json", '<|python_tag|>{"name": "get_user", "parameters": {"order_id": W1}}'),
    ("llama3_json", '{"name": "get_user", "parameters": {"order_id": W1}}'),
    ("llama3_json", '{"name": "get_user", "parameters": {"order_id": "W1"}'),
    ("xlam", '[{"name": "get_user", "arguments": {"order_id": W1}}]'),
    ("xlam", '[{"name": "get_user", "arguments": {"order_id": "W1"}}'),
    ("pythonic", '[get_user(order_id="W1"'),
    ("mistral before v11", '[TOOL_CALLS] [{"name": "get_user", "arguments": {"order_id": W1}}]'),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_user"),
    ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_user<｜tool▁call▁end｜>"),
    ("granite-20b-fc", '<function_call> {"name": "get_user", "arguments": {"order_id": W1}}'),
    ("jamba", '<tool_calls>[{"name": "get_user", "arguments": {"order_id": W1}}]</tool_calls>'),
    ("phi4_mini_json", 'functools[{"name": "get_user", "arguments": {"order_id": W1}}]'),
    ("olmo3", "<function_calls>\nget_user(order_id=W1)\n</function_calls>"),
    ("longcat", '<longcat_tool_call>{"name": "get_user", "arg</longcat_tool_call>'),
]

SPECIAL = (
    "<tool_call> </tool_call> <think> </think> <tool_calls> </tool_calls> <|tool_call|> "
    "<0x0A> <response> </response> <seed:think> </seed:think> <seed:tool_call> "
    "</seed:tool_call> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> "
    "<｜tool▁call▁end｜> <｜tool▁sep｜> <|tool_calls_section_begin|> "
    "<|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_end|> "
    "<|tool_call_argument_begin|> <|tool_call_start|> <|python_tag|> [TOOL_CALLS] [ARGS] "
    "<minimax:tool_call> </minimax:tool_call> <｜DSML｜function_calls> "
    "</｜DSML｜function_calls> <｜DSML｜tool_calls> </｜DSML｜tool_calls> <|tool_call> "
    '<tool_call|> <|"|> <|channel> <channel|> <start_function_call> <end_function_call> '
    "<longcat_tool_call> </longcat_tool_call> <longcat_think> </longcat_think> "
    "<|tools_prefix|> <|tools_suffix|>"
)


class Vocabulary:
    """A tokenizer of special tokens only: vLLM's parsers look up their ids and read the text."""

    chat_template = None

    def __init__(self, without: str) -> None:
        tokens = [token for token in SPECIAL.split() if token != without]
        self._ids = {token: place for place, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        return self._ids

    def encode(self, _text: str, **_options: Any) -> list[int]:
        return []


def calls_of_vllm(parser: str, text: str) -> list[tuple[str, Any]]:
    """Return names and arguments as vLLM reads them; none where its parser raises."""
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionRequest,
        ChatCompletionToolsParam,
    )
    from vllm.tool_parsers import ToolParserManager

    name, _, is_old = parser.partition(" ")
    tools = [ChatCompletionToolsParam(**tool) for tool in TOOLS]
    # Mistral's parser takes a vocabulary without this token for one before version 11.
    vocabulary = Vocabulary(without="[ARGS]" if is_old else "")
    reader = ToolParserManager.get_tool_parser(name)(vocabulary, tools)
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": "hello"}], model="model", tools=TOOLS
    )
    try:
        calls = reader.extract_tool_calls(text, request).tool_calls
    except ValueError:  # of InternLM's, on two calls
        return []
    return [(call.function.name, decoded(call.function.arguments)) for call in calls]


def decoded(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return None


def whole(calls: Sequence[TextCall]) -> list[tuple[str, Any]]:
    return [(call.name, decoded(call.arguments)) for call in calls if not call.broken]


def parameters() -> Any:
    return pytest.mark.parametrize(
        ("notation", "parser"), PARSERS, ids=["-".join((*key, name)) for key, name in PARSERS]
    )


@pytest.mark.parametrize("case", CASES)
@parameters()
def test_valid_calls_equal_those_of_vllm(notation: tuple[str, str], parser: str, case: str) -> None:
    text = WRITERS[notation](CASES[case])
    theirs = calls_of_vllm(parser, text)
    assert (theirs != CASES[case]) == ((parser, case) in MISREAD)
    assert whole(recorded_calls(text, TOOLS)) == CASES[case]
    played = read_message(text, notation[0], TOOLS)["tool_calls"]
    functions = [call["function"] for call in played]
    assert [(part["name"], decoded(part["arguments"])) for part in functions] == CASES[case]


@pytest.mark.parametrize("case", ["one call", "two calls", "numbers"])
@parameters()
def test_calls_that_were_cut_off(notation: tuple[str, str], parser: str, case: str) -> None:
    """Ours are vLLM's; where it reads none from a call's beginning, or completes it, broken."""
    if (parser, case) in MISREAD and parser != "internlm":
        pytest.skip(MISREAD[parser, case])
    text = WRITERS[notation](CASES[case])
    for end in range(1, len(text)):
        theirs = calls_of_vllm(parser, text[:end])
        calls = recorded_calls(text[:end], TOOLS)
        ours, is_broken = whole(calls), any(call.broken for call in calls)
        if parser in WANT_CLOSING and theirs != ours:
            assert ours == CASES[case][: len(ours)]
            assert theirs == ours[: len(theirs)]
        elif is_broken:
            assert ours == CASES[case][: len(ours)]
            assert parser in COMPLETE_CUT_CALLS or theirs in ([], ours)
        else:
            assert theirs == ours


@pytest.mark.parametrize(("parser", "text"), BROKEN)
def test_calls_that_vllm_cannot_read_are_broken(parser: str, text: str) -> None:
    assert all(arguments is None for _, arguments in calls_of_vllm(parser, text))
    calls = recorded_calls(text, TOOLS)
    assert [call.broken for call in calls] == [True]
    assert calls[0].name in {"get_user", ""}


@pytest.mark.parametrize("around", [("Let me see.\n\n", ""), ("", "\n"), ("A <b> B.\n", "\n")])
@parameters()
def test_words_around_calls(
    notation: tuple[str, str], parser: str, around: tuple[str, str]
) -> None:
    if notation in {("llama", "json"), ("llama", "list"), ("llama", "python")} and around[0]:
        pytest.skip("calls without markers count only where the text is nothing else")
    if parser in {"llama4_pythonic", "olmo3"} and around[0]:
        pytest.skip("vLLM reads these calls only at the beginning of a text")
    text = around[0] + WRITERS[notation](CASES["one call"]) + around[1]
    assert whole(recorded_calls(text, TOOLS)) == calls_of_vllm(parser, text) == CASES["one call"]
