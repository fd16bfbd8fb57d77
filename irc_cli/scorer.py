"""Tiers and rewards of one conversation: the entry point for programs, such as other trainers.

    from irc_cli.scorer import load_calibration, score

    values = load_calibration("calibration.yaml")
    scored = score(messages, tools, gold_actions, values, outcome=outcome)

The tiers and rewards are those of `irc-cli score` with the same trace, `--rewards` and `--domain`.
With `load_critic` in the place of `load_calibration` turns earn what `--advantage potential` says.
Importing this loads neither torch nor numpy nor polars.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from stages.calibration.file import WITHOUT_CRITIC, read_previous
from stages.core.critic import Critic, potential_rewards
from stages.core.payment import Values, pay_of
from stages.errors import InputError
from stages.tiers.classify import Classifier
from stages.tiers.domains import Domain, find_domain, load_domain
from stages.tiers.file import load_tiers
from stages.tiers.matching import agent_gold
from stages.tiers.rules import Reward, Tiers
from stages.traces.episode import Episode
from stages.traces.fields import BadItemError, gold_of, outcome_of
from stages.traces.turns import read_turns

_load_tiers = cache(load_tiers)  # they are read once, not once a conversation


class Score(NamedTuple):
    """What a conversation is worth; lists are over its K turns, the assistant's messages."""

    outcome: float | None  # in [0, 1], as given; None: unknown
    turn_rewards: list[float]  # [K], dimensionless
    turn_tiers: list[str]  # [K]


def load_calibration(path: str) -> Values:
    """Return the value of each tier in a calibration.yaml of `irc-cli calibrate`.

    It is a dict, and its `pay` says how the values are paid: to every turn of a tier (`turn`), or
    to the first turn of the tier in a conversation (`once`).

    Raises:
        InputError: the file is no calibration.
    """
    return read_previous(path).values


def load_critic(path: str) -> Critic:
    """Return the critic in a calibration.yaml of `irc-cli calibrate`.

    As `calibration` of `score` it pays a turn what it adds to the forecast of the outcome; the
    rewards of a conversation sum to 0.

    Raises:
        InputError: the file is no calibration, or one of sums, which has no critic.
    """
    critic = load_calibration(path).critic
    if critic is None:
        raise InputError(path, *WITHOUT_CRITIC)
    return critic


def score(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    gold_actions: Sequence[Mapping[str, Any]] | None = None,
    calibration: Mapping[str, float] | Critic | None = None,
    *,
    outcome: float | None = None,
    tiers: str = "extended",
    domain: str | None = None,
    played: bool = False,
    task_id: str | None = None,
) -> Score:
    """Classify the turns of one conversation and give them their rewards.

    The outcome is not computed: gold actions tell which calls a task expects, not what the
    database came to, nor whether the user was told. Whoever ran the environment knows it.

    Args:
        messages: OpenAI's, Anthropic's, LangChain's or any other form of `stages.traces.forms`,
            tool results included; each of the assistant's is a turn.
        tools: OpenAI definitions, which tell the domain and, outside known ones, the tools' kinds.
        gold_actions: calls that the task expects, as {name, arguments}, the arguments under any
            name that the field uses (args, input, parameters, kwargs); None: unknown, which
            matches nothing, as no expected call does.
        calibration: the value of each tier, 0 where it names none, paid as `load_calibration` says
            and to every turn by a plain mapping; or a critic; None: the tiers file's rewards.
        outcome: of the conversation, in [0, 1]; None: unknown.
        tiers: extended, paper, flat, or a YAML file of tiers.
        domain: airline, retail, telecom, airline-mini or a YAML file; None: found from the tools.
        played: `tool_calls` are all the calls that the environment executed, as in a trainer's own
            rollouts; text that looks like a call is then a message. Otherwise it is read as a
            call, or refused.
        task_id: of a task that the critic was fitted to, as turns.parquet has it: then its weights
            are those without the task. None: the conversation is new to the critic.

    Returns:
        The outcome as given, and reward and tier of each turn, in order.

    Raises:
        InputError: a ValueError; a call or a result can't be read, gold actions or the outcome are
            malformed, or the calibration has other tiers.
    """
    episode = _episode(messages, tools, gold_actions, outcome, played=played)
    of_tools = load_domain(domain) if domain else _found_domain(episode)
    classed = Classifier(_worth(tiers, calibration), of_tools).turns(episode, Counter())
    names = [turn.tier for turn in classed]
    rewards = [turn.reward for turn in classed]
    if isinstance(calibration, Critic):
        rewards = potential_rewards(names, calibration.weights(task_id))
    return Score(episode.outcome, rewards, names)


def _episode(
    messages: Sequence[Any],
    tools: Sequence[Mapping[str, Any]] | None,
    gold_actions: Sequence[Mapping[str, Any]] | None,
    outcome: float | None,
    *,
    played: bool,
) -> Episode:
    """Return the conversation as an episode of no trace; the arguments are those of `score`."""
    with _blamed():
        gold = gold_of(_list(gold_actions), "gold_actions")
    with _blamed("rescale it so that 1 is a full success"):
        given = outcome_of(outcome, "outcome")
    definitions = _list(tools)
    with _blamed("give every call with its name and arguments, and its result after it"):
        turns, user_calls = read_turns(list(messages), Counter(), definitions, played=played)
    return Episode(
        source="irc_cli.scorer",
        episode_id="",
        task_id="",
        trial=0,
        group_id="",
        turns=turns,
        gold=gold,
        outcome=given,
        tools=definitions,
        user_calls=user_calls,
    )


@contextmanager
def _blamed(todo: str | None = None) -> Iterator[None]:
    """Say what is wrong with an argument, and what to do about it, where a file has a place."""
    try:
        yield
    except BadItemError as error:
        raise InputError("irc_cli.scorer", error.what, todo or error.todo) from None


def _found_domain(episode: Episode) -> Domain:
    """Return the domain that the tools show which an episode calls, expects or defines."""
    calls = [call.name for turn in episode.turns for call in turn.calls]
    calls += [action.name for action in agent_gold(episode.gold)]
    return find_domain(None, calls, episode.tools)


def _list(values: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _worth(name: str, calibration: Mapping[str, float] | Critic | None) -> Tiers:
    """Return the tiers, worth what the calibration says."""
    tiers = _load_tiers(name)
    if calibration is None:
        return tiers
    known = calibration.every.first if isinstance(calibration, Critic) else calibration
    if unknown := [tier for tier in known if tier not in tiers.rank]:
        what = f"calibration of unknown tier '{unknown[0]}'"
        raise InputError("irc_cli.scorer", what, f"use a tier of '{tiers.name}'")
    if isinstance(calibration, Critic):
        return tiers
    rewards = {tier: Reward(value) for tier, value in calibration.items()}
    return tiers.worth(rewards, pay_of(calibration))
