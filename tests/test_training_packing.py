"""Packs, passes and steps: each sequence once, whatever it shares them with."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs irc-cli[train]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.training.batches import Pack, passes, shared_prefix, steps
from stages.training.config import TrainConfig
from stages.training.model import learner
from stages.training.packing import LEAST_SHARED, packed_attention, packs
from stages.training.sequences import Example
from tests.learning import example, small_model, some_examples, trainer_of

lengths = st.lists(st.integers(1, 60), max_size=40)
budgets = st.integers(0, 100)


@given(lengths, budgets)
@settings(deadline=None, derandomize=True)
def test_each_sequence_is_in_one_pack_of_the_budget(sizes: list[int], budget: int) -> None:
    found = packs(sizes, budget)
    assert sorted(place for pack in found for place in pack) == list(range(len(sizes)))
    for pack in found:
        assert pack and (len(pack) == 1 or sum(sizes[place] for place in pack) <= budget)


@given(lengths, budgets, st.randoms())
@settings(deadline=None, derandomize=True)
def test_packs_hold_the_same_lengths_in_any_order(
    sizes: list[int], budget: int, draw: np.random.Generator
) -> None:
    moved = list(sizes)
    draw.shuffle(moved)

    def shapes(of: list[int]) -> list[list[int]]:
        return [[of[place] for place in pack] for pack in packs(of, budget)]

    assert shapes(sizes) == shapes(moved)


def test_few_packs_are_needed() -> None:
    assert packs([5, 1, 4, 6, 3, 9], 10) == [[5, 1], [3, 2], [0, 4]]


@given(lengths, budgets, st.integers(1, 5))
@settings(deadline=None, derandomize=True)
def test_processes_share_the_passes(sizes: list[int], budget: int, processes: int) -> None:
    mine = [list(passes(sizes, budget, process, processes)) for process in range(processes)]
    assert len({len(one) for one in mine}) == 1
    counted = [place for one in mine for pack, counts in one if counts for place in pack]
    assert sorted(counted) == list(range(len(sizes)))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3))
@settings(deadline=None, derandomize=True)
def test_steps_learn_each_episode_once_an_epoch(count: int, size: int, epochs: int) -> None:
    examples = some_examples(count=count)
    found = steps(examples, size, epochs, seed=3)
    assert len(found) % epochs == 0
    each = len(found) // epochs
    for epoch in range(epochs):
        held = [place for step in found[epoch * each :][:each] for place in step]
        assert sorted(held) == list(range(count))
    episodes = [{examples[place].episode_id for place in step} for step in found]
    assert max(map(len, episodes)) - min(map(len, episodes)) <= 1
    for one in examples:
        assert sum(one.episode_id in step for step in episodes) == epochs


def test_the_order_of_steps_follows_from_the_seed() -> None:
    examples = some_examples(count=12)
    assert steps(examples, 4, 2, 0) == steps(examples, 4, 2, 0) != steps(examples, 4, 2, 1)
    first, second = np.array_split(np.array(steps(examples, 4, 2, 0), object), 2)
    assert [*map(list, first)] != [*map(list, second)]


def test_a_pack_is_its_sequences_in_a_row() -> None:
    one, two = some_examples(count=2)
    pack = Pack.of([one, two], torch.device("cpu"))
    size = len(one.sequence)
    assert pack.lengths == [size, len(two.sequence)]
    ids = pack.token_ids.tolist()
    assert ids == one.sequence.token_ids.tolist() + two.sequence.token_ids.tolist()
    assert pack.positions.tolist() == [*range(size), *range(len(two.sequence))]
    assert pack.at.tolist() == [*one.at.tolist(), *(two.at + size).tolist()]
    rest = [0.7] * len(two.at)
    assert pack.temperature.tolist() == pytest.approx([1.0] * len(one.at) + rest)


def beginning_alike(count: int = 3, alike: int = LEAST_SHARED + 6) -> list[Example]:
    """Sequences that begin with the same tokens, of which the policy wrote none."""
    rng = np.random.default_rng(0)
    made = [example(rng, [(alike + 1, 4 + n), (3, 5)], episode=str(n)) for n in range(count)]
    start = made[0].sequence.token_ids[:alike]
    for one in made:
        one.sequence.token_ids[:alike] = start
    return made


def test_what_sequences_begin_with_stands_in_a_pack_once() -> None:
    examples = beginning_alike()
    alike, sizes = LEAST_SHARED + 6, [len(one.sequence) for one in examples]
    pack = Pack.of(examples, torch.device("cpu"))
    assert pack.shared and pack.lengths == [alike, *(size - alike for size in sizes)]
    ids = [token for one in examples for token in one.sequence.token_ids[alike:]]
    assert pack.token_ids.tolist() == [*examples[0].sequence.token_ids[:alike], *ids]
    assert pack.positions.tolist() == [
        *range(alike),
        *(at for size in sizes for at in range(alike, size)),
    ]
    learnt = [one.sequence.token_ids[one.at].tolist() for one in examples]
    assert pack.token_ids[pack.at].tolist() == [token for ids in learnt for token in ids]


def test_what_is_shared_may_be_computed_in_bfloat16() -> None:
    pack, model = Pack.of(beginning_alike(), torch.device("cpu")), learner(small_model())
    exact = model(*pack).logprobs
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(*pack).logprobs, exact, atol=0.5)


@pytest.mark.parametrize("alike", [LEAST_SHARED - 1, 0])
def test_a_short_beginning_is_not_shared(alike: int) -> None:
    assert not Pack.of(beginning_alike(alike=alike), torch.device("cpu")).shared


def test_a_token_of_the_policy_is_never_shared() -> None:
    examples = [example(np.random.default_rng(0), [(70, 90)]) for _ in range(2)]
    assert shared_prefix(examples) == 69  # the last of the prompt predicts it
    assert shared_prefix(examples[:1]) == 0


def test_gradients_are_those_of_sequences_apart() -> None:
    examples, model = beginning_alike(), small_model()

    def gradients(packs: list[list[Example]]) -> torch.Tensor:
        made = learner(model)
        made.zero_grad()
        for pack in packs:
            values = made(*Pack.of(pack, torch.device("cpu")))
            weight = torch.cat([torch.from_numpy(one.advantage) for one in pack])
            (values.logprobs * weight).sum().backward()
        return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])

    together, apart = gradients([examples]), gradients([[one] for one in examples])
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-5)


def test_passes_count_what_is_shared_once() -> None:
    examples = beginning_alike(count=6)
    whole = sum(len(one.sequence) for one in examples) - 5 * (LEAST_SHARED + 6)
    trainer = trainer_of(small_model())
    assert len([*trainer.passes(examples, TrainConfig(pack_tokens=whole))]) == 1
    assert len([*trainer.passes(examples, TrainConfig(pack_tokens=whole - 1))]) == 2


def test_attention_goes_on_from_what_is_shared() -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(1, heads, 9, 8) for heads in (4, 2, 2))
    mixed, _ = packed_attention(
        None, queries, keys, values, None, scaling=0.3, lengths=[3, 2, 4], shared=True
    )
    sees = torch.ones(9, 9).tril().bool()
    sees[5:, 3:5] = False  # the third sequence does not see the second
    for head in range(4):
        scores = queries[0, head] @ keys[0, head // 2].T * 0.3
        wanted = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ values[0, head // 2]
        assert torch.allclose(mixed[0, :, head], wanted, atol=1e-6)


def test_attention_stays_within_a_sequence() -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(1, heads, 9, 8) for heads in (4, 2, 2))
    mixed, none = packed_attention(None, queries, keys, values, None, scaling=0.3, lengths=[4, 5])
    assert none is None and mixed.shape == (1, 9, 4, 8)
    for head in range(4):
        scores = queries[0, head] @ keys[0, head // 2].T * 0.3
        place = torch.arange(9)
        hidden = (place[:, None] < place) | ((place[:, None] >= 4) & (place < 4))
        wanted = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values[0, head // 2]
        assert torch.allclose(mixed[0, :, head], wanted, atol=1e-6)
