"""Time of hybrid advantages: ours, a straightforward vectorised numpy version, Python loops.

"From codes" includes the work done once per set of turns (our `turn_layout`); "again" is a further
call on the same turns, such as with the calibrated rewards.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from stages.core.advantages import AdvantageConfig, advantages
from stages.core.layout import turn_layout
from tests.bench.timing import Row, row

GAMMA, LAMBDA, EPS = 0.9, 0.3, 1e-6


def example(n_turns: int, seed: int = 0) -> dict[str, Any]:
    """Return about n_turns turns: episodes of 1 to 30 turns in groups of 8, sorted by group."""
    rng = np.random.default_rng(seed)
    n_groups = round(n_turns / 15.5 / 8)
    length = rng.integers(1, 31, 8 * n_groups)
    start = np.cumsum(length) - length
    return {
        "reward": rng.choice([1.0, 0.5, 0.3, 0.1, 0.0, -0.1], length.sum()),
        "outcome": rng.integers(0, 2, length.size).astype(float),
        "episode": np.repeat(np.arange(length.size), length),
        "turn": np.arange(length.sum()) - np.repeat(start, length),
        "group": np.repeat(np.arange(n_groups), 8),
    }


def segment_index(episode: Any, turn: Any, group: Any) -> Any:
    """Return the peer's layout of the codes: starts, lengths, a key per (group, turn index)."""
    length = np.bincount(episode)
    start = np.cumsum(length) - length
    return start, length, group[episode] * (turn.max() + 1) + turn


def segment_sums(reward: Any, outcome: Any, episode: Any, group: Any, index: Any) -> Any:
    """The peer: a loop over turn indices for the returns, then sums by key."""
    start, length, key = index
    returns = reward.copy()
    returns[start + length - 1] += outcome
    for k in range(length.max() - 2, -1, -1):
        at = start[length > k + 1] + k
        returns[at] += GAMMA * returns[at + 1]
    return_part, mean, std = segment_normalise(returns, key)
    outcome_part = LAMBDA * segment_normalise(outcome, group)[0][episode]
    return return_part + outcome_part, return_part, outcome_part, mean, std


def segment_normalise(x: Any, key: Any) -> Any:
    """Return score, mean and std of each value among those of its key."""
    n = np.bincount(key)
    mean = (np.bincount(key, x) / np.maximum(n, 1))[key]
    deviation = x - mean
    std = np.sqrt(np.bincount(key, deviation**2) / np.maximum(n - 1, 1))[key]
    return np.where(n[key] > 1, deviation / (std + EPS), 0.0), mean, std


def python_loops(data: dict[str, Any]) -> list[float]:
    """The formulas as plain loops over lists and dicts."""
    reward, outcome, turn = (data[k].tolist() for k in ("reward", "outcome", "turn"))
    episode, group = data["episode"].tolist(), data["group"].tolist()
    returns = [0.0] * len(reward)
    later = 0.0
    for i in range(len(reward) - 1, -1, -1):
        is_last = i + 1 == len(reward) or episode[i + 1] != episode[i]
        later = outcome[episode[i]] if is_last else GAMMA * later
        later = returns[i] = reward[i] + later

    def normalise(x: list[float], keys: list[Any]) -> list[float]:
        sets = defaultdict(list)
        for value, key in zip(x, keys, strict=True):
            sets[key].append(value)
        stats = {}
        for key, values in sets.items():
            mean = sum(values) / len(values)
            square = sum((v - mean) ** 2 for v in values)
            stats[key] = mean, (square / max(len(values) - 1, 1)) ** 0.5
        return [(v - stats[k][0]) / (stats[k][1] + EPS) for v, k in zip(x, keys, strict=True)]

    cells = [(group[e], k) for e, k in zip(episode, turn, strict=True)]
    by_episode = normalise(outcome, group)
    by_turn = normalise(returns, cells)
    return [a + LAMBDA * by_episode[e] for a, e in zip(by_turn, episode, strict=True)]


def bench() -> list[Row]:
    """Measure on a million turns, after checking that the results agree."""
    data = example(1_000_000)
    reward, outcome = data["reward"], data["outcome"]
    codes = data["episode"], data["turn"], data["group"]
    config = AdvantageConfig(gamma=GAMMA, outcome_weight=LAMBDA, eps=EPS)
    layout, index = turn_layout(*codes), segment_index(*codes)

    def ours() -> Any:
        return advantages(reward, outcome, layout, config)

    def peer() -> Any:
        return segment_sums(reward, outcome, codes[0], codes[2], index)

    def ours_from_codes() -> Any:
        return advantages(reward, outcome, turn_layout(*codes), config)

    def peer_from_codes() -> Any:
        return segment_sums(reward, outcome, codes[0], codes[2], segment_index(*codes))

    def loops() -> Any:
        return python_loops(data)

    np.testing.assert_allclose(ours().advantage, peer()[0], atol=1e-9)
    np.testing.assert_allclose(ours().advantage, loops(), atol=1e-9)
    return [
        row("hybrid advantages, from codes", "segment sums", ours_from_codes, peer_from_codes, 1.5),
        row("hybrid advantages, again", "segment sums", ours, peer, 1.5),
        row("hybrid advantages, from codes", "Python loops", ours_from_codes, loops, 1 / 8, runs=5),
    ]
