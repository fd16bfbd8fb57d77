"""Every chat template shows the whole conversation, in one form or another, or is refused."""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("transformers", reason="needs irc-cli[transformers]")

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.probe import Shape
from stages.messages.renderer import Renderer
from stages.messages.template import IN_WEIGHTS, Form, Template, in_hermes
from stages.training.sequences import retokenised
from stages.training.tiny_model import tiny_tokenizer
from tests.conftest import Cli
from tests.tiny import PIECES, tiny_checkpoint

# In the manner of some families of models: what each asks of a conversation, in few lines.
CHATML = """\
{%- for m in messages -%}
{{- "<|im_start|>" + m["role"] + "\\n" + m["content"] + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""
CHATML_OF_NONE = CHATML.replace('m["content"]', 'm["content"] | string')
QWEN = """\
{%- if tools -%}<|im_start|>system
{{ messages[0].content if messages[0].role == "system" }}
{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>
{% endif -%}
{%- for m in messages -%}
{%- if m.role == "tool" -%}
{{- "<|im_start|>user\\n<tool_response>" + m.content + "</tool_response><|im_end|>\\n" -}}
{%- elif m.role == "assistant" -%}
{{- "<|im_start|>assistant\\n" + (m.content or "") -}}
{%- for c in m.tool_calls or [] -%}<tool_call>{{ c.function | tojson }}</tool_call>{%- endfor -%}
{{- "<|im_end|>\\n" -}}
{%- elif m.role == "user" or not tools -%}
{{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""
# Tools in the first user message; arguments as an object; a single call.
LLAMA_3 = """\
{{- bos_token -}}
{%- if messages[0]["role"] == "system" -%}
{{- "<|head|>system\\n\\n" + messages[0]["content"] | trim + "<|im_end|>" -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
{%- if messages | length == 0 -%}{{- raise_exception("no first user message") -}}{%- endif -%}
{{- "<|head|>user\\n\\n" -}}
{%- for t in tools -%}{{- t | tojson(indent=4) + "\\n" -}}{%- endfor -%}
{{- messages[0]["content"] | trim + "<|im_end|>" -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length != 1 -%}{{- raise_exception("only single calls") -}}{%- endif -%}
{%- set call = m.tool_calls[0].function -%}
{{- '<|head|>assistant\\n\\n{"name": "' + call.name + '", "parameters": ' -}}
{{- call.arguments | tojson + "}<|im_end|>" -}}
{%- elif m.role == "tool" -%}
{{- "<|head|>ipython\\n\\n" + m.content | tojson + "<|im_end|>" -}}
{%- else -%}
{{- "<|head|>" + m["role"] + "\\n\\n" + m["content"] | trim + "<|im_end|>" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|head|>assistant\\n\\n" -}}{%- endif -%}
"""
# No system role unless it opens; strict turns; nine characters; tools before the last user message.
MISTRAL = """\
{%- if messages[0].role == "system" -%}
{%- set system, rest = messages[0].content, messages[1:] -%}
{%- else -%}{%- set system, rest = "", messages -%}{%- endif -%}
{%- set users = rest | selectattr("role", "equalto", "user") | list -%}
{%- set ns = namespace(i=0) -%}
{%- for m in rest -%}
{%- if m.role in ("user", "assistant") and not m.tool_calls -%}
{%- if (m.role == "user") != (ns.i % 2 == 0) -%}
{{- raise_exception("roles must alternate user/assistant") -}}
{%- endif -%}
{%- set ns.i = ns.i + 1 -%}
{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for m in rest -%}
{%- if m.role == "user" -%}
{%- if tools and m == users[-1] -%}
{{- "[AVAILABLE_TOOLS]" + tools | tojson + "[/AVAILABLE_TOOLS]" -}}
{%- endif -%}
{{- "[INST]" + (system + "\\n\\n" if system and m == users[-1] else "") + m.content + "[/INST]" -}}
{%- elif m.tool_calls -%}
{{- "[TOOL_CALLS][" -}}
{%- for c in m.tool_calls -%}
{%- if c.id | length != 9 -%}{{- raise_exception("ids must have length 9") -}}{%- endif -%}
{{- c.function | tojson + ", " + c.id -}}
{%- endfor -%}
{{- "]" + eos_token -}}
{%- elif m.role == "assistant" -%}
{{- m.content + eos_token -}}
{%- elif m.role == "tool" -%}
{%- if m.tool_call_id | length != 9 -%}
{{- raise_exception("ids must have length 9") -}}
{%- endif -%}
{{- "[TOOL_RESULTS]" + m.content | tojson + m.tool_call_id + "[/TOOL_RESULTS]" -}}
{%- endif -%}
{%- endfor -%}
"""
# No system role, strict turns, and an end of a message that is not the end of a text.
GEMMA = """\
{{- bos_token -}}
{%- if messages[0]["role"] == "system" -%}
{{- raise_exception("System role not supported") -}}
{%- endif -%}
{%- for m in messages -%}
{%- if (m["role"] == "user") != (loop.index0 % 2 == 0) -%}
{{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") -}}
{%- endif -%}
{%- set role = "model" if m["role"] == "assistant" else m["role"] -%}
{{- "<|turn|>" + role + "\\n" + m["content"] | trim + "<|end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|turn|>model\\n" -}}{%- endif -%}
"""
# Silent on whatever it does not know.
PHI = """\
{%- for m in messages -%}
{%- if m["role"] in ("system", "user", "assistant") and m["content"] -%}
{{- "<|" + m["role"] + "|>\\n" + m["content"] + "<|end|>\\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>\\n" -}}{%- endif -%}
"""
LLAMA_2 = """\
{%- if messages[0]["role"] == "system" -%}
{%- set rest, system = messages[1:], messages[0]["content"] -%}
{%- else -%}{%- set rest, system = messages, none -%}{%- endif -%}
{%- for m in rest -%}
{%- if (m["role"] == "user") != (loop.index0 % 2 == 0) -%}
{{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") -}}
{%- endif -%}
{%- set content = m["content"] -%}
{%- if loop.first and system is not none -%}
{%- set content = "<<SYS>>\\n" + system + "\\n<</SYS>>\\n\\n" + content -%}
{%- endif -%}
{%- if m["role"] == "user" -%}{{- bos_token + "[INST] " + content.strip() + " [/INST]" -}}
{%- else -%}{{- " " + content.strip() + " " + eos_token -}}{%- endif -%}
{%- endfor -%}
"""
# Calls by null content, their arguments a text; tools are ignored.
DEEPSEEK = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == "assistant" and m.content is none -%}
{%- for c in m.tool_calls -%}
{{- "<A><call>" + c.function.name + "\\n" + c.function.arguments + "</call>" -}}
{%- endfor -%}
{{- eos_token -}}
{%- elif m.role == "assistant" -%}{{- "<A>" + m.content + eos_token -}}
{%- elif m.role == "tool" -%}{{- "<result>" + m.content + "</result>" -}}
{%- else -%}{{- "<U>" + m.content -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<A>" -}}{%- endif -%}
"""
DEEPSEEK_WITH_TOOLS = "{%- for t in tools or [] -%}{{- t | tojson -}}{%- endfor -%}" + DEEPSEEK
NO_SYSTEM = PHI.replace('("system", ', "(")
REFUSING = QWEN.replace("{%- if tools -%}", '{%- if tools -%}{{- raise_exception("no tools") -}}')

FORMS = {
    "qwen": (QWEN, Form()),
    "llama 3": (LLAMA_3, Form(parallel=False)),
    "mistral": (MISTRAL, Form(own_ids=False)),
    "deepseek with tools": (DEEPSEEK_WITH_TOOLS, Form(arguments="text")),
    "chatml": (CHATML, Form(native=False)),
    "chatml of None": (CHATML_OF_NONE, Form(native=False)),
    "refuses tools": (REFUSING, Form(native=False)),
    "phi": (PHI, Form(native=False)),
    "llama 2": (LLAMA_2, Form(native=False)),
    "deepseek": (DEEPSEEK, Form(native=False)),
    "gemma": (GEMMA, Form(native=False, folded=True)),
    "no system": (NO_SYSTEM, Form(native=False, folded=True)),
}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_flight",
        "description": "looks up a flight",
        "parameters": {"type": "object", "properties": {"number": {"type": "string"}}},
    },
}
SYSTEM = {"role": "system", "content": "be brief."}


TINY = tiny_tokenizer(PIECES)


def tokenizer_of(template: str | None, **tokens: str | None) -> Any:
    tokenizer = deepcopy(TINY)
    tokenizer.chat_template = template
    tokenizer.bos_token = "<s>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.name_or_path = "some/model"
    return tokenizer


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def call(text: str, name: str = "c0", content: str | None = None) -> Message:
    function = {"name": "find_flight", "arguments": text}
    calls = [{"id": name, "type": "function", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(text: str, name: str = "c0") -> Message:
    return {"role": "tool", "tool_call_id": name, "content": text}


PLAYED = [
    *(SYSTEM, user("hello.")),
    *(call('{"number": "DL1"}'), result("no flight"), call('{"number": "DL2"}', "c1")),
    *(result("on time", "c1"), {"role": "assistant", "content": "it is on time."}, user("thanks")),
]
WORDS = ["find_flight", "looks up a flight", "number", "be brief."]


@pytest.mark.parametrize("name", FORMS)
def test_form_of_a_template(name: str) -> None:
    template, form = FORMS[name]
    assert Template(tokenizer_of(template)).form(Shape()) == form


@pytest.mark.parametrize("name", FORMS)
def test_a_model_sees_tools_calls_and_results_in_every_turn(name: str) -> None:
    template = Template(tokenizer_of(FORMS[name][0]))
    for end in (2, 4, 6, 8):
        text = template.render(PLAYED[:end], [TOOL], prompt=True)
        seen = [*WORDS, "hello.", *["DL1", "no flight", "DL2", "on time"][: end - 2]]
        assert [word for word in seen if word not in text] == []
        assert "None" not in text


@pytest.mark.parametrize("name", FORMS)
def test_an_episode_is_played_and_learnt_from_with_the_same_prompt(name: str) -> None:
    tokenizer = tokenizer_of(FORMS[name][0])
    chat, again = Renderer(tokenizer), Renderer(tokenizer)
    prompts, messages = [], PLAYED[:2]
    for turn in (2, 4, 6):
        prompts.append(chat.prompt("e", messages, [TOOL]).ids)
        chat.recorded("e", PLAYED[: turn + 1], [TOOL])
        messages = PLAYED[: turn + 2]
    rows = list(retokenised("e", messages, [TOOL], again))
    whole: list[int] = []
    for row, prompt in zip(rows, prompts, strict=True):
        whole = [*whole, *row["prompt_ids"]] if row["appended"] else row["prompt_ids"]
        assert whole == prompt
        whole = [*whole, *row["token_ids"]]
    moves = name == "mistral"  # its tools go with the last user message, which comes at the end
    assert [row["appended"] for row in rows] == [False, True, True], moves


def test_what_is_written_into_messages() -> None:
    told = in_hermes(PLAYED[:4], [TOOL])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("be brief.\n\n# Tools\n")
    assert orjson.loads(told[0]["content"].split("<tools>\n")[1].split("\n</tools>")[0]) == TOOL
    assert told[2]["content"] == (
        '<tool_call>\n{"name": "find_flight", "arguments": {"number": "DL1"}}\n</tool_call>'
    )
    assert told[3]["content"] == "<tool_response>\nno flight\n</tool_response>"
    assert in_hermes(PLAYED[:2], []) == PLAYED[:2]


def test_results_of_several_calls_share_a_message() -> None:
    both = call('{"number": "DL1"}', "c0", "one moment")
    both["tool_calls"] += call("no JSON", "c1")["tool_calls"]
    told = in_hermes([user("hi"), both, result("one", "c0"), result("two", "c1")], [])
    assert told[1]["content"] == (
        'one moment\n<tool_call>\n{"name": "find_flight", "arguments": {"number": "DL1"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "find_flight", "arguments": no JSON}\n</tool_call>'
    )
    assert told[2:] == [
        user(
            "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>",
        )
    ]


FOLDING, TALKING = Template(tokenizer_of(NO_SYSTEM)), Template(tokenizer_of(CHATML))


@given(st.text(alphabet="ab <>/\n"), st.text(alphabet="{}ab\"'\n"), st.booleans())
def test_whatever_is_said_reaches_the_model(said: str, result_text: str, folded: bool) -> None:
    template = FOLDING if folded else TALKING
    messages = [SYSTEM, user("hello."), call("{}", "c0", said), result(result_text)]
    text = template.render(messages, [TOOL], prompt=True)
    assert said in text and f"<tool_response>\n{result_text}\n</tool_response>" in text


def test_a_single_call_template_gets_several_calls_one_by_one() -> None:
    both = call('{"number": "DL1"}', "c0")
    both["tool_calls"] += call('{"number": "DL2"}', "c1")["tool_calls"]
    template = Template(tokenizer_of(LLAMA_3))
    messages = [SYSTEM, user("hello."), both, result("no", "c0"), result("yes", "c1")]
    text = template.render(messages, [TOOL], prompt=True)
    places = [text.index(word) for word in ("DL1", '"no"', "DL2", '"yes"')]
    assert places == sorted(places)
    # Not one message as the model would have written it, so not to be learnt from.
    chat = Renderer(tokenizer_of(LLAMA_3))
    chat.prompt("e", messages[:2], [TOOL])
    with pytest.raises(InputError, match="does not continue its prompt"):
        chat.recorded("e", messages[:3], [TOOL])


def test_ids_of_nine_digits_match_calls_and_results() -> None:
    text = Template(tokenizer_of(MISTRAL)).render(PLAYED, [TOOL], prompt=True)
    assert re.findall(r"\d{9}", text) == ["000000000"] * 2 + ["000000001"] * 2


@pytest.mark.parametrize("name", ["gemma", "llama 2"])
def test_a_greeting_where_users_must_begin(name: str) -> None:
    greeting = {"role": "assistant", "content": "how can i help?"}
    template = Template(tokenizer_of(FORMS[name][0]))
    text = template.render([SYSTEM, greeting, *PLAYED[1:]], [TOOL], prompt=True)
    places = [text.index(word) for word in ("be brief.", "how can i help?", "hello.")]
    assert places == sorted(places)


def test_a_message_ends_with_the_token_that_the_template_writes() -> None:
    assert Template(tokenizer_of(GEMMA)).end == "<|end|>"
    assert Template(tokenizer_of(PHI, eos_token=None)).end == "<|end|>"
    assert Template(tokenizer_of(LLAMA_2)).end == "<|im_end|>"
    assert Template(tokenizer_of(QWEN)).end_id == tokenizer_of(QWEN).eos_token_id


def test_tools_in_the_weights_are_told_nowhere() -> None:
    template = Template(tokenizer_of(IN_WEIGHTS + QWEN.replace("tools", "nothing")))
    assert template.told([TOOL]) == ({"tools": "weights", "system": "system"}, [])
    assert "find_flight" not in template.render(PLAYED[:2], [TOOL], prompt=True)


REFUSED = "write a template for talks with tools to 'chat_template.jinja' in the model's folder"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (
            "{{ raise_exception('not\\nfor chats') }}",
            f"can't hold such a conversation: not; {REFUSED}",
        ),
        (
            "{{ messages[0].nothing.at_all }}",
            "can't hold such a conversation: 'dict object' has no",
        ),
        ("hello", f"can't hold such a conversation: it does not show tools; {REFUSED}"),
        (
            "{% for m in messages %}{{ m.content }}",
            "can't hold such a conversation: Unexpected end",
        ),
        (
            "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- m.content -}}{%- endif -%}"
            "{%- endfor -%}",
            f"can't hold such a conversation: it does not show the arguments of calls; {REFUSED}",
        ),
    ],
)
def test_a_template_that_shows_too_little_is_refused(template: str, what: str) -> None:
    with pytest.raises(InputError) as refused:
        Renderer(tokenizer_of(template)).prompt("e", PLAYED[:2], [TOOL])
    assert str(refused.value).startswith(f"some/model: its chat template {what}")


def test_a_conversation_that_a_template_refuses_is_one_line() -> None:
    chat = Renderer(tokenizer_of(GEMMA))
    said = {"role": "assistant", "content": "no"}
    with pytest.raises(InputError) as refused:
        chat.prompt("e", [user("hello."), said, said], [])
    assert str(refused.value) == (
        "some/model: its chat template refuses the conversation: Conversation roles must alternate "
        "user/assistant/user/assistant/...; give a model whose template takes such messages"
    )


def test_without_a_template_or_an_end_there_is_no_chat() -> None:
    for tokenizer in (
        tokenizer_of(None),
        tokenizer_of("{{ messages[0].content }}", eos_token=None),
    ):
        with pytest.raises(InputError, match="no chat template, or no token that ends a message"):
            Renderer(tokenizer)


@pytest.fixture(scope="module")
def unaware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template knows no tools."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


PLAY = ("rollout", "--env", "airline-mini", "--policy", "transformers", "--max-tasks", "1")
LIMITS = ("--group-size", "1", "--max-turns", "1", "--max-tokens", "4", "--context", "16384")


def test_rollouts_training_and_exports_share_a_prompt(run: Cli, unaware: Path) -> None:
    ended = run(*PLAY, *LIMITS, "--model", str(unaware), "-o", "r.jsonl", "--json")
    note = (
        f"{unaware}: its chat template does not show tools and calls; the system message "
        "describes them in Hermes form"
    )
    assert ended.code == 0, ended.err
    assert ended.json()["notes"] == {note: 1}
    meta = orjson.loads(Path("r.meta.json").read_bytes())
    assert meta["prompt"] == {"tools": "messages", "system": "system"}
    tokenizer = AutoTokenizer.from_pretrained(unaware)
    rows = [orjson.loads(line) for line in Path("r.jsonl").read_bytes().splitlines()]
    import polars as pl

    tokens = pl.read_parquet("r.tokens.parquet").filter(pl.col("turn") == 0)
    seen = {row["episode_id"]: row["prompt_ids"] for row in tokens.to_dicts()}
    for row in rows:
        text = tokenizer.decode(seen[row["episode_id"]])
        assert all(tool["function"]["name"] in text for tool in meta["tools"])
        [first, *_] = retokenised(
            row["episode_id"], row["messages"], tools_of(meta), Renderer(tokenizer)
        )
        assert first["prompt_ids"] == seen[row["episode_id"]]
    assert run("export", "sft", "r.jsonl", "--min-outcome", "0", "-o", "sft.jsonl").code == 0
    for line in Path("sft.jsonl").read_bytes().splitlines():
        row = orjson.loads(line)
        [first, *_] = retokenised("e", row["messages"], row["tools"], Renderer(tokenizer))
        assert row["tools"] == [] and first["prompt_ids"] in seen.values()
    learnt = run("train", "--model", str(unaware), "--sft", "sft.jsonl", "-o", "out")
    assert learnt.code == 0, learnt.err
    # A policy that was told of its tools otherwise did not write these messages to this prompt.
    assert run("score", "r.jsonl", "-o", "t.parquet", "--quiet").code == 0
    told = {"prompt": {"tools": "template", "system": "system"}}
    Path("r.meta.json").write_bytes(orjson.dumps(meta | told))
    given = ("--rollouts", "r.jsonl", "--turns", "t.parquet", "--allow-retokenised")
    refused = run("train", "--model", str(unaware), *given, "-o", "again")
    assert (refused.code, refused.err) == (
        2,
        "error: r.jsonl: the policy got its tools from the template, and would now get them from "
        "the messages; give the chat template that it was played with\n",
    )


def tools_of(meta: dict[str, Any]) -> list[dict[str, Any]]:
    from stages.messages.message import without_kind

    return [without_kind(tool) for tool in meta["tools"]]


def test_calls_beside_null_are_learnt_where_a_template_fails_on_null(
    run: Cli, unaware: Path
) -> None:
    row = {"messages": PLAYED, "tools": [TOOL]}
    Path("talk.jsonl").write_bytes(orjson.dumps(row))
    ended = run("train", "--model", str(unaware), "--sft", "talk.jsonl", "-o", "out")
    assert ended.code == 0, ended.err
    assert f"{unaware}: its chat template does not show tools" in ended.err


def test_a_template_that_can_show_nothing_stops_a_run(
    run: Cli, unaware: Path, tmp_path: Path
) -> None:
    shutil.copytree(unaware, tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    ended = run(*PLAY, *LIMITS, "--model", str(tmp_path / "mute"), "-o", "r.jsonl")
    assert (ended.code, ended.err) == (
        2,
        f"error: {tmp_path / 'mute'}: its chat template can't hold such a conversation: never; "
        f"{REFUSED}\n",
    )
    assert not list(Path.cwd().glob("r.*"))
