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

# Files are read once, not once per episode.
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
    """Return the score of an episode, and the tiers and rewards of its turns.

    Args:
        data_source: the environment; unused.
        solution_str: the text of all turns; unused, because it does not show calls reliably.
        ground_truth: the task's gold actions, as JSON.
        extra_info: fields of the dataset, with `domain`, and of the agent loop, with `messages`
            and `outcome`.
        calibration: a calibration.yaml; None: the tiers' own rewards.
        tiers: extended, paper, flat, goldless, or a YAML file of tiers.
        potential: whether turns earn what they add to the forecast of the calibration's critic,
            for the estimator `potential`.

    Returns:
        `score` and `acc`, both the outcome in [0, 1]; and `turn_rewards` and `turn_tiers` as JSON,
        since verl averages whatever is not text.

    Raises:
        InputError: another agent loop played the episode and kept no messages.
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
