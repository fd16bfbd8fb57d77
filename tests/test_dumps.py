"""What TRL and verl log of rollouts: as messages, or as text that a chat template cuts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.errors import InputError
from stages.traces import open_trace
from stages.traces.formats import ReadOptions
from stages.traces.given import Given
from tests.conftest import Cli

SYSTEM = {"role": "system", "content": "Be brief."}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "looks up",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    },
}
# In the manner of Qwen's: roles are words between special tokens.
TEMPLATE = """\
{%- for m in messages -%}
{%- if m.role == "tool" -%}
{%- if loop.previtem.role != "tool" -%}{{- "<|im_start|>user" -}}{%- endif -%}
{{- "\\n<tool_response>\\n" + m.content + "\\n</tool_response>" -}}
{%- if loop.last or loop.nextitem.role != "tool" -%}{{- "<|im_end|>\\n" -}}{%- endif -%}
{%- else -%}
{{- "<|im_start|>" + m.role + "\\n" + (m.content or "") -}}
{%- if loop.first -%}
{%- for t in tools or [] -%}{{- "\\n" + (t | tojson) -}}{%- endfor -%}
{%- endif -%}
{%- for c in m.tool_calls or [] -%}
{%- set f = c.function -%}
{{- "\\n<tool_call>\\n" + ({"name": f.name, "arguments": f.arguments} | tojson) -}}
{{- "\\n</tool_call>" -}}
{%- endfor -%}
{{- "<|im_end|>\\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""


def call(*keys: str) -> dict[str, Any]:
    calls = [
        {
            "id": f"c{key}",
            "type": "function",
            "function": {"name": "look_up", "arguments": json.dumps({"key": key})},
        }
        for key in keys
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(key: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"c{key}", "content": text}


ASKED = [SYSTEM, {"role": "user", "content": "Where is it?\nuser"}]
SAID = [
    *(call("a"), result("a", "not here\nassistant")),
    *(call("b", "c"), result("b", "nothing"), result("c", "Error: none")),
    {"role": "assistant", "content": "Which one?"},
    {"role": "user", "content": "the red one"},
    {"role": "assistant", "content": "It is gone."},
]


def tokenizer() -> Any:
    pytest.importorskip("transformers", reason="needs irc-cli[transformers]")
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    ends = [AddedToken(text, normalized=False) for text in ("<|im_start|>", "<|im_end|>")]
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.add_special_tokens(ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", unk_token="[UNK]", chat_template=TEMPLATE
    )


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def texts(special: bool) -> tuple[str, str]:
    """The prompt and the completion as a trainer decodes them, without special tokens or with."""
    show = tokenizer().apply_chat_template
    prompt = show(ASKED, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    whole = show(ASKED + SAID, tools=[TOOL], tokenize=False)
    both = prompt, whole.removeprefix(prompt)
    if special:
        return both
    return bare(both[0]), bare(both[1])


def bare(text: str) -> str:
    return text.replace("<|im_start|>", "").replace("<|im_end|>", "")


def verl_line(special: bool, **other: Any) -> str:
    prompt, completion = texts(special)
    row = {"input": prompt, "output": completion, "gts": "x", "score": 1.0, "step": 3}
    return json.dumps(row | other) + "\n"


@pytest.mark.parametrize("special", [False, True])
def test_a_text_is_cut_into_its_turns(folder: str, tmp_path: Path, special: bool) -> None:
    file = tmp_path / "3.jsonl"
    file.write_text(verl_line(special) + verl_line(special, score=0.0, acc=False))
    first, second = open_trace(str(file), options=ReadOptions(tokenizer=folder))
    assert [len(turn.calls) for turn in first.turns] == [1, 2, 0, 0]
    assert [
        (c.name, json.loads(c.arguments), c.result) for turn in first.turns for c in turn.calls
    ] == [
        ("look_up", {"key": "a"}, "not here\nassistant"),
        ("look_up", {"key": "b"}, "nothing"),
        ("look_up", {"key": "c"}, "Error: none"),
    ]
    told = [(m["role"], m["content"]) for m in first.messages or ()]
    assert told[1:] == [(m["role"], m["content"]) for m in (ASKED + SAID)[1:]]
    assert (first.outcome, second.outcome) == (1.0, 0.0)
    assert first.task_id == second.task_id
    assert first.group == second.group
    assert second.rewards == {"score": 0.0, "acc": False}


def test_a_result_may_follow_without_a_line_break(folder: str, tmp_path: Path) -> None:
    """Verl appends results to the sampled tokens, which end with the end token."""
    _, completion = texts(special=True)
    sampled = completion.replace(
        "<|im_end|>\n<|im_start|>user\n<tool_r", "<|im_end|><|im_start|>user\n<tool_r"
    )
    assert sampled != completion
    file = tmp_path / "3.jsonl"
    file.write_text(verl_line(True, output=sampled) + verl_line(False, output=bare(sampled)))
    for episode in open_trace(str(file), options=ReadOptions(tokenizer=folder)):
        assert [len(turn.calls) for turn in episode.turns] == [1, 2, 0, 0]


@pytest.mark.parametrize("text", [False, True])
def test_completions_of_trl(folder: str, tmp_path: Path, text: bool) -> None:
    prompt, completion = texts(special=False) if text else (ASKED, SAID)
    rows = {
        "step": [1, 1],
        "prompt": [prompt] * 2,
        "completion": [completion] * 2,
        "right": [1.0, float("nan")],  # NaN: the function gave no reward
        "polite": [0.5, 0.25],
        "advantage": [0.1, -0.1],
    }
    file = tmp_path / "completions_00001.parquet"
    pl.DataFrame(rows).write_parquet(file)
    options = ReadOptions(tokenizer=folder if text else None)
    episodes = list(open_trace(str(file), options=options, given=Given(score="right")))
    assert [episode.outcome for episode in episodes] == [1.0, None]  # a missing reward is not 0
    assert [episode.rewards for episode in episodes] == [
        {"right": 1.0, "polite": 0.5},
        {"polite": 0.25},
    ]
    assert [[len(turn.calls) for turn in episode.turns] for episode in episodes] == [
        [1, 2, 0, 0]
    ] * 2
    with pytest.raises(InputError, match="has several scores: 'right', 'polite'; name the outcome"):
        list(open_trace(str(file), options=options))


def test_score_takes_a_tokenizer(run: Cli, folder: str, tmp_path: Path) -> None:
    (tmp_path / "3.jsonl").write_text(verl_line(False))
    for command in ("score", "eval"):
        assert run(command, "3.jsonl")[::2] == (
            2,
            "error: 3.jsonl:1: is text, not messages; "
            "pass --tokenizer NAME|DIR, whose chat template cuts it into turns\n",
        )
        assert run(command, "3.jsonl", "--tokenizer", folder, "--json").json()["episodes"] == 1


def test_special_tokens_that_are_gone_and_are_needed(tmp_path: Path) -> None:
    made = tokenizer()
    made.chat_template = TEMPLATE.replace("\\n<tool_response>\\n", "").replace(
        '"<|im_start|>user"', '"<|im_start|>"'
    )
    made.save_pretrained(tmp_path / "other")
    (tmp_path / "3.jsonl").write_text(verl_line(False))
    with pytest.raises(InputError, match="special tokens, which the text lacks; write the text"):
        list(
            open_trace(
                str(tmp_path / "3.jsonl"), options=ReadOptions(tokenizer=str(tmp_path / "other"))
            )
        )
