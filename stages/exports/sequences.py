"""Token sequences with rewards of turns, for trainers that take rewards of tokens (TOKENS -> Paid).

These trainers see only rewards. Therefore the last turn of an episode also earns the outcome, and a
turn's reward is at its last token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stages.errors import InputError
from stages.exports.credits import Earned, check_sum
from stages.tables.artifacts import TOKENS
from stages.traces.episode import Episode
from stages.traces.fields import list_in
from stages.training.sequences import TokenSequence, sequences


class Paid(NamedTuple):
    """A sequence of L tokens, and the rewards of its K turns, including the outcome."""

    tokens: TokenSequence
    ends: list[int]  # [K] index of the last token of each turn
    turns: list[int]  # [K] numbers of the turns in their episode
    shaped: list[float]  # [K]
    raw: list[float]  # [K]
    outcome: float  # of the episode
    last: bool  # whether it is the last sequence of its episode

    @property
    def logprobs(self) -> list[float] | None:
        """Logprobs of the policy's tokens, 0 elsewhere, [L]; None: some are unknown."""
        known = np.where(self.tokens.written, self.tokens.logprobs, 0)
        return None if np.isnan(known).any() else known.tolist()


def tokens_of(episodes: Iterable[Episode], where: str) -> pl.DataFrame:
    """Return the tokens of the turns whose trace holds them (Episode -> TOKENS).

    A prompt that begins with all tokens before it continues their sequence.

    Raises:
        InputError: a token id is not valid.
    """
    rows = [row for episode in episodes for row in _tokens_of(episode)]
    for row in rows:
        if not (_are_ids(row["prompt_ids"]) and _are_ids(row["token_ids"])):
            what = f"turn {row['turn']} of episode '{row['episode_id']}' has invalid token ids"
            raise InputError(where, what, "give the file as it was written")
    return pl.DataFrame(rows, schema=TOKENS.columns)


def _are_ids(tokens: list[Any]) -> bool:
    return all(type(token) is int and 0 <= token < 2**31 for token in tokens)


def _tokens_of(episode: Episode) -> Iterator[dict[str, Any]]:
    before: list[int] = []  # all tokens of the sequence so far
    spoken = (m for m in episode.messages if isinstance(m, dict) and m.get("role") == "assistant")
    turns = (message for message in spoken if message.get("sampled") is not False)
    for turn, message in enumerate(turns):
        prompt, written = list_in(message, "prompt_ids"), list_in(message, "token_ids")
        if not written or "prompt_ids" not in message:
            before = []
            continue
        appended = bool(message.get("appended"))
        if not appended and before and prompt[: len(before)] == before:
            prompt, appended = prompt[len(before) :], True
        before = [*(before if appended else ()), *prompt, *written]
        yield {
            "episode_id": episode.episode_id,
            "turn": turn,
            "appended": appended,
            "prompt_ids": prompt,
            "token_ids": written,
            "logprobs": message.get("logprobs"),
        }


def paid_sequences(tokens: pl.DataFrame, gains: Mapping[str, Earned], where: str) -> list[Paid]:
    """Return the sequences of the episodes with rewards, episode by episode.

    Args:
        tokens: tokens of the turns, in order (TOKENS).
        gains: rewards of each episode; tokens of other episodes are left out.
        where: name of the rollouts in errors.

    Raises:
        InputError: a turn has a reward but no tokens, or tokens but no reward.
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


def _check_turns(with_tokens: set[int], count: int, episode: str, where: str) -> None:
    """Raise InputError unless the turns with tokens are those with a reward."""
    if without := set(range(count)) - with_tokens:
        what = f"turn {min(without)} of episode '{episode}' has no tokens to be paid at"
        raise InputError(where, what, "play it with an engine that tells what it sampled")
    if unknown := with_tokens - set(range(count)):
        what = f"turn {min(unknown)} of episode '{episode}' was not scored"
        raise InputError(where, what, "rerun irc-cli score on these rollouts")
