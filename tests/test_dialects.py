from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dialects import dialect_of, read_message, recorded_calls

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


def calls_of(text: str, dialect: str = "hermes") -> list[tuple[str, str]]:
    calls = read_message(text, dialect, TOOLS)["tool_calls"]
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
    assert dialect_of("... <tool_call>\n<function=example ...") == "xml"
    assert dialect_of('... <tool_call>\n{"name": ...') == "hermes"


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
    for dialect in ("hermes", "xml"):
        message = read_message(text, dialect, TOOLS, thinking=thinking)
        assert all(isinstance(call.name, str) for call in recorded_calls(text, TOOLS))
        for call in message.get("tool_calls", ()):
            assert isinstance(call["function"]["arguments"], str)
            assert isinstance(call["function"]["name"], str)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"name": "a", "arguments": ' + '{"a":' * 100_000])
def test_deep_nesting_is_broken(text: str) -> None:
    assert calls_of(f"<tool_call>{text}</tool_call>")[0][1] == text
