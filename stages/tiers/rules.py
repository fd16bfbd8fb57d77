"""Tiers as data: ordered rules over facts about a call, evaluated once for every combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from stages.core.arguments import Mode
from stages.core.payment import Pay

# The conditions of rules and all their values. A call is a point of their Cartesian product.
CONDITIONS: dict[str, tuple[str | bool, ...]] = {
    "match": ("full", "partial", "none"),  # with the task's gold actions
    "kind": ("read", "write", "terminal", "generic", "unknown"),  # of the tool
    "result": ("ok", "error"),
    "repeat": (True, False),  # whether an earlier call is repeated with no write in between
    "exists": (True, False),  # whether the domain has the tool
}
MATCH_RULES = ("any", "one-to-one")
ARGUMENT_MODES: tuple[Mode, ...] = ("exact", "deep", "tau2")


class CallFacts(NamedTuple):
    """The facts about a call that rules can test, in the order of CONDITIONS."""

    match: str
    kind: str
    result: str
    repeat: bool
    exists: bool = True


@dataclass(frozen=True)
class Rule:
    """A tier and the conditions for it; without conditions the rule applies to any call."""

    tier: str
    when: Mapping[str, frozenset[str | bool]]

    def applies(self, facts: CallFacts) -> bool:
        """Return whether every condition holds."""
        return all(getattr(facts, name) in allowed for name, allowed in self.when.items())


@dataclass(frozen=True)
class Reward:
    """The reward of a tier's turns: base + share * matched share, at most cap; dimensionless."""

    base: float
    share: float = 0.0
    cap: float = float("inf")

    def of(self, match_share: float) -> float:
        """Return the reward of a turn whose best call has this matched share."""
        return min(self.base + self.share * match_share, self.cap)

    def __str__(self) -> str:
        if not self.share:
            return f"{min(self.base, self.cap):g}"
        cap = "" if self.cap == float("inf") else f", at most {self.cap:g}"
        return f"{self.base:g} + {self.share:g} x share{cap}"


@dataclass(frozen=True)
class Tiers:
    """A set of tiers: how calls are compared, classified and rewarded.

    `rules` cover every call: for each of `all_facts()` a rule applies. `message` is the tier of a
    turn without a call. `rank` lists the best tier first. The reader of tier files checks all this.
    """

    name: str
    rules: tuple[Rule, ...]
    message: str
    rank: tuple[str, ...]
    rewards: Mapping[str, Reward]
    match: str = "any"
    arguments: Mode = "deep"
    tool_rules: bool = False
    pay: Pay = "turn"  # which turns of a tier earn its reward

    def table(self) -> dict[CallFacts, str]:
        """Return the tier of every possible call, set by the first rule that applies."""
        return {facts: self.rules[i].tier for facts, i in first_rules(self.rules).items()}

    def need_gold(self) -> list[str]:
        """Return the tiers that no turn can have without gold actions, in order of rank."""
        without = {tier for facts, tier in self.table().items() if facts.match == "none"}
        return [tier for tier in self.rank if tier not in without | {self.message}]

    def as_without_gold(self, other: Tiers) -> dict[str, str]:
        """Map the tiers of turns without gold actions to the tiers of another set.

        Raises:
            ValueError: a tier of this set corresponds to several of the other.
        """
        table, theirs = self.table(), other.table()
        pairs = {(table[facts], theirs[facts]) for facts in table if facts.match == "none"}
        names = dict(pairs) | {self.message: other.message}
        if len(pairs) != len(dict(pairs)):
            raise ValueError(f"a tier of '{self.name}' is several of '{other.name}'")
        return names

    def worth(self, rewards: Mapping[str, Reward], pay: Pay) -> Tiers:
        """Return the tiers with other rewards and payment; a tier without a reward gets 0."""
        by_tier = {tier: rewards.get(tier, Reward(0.0)) for tier in self.rank}
        return replace(self, rewards=by_tier, pay=pay)


def all_facts() -> list[CallFacts]:
    """Return the facts of every possible call."""
    return [CallFacts(*values) for values in product(*CONDITIONS.values())]  # type: ignore[arg-type] # the product of CONDITIONS has CallFacts' types


def first_rules(rules: Sequence[Rule]) -> dict[CallFacts, int]:
    """Return which rule decides each possible call; a call that no rule covers is left out."""
    first: dict[CallFacts, int] = {}
    for facts in all_facts():
        for i, rule in enumerate(rules):
            if rule.applies(facts):
                first[facts] = i
                break
    return first
