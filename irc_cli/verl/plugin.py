"""The plugin that verl loads by its entry point `verl.plugins`: our advantages as estimator `irc`.

verl's trainer passes an estimator only the rewards of tokens, the mask of the tokens that the
policy wrote, and the group of each episode. Turn rewards and the outcome therefore travel as token
rewards:

    reward of turn k    sum over the k-th run of tokens that the policy wrote
    outcome             sum over the tokens that it did not write

`irc_cli.verl.agent_loop` places them so. A penalty that verl adds to the rewards of written tokens,
such as its KL, counts towards the turn that contains it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from verl.trainer.ppo.core_algos import register_adv_est

from stages.core.advantages import AdvantageConfig, advantages
from stages.core.layout import Floats, turn_layout

NAME = "irc"  # of the estimator, and of its options in verl's `algorithm`


@register_adv_est(NAME)
def estimate(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: npt.NDArray[np.object_],
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the advantage of each token in the form that verl's trainer expects.

    Args:
        token_level_rewards: reward of each token, shape [B, L].
        response_mask: 1 on the tokens that the policy wrote, shape [B, L].
        index: group of each episode, shape [B].
        config: verl's `algorithm`; its key `irc` may hold fields of an AdvantageConfig.

    Returns:
        Advantages [B, L], 0 where the policy did not write; and the same again as returns, which
        only a critic would use.
    """
    options = config.get(NAME, None) if config is not None else None
    per_token = token_advantages(
        token_level_rewards.double().cpu().numpy(),
        response_mask.bool().cpu().numpy(),
        np.asarray(index, dtype=str),
        AdvantageConfig(**(options or {})),
    )
    tensor = torch.from_numpy(per_token).to(token_level_rewards)
    return tensor, tensor


def token_advantages(
    reward: Floats,
    written: npt.NDArray[np.bool_],
    group: npt.NDArray[np.str_],
    config: AdvantageConfig,
) -> Floats:
    """Return the advantage of each token: that of its turn.

    Args:
        reward: reward of each token, shape [B, L].
        written: whether the policy wrote the token, shape [B, L]; each run of tokens is a turn.
        group: group of each episode, shape [B].
        config: settings of the estimator.

    Returns:
        Shape [B, L], dimensionless, 0 where the policy did not write.
    """
    begins = written.copy()
    begins[:, 1:] &= ~written[:, :-1]
    turn_of_token = (np.cumsum(begins) - 1)[written.ravel()]
    n_turns = begins.sum(axis=1)
    # verl pads batches with rows without written tokens, which are not episodes.
    played = n_turns > 0
    length = n_turns[played]
    episode = np.repeat(np.arange(len(length)), length)
    turn = np.arange(len(episode)) - np.repeat(np.cumsum(length) - length, length)
    _, group_code = np.unique(group[played], return_inverse=True)
    turn_reward = np.bincount(turn_of_token, reward[written]).astype(np.float64)
    outcome = np.where(written, 0.0, reward).sum(axis=1)[played]
    made = advantages(turn_reward, outcome, turn_layout(episode, turn, group_code), config)
    tokens = np.zeros(reward.shape)
    tokens[written] = made.advantage[turn_of_token]
    return tokens
