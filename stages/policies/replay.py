"""The policy `replay`: repeats the assistant messages of a rollouts file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from stages.errors import InputError
from stages.messages.message import Message
from stages.policies.policy import Action, ContextOverflowError, PolicyError, Sampling
from stages.tables.artifacts import OF_ROLLOUT
from stages.tables.pipes import content


class ReplayPolicy:
    """A policy that repeats the recorded messages of each (task, trial), without their tokens.

    Attributes:
        notes: counter of recorded episodes that were left out.
    """

    def __init__(self, path: str) -> None:
        """Read the recording.

        Args:
            path: a rollouts.jsonl.

        Raises:
            InputError: the file is missing, or a line is not an episode.
        """
        self._path = path
        self.notes = Counter[str]()
        self._episodes = _read(path, self.notes)

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the message that was recorded for this turn; see `Policy`.

        Raises:
            ContextOverflowError: the recorded episode was cut off here.
            PolicyError: the recording lacks this episode or turn.
        """
        episode = self._episodes.get(episode_id.partition("/")[2])
        if episode is None:
            raise PolicyError(f"no such episode in {self._path}")
        status, recorded = episode
        turn = sum(message["role"] == "assistant" for message in messages)
        if turn < len(recorded):
            message = recorded[turn]
            kept = {key: value for key, value in message.items() if key not in OF_ROLLOUT}
            finish = message.get("finish", "stop")
            return Action(kept, n_tokens=message.get("n_tokens"), finish=finish)
        if status == "truncated":
            raise ContextOverflowError
        raise PolicyError(f"the recording ends after {turn} turns")

    async def close(self) -> None:
        """Do nothing; there is nothing to release."""


def _read(path: str, notes: Counter[str]) -> dict[str, tuple[str, list[Message]]]:
    """Return status and assistant messages by task/trial, the end of an episode's id."""
    try:
        lines = content(path).splitlines()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(path, reason, "give a rollouts file") from None
    episodes: dict[str, tuple[str, list[Message]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = orjson.loads(line)
            said = [message for message in row["messages"] if message["role"] == "assistant"]
            key = f"{row['task_id']}/{row['trial']}"
            if key in episodes:
                notes["left out, recorded again later"] += 1
            episodes[key] = row["status"], said
        except (ValueError, KeyError, TypeError):
            where = f"{path}:{number}"
            raise InputError(where, "not an episode", "give a rollouts file") from None
    return episodes
