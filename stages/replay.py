"""Replay recorded calls on a fresh environment and compare the results and outcomes.

Source: docs/method.md, "Replay".
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from stages.envs.env import Endless, Env, Session, Task
from stages.errors import InputError
from stages.messages.message import Message
from stages.tiers.domains import SHIPPED
from stages.traces.episode import Call, Episode
from stages.traces.turns import text_of

SPLITS = ("train", "dev", "test", "base", "full")  # of all environments
DRAWN = re.compile(r"\bB[0-9a-f]{8}\b")  # id of a new bill, which tau2-bench's telecom draws
SAME = 1e-6  # outcomes that differ by at most this are equal

Row = dict[str, Any]


@dataclass
class Replay:
    """The results of replaying episodes.

    Attributes:
        results_equal: number of tool results, of agent and user calls, that are equal as text.
        results_differ: number of tool results that are not.
        outcomes_equal: number of episodes with the recorded outcome.
        outcomes_differ: number of episodes with another outcome.
        unjudged: number of replayed episodes without a recorded outcome or cut off before the end.
        unknown: number of episodes of tasks that the environment lacks, which can't be replayed.
        differences: a row per difference: episode_id, task_id, what (result or outcome), turn and
            tool of a result, recorded, replayed, and `why` (None if unknown).
        rescored: a row per stale episode, whose results or task differ from the environment's:
            episode_id, task_id, recorded, replayed (the outcome by the environment's task).
    """

    results_equal: int = 0
    results_differ: int = 0
    outcomes_equal: int = 0
    outcomes_differ: int = 0
    unjudged: int = 0
    unknown: int = 0
    differences: list[Row] = field(default_factory=list)
    rescored: list[Row] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return the four counts of equal and different results and outcomes."""
        return {
            "results_equal": self.results_equal,
            "results_differ": self.results_differ,
            "outcomes_equal": self.outcomes_equal,
            "outcomes_differ": self.outcomes_differ,
        }


class Replayer:
    """Replayer of the episodes that pass through it, each in its own session.

    Results are compared exactly, as text. Outcomes are judged by the gold actions and required
    information that the trace records. If the trace records the parts of the outcome, the part that
    needs a language model is left out. If results differ, or the environment's task has changed,
    the episode is also judged by the environment's task.
    """

    def __init__(self, environment: Env) -> None:
        self._environment, self._tasks = environment, _all_tasks(environment)
        self._replay = Replay()
        self._replayed = 0

    def watch(self, episodes: Iterable[Episode]) -> Iterator[Episode]:
        """Yield the same episodes, each after replaying it."""
        for episode in episodes:
            task = self._task(episode)
            if task is None:
                self._replay.unknown += 1
            else:
                self._replayed += 1
                _replay_episode(self._replay, episode, task, self._environment)
            yield episode

    def _task(self, episode: Episode) -> Task | None:
        """Return the environment's task of an episode; None if the environment lacks it."""
        if episode.domain in SHIPPED and episode.domain != self._environment.name.removeprefix(
            "tau2-"
        ):
            return None
        task = self._tasks.get(episode.task_id)
        if task is None and isinstance(self._environment, Endless):
            return self._environment.fresh_task(episode.task_id)
        return task

    def replay(self) -> Replay:
        """Return the results so far.

        Raises:
            InputError: no episode had a task of this environment.
        """
        if not self._replayed:
            todo = "choose another --env"
            raise InputError(self._environment.name, "has none of the tasks of these traces", todo)
        return self._replay


def _all_tasks(environment: Env) -> Mapping[str, Task]:
    tasks: dict[str, Task] = {}
    for split in SPLITS:
        try:
            tasks |= {task.task_id: task for task in environment.tasks(split)}
        except InputError:
            continue
    return tasks


def _replay_episode(replay: Replay, episode: Episode, task: Task, environment: Env) -> None:
    recorded_task = _recorded_task(episode, task)
    session = environment.reset(recorded_task, 0, _SilentUser())
    results = [played for played in _play(session, episode) if played[1].result is not None]
    differ = [played for played in results if played[1].result != played[2]]
    replay.results_equal += len(results) - len(differ)
    replay.results_differ += len(differ)
    for turn, call, result in differ:
        place = {"turn": turn, "tool": call.name}
        why = _why_result(call, result, environment)
        replay.differences.append(
            _row(episode, call.result, result, what="result", why=why, **place)
        )
    outcome = session.outcome().outcome
    recorded = _recorded_outcome(episode)
    if recorded is None:
        replay.unjudged += 1
    elif abs(recorded - outcome) <= SAME:
        replay.outcomes_equal += 1
    else:
        replay.outcomes_differ += 1
        why = "results differ" if differ else None
        replay.differences.append(_row(episode, recorded, outcome, what="outcome", why=why))
    if recorded_task != task:
        session = environment.reset(task, 0, _SilentUser())
        deque(_play(session, episode), maxlen=0)
        outcome = session.outcome().outcome
    if differ or recorded_task != task:
        replay.rescored.append(_row(episode, recorded, outcome))


def _recorded_task(episode: Episode, task: Task) -> Task:
    """Return the task with the gold actions and required information of the trace."""
    if episode.gold is not None:
        gold = tuple(
            {"name": action.name, "arguments": action.arguments}
            for action in episode.gold
            if action.requestor != "user"
        )
        task = replace(task, gold_actions=gold)
    if episode.required_info is not None:
        task = replace(task, required_info=episode.required_info)
    return task


def _play(session: Session, episode: Episode) -> Iterator[tuple[int, Call, str]]:
    """Make the recorded calls in order; yield (turn, call, new result)."""
    of_user = 0
    for number, turn in enumerate(episode.turns):
        for call in episode.user_calls[of_user : turn.user_calls]:
            yield number, call, _user_result(session, call)
        of_user = max(of_user, turn.user_calls)
        results = session.step(_message(turn.text, turn.calls))
        for call, result in zip(turn.calls, results, strict=False):
            yield number, call, str(result["content"])
    for call in episode.user_calls[of_user:]:
        yield len(episode.turns), call, _user_result(session, call)


def _message(text: Any, calls: Sequence[Call]) -> Message:
    """Return an assistant message in OpenAI's format."""
    message: Message = {"role": "assistant", "content": text_of(text)}
    if calls:
        message["tool_calls"] = [
            {
                "id": str(number),
                "type": "function",
                "function": {"name": call.name, "arguments": _as_json(call.arguments)},
            }
            for number, call in enumerate(calls)
        ]
    return message


def _user_result(session: Session, call: Call) -> str:
    """Return the result of a call of the user's own tools, which only some environments have."""
    user_call = getattr(session, "user_call", None)
    return str(user_call(call.name, call.arguments)) if user_call else "Error: no tools of the user"


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _recorded_outcome(episode: Episode) -> float | None:
    if episode.status != "ok" or episode.outcome is None:
        return None
    if episode.factors is None:
        return episode.outcome
    return prod(value for name, value in episode.factors.items() if name != "NL_ASSERTION")


def _why_result(call: Call, result: str, environment: Env) -> str | None:
    """Return why a result differs; None if unknown."""
    assert call.result is not None
    if (
        all(call.name != tool["function"]["name"] for tool in environment.tools)
        and "not found" in result
    ):
        return "the tool is not in this world"
    if DRAWN.sub("", call.result) == DRAWN.sub("", result) or DRAWN.search(str(call.arguments)):
        return "the id of a new bill is drawn at random"
    try:
        same = json.loads(call.result) == json.loads(result)
    except ValueError:
        same = call.result.lower() == result.lower()
    return "only the writing differs" if same else None


def _row(episode: Episode, recorded: Any, replayed: Any, **more: Any) -> Row:
    names = {"episode_id": episode.episode_id, "task_id": episode.task_id}
    return {**names, **more, "recorded": recorded, "replayed": replayed}


class _SilentUser:
    """A silent user, so that only the recorded messages count."""

    def open(self) -> str:
        """Say nothing."""
        return ""

    def reply(self, agent: str, history: Sequence[Message]) -> str:
        """Say nothing."""
        return ""
