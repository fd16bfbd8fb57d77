"""Sequences of tokens to learn from, made of the turns that a policy wrote (TOKENS -> Sequence).

An episode is one sequence as long as each prompt goes on where the last turn ended. Where a chat
template rewrites history (Qwen3 drops earlier thoughts), the next turn begins another sequence.
So every token that the policy wrote is learnt from once, in the context it was written in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.probe import SYSTEM
from stages.messages.renderer import Renderer

PROMPT = -1  # the turn of a token that the policy did not write
NO_TIER = -1


@dataclass(frozen=True)
class TokenSequence:
    """Tokens that a model reads at once; all arrays are [L].

    Attributes:
        episode_id: of all its turns.
        token_ids: of prompts and of what the policy wrote.
        turn: of each token that the policy wrote; PROMPT elsewhere.
        logprobs: of each such token when it was sampled, in nats; NaN where unknown.
    """

    episode_id: str
    token_ids: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]

    @property
    def written(self) -> npt.NDArray[np.bool_]:
        """The tokens that the policy wrote; never the first, which nothing predicts."""
        return np.asarray(self.turn != PROMPT)

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Example:
    """One sequence and what is to be learnt of it; arrays are over the M tokens of the policy.

    Attributes:
        sequence: the tokens.
        advantage: of each token.
        tier: code of the tier of each token's turn, or NO_TIER.
        weight: of each token, relative to the others.
        temperature: that it was sampled with.
        top_p: that it was sampled with.
    """

    sequence: TokenSequence
    advantage: npt.NDArray[np.float32]
    tier: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    temperature: float = 1.0
    top_p: float = 1.0

    @cached_property
    def at(self) -> npt.NDArray[np.int64]:
        """Where the tokens of the policy stand, [M]."""
        return np.flatnonzero(self.sequence.written)

    @property
    def engine(self) -> npt.NDArray[np.float32]:
        """Log-probabilities when the tokens were sampled, [M]; NaN: unknown."""
        return self.sequence.logprobs[self.at]

    @property
    def episode_id(self) -> str:
        """Of the episode that it is a part of."""
        return self.sequence.episode_id


def without_engine(example: Example) -> Example:
    """Return an example whose log-probabilities when it was sampled are unknown.

    Args:
        example: any.

    Returns:
        Its copy; the engine's log-probabilities are NaN.
    """
    unknown = np.full_like(example.sequence.logprobs, np.nan)
    return replace(example, sequence=replace(example.sequence, logprobs=unknown))


def sequences(tokens: pl.DataFrame) -> list[TokenSequence]:
    """Return the sequences of all turns, in the order of the table.

    Args:
        tokens: a TOKENS table, the turns of an episode together and in order.

    Returns:
        One sequence for each run of turns whose prompts go on where the last turn ended.
    """
    parts: list[list[dict[str, Any]]] = []
    for row in tokens.iter_rows(named=True):
        goes_on = parts and row["appended"] and row["episode_id"] == parts[-1][0]["episode_id"]
        if goes_on:
            parts[-1].append(row)
        else:
            parts.append([row])
    return [_sequence(rows) for rows in parts]


def _sequence(rows: List[dict[str, Any]]) -> TokenSequence:
    ids: list[int] = []
    turn: list[int] = []
    logprobs: list[float] = []
    for row in rows:
        prompt, wrote = row["prompt_ids"], row["token_ids"]
        ids += prompt + wrote
        turn += [PROMPT] * len(prompt) + [row["turn"]] * len(wrote)
        logprobs += [np.nan] * len(prompt) + (row["logprobs"] or [np.nan] * len(wrote))
    return TokenSequence(
        rows[0]["episode_id"],
        np.array(ids, np.int64),
        np.array(turn, np.int32),
        np.array(logprobs, np.float32),
    )


def check(examined: Iterable[TokenSequence], vocabulary: int, where: str) -> None:
    """Raise InputError where a model can't learn from a sequence.

    Args:
        examined: the sequences.
        vocabulary: number of tokens that the model knows, V.
        where: name of their file in errors.

    Raises:
        InputError: a sequence begins with a sampled token, or holds an id that is not in 0..V-1.
    """
    for sequence in examined:
        place = f"{where}: episode '{sequence.episode_id}'"
        if sequence.written[:1].any():
            raise InputError(place, "begins with a sampled token", "record the prompt, too")
        if (
            len(sequence)
            and not 0 <= sequence.token_ids.min() <= sequence.token_ids.max() < vocabulary
        ):
            worst = next(id for id in sequence.token_ids if not 0 <= id < vocabulary)
            what = f"token id {worst} is not in the model's vocabulary of {vocabulary:,}"
            raise InputError(place, what, "give the model that wrote it")


def retokenised(
    episode_id: str, messages: List[Message], tools: List[dict[str, Any]], chat: Renderer
) -> Iterator[dict[str, Any]]:
    """Yield the rows of TOKENS that recorded messages would have made, without logprobs.

    The ids are the tokenizer's own cut of the text, which need not be what an engine sampled.

    Args:
        episode_id: of the messages.
        messages: of the episode, in order.
        tools: that the policy saw, in OpenAI's form.
        chat: makes tokens from messages.

    Yields:
        A row for each message of the assistant that answers something.
    """
    end = 0  # tokens up to the end of the previous turn
    assistant = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for turn, count in enumerate(assistant):
        if all(message["role"] in SYSTEM for message in messages[:count]):
            continue  # a greeting, which answers nothing
        prompt = chat.prompt(episode_id, messages[:count], tools)
        wrote = chat.recorded(episode_id, messages[: count + 1], tools)
        yield {
            "episode_id": episode_id,
            "turn": turn,
            "appended": prompt.appended,
            "prompt_ids": prompt.ids[end if prompt.appended else 0 :],
            "token_ids": wrote,
            "logprobs": None,
        }
        end = len(prompt.ids) + len(wrote)
