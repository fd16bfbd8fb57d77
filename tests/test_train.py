"""Gradients, weights and steps: what training does is what the formulas say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate", reason="needs irc-cli[train]")

import torch

from stages.core.advantages import AdvantageConfig, Estimator
from stages.errors import InputError
from stages.tables.artifacts import TOKENS
from stages.tables.turn_arrays import advantage_frame, turn_advantages, turn_arrays
from stages.train import (
    DivergedError,
    Known,
    OptimizerStep,
    TierCodes,
    accumulate,
    advantage_log,
    dev_loss,
    example_weights,
    known_logprobs,
    learning_rate,
    token_logprobs,
    train,
)
from stages.training.config import LossConfig, TrainConfig
from stages.training.examples import reinforced
from stages.training.sequences import Example
from stages.training.trainer import Trainer
from tests.builders import Tiered, line_of, turn_frame
from tests.learning import VOCABULARY, example, small_model, some_examples, trainer_of

BATCH = some_examples()
EPISODES = 5  # the last sequence of the batch goes on with another's episode
PLAIN = TrainConfig()


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Take the gradients off a model."""
    found = {name: one.grad.clone() for name, one in trainer.bare.named_parameters()}
    trainer.optimizer.zero_grad()
    return found


def own_logprobs(model: Any, one: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """All log-probabilities [M, V] of the model's own logits, and of the tokens [M]."""
    logits = model(input_ids=torch.from_numpy(one.sequence.token_ids)[None]).logits[0]
    logps = torch.log_softmax(logits[one.at - 1] / one.temperature, -1)
    return logps, logps[range(len(one.at)), one.sequence.token_ids[one.at]]


def noisy(examples: list[Example], seed: int = 0) -> list[torch.Tensor]:
    """Log-probabilities beside those of the model, so that ratios differ from 1."""
    rng, model = np.random.default_rng(seed), small_model()
    with torch.no_grad():
        exact = [own_logprobs(model, one)[1] for one in examples]
    return [one + torch.from_numpy(rng.normal(0, 0.4, len(one))).float() for one in exact]


def plain_loss(model: Any, batch: list[Example], known: Known, config: LossConfig) -> Any:
    """The loss by the book: sequence by sequence, token by token, with all logits."""
    lengths: dict[str, int] = {}
    for one in batch:
        lengths[one.episode_id] = lengths.get(one.episode_id, 0) + len(one.at)
    loss = torch.zeros(())
    for one, old, ref in zip(batch, known.old, known.reference or known.old, strict=True):
        assert old is not None and ref is not None
        weight = {
            "token-mean": 1 / sum(lengths.values()),
            "sequence-mean": 1 / len(lengths) / lengths[one.episode_id],
            "constant": 1 / len(lengths) / config.constant_length,
        }[config.aggregation]
        logps, logp = own_logprobs(model, one)
        for i, advantage in enumerate(one.advantage.tolist()):
            ratio = torch.exp(logp[i] - old[i])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            term = -min(ratio * advantage, clipped * advantage)
            if config.dual_clip and advantage < 0:
                term = min(term, -config.dual_clip * advantage)
            if config.tis_cap:
                term = term * min(math.exp(old[i].item() - float(one.engine[i])), config.tis_cap)
            if config.kl:
                term = term + config.kl * (torch.exp(ref[i] - logp[i]) - (ref[i] - logp[i]) - 1)
            term = term + config.entropy * (logps[i].exp() * logps[i]).sum()
            loss = loss + weight * term
    return loss


LOSSES = {
    "default": LossConfig(),
    "narrow": LossConfig(clip_low=0.05, clip_high=0.1, tis_cap=None),
    "dual": LossConfig(dual_clip=1.2, tis_cap=0.9),
    "kl": LossConfig(kl=0.3),
    "entropy": LossConfig(entropy=0.2),
    "sequence": LossConfig(aggregation="sequence-mean"),
    "constant": LossConfig(aggregation="constant", constant_length=50),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_a_plain_reference_however_packed(name: str) -> None:
    config = LOSSES[name]
    batch = [replace(one, sequence=replace(one.sequence)) for one in BATCH]
    for one, engine in zip(batch, noisy(batch, 1), strict=True):
        one.sequence.logprobs[one.at] = engine
    known = Known([*noisy(batch, 2)], noisy(batch, 3) if config.kl else None)
    model = small_model()
    expected = plain_loss(model, batch, known, config)
    expected.backward()
    wanted = {name: one.grad for name, one in model.named_parameters()}
    assert max(one.abs().max() for one in wanted.values()) > 1e-2
    trainer = trainer_of(small_model())
    for budget in (1, 40, 10_000):
        settings = TrainConfig(pack_tokens=budget, loss=config)
        log = accumulate(trainer, batch, known, 1.0, settings)
        assert log["loss"] == pytest.approx(expected.item(), abs=1e-5)
        for name, found in gradients(trainer).items():
            assert torch.allclose(found, wanted[name], rtol=0, atol=1e-5), (budget, name)


def test_supervised_gradients_are_those_of_cross_entropy() -> None:
    model, trainer = small_model(), trainer_of(small_model())
    total = sum(len(one.at) for one in BATCH)
    expected = -torch.cat([own_logprobs(model, one)[1] for one in BATCH]).sum() / total
    expected.backward()
    log = accumulate(trainer, BATCH, None, 1.0, PLAIN)
    assert log["loss"] == pytest.approx(expected.item(), abs=1e-5)
    wanted = dict(model.named_parameters())
    for name, found in gradients(trainer).items():
        assert torch.allclose(found, wanted[name].grad, rtol=0, atol=1e-5), name


def test_tokens_that_the_policy_did_not_write_have_no_gradient() -> None:
    """Of all final states only those count that predict a token of the policy."""
    trainer = trainer_of(small_model())
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    trainer.bare.get_decoder().register_forward_hook(keep)
    one = BATCH[2]
    accumulate(trainer, [one], Known([None], None), 1.0, PLAIN)
    [states] = kept
    assert states.grad is not None
    moved = torch.nonzero(states.grad[0].abs().sum(-1))[:, 0]
    assert moved.tolist() == (one.at - 1).tolist()
    assert 0 < len(moved) < len(one.sequence)


def test_a_turn_without_advantage_has_no_gradient() -> None:
    trainer = trainer_of(small_model())
    rng = np.random.default_rng(0)
    one = example(rng, [(3, 4), (2, 3)], [0.0, 0.0])
    accumulate(trainer, [one], Known([None], None), 1.0, PLAIN)
    assert all(found.eq(0).all() for found in gradients(trainer).values())


def uniform_trainer() -> Trainer:
    """A policy that gives every token the same chance."""
    model = small_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return trainer_of(model)


def test_two_turns_by_hand() -> None:
    """Turn 1: A = 1, ratio 1.5. Turn 2: A = -0.5, ratios 0.5 and 1.

    -min(1.5, 1.28) = -1.28; -min(-0.25, -0.8 / 2) = 0.4; 0.5. Their mean is -0.38 / 3.
    """
    one = example(np.random.default_rng(0), [(2, 1), (3, 2)], [1.0, -0.5])
    one.sequence.logprobs[:] = np.nan
    old = -math.log(VOCABULARY) - torch.tensor([1.5, 0.5, 1.0]).log()
    log = accumulate(uniform_trainer(), [one], Known([old], None), 1.0, PLAIN)
    assert log["loss"] == pytest.approx(-0.38 / 3, abs=1e-6)
    assert log["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert (log["clip_low_share"], log["clip_high_share"]) == pytest.approx((1 / 3, 1 / 3))
    assert log["tis"] == 1
    assert log["entropy"] == pytest.approx(math.log(VOCABULARY), abs=1e-5)


# The check values of docs/method.md, "Advantages": three turns of A, B, C, D; rewards on the first
# two.
REWARDS = [[0.3, 1.0], [0.3, 1.0], [0.3, 0.1], [0.0, -0.1]]
O = 0.8660  # GN of two successes and two failures  # noqa: E741
CHECK: dict[Estimator, list[list[float]]] = {
    "grpo": [[O] * 3, [O] * 3, [-O] * 3, [-O] * 3],
    "mt-grpo": [
        [2.2235, 1.7235, O],
        [2.2235, 1.7235, O],
        [-1.0520, -1.5520, -O],
        [-3.3950, -1.8950, -O],
    ],
    "gtpo": [
        [0.8520, 0.8636, O],
        [0.8520, 0.8636, O],
        [-0.6321, -0.7727, -O],
        [-1.0718, -0.9545, -O],
    ],
    "hybrid": [
        [1.1118, 1.1234, 1.1258],
        [1.1118, 1.1234, 1.1258],
        [-0.8919, -1.0325, -1.1258],
        [-1.3316, -1.2144, -1.1258],
    ],
}


@pytest.mark.parametrize("estimator", CHECK)
def test_the_check_values_reach_the_loss(estimator: Estimator) -> None:
    tiers = {f"t{i}{k}": r for i, row in enumerate(REWARDS) for k, r in enumerate([*row, 9.0])}
    group = [Tiered("g", float(i < 2), [f"t{i}{k}" for k in range(3)]) for i in range(4)]
    arrays = turn_arrays(turn_frame(group, tiers))
    reward = arrays.frame["reward"].to_numpy()
    made = turn_advantages(arrays, reward, AdvantageConfig(estimator, last_turn_reward=False))
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, (4, 3))  # tokens that were written in each turn
    rows = [
        {
            "episode_id": f"e{i}",
            "turn": k,
            "appended": k > 0,
            "prompt_ids": [5, 6],
            "token_ids": rng.integers(4, VOCABULARY, lengths[i, k]).tolist(),
            "logprobs": None,
        }
        for i in range(4)
        for k in range(3)
    ]
    episodes: Any = [
        {"episode_id": f"e{i}", "tokens_recorded": True, "sampling": {}} for i in range(4)
    ]
    table = TOKENS.frame({name: [row[name] for row in rows] for name in TOKENS.columns})
    frame = advantage_frame(arrays, reward, made, AdvantageConfig())
    lesson = reinforced(episodes, table, frame, [], None, "rollouts")
    for one, wanted, count in zip(lesson.examples, CHECK[estimator], lengths, strict=True):
        assert one.advantage == pytest.approx(np.repeat(wanted, count), abs=5e-5)
    expected = -(np.array(CHECK[estimator]) * lengths).sum() / lengths.sum()
    fresh = Known([None] * 4, None)
    log = accumulate(trainer_of(small_model()), lesson.examples, fresh, 1.0, PLAIN)
    assert log["loss"] == pytest.approx(expected, abs=1e-4)


def steps_of(
    batch: list[Example],
    config: TrainConfig,
    tiers: TierCodes | None = None,
    known: Known | None = None,
) -> tuple[list[OptimizerStep], Trainer]:
    trainer = trainer_of(small_model(), config)
    known = known or known_logprobs(trainer, batch, None, config)
    return list(train(trainer, batch, known, TierCodes([], {}), config)), trainer


def test_the_first_step_needs_no_earlier_pass() -> None:
    once = TrainConfig(batch_size=3)
    trainer = trainer_of(small_model())
    known = known_logprobs(trainer, BATCH, None, once)
    missing = [place for place, old in enumerate(known.old) if old is None]
    assert 0 < len(missing) < len(BATCH)
    everything = token_logprobs(trainer, BATCH, once)
    for old, wanted in zip(known.old, everything, strict=True):
        assert old is None or torch.allclose(old, wanted, atol=1e-6)
    again = known_logprobs(trainer, BATCH, None, replace(once, epochs=2))
    assert all(old is not None for old in again.old)
    told, _ = steps_of(BATCH, once, known=Known([*everything], None))
    spared, _ = steps_of(BATCH, once, known=known)
    assert len(told) == 2
    for one, other in zip(told, spared, strict=True):
        assert one.log["loss"] == pytest.approx(other.log["loss"], abs=1e-5)
        assert one.log["grad_norm"] == pytest.approx(other.log["grad_norm"], rel=1e-4)


def test_log_probabilities_are_those_of_the_model() -> None:
    trainer, model = trainer_of(small_model()), small_model()
    for budget in (1, 60, 10_000):
        config = TrainConfig(pack_tokens=budget)
        for one, found in zip(BATCH, token_logprobs(trainer, BATCH, config), strict=True):
            wanted = own_logprobs(model, one)[1].detach()
            assert torch.allclose(found, wanted, rtol=0, atol=1e-5)
    exact = torch.cat([own_logprobs(model, one)[1] for one in BATCH]).mean().item()
    assert dev_loss(trainer, BATCH, PLAIN) == pytest.approx(-exact, abs=1e-5)


def test_ratios_may_start_from_the_engines_logprobs() -> None:
    config = TrainConfig(old_logprobs="engine")
    known = known_logprobs(trainer_of(small_model()), BATCH, None, config)
    for one, old in zip(BATCH, known.old, strict=True):
        assert old is not None and old.tolist() == one.engine.tolist()
    unknown = example(np.random.default_rng(0), [(2, 3)], episode="here")
    unknown.sequence.logprobs[-1] = np.nan
    with pytest.raises(InputError) as caught:
        known_logprobs(trainer_of(small_model()), [unknown], None, config)
    assert line_of(caught) == (
        "--old-logprobs: episode 'here' has tokens whose logprobs were not recorded; use trainer"
    )


def test_the_reference_is_the_start_or_another_policy() -> None:
    config = TrainConfig(loss=LossConfig(kl=0.1))
    trainer, other = trainer_of(small_model()), trainer_of(small_model(1))
    own = known_logprobs(trainer, BATCH, None, config)
    assert own.reference and all(a is b for a, b in zip(own.old, own.reference, strict=True))
    held = known_logprobs(trainer, BATCH, other, config).reference
    wanted = token_logprobs(other, BATCH, config)
    assert held and all(torch.equal(a, b) for a, b in zip(held, wanted, strict=True))


def test_the_scale_of_advantages_can_be_held() -> None:
    loud = [replace(one, advantage=one.advantage * 50) for one in BATCH]
    config = TrainConfig(lr=1e-3, advantage_scale="rms", batch_size=99)
    [soft], one = steps_of(BATCH, config)
    [hard], other = steps_of(loud, config)
    rms = np.sqrt(np.mean(np.concatenate([one.advantage for one in BATCH]) ** 2))
    assert soft.log["advantage_rms"] == pytest.approx(rms, rel=1e-5)
    assert hard.log["advantage_rms"] == pytest.approx(50 * rms, rel=1e-5)
    assert soft.log["effective_step"] == pytest.approx(1e-3) == hard.log["effective_step"]
    assert soft.log["grad_norm"] == pytest.approx(hard.log["grad_norm"], rel=1e-4)
    for a, b in zip(one.bare.parameters(), other.bare.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    [plain], _ = steps_of(loud, replace(config, advantage_scale="none"))
    assert plain.log["effective_step"] == pytest.approx(1e-3 * 50 * rms, rel=1e-5)
    assert plain.log["grad_norm"] == pytest.approx(50 * rms * soft.log["grad_norm"], rel=1e-3)


def test_equal_settings_make_equal_weights() -> None:
    config = TrainConfig(lr=1e-3, batch_size=2, epochs=2)
    (first, one), (_, same) = steps_of(BATCH, config), steps_of(BATCH, config)
    assert len(first) == 4
    (_, other) = steps_of(BATCH, replace(config, seed=1))
    pairs = list(zip(one.bare.parameters(), same.bare.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.bare.parameters()), next(other.bare.parameters()))


def test_weights_sum_over_episodes_whole() -> None:
    counts = [len(one.at) for one in BATCH]
    token = np.concatenate(example_weights(BATCH, LossConfig()))
    assert token == pytest.approx(1 / sum(counts))
    by_episode: dict[str, float] = {}
    for one, weight in zip(
        BATCH, example_weights(BATCH, LossConfig(aggregation="sequence-mean")), strict=True
    ):
        by_episode[one.episode_id] = by_episode.get(one.episode_id, 0) + weight.sum()
    assert list(by_episode.values()) == pytest.approx([1 / EPISODES] * EPISODES)
    constant = example_weights(BATCH, LossConfig(aggregation="constant", constant_length=64))
    assert np.concatenate(constant) == pytest.approx(1 / EPISODES / 64)


def test_tokens_may_weigh_differently() -> None:
    heavy = replace(BATCH[0], weight=np.full(len(BATCH[0].at), 3, np.float32))
    first, second = example_weights([heavy, BATCH[1]], LossConfig())
    assert first[0] == pytest.approx(3 * second[0])
    assert first.sum() + second.sum() == pytest.approx(1)


def test_schedules() -> None:
    def course(**more: Any) -> list[float]:
        config = TrainConfig(lr=1.0, **more)
        return [learning_rate(step, 6, config) for step in range(1, 7)]

    assert course() == [1.0] * 6
    assert course(warmup=2) == [0.5, 1, 1, 1, 1, 1]
    assert course(schedule="linear", warmup=2) == pytest.approx(
        [0.5, 1, 0.7525, 0.505, 0.2575, 0.01]
    )
    cosine = course(schedule="cosine")
    assert cosine[2] == pytest.approx(0.505) and cosine[5] == pytest.approx(0.01)
    assert cosine == sorted(cosine, reverse=True)


def test_what_is_pushed_where() -> None:
    rng = np.random.default_rng(0)
    first = example(rng, [(2, 4), (2, 1)], [2.0, -1.0], "a")  # tiers 0 and 1
    second = example(rng, [(2, 2), (2, 3)], [-0.5, 0.0], "b")
    log = advantage_log([first, second], TierCodes(["good", "bad"], {"good": 1.0, "bad": -0.2}))
    assert log["gradient_mass"] == pytest.approx({"good": 9 / 10, "bad": 1 / 10})
    assert log["wrong_sign_share"] == {"good": 0.5, "bad": 0.0}
    assert log["advantage_rms"] == pytest.approx(math.sqrt((4 * 4 + 1 + 2 / 4) / 10))
    worthless = advantage_log([first], TierCodes(["good", "bad"], {"bad": 0.2}))
    assert worthless["wrong_sign_share"] == {"bad": 1.0}


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    trainer = trainer_of(small_model())
    before = [one.clone() for one in trainer.bare.parameters()]
    known = Known([torch.full((len(one.at),), -torch.inf) for one in BATCH], None)
    with pytest.raises(DivergedError, match=r"^step 1: the loss is .* and the gradient") as met:
        list(train(trainer, BATCH, known, TierCodes([], {}), PLAIN))
    assert met.value.batch
    for one, was in zip(trainer.bare.parameters(), before, strict=True):
        assert torch.equal(one, was) and (one.grad is None or one.grad.eq(0).all())


def test_a_spike_stops_the_run_once_it_has_settled() -> None:
    config = TrainConfig(lr=1e-9, batch_size=1, epochs=3, spike=20)
    batch = [
        replace(one, advantage=np.ones_like(one.advantage), temperature=1.0) for one in BATCH[:4]
    ]
    steps, _ = steps_of(batch, config)
    assert len(steps) == 12
    loud = [replace(one, advantage=one.advantage * 1e4) for one in batch[:1]]
    trainer = trainer_of(small_model(), config)
    known = known_logprobs(trainer, batch, None, config)
    taken = 0
    with pytest.raises(DivergedError, match=r"^step 11: the gradient norm is \S+, usually "):
        for step in train(trainer, batch, known, TierCodes([], {}), config):
            taken = step.number
            if taken == 10:
                batch[:] = loud * 4
                assert known.old[0] is not None
                known.old[:] = [known.old[0]] * 4
    assert taken == 10


def test_settings_are_checked() -> None:
    wrongs: list[dict[str, Any]] = [
        {"schedule": "x"},
        {"advantage_scale": "x"},
        {"old_logprobs": "x"},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"unknown .* 'x'"):
            TrainConfig(**wrong)
    with pytest.raises(ValueError, match="unknown aggregation 'x'"):
        LossConfig(aggregation="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not above 1"):
        LossConfig(dual_clip=1.0)
