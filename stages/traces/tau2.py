"""tau2-bench results: simulations, with the tasks they ran when the file has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from stages.traces.episode import Episode, GoldAction
from stages.traces.fields import BadItemError, Names, gold_action, gold_of, object_of, outcome_of
from stages.traces.turns import read_turns

# How a simulation ended. What the agent did wrong counts as a failure even without a reward;
# everything else that is not listed (infrastructure, simulated user, timeouts, a full context
# window) says nothing about the agent, and tau2-bench leaves it out of its metrics too.
ENDED = frozenset({"user_stop", "agent_stop"})
FAILED = frozenset({"max_steps", "too_many_errors", "agent_error"})

Gold = dict[str, tuple[GoldAction, ...]]


def accepts(item: dict[str, Any]) -> bool:
    """Whether a record is one tau2-bench simulation."""
    return "termination_reason" in item or ("reward_info" in item and "messages" in item)


def domain_of(document: dict[str, Any]) -> str | None:
    """The domain that a results document names."""
    name = object_of(object_of(document, "info"), "environment_info").get("domain_name")
    return name if isinstance(name, str) else None


def gold_of_tasks(document: dict[str, Any]) -> Gold:
    """Gold actions by task id; a task without criteria or actions expects none."""
    gold: Gold = {}
    tasks = document.get("tasks") or []
    if not isinstance(tasks, list):
        raise BadItemError("'tasks' is not a list", "give the file as it was written")
    for task in tasks:
        if not isinstance(task, dict) or "id" not in task:
            raise BadItemError(
                "'tasks' has an entry without 'id'", "give the file as it was written"
            )
        actions = object_of(task, "evaluation_criteria").get("actions")
        gold[str(task["id"])] = gold_of(actions, "actions") or ()
    return gold


def gold_of_checks(simulations: Iterable[Any]) -> Gold:
    """Gold actions by task id from the recorded checks, for files without tasks.

    One trial with checks speaks for its whole task: a trial that was cut has none recorded.
    """
    gold: Gold = {}
    for simulation in simulations:
        try:
            checks = _checks(simulation)
        except (AttributeError, BadItemError):
            continue  # reported with its place when its turn comes
        if checks is not None:
            gold[str(simulation.get("task_id"))] = tuple([action for action, _ in checks])
    return gold


def reader(
    source: str,
    notes: Counter[str],
    *,
    gold: Gold,
    domain: str | None = None,
    ignore_trial: bool = False,
) -> Callable[[dict[str, Any]], Episode]:
    """A function that reads one simulation into an episode.

    Args:
        source: name of the trace.
        notes: counts what was repaired or skipped.
        gold: gold actions by task id; tasks missing there take those of the recorded checks.
        domain: the name that the file states.
        ignore_trial: number the trials anew.
    """
    names = Names(source, notes)

    def read(item: dict[str, Any]) -> Episode:
        messages = item.get("messages") or []
        if not isinstance(messages, list):
            raise BadItemError("'messages' is not a list", "give a tau2-bench results file")
        if not messages and item.get("ticks"):
            raise BadItemError("is a voice simulation, which is not read", "give text simulations")
        checks = _checks(item)
        if checks is None:
            notes["no recorded action checks"] += 1
        status, outcome = _ending(item, notes)
        turns, user_calls = read_turns(messages, notes)
        if not turns:
            status, outcome = "error", None
            notes["simulation without messages"] += 1
        if user_calls:
            notes["call of the user"] += len(user_calls)
        episode_id, task_id, trial, group_id = names.give(
            item.get("task_id"),
            None if ignore_trial else item.get("trial"),
            episode_id=item.get("id"),
        )
        expected = gold.get(task_id)
        if expected is None and checks is not None:
            expected = tuple([action for action, _ in checks])
        return Episode(
            source=source,
            episode_id=episode_id,
            task_id=task_id,
            trial=trial,
            group_id=group_id,
            turns=turns,
            gold=expected,
            outcome=outcome,
            status=status,
            domain=domain,
            user_calls=user_calls,
            required_info=_required_info(item),
            factors=_factors(item),
            checks=checks,
        )

    return read


def _ending(item: dict[str, Any], notes: Counter[str]) -> tuple[str, float | None]:
    """Status and outcome of a simulation."""
    reason = str(item.get("termination_reason") or "user_stop").lower().rpartition(".")[2]
    outcome = outcome_of(object_of(item, "reward_info").get("reward"), "reward")
    if reason in FAILED:
        if outcome is None:
            notes["no reward: counted as 0"] += 1
        return "truncated" if reason == "max_steps" else "ok", outcome or 0.0
    if reason not in ENDED:
        notes[f"ended by {reason!r:.40}"] += 1
        return "error", None
    if outcome is None:
        notes["no reward: left out"] += 1
        return "error", None
    return "ok", outcome


def _required_info(item: dict[str, Any]) -> tuple[str, ...] | None:
    """What the agent had to tell the user; None where no check of it is recorded."""
    checks = object_of(item, "reward_info").get("communicate_checks")
    if not isinstance(checks, list):
        return None
    return tuple(str(check.get("info")) for check in checks if isinstance(check, dict))


def _factors(item: dict[str, Any]) -> dict[str, float] | None:
    """What was multiplied into the reward; None where it is not recorded."""
    recorded = object_of(item, "reward_info").get("reward_breakdown")
    if not isinstance(recorded, dict):
        return None
    numbers = {name: value for name, value in recorded.items() if isinstance(value, (int, float))}
    return numbers or None


def _checks(item: dict[str, Any]) -> list[tuple[GoldAction, bool]] | None:
    """The recorded verdicts, or None where there are none."""
    recorded = object_of(item, "reward_info").get("action_checks")
    if recorded is None:
        return None
    try:
        return [
            (gold_action(check["action"], "action_checks"), bool(check["action_match"]))
            for check in recorded
        ]
    except (KeyError, TypeError):
        raise BadItemError(
            "'action_checks' has an entry without 'action' or 'action_match'",
            "give the file as tau2-bench wrote it",
        ) from None
