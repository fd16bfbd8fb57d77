"""Tiers and rewards of one conversation: the entry point for programs, such as other trainers.

    from irc_cli.scorer import load_calibration, score

    values = load_calibration("calibration.yaml")
    scored = score(messages, tools, gold_actions, values, outcome=outcome)

The tiers and rewards are those of `irc-cli score` with the same trace, `--rewards` and `--domain`.
With `load_critic` instead of `load_calibration`, turns earn the rewards of `--advantage potential`.
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

_load_tiers = cache(load_tiers)  # read once, not once per conversation


class Score(NamedTuple):
    """The score of a conversation; lists run over its K turns, the assistant's messages."""

    outcome: float | None  # in [0, 1], as given; None: unknown
    turn_rewards: list[float]  # [K], dimensionless
    turn_tiers: list[str]  # [K]


def load_calibration(path: str) -> Values:
    """Return the value of each tier in a calibration.yaml of `irc-cli calibrate`.

    The result is a dict. Its `pay` says which turns earn a tier's value: every turn of the tier
    (`turn`), or the first in a conversation (`once`).

    Raises:
        InputError: the file is not a calibration.
    """
    return read_previous(path).values


def load_critic(path: str) -> Critic:
    """Return the critic in a calibration.yaml of `irc-cli calibrate`.

    Passed to `score` as `calibration`, it rewards each turn by what the turn adds to the forecast
    of the outcome; the rewards of a conversation sum to 0.

    Raises:
        InputError: the file is not a calibration, or was made from sums and has no critic.
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
    """Assign each turn of a conversation a tier and a reward.

    The outcome is not computed: gold actions list the expected calls, but neither the final state
    of the database nor whether the user got an answer. It has to come from the environment.

    Args:
        messages: messages in the form of OpenAI, Anthropic, LangChain or any other of
            `stages.traces.forms`, including tool results; each assistant message is a turn.
        tools: OpenAI tool definitions. They determine the domain and, outside the known domains,
            the kinds of tools.
        gold_actions: calls that the task expects, as {name, arguments}; the key of the arguments
            may also be args, input, parameters or kwargs. None: unknown; as with an empty list,
            no call matches then.
        calibration: value of each tier, 0 for tiers that it lacks. The result of
            `load_calibration` is paid as its `pay` says, a plain mapping to every turn. Or a
            critic. None: the tiers file's rewards.
        outcome: outcome of the conversation, in [0, 1]; None: unknown.
        tiers: extended, paper, flat, goldless, or a YAML file of tiers.
        domain: airline, retail, telecom, banking_knowledge, airline-mini or a YAML file; None:
            inferred from the tools.
        played: whether `tool_calls` are all calls that the environment executed, as in a trainer's
            own rollouts. Text that looks like a call is then a message; otherwise it is read as a
            call or rejected.
        task_id: id, as in turns.parquet, of a task that the critic was fitted to; its weights are
            then those fitted without the task. None: the conversation is new to the critic.

    Returns:
        The outcome as given, and the reward and tier of each turn, in order.

    Raises:
        InputError: a call or a result can't be read, gold actions or the outcome are malformed, or
            the calibration has other tiers. It is a ValueError.
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
    """Return the conversation as an episode; the arguments are those of `score`."""
    with _input_errors():
        gold = gold_of(_list(gold_actions), "gold_actions")
    with _input_errors("rescale it so that 1 is a full success"):
        given = outcome_of(outcome, "outcome")
    definitions = _list(tools)
    with _input_errors("give every call with its name and arguments, and its result after it"):
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
def _input_errors(todo: str | None = None) -> Iterator[None]:
    """Raise a BadItemError as an InputError that names this module in place of a file."""
    try:
        yield
    except BadItemError as error:
        raise InputError("irc_cli.scorer", error.what, todo or error.todo) from None


def _found_domain(episode: Episode) -> Domain:
    """Return the domain inferred from the tools that an episode calls, expects or defines."""
    calls = [call.name for turn in episode.turns for call in turn.calls]
    calls += [action.name for action in agent_gold(episode.gold)]
    return find_domain(None, calls, episode.tools)


def _list(values: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _worth(name: str, calibration: Mapping[str, float] | Critic | None) -> Tiers:
    """Return the tiers with the rewards of the calibration."""
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
