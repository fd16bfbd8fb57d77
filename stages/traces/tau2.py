"""Read tau2-bench results: simulations, and their tasks if the file has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import InputError
from stages.tables.near import description
from stages.traces.episode import Episode, GoldAction
from stages.traces.fields import (
    BadItemError,
    gold_action,
    gold_of,
    name_in,
    object_of,
    outcome_of,
    policy_in,
)
from stages.traces.formats import KNOWN, ReadOptions, Whole
from stages.traces.stream import Stream, parse_document

if TYPE_CHECKING:
    from hashlib import _Hash

NAME = "tau2"
HEADER, PARTS = "results.json", "simulations"  # names in a results folder

# Termination reasons. FAILED are the agent's own faults and count as a failure even without a
# reward. Other reasons (infrastructure, simulated user, timeouts, a full context window) are no
# evidence about the agent; tau2-bench excludes them from its metrics too.
ENDED = frozenset({"user_stop", "agent_stop"})
FAILED = frozenset({"max_steps", "too_many_errors", "agent_error"})

Gold = dict[str, tuple[GoldAction, ...]]


@dataclass
class Header:
    """The part of a results document that applies to all simulations."""

    gold: Gold = field(default_factory=dict)  # by task id
    domain: str | None = None
    policy: str | None = None  # name of the agent
    idle: set[str] = field(default_factory=set)  # ids of tasks without a simulation so far


def accepts(item: dict[str, Any]) -> bool:
    """Return whether a record is a tau2-bench simulation."""
    return "termination_reason" in item or ("reward_info" in item and "messages" in item)


def domain_of(document: dict[str, Any]) -> str | None:
    """Return the domain in a results document; None if it names none."""
    name = object_of(object_of(document, "info"), "environment_info").get("domain_name")
    return name if isinstance(name, str) else None


def policy_of(document: dict[str, Any]) -> str | None:
    """Return the agent in a results document: the model, with the agent implementation if given."""
    agent = object_of(object_of(document, "info"), "agent_info")
    model, runs = name_in(agent, "llm"), name_in(agent, "implementation")
    return f"{model} ({runs})" if model and runs else model or runs


def gold_of_tasks(document: dict[str, Any], notes: Counter[str]) -> Gold:
    """Return the gold actions by task id; a task without criteria or actions expects none."""
    gold: Gold = {}
    if "tasks" not in document:
        notes["no tasks: gold actions taken from the recorded checks"] += 1
    tasks = document.get("tasks") or []
    if not isinstance(tasks, list):
        raise BadItemError("'tasks' is not a list", "give the file as it was written")
    for task in tasks:
        if not isinstance(task, dict) or "id" not in task:
            raise BadItemError(
                "'tasks' has an entry without 'id'", "give the file as it was written"
            )
        criteria = object_of(task, "evaluation_criteria")
        actions = criteria.get("actions")
        if "evaluation_criteria" not in task or (
            task["evaluation_criteria"] is not None and "actions" not in criteria
        ):
            notes["task that does not say its gold actions: taken to have none"] += 1
        for action in actions if isinstance(actions, list) else ():
            _note_gaps(action, notes)
        gold[str(task["id"])] = gold_of(actions, "actions") or ()
    return gold


def _note_gaps(action: Any, notes: Counter[str]) -> None:
    """Count the fields that tau2-bench writes for every gold action and that this one lacks."""
    if isinstance(action, dict):
        for key in ("compare_args", "requestor"):
            if key not in action:
                notes[f"gold action without '{key}'"] += 1


def gold_of_checks(simulations: Iterable[Any]) -> Gold:
    """Return the gold actions by task id from the recorded checks, for files without tasks.

    One trial with checks is enough for its task, because trials that were cut off have no checks.
    """
    gold: Gold = {}
    for simulation in simulations:
        try:
            checks = _checks(simulation)
        except (AttributeError, BadItemError):
            continue  # `translate` reports it with its place
        if checks is not None:
            gold[str(simulation.get("task_id"))] = tuple([action for action, _ in checks])
    return gold


def holds(document: dict[str, Any]) -> bool:
    """Return whether an object is tau2-bench results, with or without simulations."""
    return "simulations" in document or "tasks" in document


def whole(document: Any, path: str, notes: Counter[str]) -> Whole:
    """Return the simulations in a results document or a list, and their header.

    Raises:
        BadItemError: the results document is malformed.
    """
    if isinstance(document, list):
        return Whole(document, Header(gold=gold_of_checks(document)))
    simulations = document.get("simulations") or []
    beside = Path(path).parent
    if not simulations and path != "-" and (beside / PARTS).is_dir():
        return Whole([], folder=beside)
    if not isinstance(simulations, list):
        simulations = []
    return Whole(simulations, header_of(document, notes), "simulation")


def files(folder: Path, digest: _Hash, notes: Counter[str]) -> list[tuple[Path, Any]]:
    """Return the files of a results folder, one simulation each, with the header in results.json.

    Raises:
        InputError: the header is broken.
    """
    parts = folder / PARTS if (folder / PARTS).is_dir() else folder
    above = parts.parent / HEADER if parts.name == PARTS else parts / HEADER
    simulations = [
        file
        for file in sorted(parts.iterdir())
        if file.name.endswith((".json", ".json.gz")) and file.name != HEADER
    ]
    if not simulations or not (above.is_file() or _is_simulation(simulations[0])):
        return []
    header = Header()
    if above.is_file():
        stream = Stream(str(above), digest)
        document = parse_document(stream.read(), stream.where, notes)
        try:
            header = header_of(document, notes)
        except BadItemError as bad:
            raise InputError(stream.where, bad.what, bad.todo) from None
    return [(file, header) for file in simulations]


def _is_simulation(file: Path) -> bool:
    try:
        record = parse_document(Stream(str(file)).read(), str(file), Counter())
    except InputError:
        return True  # reading the file later raises the full error
    return isinstance(record, dict) and accepts(record)


def header_of(document: Any, notes: Counter[str]) -> Header:
    """Read the header of tau2-bench results.

    Raises:
        BadItemError: the value is not a results document.
    """
    if not isinstance(document, dict):
        raise BadItemError(f"is no results header: {description(document)}", KNOWN)
    domain, gold = domain_of(document), gold_of_tasks(document, notes)
    if domain is None:
        notes["no domain name"] += 1
    return Header(gold, domain, policy_of(document), set(gold))


def finish(header: Header, notes: Counter[str]) -> None:
    """Note the tasks that no simulation ran."""
    if header.idle:
        notes["task never run"] += len(header.idle)


def translate(
    item: dict[str, Any], options: ReadOptions, notes: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield a simulation as a clean record; `options.shared` is the header, if there is one.

    The gold actions come from the header. For a task that is not there, they come from the
    simulation's recorded checks.

    Raises:
        BadItemError: the record is not a simulation of text messages.
    """
    header = options.shared or Header()
    messages = item.get("messages") or []
    if not isinstance(messages, list):
        raise BadItemError("'messages' is not a list", "give a tau2-bench results file")
    if not messages and item.get("ticks"):
        raise BadItemError("is a voice simulation, which is not read", "give text simulations")
    checks = _checks(item)
    if checks is None:
        notes["no recorded action checks"] += 1
    for check in object_of(item, "reward_info").get("action_checks") or ():
        _note_gaps(check["action"], notes)
    gold = header.gold.get(str(item.get("task_id")))
    if gold is None and checks is not None:
        gold = tuple([action for action, _ in checks])
    status, reward = _ending(item, notes)
    yield {
        "messages": messages,
        "gold_actions": gold,
        "reward": reward,
        "status": status,
        "task_id": item.get("task_id"),
        "trial": item.get("trial"),
        "episode_id": item.get("id"),
        "domain": header.domain or name_in(item, "domain"),
        "policy": header.policy or policy_in(item),
        "stop": item.get("termination_reason"),
    }


def complete(
    episode: Episode, item: dict[str, Any], options: ReadOptions, notes: Counter[str]
) -> None:
    """Add the recorded checks and tool types; mark a simulation without turns as an error."""
    if options.shared:
        options.shared.idle.discard(episode.task_id)
    if not episode.turns:
        episode.status, episode.outcome = "error", None
        notes["simulation without messages"] += 1
    if episode.user_calls:
        notes["call of the user"] += len(episode.user_calls)
    calls = [*episode.user_calls, *(call for turn in episode.turns for call in turn.calls)]
    if unflagged := sum(call.result is not None and call.flagged is None for call in calls):
        notes["result without 'error'"] += unflagged
    episode.required_info, episode.factors = _required_info(item), _factors(item)
    episode.checks, episode.tool_types = _checks(item), _tool_types(item)


def _ending(item: dict[str, Any], notes: Counter[str]) -> tuple[str, float | None]:
    """Return the status and the outcome of a simulation."""
    if not item.get("termination_reason"):
        notes["no termination reason: taken as 'user_stop'"] += 1
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
    """Return the facts that the agent must tell the user; None if no such checks are recorded."""
    checks = object_of(item, "reward_info").get("communicate_checks")
    if not isinstance(checks, list):
        return None
    return tuple(str(check.get("info")) for check in checks if isinstance(check, dict))


def _factors(item: dict[str, Any]) -> dict[str, float] | None:
    """Return the factors of the reward; None if they are not recorded."""
    recorded = object_of(item, "reward_info").get("reward_breakdown")
    if not isinstance(recorded, dict):
        return None
    numbers = {name: value for name, value in recorded.items() if isinstance(value, (int, float))}
    return numbers or None


def _tool_types(item: dict[str, Any]) -> dict[str, str] | None:
    """Return the type of each tool in the checks; None if no types are recorded."""
    types: dict[str, str] = {}
    for check in object_of(item, "reward_info").get("action_checks") or []:
        name, tool_type = object_of(check, "action").get("name"), check.get("tool_type")
        if isinstance(name, str) and isinstance(tool_type, str):
            types[name] = tool_type
    return types or None


def _checks(item: dict[str, Any]) -> list[tuple[GoldAction, bool]] | None:
    """Return the recorded verdict on each gold action; None if there are none."""
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
