"""The tier scorer as verl's reward function.

In verl's configuration: `reward.custom_reward_function` with path `pkg://irc_cli.verl.reward`, name
`compute_score` and, as `reward_kwargs`, the calibration and the tiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import orjson

from irc_cli.scorer import load_calibration, load_critic, score
from stages.core.critic import Critic
from stages.errors import InputError

# They are read once, not once an episode.
_calibration, _critic = cache(load_calibration), cache(load_critic)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    *,
    calibration: str | None = None,
    tiers: str = "extended",
    potential: bool = False,
    **_: Any,
) -> dict[str, Any]:
    """Return what an episode and its turns are worth.

    Args:
        data_source: the environment.
        solution_str: the text of all turns, from which calls can't be told for sure: unused.
        ground_truth: the task's gold actions, as JSON.
        extra_info: of the dataset, with `domain`; and of the agent loop, with `messages` and
            `outcome`.
        calibration: a calibration.yaml; None: the tiers' own rewards.
        tiers: extended, paper, flat, or a YAML file of tiers.
        potential: turns earn what they add to the forecast of the calibration's critic, for the
            estimator of this name.

    Returns:
        `score` and `acc`, both the outcome in [0, 1]; and `turn_rewards` and `turn_tiers` as JSON,
        since verl averages whatever is not text.

    Raises:
        InputError: the episode was played by another agent loop, which keeps no messages.
    """
    if "messages" not in extra_info or "outcome" not in extra_info:
        what = "got an episode without messages and outcome"
        raise InputError("irc_cli.verl.reward", what, "use the agent loop irc_cli.verl.agent_loop")
    values: Mapping[str, float] | Critic | None = None
    if calibration:
        values = _critic(calibration) if potential else _calibration(calibration)
    scored = score(
        extra_info["messages"],
        gold_actions=orjson.loads(ground_truth),
        calibration=values,
        outcome=extra_info["outcome"],
        tiers=tiers,
        domain=extra_info["domain"],
        played=True,
    )
    return {
        "score": scored.outcome,
        "acc": scored.outcome,
        "turn_rewards": orjson.dumps(scored.turn_rewards).decode(),
        "turn_tiers": orjson.dumps(scored.turn_tiers).decode(),
    }
