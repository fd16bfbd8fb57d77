"""Ragged episodes as flat arrays, and sums along each episode.

Turns are flat arrays [N], episode after episode; a `Layout` gives the position of each turn.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer]
Codes: TypeAlias = npt.NDArray[np.intp]


class Layout(NamedTuple):
    """The positions of N turns in E episodes; see `turn_layout`."""

    episode: Codes  # [N] episode of the turn, non-decreasing
    cell: Codes  # [N] one code for each (group, turn index)
    group: Codes  # [E] group of the episode
    last: Codes  # [E] position in [N] of the episode's last turn
    last_by_length: Codes  # [E] the same, longest episode first
    n_longer: Codes  # [K] episodes with more than 0, 1, .. K-1 turns; K: length of the longest


def turn_layout(episode: Ints, turn: Ints, group: Ints) -> Layout:
    """Index N turns of E episodes, once for any number of calls of `advantages`.

    Args:
        episode: episode of each turn, 0..E-1, non-decreasing, shape [N].
        turn: position of each turn in its episode, 0..K-1 in order, shape [N].
        group: group of each episode, below E and in any order, shape [E].

    Returns:
        The layout of the N turns.

    Raises:
        ValueError: the shapes differ, a code is out of range, the episodes are out of order, or
            the turns of an episode are not 0..K-1, K >= 1.
    """
    n_turns, n_episodes = episode.size, group.size
    if not episode.shape == turn.shape == (n_turns,) or group.shape != (n_episodes,):
        raise ValueError(f"want [N], [N], [E]; got {episode.shape}, {turn.shape}, {group.shape}")
    if np.any(episode[1:] < episode[:-1]):
        raise ValueError("the turns are not sorted by episode")
    length = np.bincount(as_codes(episode, n_episodes, "episode"), minlength=n_episodes)
    start = np.cumsum(length) - length
    cell = np.arange(n_turns)
    cell -= np.repeat(start, length)
    if not (length.all() and np.array_equal(turn, cell)):
        raise ValueError("the turns of each episode are not 0, 1, 2, ...")

    group = as_codes(group, n_episodes, "group")
    reach = np.zeros(n_episodes, np.intp)  # turns of each group's longest episode
    np.maximum.at(reach, group, length)
    cell += np.repeat((np.cumsum(reach) - reach)[group], length)

    last = start + length - 1
    return Layout(
        episode=as_codes(episode, n_episodes, "episode"),
        cell=cell,
        group=group,
        last=last,
        last_by_length=last[np.argsort(-length, kind="stable")],
        n_longer=n_episodes - np.cumsum(np.bincount(length))[:-1],
    )


def first_turns_of(layout: Layout) -> Codes:
    """Position in [N] of each episode's first turn.

    Args:
        layout: layout of E episodes.

    Returns:
        Shape [E].
    """
    return np.concatenate([np.zeros(1, np.intp), layout.last[:-1] + 1])[: layout.last.size]


def turn_numbers(layout: Layout) -> Codes:
    """Position of each turn in its episode, from 0.

    Args:
        layout: layout of N turns.

    Returns:
        Shape [N].
    """
    return np.arange(layout.episode.size) - first_turns_of(layout)[layout.episode]


def as_codes(code: Ints, n_codes: int, name: str) -> Codes:
    """Return codes as indices, after checking that all are in range.

    Args:
        code: codes, shape [N].
        n_codes: number of distinct codes.
        name: name of the codes in the error message.

    Returns:
        The same codes, shape [N].

    Raises:
        ValueError: a code is not in 0..n_codes-1.
    """
    if code.size and not 0 <= code.min() <= code.max() < n_codes:
        raise ValueError(f"a code of {name} is not in 0..{n_codes - 1}")
    return code.astype(np.intp, copy=False)


def episode_tiers(tier: Ints, episode: Ints, n_tiers: int) -> npt.NDArray[np.int64]:
    """Return one code for each (episode, tier) pair.

    Args:
        tier: tier of each turn, 0..n_tiers-1, shape [N].
        episode: episode of each turn, small and >= 0, shape [N].
        n_tiers: number of tiers.

    Returns:
        The code of each turn's pair, shape [N].

    Raises:
        ValueError: the shapes differ, or a tier is out of range.
    """
    if tier.shape != episode.shape:
        raise ValueError(f"{tier.shape} tiers of {episode.shape} turns")
    return episode.astype(np.int64) * n_tiers + as_codes(tier, n_tiers, "tier")


def without_last(reward: Floats, layout: Layout) -> Floats:
    """Return the rewards with that of each episode's last turn set to 0.

    Args:
        reward: reward of each turn, shape [N].
        layout: layout of the N turns.

    Returns:
        A copy, shape [N].
    """
    reward = reward.astype(np.float64)
    reward[layout.last] = 0
    return reward


def suffix_sums(x: Floats, gamma: float, layout: Layout) -> Floats:
    """Replace each x[k] by the sum over l >= k of gamma^(l-k) x[l] in its episode; return x.

    The loop walks back from the last turns of all episodes at once; shorter episodes drop out
    first.

    Args:
        x: value of each turn, shape [N]; it is overwritten.
        gamma: discount per turn.
        layout: layout of the N turns.

    Returns:
        x itself, shape [N].
    """
    at = layout.last_by_length
    later = x[at]
    for n in layout.n_longer[1:]:
        at = at[:n] - 1
        later = x[at] + gamma * later[:n]
        x[at] = later
    return x
