from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs irc-cli[transformers]")

import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.envs.airline_mini import airline_mini
from stages.training.tiny_model import (
    ASSISTANT,
    END,
    USER,
    Size,
    make_tiny_model,
    split_pattern,
    tiny_tokenizer,
)
from tests.tiny import PIECES, cut

TOKENIZER = tiny_tokenizer(PIECES)


def tokens(text: str) -> list[str]:
    found: list[str] = TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(text))
    return found


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    digests: dict[str, dict[str, str]] = {}
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        torch.manual_seed(len(digests))
        before = torch.random.get_rng_state()
        make_tiny_model(tmp_path / name, ["hello", " world"], seed, Size(layers=1, width=32))
        assert torch.equal(torch.random.get_rng_state(), before)
        files = sorted((tmp_path / name).iterdir())
        digests[name] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert digests["one"] == digests["same"]
    weights = "model.safetensors"
    assert digests["one"][weights] != digests["other"][weights]


def test_the_checkpoint_loads_with_transformers(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, PIECES, 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert 850_000 < model.num_parameters() < 1_000_000
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer.eos_token_id) == END
    text = "hello. i want to cancel emil_fox_12 Ü"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)


def test_the_tokens_of_a_domain_are_its_pieces() -> None:
    environment = airline_mini()
    texts = [
        environment.reset(task, 0).messages[1]["content"]
        for task in environment.tasks("train")[:50]
    ]
    for text in [*texts, environment.policy]:
        assert tokens(text) == cut(text)


def test_what_is_no_piece_is_spelt() -> None:
    assert tokens("zanzi é") == ["z", "a", "n", "z", "i", " ", "<0xC3>", "<0xA9>"]
    assert tokens("<0x41>") == ["<", "0", "x", "4", "1", ">"]


def test_the_longest_piece_counts_and_words_stay_whole() -> None:
    def parts(text: str) -> list[str]:
        return re.findall(split_pattern(["ab", "abc", "12"]), text)

    assert parts("abc ab abd 12") == ["abc", " ", "ab", " ", "a", "b", "d", " ", "12"]
    assert parts("123 312 ab12 xab") == [
        *["1", "2", "3", " ", "3", "1", "2", " "],
        *["ab", "12", " ", "x", "a", "b"],
    ]


@given(st.text() | st.lists(st.sampled_from([*PIECES, "\t", "é"]), max_size=9).map("".join))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "policy"},
    {"role": "user", "content": "hello."},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "no."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"function": {"name": "get_user", "arguments": '{"user_id":"emil_fox_12"}'}},
            {"function": {"name": "calculate", "arguments": {"expression": "1 + 2"}}},
        ],
    },
    {"role": "tool", "content": '{"member":"plus"}'},
    {"role": "tool", "content": "3"},
]
TEXT = (
    "<|im_start|>user\nhello.<|im_end|>"
    "<|im_start|>assistant\nyes<|im_end|>"
    "<|im_start|>user\nno.<|im_end|>"
    "<|im_start|>assistant\n"
    '<tool_call>\n{"name": "get_user", "arguments": {"user_id":"emil_fox_12"}}\n</tool_call>'
    '<tool_call>\n{"name": "calculate", "arguments": {"expression":"1 + 2"}}\n</tool_call>'
    "<|im_end|>"
    '<|im_start|>user\n<tool_response>\n{"member":"plus"}\n</tool_response>'
    "<tool_response>\n3\n</tool_response><|im_end|>"
)


def render(messages: list[dict[str, Any]], prompt: bool = False) -> str:
    text: str = TOKENIZER.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt
    )
    return text


def test_the_template_writes_qwens_form() -> None:
    assert render(MESSAGES) == TEXT
    assert render(MESSAGES, prompt=True) == TEXT + "<|im_start|>assistant\n"


def test_the_template_only_appends() -> None:
    texts = [render(MESSAGES[:count]) for count in (1, 2, 3, 4, 5, 7)]
    for shorter, longer in pairwise(texts):
        assert longer.startswith(shorter)


def test_scaffolding_is_one_token_each() -> None:
    assert tokens(TEXT) == [
        *[USER, "hello", ".", END, ASSISTANT, "yes", END, USER, "no", ".", END, ASSISTANT],
        *['<tool_call>\n{"name": "', "get_user", '", "arguments": ', '{"user_id":"'],
        *["emil", "_fox_", "12", '"}', "}\n</tool_call>"],
        *['<tool_call>\n{"name": "', "calculate", '", "arguments": ', '{"expression":"'],
        *["1", " + ", "2", '"}', "}\n</tool_call>", END, USER],
        *["<tool_response>\n", '{"member":"', "plus", '"}', "\n</tool_response>"],
        *["<tool_response>\n", "3", "\n</tool_response>", END],
    ]
