"""Tokens that top_p left: ratios and gradients are those of the truncated distribution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("accelerate", reason="needs irc-cli[train]")

import torch

from stages.policies.batch_decoder import sample
from stages.policies.nucleus import in_nucleus, nucleus
from stages.policies.policy import Sampling
from stages.tables.artifacts import TOKENS, TURNS
from stages.tables.table_file import read_table, write_table
from stages.train import (
    Known,
    accumulate,
    engine_measures_otherwise,
    found_nuclei,
    known_logprobs,
    token_logprobs,
    train,
)
from stages.train import TierCodes as Named
from stages.training.config import LossConfig, TrainConfig
from stages.training.logprobs import Nuclei
from stages.training.sequences import Example
from stages.training.trainer import Trainer
from tests.conftest import Cli
from tests.learning import VOCABULARY, Played, metrics, played, small_model, trainer_of
from tests.learning import some_examples as made_up

TOP_P = [0.7, 1.0, 0.3]


def whole_logprobs(model: Any, one: Example) -> torch.Tensor:
    """All log-probabilities [M, V] at the example's temperature, by the plain model."""
    logits = model(input_ids=torch.from_numpy(one.sequence.token_ids)[None]).logits[0]
    return torch.log_softmax(logits[one.at - 1] / one.temperature, -1)


def sampled_examples(model: Any, seed: int = 0) -> list[Example]:
    """Return examples whose tokens the model sampled, as `rollout` does, with their logprobs."""
    rng, found = np.random.default_rng(seed), []
    for number, one in enumerate(made_up(seed)):
        top_p = TOP_P[number % len(TOP_P)]
        how = Sampling(temperature=one.temperature, top_p=top_p)
        for place in one.at:  # each depends on those before
            with torch.no_grad():
                ids = torch.from_numpy(one.sequence.token_ids)[None, :place]
                logits = model(input_ids=ids).logits[:, -1]
            [token], [logprob] = sample(logits, [how], [rng.random()])
            one.sequence.token_ids[place] = token
            one.sequence.logprobs[place] = logprob
        found.append(replace(one, top_p=top_p))
    return found


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return sampled_examples(small_model())


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    yield trainer_of(small_model())


def plain_nucleus(logprobs: list[float], top_p: float) -> set[int]:
    """The nucleus by the book: the likeliest first, until they hold enough."""
    kept, mass = set[int](), 0.0
    for token in sorted(range(len(logprobs)), key=lambda token: -logprobs[token]):
        if mass < top_p:
            kept.add(token)
            mass += np.exp(logprobs[token])
    return kept


def plain_logprobs(model: Any, one: Example, kept: list[set[int]]) -> torch.Tensor:
    """Log-probabilities of what was written within given words, [M]: a sum over a plain softmax."""
    logps = whole_logprobs(model, one)
    found = []
    for i, token in enumerate(one.sequence.token_ids[one.at]):
        words = torch.tensor(sorted(kept[i]))
        found.append(logps[i, int(token)] - torch.log(logps[i, words].exp().sum()))
    return torch.stack(found)


def plain_nuclei(model: Any, one: Example) -> list[set[int]]:
    with torch.no_grad():
        logps = whole_logprobs(model, one).double().tolist()
    every = set(range(VOCABULARY))
    written = one.sequence.token_ids[one.at].tolist()
    return [
        (plain_nucleus(row, one.top_p) | {token}) if one.top_p < 1 else every
        for row, token in zip(logps, written, strict=True)
    ]


def test_nuclei_are_those_of_sampling_and_of_the_book() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (20, 50))).float()
    logprobs = torch.log_softmax(logits, -1)
    top_p = torch.tensor([0.1, 0.5, 0.7, 0.95, 1.0] * 4)
    inside = in_nucleus(logprobs, top_p)
    for row, p, kept in zip(logprobs.double().tolist(), top_p.tolist(), inside, strict=True):
        assert set(kept.nonzero()[:, 0].tolist()) == plain_nucleus(row, p)
    assert torch.equal(torch.isfinite(nucleus(logprobs, top_p)), inside)


def test_every_word_stays_where_top_p_is_1_however_unlikely() -> None:
    logprobs = torch.log_softmax(torch.tensor([[20.0, -20.0, 0.0]]), -1)
    assert in_nucleus(logprobs, torch.tensor([1.0])).all()
    assert in_nucleus(logprobs, torch.tensor([0.9999])).tolist() == [[True, False, False]]


def test_nuclei_split_and_join() -> None:
    inside = torch.from_numpy(np.random.default_rng(1).random((9, 7)) < 0.4)
    top_p = torch.tensor([0.5, 1.0, 0.5] * 3)
    inside[:, 0] = True
    whole = Nuclei.of(inside, top_p)
    parts = whole.split([2, 3, 4])
    assert all(torch.equal(a, b) for a, b in zip(Nuclei.cat(parts), whole, strict=True))
    wanted = inside | (top_p == 1)[:, None]
    assert torch.equal(torch.cat([part.inside(7) for part in parts]), wanted)


@pytest.mark.parametrize("old", ["trainer", "engine"])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_the_first_step_begins_with_ratios_of_1(
    trainer: Trainer, examples: list[Example], old: Any, kl: float
) -> None:
    config = TrainConfig(old_logprobs=old, lr=1e-9, batch_size=100, loss=LossConfig(kl=kl))
    known = known_logprobs(trainer, examples, None, config)
    [step] = train(trainer, examples, known, Named([], {}), config)
    assert step.log["ratio"] == pytest.approx(1, abs=1e-4)
    assert step.log["tis"] == pytest.approx(1, abs=1e-4)
    assert step.log["policy_kl"] == pytest.approx(0, abs=1e-6)
    assert step.log["clip_low_share"] == step.log["clip_high_share"] == 0
    # What this is about: all words would make a ratio of every token smaller.
    full = torch.cat(token_logprobs(trainer, examples, config))
    engine = torch.from_numpy(np.concatenate([one.engine for one in examples]))
    assert (torch.exp(full - engine) < 0.8).float().mean() > 0.4


@pytest.mark.parametrize("chunk", [1 << 26, 3 * VOCABULARY])
def test_gradients_are_those_of_a_plain_softmax_within_the_nucleus(
    examples: list[Example], chunk: int
) -> None:
    """Of other weights than those that played, with ratios beside 1, and an entropy bonus."""
    before = small_model()
    kept = [plain_nuclei(before, one) for one in examples]
    old = [plain_logprobs(before, one, words).detach() for one, words in zip(examples, kept)]  # noqa: B905
    model = moved(small_model())
    total = sum(len(one.at) for one in examples)
    expected = torch.zeros(())
    for one, words, was in zip(examples, kept, old, strict=True):
        ratio = torch.exp(plain_logprobs(model, one, words) - was)
        advantage = torch.from_numpy(one.advantage)
        inner = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        tis = torch.exp(was - torch.from_numpy(one.engine)).clamp(max=2)
        expected = expected - (tis * inner).sum() / total
        expected = expected - 0.1 * plain_entropy(model, one, words).sum() / total
    expected.backward()
    wanted = {name: one.grad for name, one in model.named_parameters()}
    assert max(one.abs().max() for one in wanted.values()) > 1e-2
    trainer = trainer_of(small_model())
    trainer.model.chunk = chunk
    own, nuclei = found_nuclei(trainer, examples, TrainConfig())
    for found, was in zip(own, old, strict=True):
        assert torch.allclose(found, was.float(), rtol=0, atol=1e-4)
    moved(trainer.bare)
    for budget in (1, 10_000):
        config = TrainConfig(pack_tokens=budget, loss=LossConfig(entropy=0.1))
        log = accumulate(trainer, examples, Known([*old], None, nuclei), 1.0, config)
        assert log["loss"] == pytest.approx(expected.item(), abs=1e-5)
        for name, one in trainer.bare.named_parameters():
            assert torch.allclose(one.grad, wanted[name], rtol=0, atol=1e-5), name
        trainer.optimizer.zero_grad()


def moved(model: Any) -> Any:
    """Change a model's weights a little, always in the same way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.01)
    return model


def plain_entropy(model: Any, one: Example, kept: list[set[int]]) -> torch.Tensor:
    logps = whole_logprobs(model, one)
    found = []
    for i, words in enumerate(kept):
        inside = torch.log_softmax(logps[i, torch.tensor(sorted(words))], -1)
        found.append(-(inside.exp() * inside).sum())
    return torch.stack(found)


READINGS = {
    None: (None, None),
    "temperature 1, top_p 1": (1.0, 1.0),
    "temperature 0.7, top_p 1": (None, 1.0),
}


@pytest.mark.parametrize("reading", READINGS)
def test_what_an_engine_measures_shows_in_its_numbers(
    trainer: Trainer, examples: list[Example], reading: str | None
) -> None:
    warm = [one for one in examples if one.temperature == 0.7 and one.top_p < 1]
    told = []
    for one in warm:
        temperature, top_p = READINGS[reading]
        one = replace(one, temperature=temperature or 0.7, top_p=top_p or one.top_p)
        logprobs = found_nuclei(trainer, [one], TrainConfig())[0][0]
        noise = np.random.default_rng(0).normal(0, 0.01, len(logprobs))  # of another precision
        recorded = one.sequence.logprobs.copy()
        recorded[one.at] = logprobs.numpy() + noise
        told.append(replace(one, sequence=replace(one.sequence, logprobs=recorded)))
    told = [replace(one, temperature=0.7, top_p=was.top_p) for one, was in zip(told, warm)]  # noqa: B905
    assert len(told) > 0
    assert engine_measures_otherwise(trainer, told, TrainConfig()) == reading


def test_nothing_is_measured_otherwise_at_temperature_1(trainer: Trainer) -> None:
    assert engine_measures_otherwise(trainer, made_up(count=1), TrainConfig()) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return played(tmp_path_factory.mktemp("played")).model


@pytest.fixture
def files(run: Cli, model: str) -> Played:
    """Rollouts of two tasks, sampled at another temperature and within a nucleus."""
    policy = ("--env", "airline-mini", "--policy", "transformers", "--model", model)
    limits = ("--max-tasks", "2", "--group-size", "3", "--max-turns", "2", "--max-tokens", "12")
    how = ("--temperature", "0.8", "--top-p", "0.7", "--quiet")
    assert run("rollout", *policy, *limits, *how, "-o", "r.jsonl").code == 0
    assert run("score", "r.jsonl", "-o", "turns.parquet", "--quiet").code == 0
    won = pl.col("trial").cast(pl.Float64) == 0
    turns = read_table(TURNS, "turns.parquet")
    turns = turns.with_columns(outcome=won.cast(pl.Float64), success=won)
    write_table(TURNS, turns, "t.parquet", {}, force=True)
    return Played(model, "r.jsonl", "t.parquet", "")


def learn(run: Cli, files: Played, *more: str) -> Any:
    given = ("--rollouts", files.rollouts, "--turns", files.turns)
    return run("train", "--model", files.model, *given, "--advantage", "grpo", *more)


@pytest.mark.parametrize("old", ["trainer", "engine"])
def test_rollouts_within_a_nucleus_are_learnt_as_they_were_sampled(
    run: Cli, files: Played, old: str
) -> None:
    ended = learn(run, files, "-o", "out", "--lr", "1e-9", "--epochs", "2", "--old-logprobs", old)
    assert ended.code == 0 and "note:" not in ended.err
    for line in metrics(Path("out")):
        assert line["ratio"] == pytest.approx(1, abs=1e-4)
        assert line["tis"] == pytest.approx(1, abs=1e-4)
        assert line["clip_low_share"] == line["clip_high_share"] == 0


def test_a_servers_logprobs_of_all_words_are_refused_or_left_out(run: Cli, files: Played) -> None:
    from stages.training.inputs import read_rollouts
    from stages.training.model import load_model
    from stages.training.sequences import sequences

    model = load_model(files.model)[0].eval()
    frame = read_rollouts(files.rollouts).tokens
    rows = frame.to_dicts()
    raw: dict[str, list[float]] = {}
    for one in sequences(frame):
        logits = model(input_ids=torch.from_numpy(one.token_ids)[None]).logits[0]
        logps = torch.log_softmax(logits.detach(), -1)
        at = np.flatnonzero(one.written)
        raw.setdefault(one.episode_id, []).extend(logps[at - 1, one.token_ids[at]].tolist())
    for row in rows:
        mine = raw[row["episode_id"]]
        row["logprobs"] = [mine.pop(0) for _ in row["token_ids"]]
    told = TOKENS.frame({name: [row[name] for row in rows] for name in TOKENS.columns})
    write_table(TOKENS, told, "r.tokens.parquet", {}, force=True)
    what = "the engine's logprobs are those of temperature 1, top_p 1, not of what was sampled"
    refused = learn(run, files, "-o", "out", "--old-logprobs", "engine")
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == (
        f"error: --old-logprobs: {what}; "
        "use trainer, or serve with '--logprobs-mode processed_logprobs'"
    )
    ended = learn(run, files, "-o", "out", "--lr", "1e-9")
    assert ended.code == 0
    assert f"{what}; left out, as are importance weights: 1\n" in ended.err
    [line] = metrics(Path("out"))
    assert (line["ratio"], line["tis"]) == (pytest.approx(1, abs=1e-4), 1)


def test_other_ways_to_truncate_are_refused(run: Cli, files: Played) -> None:
    text = Path("r.jsonl").read_text()
    for setting, shown in (('"top_k":20,', "top_k 20"), ('"min_p":0.1,', "min_p 0.1")):
        Path("r.jsonl").write_text(text.replace('"sampling":{', '"sampling":{' + setting))
        ended = learn(run, files, "-o", "out")
        assert ended.code == 2
        assert f"was sampled with {shown}; sample without it: " in ended.err
    Path("r.jsonl").write_text(text.replace('"sampling":{', '"sampling":{"top_k":-1,'))
    assert learn(run, files, "-o", "out", "--lr", "1e-9").code == 0
