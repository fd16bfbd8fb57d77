"""Token sequences with the rewards of their turns, for trainers that pay tokens (TOKENS -> Paid).

These trainers learn from nothing but rewards. So the last turn of an episode earns its outcome,
too, and what a turn earns is paid at its last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.errors import InputError
from stages.exports.credits import Earned, check_sum
from stages.training.sequences import TokenSequence, sequences


class Paid(NamedTuple):
    """A sequence of L tokens, and what the K turns in it earned, the outcome included."""

    tokens: TokenSequence
    ends: list[int]  # [K] where the last token of each turn stands
    turns: list[int]  # [K] numbers of the turns in their episode
    shaped: list[float]  # [K]
    raw: list[float]  # [K]
    outcome: float  # of the episode
    last: bool  # whether it is the last sequence of its episode

    @property
    def logprobs(self) -> list[float] | None:
        """Of the tokens that the policy wrote, 0 elsewhere, [L]; None: some are unknown."""
        known = np.where(self.tokens.written, self.tokens.logprobs, 0)
        return None if np.isnan(known).any() else known.tolist()


def paid_sequences(tokens: pl.DataFrame, gains: Mapping[str, Earned], where: str) -> list[Paid]:
    """Return the sequences of the episodes that earned something, episode after episode.

    Args:
        tokens: of the turns, in order (TOKENS).
        gains: what each episode earned; tokens of others are left out.
        where: name of the rollouts in errors.

    Raises:
        InputError: a turn has no token to be paid at, or tokens but no reward.
    """
    made: dict[str, list[TokenSequence]] = {episode: [] for episode in gains}
    for sequence in sequences(tokens.filter(pl.col("episode_id").is_in(list(gains)))):
        made[sequence.episode_id].append(sequence)
    parts = (_paid(episode, made[episode], gain, where) for episode, gain in gains.items())
    return [part for several in parts for part in several]


def _paid(episode: str, made: Sequence[TokenSequence], gain: Earned, where: str) -> list[Paid]:
    turns = [np.unique(sequence.turn[sequence.written]).tolist() for sequence in made]
    _check_turns({turn for several in turns for turn in several}, len(gain.raw), episode, where)
    shaped, raw = _with_outcome(gain.shaped, gain), _with_outcome(gain.raw, gain)
    parts = [
        Paid(
            sequence,
            [int(np.flatnonzero(sequence.turn == turn)[-1]) for turn in several],
            several,
            [shaped[turn] for turn in several],
            [raw[turn] for turn in several],
            gain.outcome,
            number == len(made),
        )
        for number, (sequence, several) in enumerate(zip(made, turns, strict=True), 1)
    ]
    paid = [reward for part in parts for reward in part.shaped]
    check_sum(paid, gain.total + gain.outcome, episode)
    return parts


def _with_outcome(rewards: Sequence[float], gain: Earned) -> list[float]:
    return [*rewards[:-1], rewards[-1] + gain.outcome]


def _check_turns(told: set[int], count: int, episode: str, where: str) -> None:
    """Raise InputError unless the turns with tokens are those with a reward."""
    if without := set(range(count)) - told:
        what = f"turn {min(without)} of episode '{episode}' has no tokens to be paid at"
        raise InputError(where, what, "play it with an engine that tells what it sampled")
    if unknown := told - set(range(count)):
        what = f"turn {min(unknown)} of episode '{episode}' was not scored"
        raise InputError(where, what, "rerun irc-cli score on these rollouts")
