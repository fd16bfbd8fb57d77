"""The tasks of an environment, and the rubric: outcome as reward, tiers as metrics."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import Any

import verifiers.v1 as vf

from irc_cli.scorer import load_calibration, score
from stages.envs.registry import open_env
from stages.tiers.file import load_tiers

OURS = "irc_cli"  # key of `trace.info` under which the harness stores the episode


class IrcData(vf.TaskData):
    """A task of an environment."""

    env: str
    split: str
    gold_actions: list[dict[str, Any]]


class IrcTaskConfig(vf.TaskConfig):
    """How turns are scored; options below --env.taskset.task."""

    calibration: str | None = None  # a calibration.yaml; None: the rewards of the tiers file
    tiers: str = "extended"


class IrcTask(vf.Task[IrcData, vf.State, IrcTaskConfig]):
    """One task and its rubric."""

    @property
    def key(self) -> str:
        """The environment and the task's id."""
        return f"{self.data.env}/{self.data.id}"

    async def finalize(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        """Score the turns that `IrcHarness` played.

        prime-rl (pull request 3282) trains on the differences of `info.turn_rewards`. That field
        therefore holds cumulative rewards; the rewards themselves are in `info.irc_cli`.
        """
        played = trace.info[OURS]
        calibration = self.config.calibration
        scored = score(
            played.pop("messages"),
            played.pop("tools"),
            self.data.gold_actions,
            load_calibration(calibration) if calibration else None,
            outcome=played["outcome"],
            tiers=self.config.tiers,
            domain=self.data.env.removeprefix("tau2-"),
            played=True,
        )
        played |= {"rewards": scored.turn_rewards, "tiers": scored.turn_tiers}
        trace.info["turn_rewards"] = list(accumulate(scored.turn_rewards))

    @vf.reward(weight=1.0)
    async def outcome(self, trace: vf.Trace) -> float:
        """Return 1 if the database ends as expected and the user got the answer, else 0."""
        return float(trace.info[OURS]["outcome"])

    @vf.metric
    async def tier(self, trace: vf.Trace) -> dict[str, float]:
        """Return the number of turns of each tier."""
        turns = Counter(trace.info[OURS]["tiers"])
        return {f"tier/{name}": float(turns[name]) for name in load_tiers(self.config.tiers).rank}


class IrcConfig(vf.TasksetConfig):
    """Options below --env.taskset."""

    env: str = "airline-mini"  # or tau2-airline, tau2-retail, tau2-telecom
    split: str = "test"
    task: IrcTaskConfig = IrcTaskConfig()


class IrcTaskset(vf.Taskset[IrcTask, IrcConfig]):
    """The tasks of one split."""

    def load(self) -> list[IrcTask]:
        """Return the tasks; their prompt is empty, because the user begins the conversation."""
        config = self.config
        env = open_env(config.env)
        return [
            IrcTask(
                IrcData(
                    id=task.task_id,
                    prompt="",
                    system_prompt=env.policy,
                    env=config.env,
                    split=config.split,
                    gold_actions=[dict(action) for action in task.gold_actions],
                ),
                config.task,
            )
            for task in env.tasks(config.split)
        ]
