"""Run episodes of a policy with an environment's users concurrently (-> RolloutRow, TOKENS)."""

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
EPISODES = "Episodes"  # panel of the options in --help


@dataclass(frozen=True)
class Config:
    """Settings of a rollout run. Equal settings give equal episodes."""

    group_size: Annotated[int, Setting("Episodes per task.", EPISODES, low=1, metavar="G")] = 4
    max_turns: Annotated[
        int, Setting("Maximum messages of the policy per episode.", EPISODES, low=1)
    ] = 30
    seed: Annotated[int, Setting("Random seed.", EPISODES, low=0)] = 0
    sampling: Sampling = field(default_factory=Sampling)


class Pair(NamedTuple):
    """The task and trial of an episode."""

    task: Task
    trial: int

    @property
    def key(self) -> tuple[str, int]:
        """The task's id and the trial."""
        return self.task.task_id, self.trial


class Played(NamedTuple):
    """A finished episode in the form in which it is stored."""

    row: RolloutRow
    tokens: list[dict[str, Any]]  # rows of TOKENS
    timing: dict[str, Any]  # everything that depends on the clock


@dataclass(frozen=True)
class Run:
    """Everything that the episodes of a run share.

    Attributes:
        run_id: prefix of the episodes' ids.
        environment: the environment.
        policy: the policy.
        config: settings of the run.
        policy_name: recorded name of the policy or its model.
        user_name: recorded name of the user or its model.
        new_user: factory of an episode's user from its task and seed, called in the event loop. The
            user runs in a thread, where it may block. None: the environment's scripted user.
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
        """The name of the environment's domain, as in `score`."""
        return self.environment.name.removeprefix("tau2-")

    @cached_property
    def tools(self) -> list[dict[str, Any]]:
        """The tools as the policy sees them, without their kinds."""
        return seen_tools(self.environment)

    def first(self, pair: Pair) -> tuple[Task, int, User | None]:
        """Return the arguments of the environment's `reset` for an episode."""
        seed = derived_seed(self.config.seed, *pair.key)
        return pair.task, seed, self.new_user(pair.task, seed) if self.new_user else None

    def episode_id(self, pair: Pair) -> str:
        """Return the episode's id: unique across runs, but equal in a repetition of the run."""
        return f"{self.run_id}/{pair.task.task_id}/{pair.trial}"


def plan(tasks: Iterable[Task], group_size: int) -> list[Pair]:
    """Return all pairs of a run, in the order of its artifacts.

    Args:
        tasks: the tasks.
        group_size: episodes per task.

    Returns:
        Pairs, task by task.
    """
    return [Pair(task, trial) for task in tasks for trial in range(group_size)]


async def rollout(run: Run, pairs: Iterable[Pair], concurrency: int) -> AsyncGenerator[Played]:
    """Run the episodes, at most `concurrency` at a time; yield each one when it ends.

    If a bug of ours makes an episode fail, no further episode starts, and the running ones finish
    before the error is raised.

    Args:
        run: what the episodes share.
        pairs: episodes to run.
        concurrency: most episodes at a time.

    Yields:
        Finished episodes.

    Raises:
        InputError: the environment can't run like this, for example without a scripted user, or an
            episode failed because of a bug of ours.
    """
    # A separate executor: the loop's own resolves addresses, which blocked users would delay.
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
    """Run an episode; report a bug of ours in one line that names the episode."""
    try:
        return await play_episode(run, pair, threads)
    except InputError:
        raise
    except Exception as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = f"{Path(frame.f_code.co_filename).name}:{line}"
        text = f"{type(error).__name__}: {error}"
        what = f"irc-cli failed at {place}, {' '.join(text.split()):.200}"
        raise InputError(f"episode '{run.episode_id(pair)}'", what, "report it") from error


async def play_episode(run: Run, pair: Pair, threads: Executor | None = None) -> Played:
    """Run an episode to its end; a failure of the policy or the user becomes its status.

    If the episode's server is lost, the episode restarts. Its seeds depend only on run, task and
    trial, so another server continues with what the lost one would have sampled.

    Args:
        run: what the episodes share.
        pair: task and trial.
        threads: executor for the environment if its user may block; None: call it directly.

    Returns:
        The episode.
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
    """The state of an attempt to run an episode."""

    session: Session | None = None
    actions: list[Action] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


async def _play(
    run: Run, pair: Pair, attempt: _Attempt, threads: Executor | None
) -> tuple[str, str] | None:
    """Run an episode from its start; return its status and reason, or None to restart it."""
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
    """Return the rows of TOKENS, with each prompt reduced to what it adds to the previous turn.

    A prompt that does not extend the previous turn's prompt and tokens is stored completely, for
    example where a chat template drops earlier thoughts.

    Args:
        episode_id: id of the episode.
        actions: the policy's messages.

    Returns:
        A row for each message with known tokens.
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
    """Return the number of tokens that the policy wrote; None if unknown."""
    return action.n_tokens if action.token_ids is None else len(action.token_ids)


def seen_tools(environment: Env) -> list[dict[str, Any]]:
    """Return an environment's tools as a policy sees them, without their kinds."""
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
    """Return all messages; the policy's have their token counts, and `finish` if they were cut."""
    if session is None:
        return []
    # tau2-bench's sessions also record the user's own calls and last message.
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
