"""How the value of a tier is paid to its turns.

turn    every turn of the tier earns the value, as in arXiv 2604.02869.
once    the first turn of the tier in an episode earns the value, repeats earn nothing.

Presence is measured once per episode. If every turn then earned the value, a failure could out-earn
a success by repeating a tier. Presence becomes true at the first turn of the tier, so that turn
earns the value. This needs no look-ahead and gives an unfinished episode the same rewards.

Source: docs/method.md, "Payment".

Importing this loads neither numpy nor polars: `irc_cli.scorer` runs inside other programs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Literal, TypeAlias, get_args

from stages.core.critic import Critic

Pay: TypeAlias = Literal["turn", "once"]
PAYS: tuple[Pay, ...] = get_args(Pay)


class Values(dict[str, float]):
    """The value of each tier and how it is paid; a tier without an entry is worth 0.

    Attributes:
        pay: how the values are paid.
        critic: the critic that was fitted to the same turns; None if there is none.
    """

    def __init__(
        self, values: Mapping[str, float], pay: Pay = "turn", critic: Critic | None = None
    ) -> None:
        super().__init__(values)
        self.pay: Pay = pay
        self.critic = critic


def pay_of(values: Mapping[str, float]) -> Pay:
    """Return how values are paid; a plain mapping pays every turn.

    Args:
        values: value of each tier, by name.

    Returns:
        turn | once.
    """
    return values.pay if isinstance(values, Values) else "turn"


def first_turns(tiers: Iterable[Hashable]) -> list[bool]:
    """Return which turns of one episode are the first of their tier.

    `stages.core.farmability.first_turns` does the same for arrays of many episodes.

    Args:
        tiers: tier of each turn of the episode, in order, shape [K].

    Returns:
        Whether each turn is the first of its tier, shape [K].
    """
    seen: set[Hashable] = set()
    first = []
    for tier in tiers:
        first.append(tier not in seen)
        seen.add(tier)
    return first
