from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.messages.tool_parser import (
    may_hold_calls,
    needed,
    read_message,
    recorded_calls,
    tool_parser_of,
)
from stages.messages.tool_parsers.unread import unread_call
from tests.written_calls import CASES, WRITERS
from tests.written_calls import TOOLS as WRITTEN_TOOLS

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "parameters": {
                "type": "object",
                "properties": {
                    "user_id": {"type": "string"},
                    "bags": {"type": "integer"},
                    "insured": {"type": "boolean"},
                    "passengers": {"type": "array"},
                },
            },
        },
    }
]


def calls_of(text: str, tool_parser: str = "hermes") -> list[tuple[str, str]]:
    calls = read_message(text, tool_parser, TOOLS)["tool_calls"]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_plain_text_is_content() -> None:
    assert read_message(" hello. ") == {"role": "assistant", "content": "hello."}
    assert read_message("") == {"role": "assistant", "content": ""}


def test_a_hermes_call_keeps_its_arguments_to_the_letter() -> None:
    arguments = '{"user_id":  "m\\u0069a", "bags": 12345678901234567890, "bags": 1.0}'
    text = f'one moment\n<tool_call>\n{{"name": "book", "arguments": {arguments}}}\n</tool_call>'
    function = {"name": "book", "arguments": arguments}
    assert read_message(text, call_id="call_3") == {
        "role": "assistant",
        "content": "one moment",
        "tool_calls": [{"id": "call_3_0", "type": "function", "function": function}],
    }


def test_several_calls_in_any_order_of_keys() -> None:
    one = '<tool_call>{"arguments": {"name": "arguments"}, "name": "a"}</tool_call>'
    two = '<tool_call>{"name": "b"}</tool_call>'
    three = '<tool_call>{"name": "c", "arguments": "{\\"x\\": 1}"}</tool_call>'
    message = read_message(one + two + three)
    assert message["content"] is None
    assert [call["id"] for call in message["tool_calls"]] == ["call_0", "call_1", "call_2"]
    assert calls_of(one + two + three) == [
        ("a", '{"name": "arguments"}'),
        ("b", "{}"),
        ("c", '{"x": 1}'),
    ]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"name": "book", "arguments": {"user_id": "mia"', "book"),
        ('{"name": "book", "arguments": {"user_id": mia}}', "book"),
        ('{"name": "book", "arguments": {}', "book"),
        ('{"name": book, "arguments": {}}', ""),
        ("{'name': 'book'}", "book"),
        ("", ""),
    ],
)
def test_a_broken_hermes_call_has_arguments_that_no_parser_takes(body: str, name: str) -> None:
    assert calls_of(f"<tool_call>\n{body}\n</tool_call>") == [(name, body)]
    with pytest.raises(ValueError):
        json.loads(body)


def test_a_call_that_was_cut_off_is_broken_unless_it_is_whole() -> None:
    assert calls_of('<tool_call>\n{"name": "book", "argum') == [("book", '{"name": "book", "argum')]
    assert calls_of('<tool_call>{"name": "a", "arguments": {"b": 1}}') == [("a", '{"b": 1}')]


def test_xml_takes_types_from_the_schema() -> None:
    text = (
        "<tool_call>\n<function=book>\n<parameter=user_id>\n0123\n</parameter>\n"
        "<parameter=bags>\n2\n</parameter>\n<parameter=insured>\nTrue\n</parameter>\n"
        '<parameter=passengers>\n[{"first": "mia"}]\n</parameter>\n'
        "<parameter=more>\nmany\n</parameter>\n</function>\n</tool_call>"
    )
    [(name, arguments)] = calls_of(text, "xml")
    assert name == "book"
    assert json.loads(arguments) == {
        "user_id": "0123",
        "bags": 2,
        "insured": True,
        "passengers": [{"first": "mia"}],
        "more": "many",
    }


def test_xml_keeps_the_lines_of_a_text() -> None:
    text = "<function=book><parameter=user_id>\n a\n\nb \n</parameter></function>"
    assert calls_of(f"<tool_call>{text}</tool_call>", "xml") == [
        ("book", '{"user_id": " a\\n\\nb "}')
    ]


@pytest.mark.parametrize(
    "body",
    [
        "<function=book>\n<parameter=bags>\n2",
        "<function=book>\n<parameter=bags>\n2\n</function>",
        "<function=book>",
    ],
)
def test_a_broken_xml_call_has_arguments_that_no_parser_takes(body: str) -> None:
    assert calls_of(f"<tool_call>\n{body}\n</tool_call>", "xml") == [("book", body)]


@pytest.mark.parametrize(
    ("text", "thinking", "thoughts", "content"),
    [
        ("<think>\na cat?\n</think>\n\nno.", False, "a cat?", "no."),
        ("a cat?\n</think>\n\nno.", True, "a cat?", "no."),
        ("<think>a cat", False, "a cat", ""),
        ("a cat", True, "a cat", ""),
        ("<think>\n\n</think>\n\nno.", False, None, "no."),
        ("no <think>cat</think>", False, None, "no <think>cat</think>"),
    ],
)
def test_thoughts(text: str, thinking: bool, thoughts: str | None, content: str) -> None:
    message = read_message(text, thinking=thinking)
    assert message.get("reasoning_content") == thoughts
    assert message["content"] == content


def test_a_call_that_is_only_thought_of_is_not_made() -> None:
    text = '<think><tool_call>{"name": "a"}</tool_call></think>no.'
    assert "tool_calls" not in read_message(text)


def test_the_dialect_shows_in_the_template() -> None:
    assert tool_parser_of("... <tool_call>\n<function=example ...") == "xml"
    assert tool_parser_of('... <tool_call>\n{"name": ...') == "hermes"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), json_values))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_call_comes_back(name: str, arguments: dict[str, Any]) -> None:
    body = json.dumps({"name": name, "arguments": arguments}).replace("</", "<\\/")
    [(found, text)] = calls_of(f"<tool_call>\n{body}\n</tool_call>")
    assert (found, json.loads(text)) == (name, arguments)


pieces = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "<function=a>", "</function>"),
        *("<parameter=b>", "</parameter>", '"name":', '"arguments":', '"x"', "{", "}", "[", "null"),
        *(",", "\n"),
    ]
)


@given(st.lists(pieces | st.text(max_size=3), max_size=12).map("".join), st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_reading_never_fails(text: str, thinking: bool) -> None:
    for tool_parser in ("hermes", "xml"):
        message = read_message(text, tool_parser, TOOLS, thinking=thinking)
        assert all(isinstance(call.name, str) for call in recorded_calls(text, TOOLS))
        for call in message.get("tool_calls", ()):
            assert isinstance(call["function"]["arguments"], str)
            assert isinstance(call["function"]["name"], str)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"name": "a", "arguments": ' + '{"a":' * 100_000])
def test_deep_nesting_is_broken(text: str) -> None:
    assert calls_of(f"<tool_call>{text}</tool_call>")[0][1] == text


def recorded(text: str, tools: Any = WRITTEN_TOOLS) -> list[tuple[str, Any]]:
    """Return the calls of a recorded text; broken ones have no arguments."""
    return [
        (call.name, None if call.broken else json.loads(call.arguments))
        for call in recorded_calls(text, tools)
    ]


def played(text: str, tool_parser: str) -> list[tuple[str, Any]]:
    calls = read_message(text, tool_parser, WRITTEN_TOOLS).get("tool_calls", ())
    functions = [call["function"] for call in calls]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("notation", WRITERS, ids="-".join)
def test_calls_of_every_family(notation: tuple[str, str], case: str) -> None:
    text = WRITERS[notation](CASES[case])
    assert may_hold_calls(text)
    assert recorded(text) == recorded(text, ()) == played(text, notation[0]) == CASES[case]
    assert read_message(text, notation[0], WRITTEN_TOOLS)["content"] is None


@pytest.mark.parametrize("notation", WRITERS, ids="-".join)
def test_calls_after_thoughts_and_before_the_end_of_the_message(notation: tuple[str, str]) -> None:
    text = WRITERS[notation](CASES["two calls"])
    for around in ("<think>\n{}\n</think>\n\n", "{}\n</think>\n\n", "[THINK]{}[/THINK]"):
        thoughts = around.format(WRITERS["hermes", ""](CASES["one call"]))
        assert recorded(thoughts + text) == CASES["two calls"]
    for end in ("<|im_end|>", "<|eot_id|>", "<|eom_id|>\n", "</s>", "<｜end▁of▁sentence｜>"):
        assert recorded(text + end) == CASES["two calls"]


@pytest.mark.parametrize("notation", WRITERS, ids="-".join)
def test_quoted_calls_are_not_made(notation: tuple[str, str]) -> None:
    text = WRITERS[notation](CASES["one call"])
    assert recorded(f"Write this:\n```\n{text}\n```\nand nothing else.") == []
    assert recorded(f"You may write `{text}` here.") == []


arguments_of = st.fixed_dictionaries(
    {},
    optional={
        "order_id": st.text(st.characters(codec="utf-8", exclude_characters="<>\r"), min_size=1),
        "count": st.integers(-(10**6), 10**6),
        "insured": st.booleans(),
        "price": st.floats(-1e6, 1e6, allow_nan=False),
        "items": st.lists(st.integers(), max_size=3),
    },
)
calls_made = st.lists(
    st.tuples(st.sampled_from(["cancel_order", "get_user"]), arguments_of), min_size=1, max_size=2
)
# Between tags, a text has no quotes: its white space at the ends belongs to the notation.
QUOTING = [key for key in WRITERS if key[0] not in {"xml", "seed_oss", "gemma4", "functiongemma"}]


@given(calls_made, st.sampled_from(QUOTING), st.floats(0, 1))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_calls_come_back_and_cut_ones_are_broken(
    calls: list[tuple[str, Any]], notation: tuple[str, str], share: float
) -> None:
    text = WRITERS[notation](calls)
    assert recorded(text) == calls
    cut = recorded(text[: int(share * len(text))])
    kept = [call for call in cut if call[1] is not None]
    assert kept == calls[: len(kept)]


@pytest.mark.parametrize("case", ["two calls", "nested", "brackets"])
@pytest.mark.parametrize("notation", WRITERS, ids="-".join)
def test_a_cut_text_never_has_other_arguments(notation: tuple[str, str], case: str) -> None:
    text = WRITERS[notation](CASES[case])
    for end in range(len(text)):
        kept = [call for call in recorded(text[:end]) if call[1] is not None]
        assert kept == CASES[case][: len(kept)]
    # Cut within its arguments, a call is broken and never lost.
    first = next(iter(CASES[case][0][1]))
    assert None in dict(recorded(text[: text.index(first) + len(first)])).values()


PROSE = [
    "I will call get_user(id=3) now.",
    "get_user(id=3)",
    "[1, 2]",
    '["a", "b"]',
    "[]",
    "{}",
    "[get_user]",
    "[x for x in range(3)]",
    "[range(3)]",
    "[foo(1), foo(2)]",
    "[see note (a=1)] as said",
    "[get_user(id=1)](https://example.com)",
    "[Point(x=1, y=2)]",
    "print([get_user(id=3)])",
    '{"answer": 42}',
    '{"name": "Mia", "age": 3}',
    '{"name": "Mia", "parameters": 3}',
    '{"name": "Widget", "parameters": {"size": 3}}',
    '{"type": "object", "properties": {"name": {"type": "string"}}}',
    '[{"name": "Mia"}]',
    "{not json}",
    "```python\nget_user(id=3)\n```",
    '```json\n{"order": 3}\n```',
    'As JSON:\n```json\n[{"name": "get_user", "arguments": {"id": 1}}]\n```\nThat is all.',
    "We write <tool_call> to begin a call.",
    "In XML, <function=foo> is no tag, nor is <invoke> or <tool_calls> or <function_calls>.",
    'Here <invoke name="x"> is text.',
    "<function_call> is deprecated",
    "$a < b$ and [TOOL_CALLS] is a token",
    "a <think> b </think> c",
    "functools.partial(f), functools[0]",
    "<think>[get_user(order_id='a')]</think>done",
    "<|channel|>analysis<|message|>to=functions.get_user {}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Hello<|return|>",
    "",
]


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_no_call(text: str) -> None:
    assert recorded(text) == recorded(text, ()) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "widget", "parameters": {"size": 3}}',
        '[{"name": "widget", "arguments": {"size": 3}}]',
        "[point(x=1, y=2)]",
    ],
)
def test_a_call_without_markers_must_name_a_known_tool(text: str) -> None:
    assert recorded(text) == []
    assert [name for name, _ in recorded(text, ())] == [re.findall("widget|point", text)[0]]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (
            '<|python_tag|>brave_search.call(query="x")<|eom_id|>',
            [("brave_search", {"query": "x"})],
        ),
        ("<|python_tag|>print(1)", [("", None)]),
        ('[TOOL_CALLS]get_user[CALL_ID]abc123[ARGS]{"a": 1}</s>', [("get_user", {"a": 1})]),
        (
            '{"type": "function", "function": {"name": "get_user", "arguments": "{\\"a\\": 1}"}}',
            [("get_user", {"a": 1})],
        ),
        (
            "<function_calls><invoke><tool_name>get_user</tool_name><parameters>"
            "<order_id>12</order_id></parameters></invoke></function_calls>",
            [("get_user", {"order_id": "12"})],
        ),
        ("<tool_call>get_user</tool_call>", [("get_user", {})]),
        ('<tool_call>{"name": "get_user", "args": {"a": 1}}</tool_call>', [("get_user", {"a": 1})]),
        ('<tool_call>{"name": "get_user", "order_id": "W1"}</tool_call>', [("get_user", None)]),
        ("<tool_call>{'name': 'get_user', 'arguments': {'a': 1}}</tool_call>", [("get_user", ...)]),
        ('```tool_code\nget_user(order_id="a")\n```', [("get_user", {"order_id": "a"})]),
        (
            "[get_user(a=(1, 2), b={'c': None}, d=-1, e=true)]",
            [
                ("get_user", {"a": [1, 2], "b": {"c": None}, "d": -1, "e": True}),
            ],
        ),
        (
            'assistantcommentary to=functions.get_user json{"order_id": "W1"}',
            [("get_user", {"order_id": "W1"})],
        ),
        (
            "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant<|channel|>"
            'commentary to=functions.get_user <|constrain|>json<|message|>{"a": 1}<|call|>',
            [("get_user", {"a": 1})],
        ),
        (
            '<think>hm</think><tool_call>{"name": "get_user", "arguments": {"a": "</tool_call>"}}'
            "</tool_call>",
            [("get_user", {"a": "</tool_call>"})],
        ),
        ('{"name": "get_user", "parameters": {"order_id": W1}}', [("get_user", None)]),
        ('[get_user(order_id="W1"', [("get_user", None)]),
        ("[TOOL_CALLS]get_user[ARGS]{'a': 1}", [("get_user", None)]),
    ],
)
def test_forms_of_calls(text: str, calls: list[tuple[str, Any]]) -> None:
    read = recorded_calls(text, WRITTEN_TOOLS)
    assert [call.name for call in read] == [name for name, _ in calls]
    for call, (_, arguments) in zip(read, calls, strict=True):
        assert call.broken == (arguments is None)
        if arguments is ...:  # Python's dict comes back as an object
            assert call.arguments == {"a": 1}
        elif arguments is not None:
            assert json.loads(call.arguments) == arguments


def test_harmony_splits_thoughts_answer_and_call() -> None:
    text = (
        "<|channel|>analysis<|message|>a cat?<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>One moment.<|end|><|start|>assistant<|channel|>commentary to=functions.get_user"
        ' <|constrain|>json<|message|>{"order_id":  "W1"}<|call|>'
    )
    message = read_message(text, "harmony")
    assert message["reasoning_content"] == "a cat?"
    assert message["content"] == "One moment."
    function = {"name": "get_user", "arguments": '{"order_id":  "W1"}'}
    assert [call["function"] for call in message["tool_calls"]] == [function]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": ["string", "null"]}, "123", "123"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "123", 123),
        ({"type": "string"}, "true", "true"),
        ({}, "true", True),
        ({}, "0123", "0123"),
    ],
)
def test_a_value_without_quotes_takes_a_type_that_the_schema_allows(
    schema: dict[str, Any], text: str, value: Any
) -> None:
    function = {"name": "f", "parameters": {"properties": {"a": schema}}}
    call = f"<tool_call>f<arg_key>a</arg_key><arg_value>{text}</arg_value></tool_call>"
    assert recorded(call, [{"type": "function", "function": function}]) == [("f", {"a": value})]


# Lines of the chat templates that the models ship, or of vLLM's examples where these lack tools.
TEMPLATES = {
    "harmony": '"<|start|>assistant<|channel|>analysis<|message|>"',
    "kimi": "<|tool_calls_section_begin|>",
    "dsml": "<｜DSML｜function_calls>",
    "deepseek": "'<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>'",
    "step3": '<steptml:invoke name="',
    "minimax": "{{- '<minimax:tool_call>' }}<invoke name=\"",
    "glm": "{{ '<tool_call>' + tc.name }}<arg_key>{{ k }}</arg_key>",
    "seed_oss": "<seed:tool_call>\n<function=example_function_name>",
    "mistral": '{{- "[TOOL_CALLS] [" }}',
    "llama": '{"name": function name, "parameters": dictionary of argument name and its value}.',
    "xml": "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>",
    "hermes": '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}',
    "lfm2": "<|tool_call_start|>",
    "gemma4": "{{- '<|tool_call>call:' }}...{{- '<tool_call|>' }}",
    "granite": "<|tool_call|>",
    "phi4_mini": "functools[{...}]",
    "jamba": "<tool_calls>",
    "anthropic": "<function_calls>",
}


@pytest.mark.parametrize("tool_parser", TEMPLATES)
def test_the_family_shows_in_the_template(tool_parser: str) -> None:
    assert tool_parser_of(TEMPLATES[tool_parser]) == tool_parser
    assert tool_parser_of("{{ message.content }}") == "hermes"


@pytest.mark.parametrize(
    ("token", "tool_parser", "is_needed"),
    [
        ("<|python_tag|>", "llama", True),
        ("[TOOL_CALLS]", "mistral", True),
        ("<｜tool▁call▁begin｜>", "deepseek", True),
        ("<|tool_call_argument_begin|>", "kimi", True),
        ("<|tool_call>", "gemma4", True),
        ('<|"|>', "gemma4", True),
        ("<|call|>", "harmony", True),
        ("<|end|>", "harmony", True),
        ("<|end|>", "phi4_mini", False),
        ("<|im_end|>", "hermes", False),
        ("<|eot_id|>", "llama", False),
        ("<pad>", "llama", False),
    ],
)
def test_special_tokens_of_calls_are_needed(token: str, tool_parser: str, is_needed: bool) -> None:
    assert needed(token, tool_parser) == is_needed


@pytest.mark.parametrize(
    "part", ["\n", " ", "_", "a", "{", "[", "<", "}", "\nAction", "`", "<think>"]
)
def test_what_looks_like_a_call_is_told_in_linear_time(part: str) -> None:
    began = time.process_time()
    for start in ("", "{", "Action:", "a_", "```"):
        unread_call(f"{start}{part * 40_000}<({{nput")
    assert time.process_time() - began < 4  # quadratic time would be minutes
