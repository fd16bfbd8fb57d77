"""Token sequences for training, assembled from the turns of a policy (TOKENS -> TokenSequence).

An episode is a single sequence while each prompt extends the previous turn. When a chat template
rewrites history (Qwen3 drops earlier thoughts), the next turn begins a new sequence. So training
uses every sampled token once, in the context in which it was sampled.
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

PROMPT = -1  # turn of tokens that the policy did not write
NO_TIER = -1


@dataclass(frozen=True)
class TokenSequence:
    """A sequence of L tokens; all arrays are [L].

    Attributes:
        episode_id: the episode of all its turns.
        token_ids: tokens of prompts and of the policy.
        turn: turn of each token that the policy wrote; PROMPT elsewhere.
        logprobs: logprob of each such token when it was sampled, in nats; NaN elsewhere and where
            unknown.
    """

    episode_id: str
    token_ids: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]

    @property
    def written(self) -> npt.NDArray[np.bool_]:
        """Whether the policy wrote each token, [L]; `check` rejects a written first token."""
        return np.asarray(self.turn != PROMPT)

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Example:
    """A sequence with its training signal; arrays are over the M tokens that the policy wrote.

    Attributes:
        sequence: the tokens.
        advantage: advantage of each token, [M].
        tier: code of the tier of each token's turn, or NO_TIER, [M].
        weight: relative weight of each token, [M].
        temperature: sampling temperature.
        top_p: sampling top_p.
    """

    sequence: TokenSequence
    advantage: npt.NDArray[np.float32]
    tier: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    temperature: float = 1.0
    top_p: float = 1.0

    @cached_property
    def at(self) -> npt.NDArray[np.int64]:
        """Positions of the policy's tokens, [M]."""
        return np.flatnonzero(self.sequence.written)

    @property
    def engine(self) -> npt.NDArray[np.float32]:
        """Logprobs of the policy's tokens when they were sampled, [M]; NaN: unknown."""
        return self.sequence.logprobs[self.at]

    @property
    def episode_id(self) -> str:
        """The episode of the sequence."""
        return self.sequence.episode_id


def without_engine(example: Example) -> Example:
    """Return an example without the engine's logprobs.

    Args:
        example: any example.

    Returns:
        A copy in which the engine's logprobs are NaN.
    """
    unknown = np.full_like(example.sequence.logprobs, np.nan)
    return replace(example, sequence=replace(example.sequence, logprobs=unknown))


def sequences(tokens: pl.DataFrame) -> list[TokenSequence]:
    """Assemble turns into sequences, in the order of the table.

    Args:
        tokens: TOKENS, each episode contiguous and in order.

    Returns:
        One sequence for each run of turns in which each prompt extends the previous turn.
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
    """Raise InputError if a model can't be trained on a sequence.

    Args:
        examined: the sequences.
        vocabulary: size of the model's vocabulary, V.
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
    """Yield TOKENS rows for recorded messages, without logprobs.

    The tokenizer determines the ids, which may differ from the tokens that an engine sampled.

    Args:
        episode_id: the episode of the messages.
        messages: messages of the episode, in order.
        tools: tools that the policy saw, in OpenAI's format.
        chat: renderer from messages to tokens.

    Yields:
        A row for each assistant message that follows a message other than the system prompt.
    """
    end = 0  # tokens up to the end of the previous turn
    assistant = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for turn, count in enumerate(assistant):
        if all(message["role"] in SYSTEM for message in messages[:count]):
            continue  # a greeting, which has no prompt but the system message
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
