"""Read ATIF trajectories, versions 1.0 to 1.8, with the result.json that Harbor writes.

An agent step is a turn; its observation holds the results. Harbor's result has the reward, the task
and any exception: JOB/TRIAL/result.json belongs to JOB/TRIAL/agent/trajectory.json. The format has
no flag for a failed tool result, but a flag in a result's `extra`, e.g. `is_error`, is read.

Layout: package `atif` 1.8.0; `harbor.models.trial.result`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.traces.calls import as_text, flag_of
from stages.traces.definitions import tool_definitions
from stages.traces.envelopes import text_of
from stages.traces.fields import BadItemError, name_in, object_of, sampled_tokens
from stages.traces.formats import ReadOptions
from stages.traces.stream import BrokenJsonError, parse

if TYPE_CHECKING:
    from hashlib import _Hash

NAME = "atif"
VERSION = re.compile(r"ATIF-v(\d{1,9})\.(\d{1,9})")
NEWEST = 8  # newest known minor version
OURS = "irc_cli"  # the key of `extra` under which `irc-cli export atif` writes
# Fields of a trajectory's `extra.irc_cli`, named as in clean records.
FIELDS = (
    *("task_id", "trial", "episode_id", "group_id", "domain", "family", "env", "policy"),
    "tokens_recorded",
)
# Exceptions with which Harbor still counts the reward (`harbor.models.trial.error_policy` of 0.26),
# because the agent caused them. LIMITS are limits that cut it off.
LIMITS = frozenset(
    [
        "AgentTimeoutError",
        "ContextLengthExceededError",
        "ContextWindowExceededError",
        "OutputLengthExceededError",
        "OutputTokenExceededError",
    ]
)
GRADED = LIMITS | {
    "AgentSafetyRefusalError",
    "ContentPolicyViolationError",
    "NonZeroAgentExitCodeError",
}
AS_WRITTEN = "give the trajectory as it was written"
UNREAD = "continuation of a trajectory that is not beside it"

Record = dict[str, Any]


class TrialFiles(NamedTuple):
    """The files that belong to a trajectory."""

    folder: Path  # folder of the trajectory
    result: Record | None = None  # Harbor's result of the trial


def accepts(record: Record) -> bool:
    """Return whether a record is a trajectory or the result of a Harbor trial."""
    version = record.get("schema_version")
    if isinstance(version, str) and version.startswith("ATIF"):
        return isinstance(record.get("steps"), list)
    return _is_result(record)


def _is_result(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("trial_name"), str):
        return False
    return "task_name" in record and ("verifier_result" in record or "exception_info" in record)


def beside(path: Path, digest: _Hash | None = None, notes: Any = None) -> TrialFiles:
    """Return the folder of a trajectory, and the result of its trial if there is one."""
    folder = path.absolute().parent
    if ".jsonl" in path.suffixes:  # several trajectories, which no single result belongs to
        return TrialFiles(folder)
    for place in _places(folder):
        result = _object(place / "result.json")
        if _is_result(result):
            if digest is not None:
                digest.update((place / "result.json").read_bytes())
            return TrialFiles(
                folder, result if place != _of_step(folder) else _step(result, folder)
            )
    return TrialFiles(folder)


def _places(folder: Path) -> list[Path]:
    """Return the folders that may hold the result of a trajectory in a folder."""
    trial = _of_step(folder)
    return [folder, folder.parent, *([trial] if trial else [])]


def _of_step(folder: Path) -> Path | None:
    """Return TRIAL for a folder TRIAL/steps/STEP/agent of a multi-step task, else None."""
    steps = folder.parent.parent
    return steps.parent if steps.name == "steps" else None


def _step(result: Record, folder: Path) -> Record:
    """Return the result of one step of a trial as if the step were a trial."""
    name = folder.parent.name
    several = result.get("step_results")
    steps = several if isinstance(several, list) else []
    step = next((s for s in steps if isinstance(s, dict) and s.get("step_name") == name), {})
    named = {key: f"{result[key]}/{name}" for key in ("task_name", "trial_name")}
    ended = {
        "verifier_result": step.get("verifier_result"),
        "exception_info": step.get("exception_info") or result.get("exception_info"),
        "step_results": None,
    }
    return result | named | ended


def _object(path: Path) -> Record:
    """Return the object in a JSON file; empty if there is none."""
    try:
        value = parse(path.read_bytes())[0]
    except (OSError, BrokenJsonError):
        return {}
    return value if isinstance(value, dict) else {}


def files(folder: Path, digest: _Hash | None = None, notes: Any = None) -> list[tuple[Path, Any]]:
    """Return a Harbor folder's trajectories with their results, and trials without trajectory."""
    trajectories = sorted(folder.rglob("*trajectory.json"))
    records = [(path, beside(path, digest)) for path in trajectories]
    recorded = {place for path in trajectories for place in path.absolute().parents}
    for path in sorted(folder.rglob("result.json")):
        trial = path.absolute().parent
        if trial not in recorded and _is_result(_object(path)):
            records.append((path, TrialFiles(trial)))
    return sorted(records, key=lambda item: item[0])


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of one trajectory, or of a trial.

    Raises:
        BadItemError: the trajectory is of another version, or a part of it is malformed.
    """
    shared = options.shared or TrialFiles(Path())
    result = shared.result
    if _is_result(record):
        result, record = record, _object(shared.folder / "agent" / "trajectory.json")
        shared = TrialFiles(shared.folder / "agent")
        if not record:
            yield _named({}, result) | {"messages": []} | _ending({}, result, "error")
            return
    _check(record, notes)
    clean = _named(record, result) | _ending(record, result)
    if tools := _tools(object_of(record, "agent").get("tool_definitions")):
        clean["tools"] = tools
    clean["messages"] = _Writer(notes).read(_steps(record, shared.folder, notes))
    if several := record.get("subagent_trajectories"):
        notes["trajectory of a subagent: left out"] += len(several)
    yield clean


def _tools(defined: Any) -> list[Record] | None:
    """Return the tool definitions; those in OpenAI's form keep all their fields."""
    known = tool_definitions(defined)
    if known is None or not isinstance(defined, list) or len(known) != len(defined):
        return known
    is_form = all(isinstance(t, dict) and isinstance(t.get("function"), dict) for t in defined)
    return defined if is_form else known


def _check(record: Record, notes: Counter[str]) -> None:
    version = VERSION.fullmatch(record["schema_version"])
    if version is None or version[1] != "1":
        what = f"is of version {record['schema_version']!r:.40}"
        raise BadItemError(what, f"give one of ATIF-v1.0 to ATIF-v1.{NEWEST}")
    if int(version[2]) > NEWEST:
        notes[f"trajectory of the newer version {version[0]}"] += 1


def _steps(record: Record, folder: Path, notes: Counter[str]) -> Iterator[Record]:
    """Yield the steps of a trajectory and of its continuations in other files of the folder."""
    read = set[Path]()
    while record:
        steps = record.get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise BadItemError("'steps' is no list of objects", AS_WRITTEN)
        yield from steps
        following = record.get("continued_trajectory_ref")
        if not isinstance(following, str) or not following:
            return
        path = folder / following
        record = {} if path in read else _object(path)
        read.add(path)
        if not isinstance(record.get("steps"), list):
            notes[UNREAD] += 1
            return


def _named(record: Record, result: Record | None) -> Record:
    """Return ids and model: as our export has them, else from Harbor's result or the trajectory."""
    result = result or {}
    agent = object_of(record, "agent")
    model = name_in(agent, "model_name") or _model(record) or _model_told(result)
    named = {
        "task_id": name_in(result, "task_name"),
        "episode_id": name_in(result, "trial_name") or name_in(record, "trajectory_id"),
        "model": model or name_in(agent, "name"),
    }
    known = {key: value for key, value in named.items() if value is not None}
    ours = _ours(record)
    return known | {key: ours[key] for key in FIELDS if ours.get(key) is not None}


def _model_told(result: Record) -> str | None:
    """Return the model in Harbor's result, written as in trajectories: provider/model."""
    told = object_of(object_of(result, "agent_info"), "model_info")
    name, provider = name_in(told, "name"), name_in(told, "provider")
    return f"{provider}/{name}" if provider and name else name


def _model(record: Record) -> str | None:
    """Return the model of the first step that names one; None if no step does."""
    steps = record.get("steps") or []
    names = (name_in(step, "model_name") for step in steps if isinstance(step, dict))
    return next(filter(None, names), None)


def _ending(record: Record, result: Record | None, status: str = "ok") -> Record:
    """Return status, outcome, rewards and stop; a trial without a verdict was never scored.

    As in Harbor, a reward counts despite an exception if the agent caused the exception.
    """
    ours = _ours(record)
    rewards = _rewards(object_of(record, "extra"))
    if result is not None:
        rewards = _rewards(object_of(result, "verifier_result")) or rewards
    ending: Record = {"rewards": rewards} if rewards else {}
    ending |= {key: ours[key] for key in ("gold_actions", "stop") if ours.get(key) is not None}
    if failures := _failures(result or {}):
        kinds = [name_in(failure, "exception_type") or "error" for failure in failures]
        ending["stop"] = kinds[0]
        if not rewards or not all(map(_is_graded, failures)):
            return ending | {"status": "error"}
        status = "truncated" if LIMITS.intersection(kinds) else status
    if status == "error":
        return ending | {"status": "error", "stop": "no trajectory"}
    if result is not None and not rewards:
        status = "masked"
    if ours.get("outcome") is not None:
        ending["outcome"] = ours["outcome"]
    return ending | {"status": ours.get("status", status)}


def _failures(result: Record) -> list[Record]:
    """Return the exceptions of a trial and of its steps."""
    told = [result, *_listed(result, "step_results")]
    return [failed for part in told if (failed := object_of(part, "exception_info"))]


def _is_graded(failure: Record) -> bool:
    """Return whether the reward is valid despite an exception; older results do not state it."""
    valid = object_of(failure, "policy").get("has_valid_reward")
    return valid if isinstance(valid, bool) else str(failure.get("exception_type")) in GRADED


def _rewards(holder: Record) -> dict[str, Any]:
    """Return the rewards by name in an object, or its single reward."""
    rewards = object_of(holder, "rewards")
    if not rewards and holder.get("reward") is not None:
        return {"reward": holder["reward"]}
    return rewards


class _Writer:
    """Writes steps as messages in OpenAI's form."""

    def __init__(self, notes: Counter[str]) -> None:
        self._notes = notes
        self._messages: list[Record] = []
        self._ids: set[str] = set()  # ids of all calls so far

    def read(self, steps: Iterator[Record]) -> list[Record]:
        """Return the messages of all steps.

        Raises:
            BadItemError: a step has no known source, or a call or a result is malformed.
        """
        for number, step in enumerate(steps, 1):
            source = step.get("source")
            if source == "agent":
                self._act(step)
            elif source in ("system", "user"):
                self._hear(source, step)
            else:
                raise BadItemError(f"step {number} is of the source {source!r:.40}", AS_WRITTEN)
        return self._messages

    def _hear(self, source: str, step: Record) -> None:
        """Write a step of the system or the user; our exports have a user's calls in `extra`."""
        message: Record = {"role": source, "content": text_of(step.get("message"))}
        calls = [call for call in _listed(_ours(step), "tool_calls") if name_in(call, "id")]
        if calls:
            message["tool_calls"] = calls
            self._ids |= {call["id"] for call in calls}
        self._messages.append(message)
        self._observe(step, calls, {"requestor": "user"} if calls else {})

    def _act(self, step: Record) -> None:
        """Write a step of the agent; copied context is marked as not sampled."""
        message: Record = {"role": "assistant", "content": text_of(step.get("message"))}
        if thoughts := name_in(step, "reasoning_content"):
            message["reasoning_content"] = thoughts
        calls = [_call(call) for call in _listed(step, "tool_calls")]
        if calls:
            message["tool_calls"] = calls
            self._ids |= {call["id"] for call in calls}
        given: Record = {}
        if step.get("is_copied_context") is True or step.get("llm_call_count") == 0:
            given = {"sampled": False}
        else:
            message |= _tokens(step)
            if finish := name_in(_ours(step), "finish"):
                message["finish"] = finish
        self._messages.append(message | given)
        self._observe(step, calls, given)

    def _observe(self, step: Record, calls: list[Record], given: Record) -> None:
        """Write the results of a step; a result that answers no call is a user message.

        Results without a known id answer the last calls of the step without a result, in order. One
        result for several calls, e.g. a screenshot, thus answers the last call.
        """
        if step.get("observation") is None:
            return
        results = _listed(object_of(step, "observation"), "results")
        stated = [name_in(result, "source_call_id") for result in results]
        waiting = [call["id"] for call in calls if call["id"] not in stated]
        without = sum(call_id not in self._ids for call_id in stated)
        waiting = waiting[max(0, len(waiting) - without) :]
        for result, call_id in zip(results, stated, strict=True):
            if result.get("subagent_trajectory_ref"):
                self._notes["result that came of a subagent"] += 1
            content = text_of(result.get("content"))
            if call_id not in self._ids:
                call_id = waiting.pop(0) if waiting else None
            if call_id is None:
                self._messages.append({"role": "user", "content": content})
                continue
            message: Record = {"role": "tool", "tool_call_id": call_id, "content": content}
            flag = flag_of(object_of(result, "extra"))
            if flag is None and len(calls) == 1:  # from Harbor's converter for Claude Code
                flag = object_of(step, "extra").get("tool_result_is_error")
            if isinstance(flag, bool):
                message["error"] = flag
            self._messages.append(message | given)


def _ours(holder: Record) -> Record:
    """Return the data that `irc-cli export atif` wrote into an object's `extra`."""
    extra = object_of(holder, "extra")
    return object_of(extra, OURS) if extra else {}


def _listed(holder: Record, key: str) -> list[Record]:
    """Return the list of objects in a field; empty if it is null."""
    several = holder.get(key)
    if several is None:
        return []
    if not isinstance(several, list) or not all(isinstance(item, dict) for item in several):
        raise BadItemError(f"'{key}' is {several!r:.40}, no list of objects", AS_WRITTEN)
    return several


def _call(call: Record) -> Record:
    name, arguments = call.get("function_name"), call.get("arguments")
    call_id = call.get("tool_call_id")
    if not isinstance(name, str) or not isinstance(call_id, str):
        raise BadItemError(f"has an invalid call: {call!r:.60}", AS_WRITTEN)
    function = {"name": name, "arguments": as_text(_ours(call).get("arguments", arguments))}
    return {"id": call_id, "type": "function", "function": function}


def _tokens(step: Record) -> Record:
    """Return the token count of a turn, and the tokens if a single model call wrote them."""
    metrics = object_of(step, "metrics")
    tokens: Record = {}
    if type(count := metrics.get("completion_tokens")) is int:
        tokens["n_tokens"] = count
    if (step.get("llm_call_count") or 1) > 1:
        return tokens
    names = ("completion_token_ids", "prompt_token_ids", "logprobs")
    return tokens | sampled_tokens(*map(metrics.get, names))
