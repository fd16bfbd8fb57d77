"""Advantages of the turns in a batch of completions (messages, outcomes -> advantages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from irc_cli.scorer import load_calibration, score
from stages.calibrate import calibrate_online
from stages.calibration.estimate import CalibrateConfig
from stages.calibration.file import check_critic
from stages.calibration.online import HALF_LIFE, Online
from stages.core.advantages import AdvantageConfig
from stages.core.correlation import Floats
from stages.core.forgetting import GateConfig
from stages.core.payment import Values
from stages.messages.message import Message
from stages.tables.artifacts import TURNS
from stages.tables.turn_arrays import turn_advantages, turn_arrays, turn_rewards
from stages.tiers.domains import SHIPPED
from stages.traces.episode import SUCCESS

ONLINE = "online"


class Completion(NamedTuple):
    """An episode of a trainer's batch."""

    messages: Sequence[Message]  # of prompt and completion
    n_turns: int  # assistant messages of the completion, which are the last ones
    outcome: float | None  # in [0, 1]; None: the episode crashed and does not count
    group: int  # the same for all completions of a prompt
    row: Mapping[str, Any]  # of the dataset: gold_actions; tools, domain, task_id if it has them


class TurnAdvantages:
    """Computes the advantage of each turn of a batch.

    Args:
        calibration: a calibration.yaml; "online": values that each batch updates, as
            `irc-cli calibrate --online` does; None: the rewards of the tiers file.
        tiers: extended, paper, flat, goldless, or a YAML file of tiers.
        advantage: settings of the estimator; None: the defaults.

    Attributes:
        values: current value of each tier; None: the rewards of the tiers file.

    Raises:
        InputError: the calibration can't be read, or lacks the critic that the estimator needs.
    """

    def __init__(
        self,
        calibration: str | None = None,
        *,
        tiers: str = "extended",
        advantage: AdvantageConfig | None = None,
    ) -> None:
        self._tiers, self._advantage = tiers, advantage or AdvantageConfig()
        self._online = Online("presence", HALF_LIFE) if calibration == ONLINE else None
        self.values: Values | None = None
        if self._online:
            self.values = Values({})
        else:
            self.values = None if calibration is None else load_calibration(calibration)
            check_critic(self.values, calibration, self._advantage)
        self._batches = 0

    def __call__(self, batch: Sequence[Completion]) -> list[Floats]:
        """Return the advantage of each turn.

        Args:
            batch: B completions; all those of a group must be in one batch.

        Returns:
            For each completion the advantages of its K turns, [K], dimensionless; 0 where the
            outcome is None.

        Raises:
            InputError: a conversation can't be read; see `irc_cli.scorer`.
        """
        frame = TURNS.frame(self._columns(batch))
        self._batches += 1
        made = [np.zeros(completion.n_turns) for completion in batch]
        arrays = turn_arrays(frame)
        if len(arrays.outcome) < 2:
            return made  # nothing to compare with
        if self._online:
            result = calibrate_online(self._online, frame, {}, CalibrateConfig(), GateConfig())
            self._online, self.values = result.state, result.calibration.values()
        reward = turn_rewards(arrays, self.values, self._advantage)
        advantage = turn_advantages(arrays, reward, self._advantage).advantage
        places = arrays.frame.select("trial", "turn").iter_rows()
        for (number, turn), value in zip(places, advantage, strict=True):
            made[number][turn] = value
        return made

    def _columns(self, batch: Sequence[Completion]) -> dict[str, list[Any]]:
        """Return the turns as columns of TURNS; `trial` is the index of the completion."""
        columns: dict[str, list[Any]] = {name: [] for name in TURNS.columns}
        for number, completion in enumerate(batch):
            tiers, rewards = self._scored(completion)
            outcome, group = completion.outcome, f"{self._batches}/{completion.group}"
            known = {
                "source": "trl",
                "episode_id": f"{self._batches}/{number}",
                "task_id": _task(completion.row) or group,
                "trial": number,
                "group_id": group,
                "policy": "trl",
                "outcome": outcome,
                "success": None if outcome is None else outcome >= SUCCESS,
                "status": "error" if outcome is None else "ok",
            }
            rows = {"turn": range(len(tiers)), "tier": tiers, "reward": rewards}
            for name, values in columns.items():
                values.extend(rows.get(name) or [known.get(name)] * len(tiers))
        return columns

    def _scored(self, completion: Completion) -> tuple[list[str], list[float]]:
        """Return tiers and rewards of the completion's turns, without those of the prompt."""
        row, domain = completion.row, completion.row.get("domain")
        scored = score(
            completion.messages,
            row.get("tools"),
            row.get("gold_actions"),
            tiers=self._tiers,
            domain=domain if domain in SHIPPED else None,
            played=True,
        )
        begin = len(scored.turn_tiers) - completion.n_turns
        return scored.turn_tiers[begin:], scored.turn_rewards[begin:]


def _task(row: Mapping[str, Any]) -> str | None:
    """Return the task's name in tables, such as "airline/5"; None: the row has none."""
    if not row.get("task_id"):
        return None
    return "/".join(str(row[key]) for key in ("domain", "task_id") if row.get(key))
