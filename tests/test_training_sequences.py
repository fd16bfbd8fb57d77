"""Every token that the policy wrote is learnt once, in the context that it was written in."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("transformers", reason="needs irc-cli[train]")

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.renderer import Renderer
from stages.policies.policy import Action
from stages.rollout import token_rows
from stages.tables.artifacts import ADVANTAGES, TOKENS
from stages.training.examples import Demonstration, Reinforced, offending, reinforced, supervised
from stages.training.sequences import NO_TIER, TokenSequence, check, retokenised, sequences
from tests.builders import line_of
from tests.test_renderer import FORGETFUL, chat_of, say

ids = st.lists(st.integers(0, 99), min_size=1, max_size=5)


def table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return TOKENS.frame({name: [row[name] for row in rows] for name in TOKENS.columns})


@st.composite
def episodes(draw: st.DrawFn) -> list[list[Action]]:
    """Episodes whose prompts go on from what came before, or begin anew."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        actions: list[Action] = []
        for turn in range(draw(st.integers(1, 5))):
            prompt, wrote = draw(ids), draw(ids)
            if turn and draw(st.booleans()):
                last = actions[-1]
                prompt = [*(last.prompt_ids or ()), *(last.token_ids or ()), *prompt]
            actions.append(Action({}, prompt, wrote, [-float(token) for token in wrote]))
        found.append(actions)
    return found


@given(episodes())
@settings(deadline=None, derandomize=True)
def test_every_sampled_token_once_in_its_own_context(played: list[list[Action]]) -> None:
    rows = [
        row for number, actions in enumerate(played) for row in token_rows(f"e{number}", actions)
    ]
    made = sequences(table(rows))
    for number, actions in enumerate(played):
        mine = [one for one in made if one.episode_id == f"e{number}"]
        assert sum(one.written.sum() for one in mine) == sum(
            len(a.token_ids or ()) for a in actions
        )
        for turn, action in enumerate(actions):
            [one] = [one for one in mine if (one.turn == turn).any()]
            at = np.flatnonzero(one.turn == turn)
            assert one.token_ids[at].tolist() == action.token_ids
            assert one.token_ids[: at[0]].tolist() == action.prompt_ids
            assert one.logprobs[at].tolist() == action.logprobs
        for one in mine:
            assert np.isnan(one.logprobs[~one.written]).all()


def test_an_episode_is_split_where_its_prompt_was_rewritten() -> None:
    rows = [
        {"turn": 0, "appended": False, "prompt_ids": [1, 2], "token_ids": [3], "logprobs": None},
        {"turn": 1, "appended": True, "prompt_ids": [4], "token_ids": [5, 6], "logprobs": None},
        {"turn": 2, "appended": False, "prompt_ids": [1, 9], "token_ids": [7], "logprobs": [-1.0]},
    ]
    first, second = sequences(table([{"episode_id": "e", **row} for row in rows]))
    assert first.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert first.turn.tolist() == [-1, -1, 0, -1, 1, 1]
    assert second.token_ids.tolist() == [1, 9, 7]
    assert second.logprobs.tolist() == pytest.approx([np.nan, np.nan, -1.0], nan_ok=True)


THOUGHTS: list[Message] = [
    say("hello."),
    {"role": "assistant", "content": "yes", "reasoning_content": "cat"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "no"},
    say("no."),
    {"role": "assistant", "content": "yes"},
]


def test_a_template_that_forgets_thoughts_splits_a_conversation() -> None:
    chat, tokenizer = chat_of(FORGETFUL)
    made = sequences(table(list(retokenised("a", THOUGHTS, [], chat))))
    assert [tokenizer.decode(one.token_ids) for one in made] == [
        "<|im_start|>user\nhello.<|im_end|>\n<|im_start|>assistant\n"
        "<think>\ncat\n</think>\n\nyes<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n"
        "<|im_start|>assistant\nno<|im_end|>",
        "<|im_start|>user\nhello.<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
        "<|im_start|>user\nno.<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>",
    ]
    learnt = [[tokenizer.decode(one.token_ids[one.turn == k]) for k in range(3)] for one in made]
    assert learnt == [
        ["<think>\ncat\n</think>\n\nyes<|im_end|>", "no<|im_end|>", ""],
        ["", "", "yes<|im_end|>"],
    ]


def test_a_greeting_is_a_turn_that_answers_nothing() -> None:
    chat, tokenizer = chat_of()
    greeting = {"role": "assistant", "content": "hello."}
    talk = [greeting, say("no."), {"role": "assistant", "content": "yes"}]
    [row] = retokenised("a", talk, [], chat)
    assert row["turn"] == 1  # as `score` counts
    assert tokenizer.decode(row["token_ids"]) == "yes<|im_end|>"
    assert tokenizer.decode(row["prompt_ids"]).startswith("<|im_start|>assistant\nhello.<|im_end|>")


@pytest.mark.parametrize(
    ("template", "refusal"),
    [
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}",
            "the chat template ends the message with no token that the tokenizer knows; "
            "give the tokenizer that the template was made for",
        ),
        (
            "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<think>{% endif %}",
            "the chat template writes a message that does not continue its prompt; "
            "choose a model whose template goes on from its prompt and ends messages",
        ),
    ],
)
def test_a_template_that_can_not_be_cut_is_refused(template: str, refusal: str) -> None:
    chat, _ = chat_of(template)
    with pytest.raises(InputError) as caught:
        list(retokenised("a", [say("no."), {"role": "assistant", "content": "yes"}], [], chat))
    assert line_of(caught) == f"episode 'a': {refusal}"


def sequence(token_ids: list[int], turn: list[int]) -> TokenSequence:
    logprobs = np.full(len(turn), np.nan, np.float32)
    return TokenSequence("e", np.array(token_ids), np.array(turn, np.int32), logprobs)


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (sequence([1, 2], [0, 0]), "begins with a sampled token; record the prompt, too"),
        (
            sequence([1, 10], [-1, 0]),
            "token id 10 is not in the model's vocabulary of 10; give the model that wrote it",
        ),
        (
            sequence([-1, 9], [-1, 0]),
            "token id -1 is not in the model's vocabulary of 10; give the model that wrote it",
        ),
    ],
)
def test_sequences_that_a_model_can_not_learn(one: TokenSequence, line: str) -> None:
    check([sequence([0, 9], [-1, 0])], 10, "r.jsonl")
    with pytest.raises(InputError) as caught:
        check([one], 10, "r.jsonl")
    assert line_of(caught) == f"r.jsonl: episode 'e': {line}"


def lesson(
    rows: list[dict[str, Any]],
    scored: dict[tuple[str, int], float],
    chat: Renderer | None = None,
    **more: Any,
) -> Reinforced:
    """Learn from episodes named `group/number`."""
    names = list(dict.fromkeys(episode for episode, _ in scored))
    recorded = {row["episode_id"] for row in rows}
    played: Any = [
        {"episode_id": name, "tokens_recorded": name in recorded, "sampling": {}} | more
        for name in names
    ]
    columns: dict[str, list[Any]] = {
        "episode_id": [episode for episode, _ in scored],
        "group_id": [episode.split("/")[0] for episode, _ in scored],
        "turn": [turn for _, turn in scored],
        "tier": [("good", "bad")[turn % 2] for _, turn in scored],
        "advantage": list(scored.values()),
    }
    rest = ADVANTAGES.columns.keys() - columns.keys()
    frame = ADVANTAGES.frame(columns | {name: [0.0] * len(scored) for name in rest})
    return reinforced(played, table(rows), frame, [], chat, "r.jsonl")


def row(episode: str, turn: int, prompt: list[int], wrote: list[int]) -> dict[str, Any]:
    return {
        "episode_id": episode,
        "turn": turn,
        "appended": turn > 0,
        "prompt_ids": prompt,
        "token_ids": wrote,
        "logprobs": [-1.0] * len(wrote),
    }


ROWS = [
    row("a/0", 0, [1], [2, 3]),
    row("a/0", 1, [4], [5]),
    row("b/0", 0, [1], [2]),
    row("b/1", 0, [1], [2]),
]
SCORED = {("a/0", 0): 0.5, ("a/0", 1): -2.0, ("b/0", 0): 0.0, ("b/1", 0): 1e-9}


def test_tokens_have_the_advantage_of_their_turn() -> None:
    made = lesson(ROWS, SCORED, sampling={"temperature": 0.7})
    assert (made.groups, made.dropped_groups, made.retokenised) == (2, 1, 0)
    [one] = made.examples
    assert one.at.tolist() == [1, 2, 4]
    assert one.advantage.tolist() == [0.5, 0.5, -2.0]
    assert [made.tiers[code] for code in one.tier] == ["good", "good", "bad"]
    assert one.engine.tolist() == [-1.0] * 3
    assert one.temperature == 0.7
    assert next(offending([one])) == {
        "episode_id": "a/0",
        "token_ids": [1, 2, 3, 4, 5],
        "turn": [-1, 0, 0, -1, 1],
        "at": [1, 2, 4],
        "advantage": [0.5, 0.5, -2.0],
        "logprobs": [-1.0] * 3,
    }


def test_greedy_episodes_have_their_logprobs_at_temperature_one() -> None:
    [one] = lesson(ROWS, SCORED, sampling={"temperature": 0.0}).examples
    assert one.temperature == 1.0


def test_turns_that_do_not_fit_the_tokens() -> None:
    with pytest.raises(InputError) as caught:
        lesson(ROWS, {key: value for key, value in SCORED.items() if key != ("a/0", 1)})
    assert line_of(caught) == (
        "r.jsonl: turn 1 of episode 'a/0' was not scored; rerun irc-cli score on these rollouts"
    )
    with pytest.raises(InputError) as caught:
        lesson(ROWS, SCORED | {("b/1", 1): 0.0})
    assert line_of(caught) == (
        "r.jsonl: turn 1 of episode 'b/1' was scored but has no tokens; "
        "rerun irc-cli score on these rollouts"
    )


def test_episodes_without_tokens_are_refused_unless_they_may_be_guessed() -> None:
    scored = SCORED | {("a/1", 0): 1.0}
    with pytest.raises(InputError) as caught:
        lesson(ROWS, scored)
    assert line_of(caught) == (
        "r.jsonl: 1 of 4 episodes have no recorded tokens; record them, "
        "or pass --allow-retokenised to train on a guess at what was sampled"
    )
    chat, tokenizer = chat_of()
    talk = [say("no."), {"role": "assistant", "content": "yes"}]
    made = lesson(ROWS, scored, chat, messages=talk)
    assert made.retokenised == 1
    guessed = made.examples[-1]
    assert guessed.episode_id == "a/1"
    assert tokenizer.decode(guessed.sequence.token_ids[guessed.at]) == "yes<|im_end|>"
    assert guessed.advantage.tolist() == [1.0, 1.0]
    assert np.isnan(guessed.engine).all()
    only = lesson([], {("a/1", 0): 1.0}, chat, messages=talk)
    assert only.retokenised == len(only.examples) == 1


def test_messages_are_learnt_as_they_stand() -> None:
    chat, tokenizer = chat_of(FORGETFUL)
    made = supervised(
        [Demonstration("a", THOUGHTS, []), Demonstration("b", [say("no.")], [])], chat
    )
    assert [one.episode_id for one in made] == ["a", "a"]
    text = [tokenizer.decode(one.sequence.token_ids[one.at]) for one in made]
    assert text == [
        "<think>\ncat\n</think>\n\nyes<|im_end|>no<|im_end|>",
        "yes<|im_end|>",
    ]
    assert {code for one in made for code in one.tier} == {NO_TIER}
    assert {weight for one in made for weight in one.weight} == {1.0}
