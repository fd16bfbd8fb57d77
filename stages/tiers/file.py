"""Tier files: rules and rewards from YAML, checked to cover every call and every tier."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from stages.calibration.file import read_pay
from stages.errors import InputError
from stages.tables.yamlfile import Node, parse_yaml, read_yaml
from stages.tiers.rules import (
    ARGUMENT_MODES,
    CONDITIONS,
    MATCH_RULES,
    Reward,
    Rule,
    Tiers,
    all_facts,
    first_rules,
)

SHIPPED = ("paper", "extended", "flat", "goldless")
_KEYS = ("match", "arguments", "tool_rules", "rules", "rank", "rewards")


def load_tiers(name_or_path: str) -> Tiers:
    """Load shipped tiers by name, or tiers from a YAML file of the same form.

    Args:
        name_or_path: name in SHIPPED, or path of a YAML file.

    Returns:
        The tiers.

    Raises:
        InputError: the file has an unknown key, a tier without reward or rank, a rule that can
            never apply, or no rule for some call; the error names FILE:LINE:COL.
    """
    if name_or_path in SHIPPED:
        where = f"data/tiers/{name_or_path}.yaml"
        text = (files("data") / "tiers" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return _tiers(name_or_path, parse_yaml(text, where))
    return _tiers(name_or_path, read_yaml(name_or_path))


def use_rewards(tiers: Tiers, calibration: Node, path: str) -> tuple[Tiers, list[str]]:
    """Return the tiers with a calibration's rewards, and the tiers without such a reward.

    A tier that the calibration has no evidence about gets the reward 0. The calibration also sets
    how rewards are paid.

    Args:
        tiers: tiers whose rewards are replaced.
        calibration: content of the calibration file.
        path: path of the calibration file.

    Returns:
        The tiers with new rewards, and the names of the tiers that the calibration lacks.

    Raises:
        InputError: the file has no `rewards`, has one for a tier that does not exist, or pays in an
            unknown way.
    """
    fields = calibration.fields()
    node = fields.get("rewards")
    if node is None:
        raise InputError(path, "has no 'rewards'", "give a calibration.yaml of irc-cli calibrate")
    unknown = [tier for tier in node.fields() if tier not in tiers.rank]
    if unknown:
        what = f"reward for unknown tier '{unknown[0]}'"
        raise InputError(node.keys[unknown[0]], what, f"use a tier of '{tiers.name}'")
    rewards = {tier: _reward(value) for tier, value in node.fields().items()}
    missing = [tier for tier in tiers.rank if tier not in rewards]
    return tiers.worth(rewards, read_pay(fields)), missing


def _tiers(name: str, root: Node) -> Tiers:
    fields = root.fields(_KEYS)
    for key in ("rules", "rank", "rewards"):
        if key not in fields:
            raise root.error(f"no key '{key}'", "give 'rules', 'rank' and 'rewards'")
    rules, message = _rules(fields["rules"])
    tier_names = list(dict.fromkeys([*(rule.tier for rule in rules), message]))
    settings: dict[str, Any] = {}
    if "match" in fields:
        settings["match"] = fields["match"].one_of(MATCH_RULES)
    if "arguments" in fields:
        settings["arguments"] = fields["arguments"].one_of(ARGUMENT_MODES)
    if "tool_rules" in fields:
        settings["tool_rules"] = _flag(fields["tool_rules"])
    return Tiers(
        name=name,
        rules=tuple(rules),
        message=message,
        rank=_rank(fields["rank"], tier_names),
        rewards=_rewards(fields["rewards"], tier_names),
        **settings,
    )


def _rules(node: Node) -> tuple[list[Rule], str]:
    """Return the rules for calls, and the tier of a turn without a call."""
    rules: list[Rule] = []
    places: list[Node] = []
    message: str | None = None
    for item in node.items():
        fields = item.fields(("tier", "when"))
        if "tier" not in fields:
            raise item.error("rule without a 'tier'", "name the tier")
        tier = fields["tier"].text()
        when = fields["when"].fields((*CONDITIONS, "call")) if "when" in fields else {}
        if "call" in when:
            when["call"].one_of(("none",))
            if len(when) > 1 or message is not None:
                what = "'call: none' must stand alone, in one rule"
                raise item.error(what, "remove the other condition or rule")
            message = tier
            continue
        rules.append(Rule(tier, {key: _allowed(key, value) for key, value in when.items()}))
        places.append(item)
    if message is None:
        raise node.error("no rule for a turn without a call", "add 'when: {call: none}'")
    _check_reach(rules, places, node)
    return rules, message


def _allowed(condition: str, node: Node) -> frozenset[str | bool]:
    values = CONDITIONS[condition]
    if isinstance(values[0], bool):
        return frozenset([_flag(node)])
    return frozenset(item.one_of([str(value) for value in values]) for item in node.items())


def _flag(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise node.error(f"expected true or false, found '{node.plain()}'")
    return node.value


def _check_reach(rules: list[Rule], places: list[Node], node: Node) -> None:
    """Check that every rule decides some call and that some rule decides every call."""
    first = first_rules(rules)
    deciding = set(first.values())
    for i, rule in enumerate(rules):
        if i not in deciding:
            what = f"rule for '{rule.tier}' can never apply: earlier rules take all of its calls"
            raise places[i].error(what, "move it up or remove it")
    for facts in all_facts():
        if facts not in first:
            case = ", ".join(f"{name}: {value}" for name, value in facts._asdict().items())
            raise node.error(f"no rule applies to a call with {case.lower()}", "add one")


def _rank(node: Node, tiers: list[str]) -> tuple[str, ...]:
    ranked = [(item, item.one_of(tiers)) for item in node.items()]
    for i, (item, tier) in enumerate(ranked):
        if tier in [earlier for _, earlier in ranked[:i]]:
            raise item.error(f"tier '{tier}' occurs twice", "remove one of them")
    if missing := [tier for tier in tiers if tier not in [tier for _, tier in ranked]]:
        raise node.error(f"tier '{missing[0]}' has no rank", "add it to 'rank'")
    return tuple(tier for _, tier in ranked)


def _rewards(node: Node, tiers: list[str]) -> Mapping[str, Reward]:
    fields = node.fields(tiers)
    if missing := [tier for tier in tiers if tier not in fields]:
        raise node.error(f"tier '{missing[0]}' has no reward", "add it to 'rewards'")
    return {tier: _reward(value) for tier, value in fields.items()}


def _reward(node: Node) -> Reward:
    if not isinstance(node.value, dict):
        return Reward(node.number())
    fields = node.fields(("base", "share", "cap"))
    if "base" not in fields:
        raise node.error("reward without a 'base'", "give 'base', and 'share' and 'cap' if needed")
    return Reward(**{key: value.number() for key, value in fields.items()})
