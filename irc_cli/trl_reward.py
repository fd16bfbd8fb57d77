"""The tiers as a reward function of TRL's GRPOTrainer.

    from irc_cli.trl_reward import reward_function

    GRPOTrainer(..., reward_funcs=reward_function("calibration.yaml"), train_dataset=dataset)

The dataset is that of `irc-cli export trl`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from irc_cli.scorer import load_calibration, score
from stages.tiers.domains import SHIPPED

Messages = Sequence[dict[str, Any]]
Column = Sequence[Any] | None  # of the dataset, with a value per completion


def reward_function(
    calibration: str | None = None, *, tiers: str = "extended", domain: str | None = None
) -> Callable[..., list[float | None]]:
    """Return a function for `reward_funcs` that rewards completions by the tiers of their turns.

    If every turn earns its tier's value, the reward is the mean over the turns, which the direction
    check compares with outcomes. If a value is paid once per completion, the reward is the sum: a
    mean would spread a value over the turns and so reward short failures. The outcome is not part
    of the reward: TRL adds the environment's own `get_reward`. A completion without a turn gets
    None, which TRL leaves out.

    Args:
        calibration: a calibration.yaml of `irc-cli calibrate`; None: the tiers file's rewards.
        tiers: extended, paper, flat, goldless, or a YAML file of tiers.
        domain: a shipped domain or a YAML file; None: the dataset's `domain` if it is a shipped
            one, else inferred from `tools`.

    Raises:
        InputError: the file is not a calibration.
    """
    values = None if calibration is None else load_calibration(calibration)
    once = values is not None and values.pay == "once"

    def turn_reward(
        prompts: Sequence[Messages],
        completions: Sequence[Messages],
        tools: Column = None,
        gold_actions: Column = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the reward of each completion; the arguments are as TRL names them."""
        rewards: list[float | None] = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            scored = score(
                [*prompt, *completion],
                tools[i] if tools else None,
                gold_actions[i] if gold_actions else None,
                values,
                tiers=tiers,
                domain=domain or _shipped(columns.get("domain"), i),
                played=True,
            )
            written = sum(message["role"] == "assistant" for message in completion)
            turns = scored.turn_rewards[len(scored.turn_rewards) - written :]
            rewards.append(sum(turns) / (1 if once else len(turns)) if turns else None)
        return rewards

    return turn_reward


def _shipped(domains: Column, i: int) -> str | None:
    return domains[i] if domains and domains[i] in SHIPPED else None
