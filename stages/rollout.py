"""Play episodes: a policy against the users of an env, many at once (-> RolloutRow, TOKENS)."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from stages.core.seeds import derived_seed
from stages.envs.env import Env, Session, Task, User, UserError
from stages.errors import InputError
from stages.messages.message import Message, without_kind
from stages.policies.policy import (
    Action,
    ContextOverflowError,
    LostError,
    Policy,
    PolicyError,
    Remembers,
    Sampling,
)
from stages.settings import Setting
from stages.tables.artifacts import RolloutRow
from stages.tiers.domains import SHIPPED

T = TypeVar("T")
EPISODES = "Episodes"  # panel of the help


@dataclass(frozen=True)
class Config:
    """How a run plays. Equal settings make equal episodes."""

    group_size: Annotated[int, Setting("Episodes per task.", EPISODES, low=1, metavar="G")] = 4
    max_turns: Annotated[
        int, Setting("Maximum messages of the policy per episode.", EPISODES, low=1)
    ] = 30
    seed: Annotated[int, Setting("Random seed.", EPISODES, low=0)] = 0
    sampling: Sampling = field(default_factory=Sampling)


class Pair(NamedTuple):
    """What one episode plays."""

    task: Task
    trial: int

    @property
    def key(self) -> tuple[str, int]:
        """The task's id and the trial."""
        return self.task.task_id, self.trial


class Played(NamedTuple):
    """One episode as it is stored."""

    row: RolloutRow
    tokens: list[dict[str, Any]]  # rows of TOKENS
    timing: dict[str, Any]  # all that depends on the clock


@dataclass(frozen=True)
class Run:
    """What the episodes of a run share.

    Attributes:
        run_id: prefix of the episodes' ids.
        policy_name: of the policy or its model, as it is recorded.
        user_name: of the user or its model.
        new_user: makes the user of an episode from its task and seed, called in the event loop;
            the user speaks in a thread, where it may block. None: the environment's scripted user.
    """

    run_id: str
    environment: Env
    policy: Policy
    config: Config
    policy_name: str
    user_name: str = "scripted"
    new_user: Callable[[Task, int], User] | None = None

    @cached_property
    def domain(self) -> str:
        """Name of the environment's domain, as `score` knows it."""
        return self.environment.name.removeprefix("tau2-")

    @cached_property
    def tools(self) -> list[dict[str, Any]]:
        """What the policy sees of the tools: their kinds are not for it."""
        return seen_tools(self.environment)

    def first(self, pair: Pair) -> tuple[Task, int, User | None]:
        """What the environment needs to begin an episode."""
        seed = derived_seed(self.config.seed, *pair.key)
        return pair.task, seed, self.new_user(pair.task, seed) if self.new_user else None

    def episode_id(self, pair: Pair) -> str:
        """Unique over runs, and the same whenever the run is repeated."""
        return f"{self.run_id}/{pair.task.task_id}/{pair.trial}"


def plan(tasks: Iterable[Task], group_size: int) -> list[Pair]:
    """Return all pairs of a run in the order of its artifact."""
    return [Pair(task, trial) for task in tasks for trial in range(group_size)]


async def rollout(run: Run, pairs: Iterable[Pair], concurrency: int) -> AsyncGenerator[Played]:
    """Play the pairs, at most `concurrency` at a time; yield each episode as it ends.

    Where an episode fails of our own code, no other begins, and those that are live end first.

    Raises:
        InputError: the environment can't be played like this, such as one without a scripted user;
            or an episode failed of our own code.
    """
    # Not the loop's own executor: it looks up addresses there, for which blocked users may wait.
    threads = ThreadPoolExecutor(concurrency) if run.new_user else None
    waiting = iter(pairs)
    live: set[asyncio.Task[Played]] = set()
    failure: BaseException | None = None
    try:
        while True:
            for pair in islice(waiting, 0 if failure else concurrency - len(live)):
                live.add(asyncio.create_task(_guarded(run, pair, threads)))
            if not live:
                break
            ended, live = await asyncio.wait(live, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                failure = failure or task.exception()
                if not task.exception():
                    yield task.result()
    finally:
        for task in live:
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)
        if threads:
            threads.shutdown(wait=False, cancel_futures=True)
    if failure:
        raise failure


async def _guarded(run: Run, pair: Pair, threads: Executor | None) -> Played:
    """Play one episode; a mistake of our own code is one line, which names the episode."""
    try:
        return await play_episode(run, pair, threads)
    except InputError:
        raise
    except Exception as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = f"{Path(frame.f_code.co_filename).name}:{line}"
        told = f"{type(error).__name__}: {error}"
        what = f"irc-cli failed at {place}, {' '.join(told.split()):.200}"
        raise InputError(f"episode '{run.episode_id(pair)}'", what, "report it") from error


async def play_episode(run: Run, pair: Pair, threads: Executor | None = None) -> Played:
    """Play one episode to its end; a failure of the policy or the user is its status.

    Where a server of the policy is lost, it begins again: its seeds follow from the task and the
    trial, so that another server plays what the lost one would have.

    Args:
        run: what the episodes share.
        pair: what to play.
        threads: where the environment answers if its user may block; None: here, at once.
    """
    began = time.perf_counter()
    attempt, restarts = _Attempt(), 0
    while (ending := await _play(run, pair, attempt, threads)) is None:
        attempt, restarts = _Attempt(), restarts + 1
    episode_id = run.episode_id(pair)
    if isinstance(run.policy, Remembers):
        run.policy.forget(episode_id)
    timing = {
        "episode_id": episode_id,
        "seconds": round(time.perf_counter() - began, 6),
        "turn_seconds": attempt.latencies,
        "restarts": restarts,
    }
    row = _row(run, pair, attempt.session, attempt.actions, ending)
    return Played(row, token_rows(episode_id, attempt.actions), timing)


@dataclass
class _Attempt:
    """How far an episode has come."""

    session: Session | None = None
    actions: list[Action] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


async def _play(
    run: Run, pair: Pair, attempt: _Attempt, threads: Executor | None
) -> tuple[str, str] | None:
    """Play an episode from its start; return its status and what ended it; None: begin again."""
    try:
        session = attempt.session = await _in(threads, run.environment.reset, *run.first(pair))
        while not session.done:
            turn = len(attempt.actions)
            if turn == run.config.max_turns:
                return "truncated", "max-turns"
            asked = time.perf_counter()
            action = await _act(run, pair, session.messages, turn=turn)
            attempt.actions.append(action)
            attempt.latencies.append(round(time.perf_counter() - asked, 6))
            await _in(threads, session.step, action.message)
    except LostError:
        return None
    except ContextOverflowError:
        return "truncated", "context"
    except PolicyError as error:
        return "error", f"policy: {error}"
    except UserError as error:
        return "error", f"user: {error}"
    return "ok", "done"


def token_rows(episode_id: str, actions: Sequence[Action]) -> list[dict[str, Any]]:
    """Return the rows of TOKENS, each prompt cut to what it adds to the turn before.

    A prompt that does not begin with the previous turn's prompt and tokens, as where a chat
    template drops earlier thinking, stands there whole.
    """
    rows = []
    end: list[int] | None = None  # all tokens up to the end of the previous turn
    for turn, action in enumerate(actions):
        if action.prompt_ids is None or action.token_ids is None:
            end = None
            continue
        appended = end is not None and action.prompt_ids[: len(end)] == end
        rows.append(
            {
                "episode_id": episode_id,
                "turn": turn,
                "appended": appended,
                "prompt_ids": action.prompt_ids[len(end or ()) if appended else 0 :],
                "token_ids": action.token_ids,
                "logprobs": action.logprobs,
            }
        )
        end = action.prompt_ids + action.token_ids
    return rows


def n_tokens(action: Action) -> int | None:
    """Return how many tokens the policy wrote; None: unknown."""
    return action.n_tokens if action.token_ids is None else len(action.token_ids)


def seen_tools(environment: Env) -> list[dict[str, Any]]:
    """What a policy sees of an environment's tools: their kinds are not for it."""
    return [without_kind(tool) for tool in environment.tools]


async def _in(threads: Executor | None, function: Callable[..., T], *args: Any) -> T:
    if threads is None:
        return function(*args)
    return await asyncio.get_running_loop().run_in_executor(threads, function, *args)


async def _act(run: Run, pair: Pair, messages: Sequence[Message], *, turn: int) -> Action:
    seed = derived_seed(run.config.seed, *pair.key, turn)
    sampling = run.config.sampling
    return await run.policy.act(run.episode_id(pair), messages, run.tools, sampling, seed)


def _row(
    run: Run,
    pair: Pair,
    session: Session | None,
    actions: Sequence[Action],
    ending: tuple[str, str],
) -> RolloutRow:
    task, (status, ended) = pair.task, ending
    outcome = session.outcome() if session and status != "error" else None
    row = RolloutRow(
        episode_id=run.episode_id(pair),
        task_id=task.task_id,
        trial=pair.trial,
        group_id=f"{run.run_id}/{task.task_id}",
        domain=run.domain,
        env=run.environment.name,
        policy=run.policy_name,
        user=run.user_name,
        sampling=asdict(run.config.sampling),
        seed=run.config.seed,
        family=task.family,
        status=status,
        ended=ended,
        outcome=outcome.outcome if outcome else None,
        outcome_parts=dict(outcome.parts) if outcome else {},
        tokens_recorded=bool(actions) and all(_recorded(action) for action in actions),
        messages=_messages(session, actions),
        gold_actions=list(task.gold_actions),
        required_info=list(task.required_info),
    )
    if run.domain not in SHIPPED:
        row["tools"] = run.environment.tools
    return row


def _recorded(action: Action) -> bool:
    return action.prompt_ids is not None and action.token_ids is not None


def _messages(session: Session | None, actions: Sequence[Action]) -> list[Message]:
    """Return all messages, those of the policy with what is known of their sampling."""
    if session is None:
        return []
    # tau2-bench's sessions record more than the agent sees: the user's own calls and last word.
    record: list[Message] = getattr(session, "record", session.messages)
    played = iter(actions)
    messages = []
    for message in record:
        action = next(played, None) if message["role"] == "assistant" else None
        if action:
            cut = {"finish": "length"} if action.finish == "length" else {}
            message = {**message, "n_tokens": n_tokens(action), **cut}
        messages.append(message)
    return messages
