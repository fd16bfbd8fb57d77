from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs irc-cli[transformers]")

from stages.messages.message import Message
from stages.messages.renderer import Renderer
from stages.training.tiny_model import END, tiny_tokenizer
from tests.tiny import PIECES

# Like Qwen3's: thoughts of earlier requests are dropped, and messages end with a line break.
FORGETFUL = """\
{%- set last = namespace(user=0) -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\\n" -}}
{%- if message.reasoning_content and loop.index0 > last.user -%}
{{- "<think>\\n" + message.reasoning_content + "\\n</think>\\n\\n" -}}
{%- endif -%}
{{- message.content + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""


def chat_of(template: str | None = None) -> tuple[Renderer, Any]:
    tokenizer = tiny_tokenizer(PIECES)
    if template:
        tokenizer.chat_template = template
    return Renderer(tokenizer), tokenizer


def say(text: str) -> Message:
    return {"role": "user", "content": text}


def test_the_next_prompt_holds_what_was_sampled_and_not_its_text() -> None:
    chat, tokenizer = chat_of()
    messages = [say("hello.")]
    first = chat.prompt("a", messages, [])
    # Three tokens where the tokenizer would write one.
    sampled = tokenizer.convert_tokens_to_ids(["y", "e", "s", END])
    answer = chat.answer("a", sampled, [])
    assert answer == {"role": "assistant", "content": "yes"}
    second = chat.prompt("a", [*messages, answer, say("no.")], [])
    assert not first.appended
    assert second.appended
    assert second.ids[: len(first.ids) + 4] == first.ids + sampled
    rendered = "<|im_start|>user\nno.<|im_end|><|im_start|>assistant\n"
    assert tokenizer.decode(second.ids[len(first.ids) + 4 :]) == rendered


def test_an_answer_that_was_cut_is_closed_by_the_next_prompt() -> None:
    chat, tokenizer = chat_of()
    first = chat.prompt("a", [say("hello.")], [])
    sampled = tokenizer.encode("yes")
    answer = chat.answer("a", sampled, [])
    second = chat.prompt("a", [say("hello."), answer, say("no.")], [])
    assert second.appended
    assert tokenizer.decode(second.ids[len(first.ids) :]) == (
        "yes<|im_end|><|im_start|>user\nno.<|im_end|><|im_start|>assistant\n"
    )


def test_a_broken_call_stays_as_it_was_sampled() -> None:
    chat, tokenizer = chat_of()
    first = chat.prompt("a", [say("hello.")], [])
    sampled = tokenizer.encode('<tool_call>\n{"name": "get_user", "arguments": no' + END)
    answer = chat.answer("a", sampled, [])
    [call] = answer["tool_calls"]
    assert call["id"] == "call_1_0"
    result = {"role": "tool", "tool_call_id": "call_1_0", "content": "Error: arguments"}
    second = chat.prompt("a", [say("hello."), answer, result], [])
    assert second.appended
    assert second.ids[len(first.ids) :][: len(sampled)] == sampled


def test_a_template_that_drops_thoughts_makes_a_new_prompt() -> None:
    chat, tokenizer = chat_of(FORGETFUL)
    messages = [say("hello.")]
    first = chat.prompt("a", messages, [])
    thought = tokenizer.encode("<think>\ncat\n</think>\n\nyes" + END)
    answer = chat.answer("a", thought, [])
    assert answer["reasoning_content"] == "cat"
    # A tool's answer leaves the thoughts where they are, and the user's next words don't.
    result = {"role": "tool", "content": "3"}
    kept = chat.prompt("a", [*messages, answer, result], [])
    assert kept.appended
    assert kept.ids[: len(first.ids) + len(thought)] == first.ids + thought
    again = chat.answer("a", tokenizer.encode("no" + END), [])
    dropped = chat.prompt("a", [*messages, answer, result, again, say("no.")], [])
    assert not dropped.appended
    assert tokenizer.decode(dropped.ids) == (
        "<|im_start|>user\nhello.<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
        "<|im_start|>user\nno.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_never_shows_thoughts_makes_a_new_prompt() -> None:
    chat, tokenizer = chat_of()
    chat.prompt("a", [say("hello.")], [])
    answer = chat.answer("a", tokenizer.encode("<think>cat</think>yes" + END), [])
    assert not chat.prompt("a", [say("hello."), answer, say("no.")], []).appended


def test_episodes_do_not_mix_and_may_begin_again() -> None:
    chat, tokenizer = chat_of()
    first = chat.prompt("a", [say("hello.")], [])
    answer = chat.answer("a", tokenizer.encode("yes" + END), [])
    assert not chat.prompt("b", [say("hello."), answer, say("no.")], []).appended
    assert chat.prompt("a", [say("hello.")], []) == first
    other = {"role": "assistant", "content": "no"}
    chat.answer("a", tokenizer.encode("yes" + END), [])
    assert not chat.prompt("a", [say("hello."), other, say("no.")], []).appended


def test_special_tokens_that_calls_begin_with_are_read() -> None:
    _, tokenizer = chat_of()
    tokenizer.add_special_tokens({"extra_special_tokens": ["[TOOL_CALLS]", "<frame>"]})
    tokenizer.chat_template = tokenizer.chat_template + "{# [TOOL_CALLS] #}"
    chat = Renderer(tokenizer)
    chat.prompt("a", [{"role": "user", "content": "hi"}], [])
    sampled = tokenizer.encode('<frame>[TOOL_CALLS][{"name": "get_user", "arguments": {}}]' + END)
    answer = chat.answer("a", sampled, [])
    assert answer["content"] is None
    function = {"name": "get_user", "arguments": "{}"}
    assert [call["function"] for call in answer["tool_calls"]] == [function]
