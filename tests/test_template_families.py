"""Templates of five families of small models, each as its models ship it in kind.

None of them shows tools. Each is written for this test, after what the family's own one asks:
Llama 3 trims, Mistral demands turns and knows two roles, Gemma 3 takes parts, Phi 4 reads tools
from the system message and ends the text, SmolLM2's ChatML brings a system message of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("transformers", reason="needs irc-cli[transformers]")

from stages.messages.message import Message
from stages.messages.renderer import Renderer
from stages.messages.template import Template
from stages.training.sequences import retokenised
from tests.conftest import Cli
from tests.test_template import (
    CHATML,
    LIMITS,
    MISTRAL,
    PLAY,
    PLAYED,
    SYSTEM,
    TOOL,
    call,
    result,
    tokenizer_of,
    user,
)
from tests.test_template import LLAMA_3 as LLAMA_31
from tests.tiny import tiny_checkpoint

LLAMA_3 = """\
{%- for m in messages -%}
{%- if loop.first -%}{{- bos_token -}}{%- endif -%}
{{- "<|head|>" + m["role"] + "<|/head|>\\n\\n" + m["content"] | trim + "<|im_end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|head|>assistant<|/head|>\\n\\n" -}}{%- endif -%}
"""
MISTRAL_1 = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if (m["role"] == "user") != (loop.index0 % 2 == 0) -%}
{{- raise_exception("roles must alternate user/assistant") -}}
{%- elif m["role"] == "user" -%}{{- "[INST] " + m["content"] + " [/INST]" -}}
{%- elif m["role"] == "assistant" -%}{{- m["content"] + eos_token -}}
{%- else -%}{{- raise_exception("only user and assistant roles") -}}{%- endif -%}
{%- endfor -%}
"""
GEMMA_3 = """\
{{- bos_token -}}
{%- set said = messages[0]["content"] if messages[0]["role"] == "system" else none -%}
{%- set ns = namespace(opens="" if said is none else said + "\\n\\n") -%}
{%- for m in messages[0 if said is none else 1:] -%}
{%- if (m["role"] == "user") != (loop.index0 % 2 == 0) -%}
{{- raise_exception("roles must alternate user/assistant") -}}
{%- endif -%}
{{- "<|turn|>" + ("model" if m["role"] == "assistant" else m["role"]) + "\\n" + ns.opens -}}
{%- set ns.opens = "" -%}
{%- if m["content"] is string -%}{{- m["content"] | trim -}}
{%- elif m["content"] is iterable -%}
{%- for part in m["content"] if part["type"] == "text" -%}{{- part["text"] | trim -}}{%- endfor -%}
{%- else -%}{{- raise_exception("invalid content") -}}{%- endif -%}
{{- "<|end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|turn|>model\\n" -}}{%- endif -%}
"""
PHI_4 = """\
{%- for m in messages -%}
{{- "<|" + m["role"] + "|>" + m["content"] -}}
{%- if m["role"] == "system" and m["tools"] -%}{{- "<|tool|>" + m["tools"] -}}{%- endif -%}
{{- "<|end|>" -}}
{%- endfor -%}
{{- "<|assistant|>" if add_generation_prompt else eos_token -}}
"""
SMOLLM_2 = """\
{%- for m in messages -%}
{%- if loop.first and m["role"] != "system" -%}
{{- "<|im_start|>system\\nhelp the user<|im_end|>\\n" -}}
{%- endif -%}
{{- "<|im_start|>" + m["role"] + "\\n" + m["content"] + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""
UNAWARE = {
    "llama 3": LLAMA_3,
    "mistral": MISTRAL_1,
    "gemma": GEMMA_3,
    "phi": PHI_4,
    "chatml": SMOLLM_2,
}

REPLY = {"role": "assistant", "content": "certainly."}
# What recordings hold, and what no template is ready for.
TALKS: dict[str, list[Message]] = {
    "an answer of null": [
        *(SYSTEM, user("hello."), {"role": "assistant", "content": None}, user("well?"), REPLY),
    ],
    "an answer without content": [SYSTEM, user("hello."), {"role": "assistant"}, user("?"), REPLY],
    "no calls beside null": [
        *(SYSTEM, user("hello."), {"role": "assistant", "content": None, "tool_calls": []}),
        *(user("well?"), REPLY),
    ],
    "a user's null": [SYSTEM, {"role": "user", "content": None}, REPLY],
    "a result of null": [
        *(SYSTEM, user("hello."), call('{"number": "DL1"}')),
        *({"role": "tool", "tool_call_id": "c0", "content": None}, REPLY),
    ],
    "text in parts": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "hi"}]}, REPLY],
    "a greeting": [SYSTEM, REPLY, user("hello."), REPLY],
}


def end_of_a_text(template: str) -> Any:
    tokenizer = tokenizer_of(template)
    if template is PHI_4:
        tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    return tokenizer


@pytest.mark.parametrize("name", UNAWARE)
def test_every_turn_shows_the_tools(name: str) -> None:
    template = Template(end_of_a_text(UNAWARE[name]))
    second = {"type": "function", "function": {"name": "book_flight", "description": "books one"}}
    assert template.told([TOOL]).record["tools"] == "messages"
    assert "does not show tools and calls" in template.told([TOOL]).notes[0]
    for end in (2, 4, 6, 8):
        text = template.render(PLAYED[:end], [TOOL, second], prompt=True)
        wanted = ["find_flight", "looks up a flight", "book_flight", "books one", "be brief."]
        assert [word for word in wanted if word not in text] == []


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", [*UNAWARE.values(), LLAMA_31, MISTRAL, CHATML])
def test_what_recordings_hold_is_learnt_from(template: str, talk: str) -> None:
    tokenizer = end_of_a_text(template)
    [*_, last] = retokenised("e", TALKS[talk], [TOOL], Renderer(tokenizer))
    assert tokenizer.decode(last["token_ids"]).startswith("certainly.")
    text = Template(tokenizer).render(TALKS[talk], [TOOL], prompt=False)
    assert "find_flight" in text and "None" not in text


def test_an_episode_is_one_sequence_where_a_template_ends_the_text() -> None:
    rows = list(retokenised("e", PLAYED, [TOOL], Renderer(end_of_a_text(PHI_4))))
    assert [row["appended"] for row in rows] == [False, True, True]


def test_a_template_that_shows_the_first_tool_alone_gets_them_as_text() -> None:
    first = "{%- if tools -%}{{- tools[0] | tojson -}}{%- endif -%}"
    shows = CHATML.replace(
        'm["content"]', '(m["content"] or "") + m.get("tool_calls", "") | string'
    )
    template = Template(tokenizer_of(first + shows))
    second = {"type": "function", "function": {"name": "book_flight", "description": "books one"}}
    assert "book_flight" in template.render(PLAYED[:2], [TOOL, second], prompt=True)


@pytest.mark.parametrize("name", UNAWARE)
def test_rollout_and_sft_say_how_the_model_is_told(run: Cli, tmp_path: Path, name: str) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    # Its tokens are those of airline-mini, of which one ends a message.
    template = UNAWARE[name].replace("<|end|>", "<|im_end|>").replace("else eos_token", "else ''")
    (model / "chat_template.jinja").write_text(template)
    played = run(*PLAY, *LIMITS, "--model", str(model), "-o", "r.jsonl", "--json")
    assert played.code == 0, played.err
    [note] = played.json()["notes"]
    assert "its chat template does not show tools and calls" in note
    talk = [*PLAYED[:3], result("on time"), *TALKS["an answer of null"][2:]]
    Path("talk.jsonl").write_bytes(orjson.dumps({"messages": talk, "tools": [TOOL]}))
    learnt = run("train", "--model", str(model), "--sft", "talk.jsonl", "-o", "out")
    assert learnt.code == 0, learnt.err
    assert note in learnt.err
