from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs irc-cli[transformers]")

import torch
import transformers

from stages.errors import InputError
from stages.messages.message import Message
from stages.policies import batch_decoder
from stages.policies.batch_decoder import BatchDecoder, MessageRequest, sample
from stages.policies.kv_cache import RowCache
from stages.policies.nucleus import nucleus
from stages.policies.policy import Action, ContextOverflowError, PolicyError, Sampling
from stages.policies.transformers_policy import TransformersPolicy
from stages.training.tiny_model import Size, tiny_model, tiny_tokenizer
from tests.tiny import PIECES, tiny_checkpoint

TOKENIZER = tiny_tokenizer(PIECES)
TOLD = tiny_tokenizer(PIECES)  # the same with a template that shows the system message
TOLD.chat_template = """\
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\\n" + (message.content or "") + "<|im_end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}"""
WORDS = ["hello.", "i want to cancel my flight", "no", "emil_fox_12", "june-21 " * 20]
TURNS = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads beside another job are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(len(TOKENIZER), 0, Size())


@dataclass(frozen=True)
class Play:
    """How the episodes of a test are played; none of it may change them."""

    episodes: Sequence[int] = tuple(range(12))
    rows: int = 12
    delays: bool = False  # before each message
    told: bool = False  # by a system message


async def episode(
    policy: TransformersPolicy, number: int, sampling: Sampling, how: Play
) -> list[Action]:
    """Play with a user who says words that follow from the episode's number."""
    draw, wait = Random(number), Random(-number - 1)
    told = {"role": "system", "content": "june-21 " * (60 + number % 2)}
    messages: list[Message] = [told] if how.told else []
    messages.append({"role": "user", "content": draw.choice(WORDS)})
    actions = []
    for turn in range(TURNS):
        if how.delays:
            await asyncio.sleep(wait.random() / 50)
        actions.append(await policy.act(str(number), messages, [], sampling, 10 * number + turn))
        user = {"role": "user", "content": draw.choice(WORDS)}
        messages = [*messages, actions[-1].message, user]
    policy.forget(str(number))
    return actions


def play(model: Any, how: Play, sampling: Sampling) -> dict[int, list[Action]]:
    async def all_of_them() -> dict[int, list[Action]]:
        policy = TransformersPolicy(model, TOLD if how.told else TOKENIZER, how.rows)
        played = [episode(policy, number, sampling, how) for number in how.episodes]
        actions = await asyncio.gather(*played)
        await policy.close()
        return dict(zip(how.episodes, actions, strict=True))

    return asyncio.run(all_of_them())


SAMPLING = Sampling(temperature=0.8, max_tokens=24)


@pytest.fixture(scope="module")
def played(model: Any) -> dict[int, list[Action]]:
    return play(model, Play(), SAMPLING)


def reference(model: Any, action: Action, temperature: float) -> list[float]:
    """The logprobs of what was sampled, by one pass of the plain model."""
    assert action.prompt_ids and action.token_ids
    with torch.inference_mode():
        logits = model(torch.tensor([action.prompt_ids + action.token_ids])).logits[0]
    logprobs = torch.log_softmax(logits.double() / temperature, -1)
    start = len(action.prompt_ids) - 1
    return [logprobs[start + place, token].item() for place, token in enumerate(action.token_ids)]


def test_logprobs_are_those_of_the_model(model: Any, played: dict[int, list[Action]]) -> None:
    for actions in played.values():
        for action in actions:
            assert action.logprobs == pytest.approx(reference(model, action, 0.8), abs=1e-5)


def test_an_episode_is_one_growing_sequence(played: dict[int, list[Action]]) -> None:
    for actions in played.values():
        for action, following in pairwise(actions):
            assert action.prompt_ids and action.token_ids and following.prompt_ids
            so_far = action.prompt_ids + action.token_ids
            assert following.prompt_ids[: len(so_far)] == so_far
            assert len(following.prompt_ids) > len(so_far)


def test_messages_end_at_the_end_token_or_the_limit(played: dict[int, list[Action]]) -> None:
    end = TOKENIZER.eos_token_id
    actions = [action for actions in played.values() for action in actions]
    assert {action.finish for action in actions} == {"stop", "length"}
    for action in actions:
        assert action.token_ids
        assert (action.token_ids[-1] == end) == (action.finish == "stop")
        assert len(action.token_ids) == 24 or action.finish == "stop"
        assert end not in action.token_ids[:-1]


@pytest.mark.parametrize(
    "how",
    [
        Play(delays=True),
        Play(episodes=(5,)),
        Play(episodes=(11, 3, 7), delays=True),
        Play(episodes=(20, 30, 8, 21, 31, 4, 22, 0)),
    ],
    ids=["delays", "alone", "few", "others"],
)
def test_an_episode_is_the_same_whoever_shares_the_batch(
    model: Any, played: dict[int, list[Action]], how: Play
) -> None:
    again = play(model, how, SAMPLING)
    for number in again.keys() & played.keys():
        assert again[number] == played[number]


@pytest.fixture(scope="module")
def told(model: Any) -> dict[int, list[Action]]:
    return play(model, Play(tuple(range(6)), told=True), SAMPLING)


def test_what_episodes_begin_with_is_read_once(
    model: Any, told: dict[int, list[Action]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    make = RowCache.opening

    def counted(cache: RowCache, length: int) -> Any:
        lengths.append(length)
        return make(cache, length)

    monkeypatch.setattr(RowCache, "opening", counted)
    assert play(model, Play(tuple(range(6)), told=True), SAMPLING) == told
    assert len(lengths) == 2
    assert min(lengths) >= batch_decoder.LEAST_OPENING
    for action in (action for actions in told.values() for action in actions):
        assert action.logprobs == pytest.approx(reference(model, action, 0.8), abs=1e-5)


@pytest.mark.parametrize(
    "how",
    [Play((4,), told=True), Play((9, 5, 7, 2, 12, 14, 16), delays=True, told=True)],
    ids=["alone", "others"],
)
def test_who_else_begins_so_makes_no_difference(
    model: Any, told: dict[int, list[Action]], how: Play
) -> None:
    again = play(model, how, SAMPLING)
    assert again.keys() & told.keys()
    for number in again.keys() & told.keys():
        assert again[number] == told[number]


def test_an_opening_that_is_rewritten_is_read_anew(model: Any) -> None:
    def ask(*beginnings: str) -> Action:
        async def asked() -> Action:
            policy = TransformersPolicy(model, TOLD, rows=2)
            actions = []
            for words in beginnings:
                told = {"role": "system", "content": words * 60}
                messages = [told, {"role": "user", "content": "no"}]
                actions.append(await policy.act("a", messages, [], Sampling(max_tokens=8), 0))
            await policy.close()
            return actions[-1]

        return asyncio.run(asked())

    assert ask("june-20 ", "june-21 ") == ask("june-21 ")


def test_rows_are_written_in_blocks_that_close_ranks(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_decoder, "BLOCK", 2)
    moves = []
    copy = RowCache.copy

    def counted(cache: Any, source: int, target: int, columns: int) -> None:
        moves.append((source, target))
        copy(cache, source, target, columns)

    monkeypatch.setattr(RowCache, "copy", counted)
    alone = {n: play(model, Play((n,), rows=2), SAMPLING)[n] for n in range(7)}
    assert not moves
    assert play(model, Play(tuple(range(7)), rows=7), SAMPLING) == alone
    assert moves


def test_other_rows_change_only_the_last_bits(model: Any, played: dict[int, list[Action]]) -> None:
    for number, actions in play(model, Play(tuple(range(6)), rows=3), SAMPLING).items():
        for action, expected in zip(actions, played[number], strict=True):
            assert action.token_ids == expected.token_ids
            assert action.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [100, 290, 420, 800])
def test_a_longer_companion_changes_no_bit(model: Any, tokens: int, dtype: torch.dtype) -> None:
    decoding = deepcopy(model).to(dtype)

    def beside(longer: int) -> list[float]:
        decoder = BatchDecoder(decoding, 2, 2048, [])
        request = MessageRequest("short", [5 + n % 9 for n in range(tokens)], SAMPLING, 0)
        decoder.submit(request)
        if longer:
            decoder.submit(MessageRequest("long", [7] * longer, SAMPLING, 1))
        while request.finish is None:
            decoder.step()
        return request.logprobs

    alone = beside(0)
    for longer in (tokens + 70, tokens + 200, tokens + 600):
        assert beside(longer) == alone


def test_greedy_is_what_generate_gives(model: Any) -> None:
    for actions in play(model, Play(episodes=(0, 1, 4)), Sampling(0.0, max_tokens=16)).values():
        for action in actions:
            prompt = torch.tensor([action.prompt_ids])
            ids = model.generate(prompt, max_new_tokens=16, do_sample=False)
            assert action.token_ids == ids[0, prompt.shape[1] :].tolist()
            assert action.logprobs == pytest.approx(reference(model, action, 1.0), abs=1e-5)


def test_a_long_prompt_passes_in_pieces(model: Any) -> None:
    async def ask(words: int) -> Action:
        policy = TransformersPolicy(model, TOKENIZER, rows=2)
        messages = [{"role": "user", "content": "hello. " * words}]
        action = await policy.act("a", messages, [], Sampling(max_tokens=2), 0)
        await policy.close()
        return action

    for words in (256, 300, 700):
        action = asyncio.run(ask(words))
        assert action.prompt_ids and len(action.prompt_ids) > 2 * words
        assert action.logprobs == pytest.approx(reference(model, action, 1.0), abs=1e-5)


def test_the_context_ends_a_message_and_then_the_episode(model: Any) -> None:
    async def ask(context: int) -> Action:
        policy = TransformersPolicy(model, TOKENIZER, rows=2, context=context)
        try:
            return await policy.act("a", [{"role": "user", "content": "no"}], [], Sampling(), 3)
        finally:
            await policy.close()

    prompt = len(TOKENIZER.encode("<|im_start|>user\nno<|im_end|><|im_start|>assistant\n"))
    action = asyncio.run(ask(prompt + 1))
    assert (action.finish, len(action.token_ids or ())) == ("length", 1)
    with pytest.raises(ContextOverflowError):
        asyncio.run(ask(prompt))


def test_a_failing_model_fails_the_messages_and_not_the_run() -> None:
    model = tiny_model(len(TOKENIZER), 0, Size(layers=1))
    model.forward = lambda **_: 1 / 0

    async def ask() -> None:
        policy = TransformersPolicy(model, TOKENIZER, rows=2)
        asked = [
            policy.act(str(n), [{"role": "user", "content": "no"}], [], Sampling(), 0)
            for n in range(3)
        ]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, PolicyError)
        with pytest.raises(PolicyError, match="ZeroDivisionError"):
            await policy.act("b", [{"role": "user", "content": "no"}], [], Sampling(), 0)
        await policy.close()
        with pytest.raises(PolicyError, match="closed"):
            await policy.act("b", [{"role": "user", "content": "no"}], [], Sampling(), 0)

    asyncio.run(ask())


def test_closing_fails_what_is_pending(model: Any) -> None:
    async def ask() -> None:
        policy = TransformersPolicy(model, TOKENIZER, rows=2)
        long = Sampling(max_tokens=2000)
        asked = [
            asyncio.create_task(
                policy.act(str(n), [{"role": "user", "content": "no"}], [], long, n)
            )
            for n in range(4)
        ]
        await asyncio.sleep(0.05)
        await policy.close()
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, PolicyError)

    asyncio.run(ask())


def test_the_model_keeps_its_own_attention(model: Any, played: dict[int, list[Action]]) -> None:
    assert played
    assert model.config._attn_implementation == "sdpa"


def test_load(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint(tmp_path)
    capfd.readouterr()

    async def ask() -> Action:
        policy = TransformersPolicy.load(tmp_path, rows=2, device="cpu")
        action = await policy.act("a", [{"role": "user", "content": "no"}], [], Sampling(), 0)
        await policy.close()
        return action

    assert asyncio.run(ask()).token_ids
    assert capfd.readouterr() == ("", "")


def test_there_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}/none: "):
        TransformersPolicy.load(tmp_path / "none")


def test_a_model_with_other_than_full_attention_is_refused() -> None:
    config = transformers.Qwen3Config(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
    )
    model = transformers.Qwen3ForCausalLM(config)
    with pytest.raises(InputError, match="layers of kind sliding_attention"):
        TransformersPolicy(model, TOKENIZER)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    draws = [(place + 0.5) / 4000 for place in range(4000)]
    ids, logprobs = sample(logits.expand(4000, -1), [Sampling(0.5)] * 4000, draws)
    expected = torch.softmax(logits[0] / 0.5, -1)
    for token in range(4):
        assert ids.count(token) / 4000 == pytest.approx(expected[token].item(), abs=1 / 4000)
    assert all(
        logprob == pytest.approx(expected[token].log().item(), abs=1e-6)
        for token, logprob in zip(ids, logprobs, strict=True)
    )


def test_nucleus_keeps_the_fewest_likeliest_tokens() -> None:
    logprobs = torch.tensor([[0.1, 0.5, 0.15, 0.25]] * 4).log()
    cut = nucleus(logprobs, torch.tensor([0.4, 0.7, 0.76, 1.0])).exp()
    expected = torch.tensor(
        [[0, 1, 0, 0], [0, 2 / 3, 0, 1 / 3], [0, 5 / 9, 1.5 / 9, 2.5 / 9], [0.1, 0.5, 0.15, 0.25]]
    )
    assert torch.allclose(cut, expected)


def test_sampling_finds_the_word_in_a_large_vocabulary() -> None:
    logits = torch.randn((64, 1000), generator=torch.Generator().manual_seed(0)) * 3
    draws = [Random(place).random() for place in range(64)]
    ids, _ = sample(logits, [Sampling()] * 64, draws)
    ends = torch.softmax(logits.double(), -1).cumsum(-1)
    expected = torch.searchsorted(ends, torch.tensor(draws, dtype=torch.float64)[:, None])[:, 0]
    assert ids == expected.tolist()


def test_no_draw_falls_beyond_the_last_word_that_can_be() -> None:
    logits = torch.full((1, 600), -torch.inf)
    logits[0, [3, 290]] = 0.0
    assert [sample(logits, [Sampling()], [draw])[0] for draw in (0.0, 0.499, 0.5, 1 - 2**-53)] == [
        [3],
        [3],
        [290],
        [290],
    ]


def test_temperature_and_nucleus_may_differ_by_row() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]] * 3)
    settings = [Sampling(0.0), Sampling(1.0, top_p=0.1), Sampling(1.0)]
    ids, logprobs = sample(logits, settings, [0.0, 0.0, 0.0])
    assert ids == [1, 1, 0]
    plain = torch.log_softmax(logits[0], -1).tolist()
    assert logprobs == pytest.approx([plain[1], 0.0, plain[0]], abs=1e-6)


def test_a_new_episode_takes_the_place_of_one_that_ended(model: Any) -> None:
    decoder = BatchDecoder(model, 2, 64, [])

    def play(name: str, prompt: list[int]) -> list[float]:
        request = MessageRequest(name, prompt, Sampling(max_tokens=2), 0)
        decoder.submit(request)
        while request.finish is None:
            decoder.step()
        return request.logprobs

    alone = play("first", [5, 6, 7])
    play("live", [5, 6, 7, 8])
    play("first", [5, 6, 7, 8])  # so that the row of "live" is the one longest unused
    decoder.forget("first")
    play("second", [5, 6, 7])
    places = {row.episode_id: row.place for row in decoder._rows}
    assert places == {"second": 0, "live": 1}
    decoder.forget("second")
    # Nothing is kept of another episode, so that the place makes no difference.
    assert play("third", [5, 6, 7]) == alone
