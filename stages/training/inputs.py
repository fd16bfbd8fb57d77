"""The inputs of `train`, read and cross-checked before any model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import orjson
import polars as pl

from stages.calibration.file import check_critic, read_previous
from stages.core.advantages import AdvantageConfig
from stages.core.limits import LOGPROB_SLACK
from stages.core.payment import Values
from stages.core.statuses import LEFT_OUT
from stages.errors import InputError, few
from stages.messages.message import without_kind
from stages.tables.artifacts import COUNTS, TOKENS, RolloutRow
from stages.tables.files import digest
from stages.tables.inspected import inspected_advantages
from stages.tables.paths import RunFiles
from stages.tables.state import Input, read_state
from stages.tables.table_file import PARQUET_MAGIC, made_by, read_table
from stages.tables.turn_arrays import advantage_frame, turn_advantages, turn_arrays, turn_rewards
from stages.traces.calls import UnreadableCallError, read_call
from stages.traces.events import Result
from stages.traces.fields import BadItemError
from stages.traces.forms import read_message
from stages.traces.given import Given
from stages.traces.notes import left_out, why_left_out, why_none
from stages.traces.stream import Stream

ESTIMATOR = "--advantage, --gamma, --lambda, --gae-lambda, --normalise and --last-turn-reward"
REQUIRED = ("episode_id", "group_id", "status", "messages", "sampling", "tokens_recorded")


class Rollouts(NamedTuple):
    """Rollouts with their tokens."""

    path: str
    episodes: list[RolloutRow]  # the episodes that count
    tokens: pl.DataFrame  # TOKENS
    tools: list[dict[str, Any]]  # tools that the policy saw
    weights: set[str]  # sha256 of the policy's weights; empty: unknown
    prompt: dict[str, str]  # how the prompt described the tools (record of Told); empty: unknown


def read_rollouts(path: str, notes: Counter[str] | None = None) -> Rollouts:
    """Read rollouts.jsonl and its sidecar files.

    Args:
        path: path of the rollouts.
        notes: counter of excluded episodes, updated in place.

    Returns:
        The episodes that count, their tokens, and the recorded facts about their policy.

    Raises:
        InputError: a file is missing or broken, or no episode counts.
    """
    episodes: dict[str, Any] = {}
    failed = Counter[str]()
    for number, row in _objects(path):
        if missing := [name for name in REQUIRED if name not in row]:
            what = f"not an episode of irc-cli rollout: no '{missing[0]}'"
            raise InputError(f"{path}:{number}", what, "give a rollouts.jsonl")
        if row["episode_id"] in episodes:
            what = f"episode '{row['episode_id']}' occurs twice"
            raise InputError(f"{path}:{number}", what, "give each episode once")
        if row["status"] in LEFT_OUT:
            failed[why_left_out(row["status"])] += 1
        else:
            episodes[row["episode_id"]] = row
    reasons = left_out(failed)
    if not episodes:
        raise InputError(path, f"no episode that counts{why_none(reasons)}", "roll out again")
    if notes is not None:
        notes += reasons
    files = RunFiles(path)
    tokens, _, meta = files.sidecars
    about = _meta(Path(meta))
    token_table = read_table(TOKENS, tokens) if Path(tokens).exists() else TOKENS.empty()
    check_logprobs(token_table, tokens)
    weights = {
        file["sha256"] for file in about.get("inputs", []) if file["path"].endswith(".safetensors")
    }
    tools = [without_kind(tool) for tool in about.get("tools", [])]
    return Rollouts(
        path, list(episodes.values()), token_table, tools, weights, dict(about.get("prompt", {}))
    )


def is_rollouts(path: str) -> bool:
    """Return whether a file holds rollouts rather than another kind of trace.

    Args:
        path: path of any file.

    Returns:
        Whether the first line is an episode written by `irc-cli rollout`.
    """
    try:
        _, first = next(_objects(path), (0, {}))
    except InputError:
        return False
    return all(name in first for name in REQUIRED)


def check_logprobs(tokens: pl.DataFrame, path: str) -> None:
    """Raise InputError if a recorded logprob is impossible.

    Args:
        tokens: TOKENS.
        path: path of their file, for errors.

    Raises:
        InputError: a logprob is not finite, or it is above 0.
    """
    logprob = pl.element()
    possible = (logprob.is_finite() & (logprob <= LOGPROB_SLACK)).fill_null(False)
    fine = pl.col("logprobs").list.eval(possible).list.all()  # null if none are recorded
    for row in tokens.filter(~fine).head(1).iter_rows(named=True):
        what = f"turn {row['turn']} of episode '{row['episode_id']}' has an invalid logprob"
        raise InputError(path, what, "find out what the engine recorded: want finite and <= 0")


def check_tokens(rollouts: Rollouts) -> None:
    """Raise InputError if the tokens of any episode were not recorded.

    Args:
        rollouts: the rollouts.

    Raises:
        InputError: an episode has no recorded tokens.
    """
    if missing := sum(not row["tokens_recorded"] for row in rollouts.episodes):
        raise InputError(rollouts.path, *without_tokens(missing, len(rollouts.episodes)))


def without_tokens(missing: int, several: int) -> tuple[str, str]:
    """Return the error text for episodes without recorded tokens.

    Args:
        missing: number of episodes without tokens.
        several: number of all episodes.

    Returns:
        What is wrong, and what to do.
    """
    what = f"{missing:,} of {several:,} episodes have no recorded tokens"
    return what, "play them with an engine that tells what it sampled"


def check_precision(rollouts: Rollouts, *, weighted: bool) -> None:
    """Raise InputError if rounded logprobs would enter importance ratios.

    Args:
        rollouts: the rollouts; episodes have `logprobs_rounded` if their format rounds logprobs.
        weighted: whether ratios or importance weights use the engine's logprobs.

    Raises:
        InputError: some logprobs are rounded and would be used.
    """
    rounded = [row["episode_id"] for row in rollouts.episodes if row.get("logprobs_rounded")]
    if weighted and rounded:
        what = f"episode '{rounded[0]}' has rounded logprobs ({len(rounded):,} such episodes)"
        todo = "pass --old-logprobs trainer --tis-cap 0, or record them at full precision"
        raise InputError(rollouts.path, what, todo)


def check_lineage(rollouts: Rollouts, model: str) -> None:
    """Raise InputError unless the rollouts were sampled from this policy.

    Args:
        rollouts: the rollouts; digests of the policy's weights are compared if recorded.
        model: folder of the policy.

    Raises:
        InputError: several policies sampled them, or the weights differ.
    """
    if len(names := sorted({str(row.get("policy")) for row in rollouts.episodes})) > 1:
        what = f"was played by several policies: {few(names)}"
        raise InputError(rollouts.path, what, "give one policy's rollouts, or pass --off-policy")
    mine = {digest(str(path)) for path in Path(model).glob("*.safetensors")}
    if rollouts.weights and rollouts.weights != mine:
        what = f"was played by other weights than those of '{model}'"
        todo = "give --model the policy that played it, or pass --off-policy"
        raise InputError(rollouts.path, what, todo)


def read_conversations(
    path: str, notes: Counter[str] | None = None, given: Given | None = None
) -> list[dict[str, Any]]:
    """Read JSON lines with `messages`, such as rollouts.

    Flat calls, {id, name, arguments} or {id, name, args}, are converted to OpenAI's format.

    Args:
        path: path of the conversations.
        notes: counter of guesses, updated in place.
        given: fields and gold actions that the user names.

    Returns:
        The records, with messages in OpenAI's format.

    Raises:
        InputError: the file is missing or broken, or a line has no messages that chat templates
            can render.
    """
    records = []
    for number, recorded in _objects(path):
        where = f"{path}:{number}"
        try:
            record = given.apply(recorded, recorded) if given else recorded
        except BadItemError as bad:
            raise InputError(where, bad.what, bad.todo) from None
        messages = record.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise InputError(where, "has no list of 'messages'", "give one conversation per line")
        converted = [_message(message, place, where) for place, message in enumerate(messages, 1)]
        if notes is not None and (guessed := _without_arguments(messages)):
            notes["call without arguments, read as {}"] += guessed
        records.append(record | {"messages": converted})
    if not records:
        raise InputError(path, "no conversation", "give one conversation per line")
    return records


def played_advantages(
    played: Rollouts,
    scored: pl.DataFrame,
    values: Values | None,
    config: AdvantageConfig,
    turns: str,
    advantages: str | None = None,
) -> pl.DataFrame:
    """Return the advantage of every turn of the rollouts (TURNS -> ADVANTAGES).

    Args:
        played: the rollouts.
        scored: their turns (TURNS), possibly with turns of other episodes.
        values: value of each tier and how it is paid; None: use the rewards in the turns.
        config: the estimator.
        turns: path of the turns, for errors.
        advantages: path of advantages that `calibrate` wrote for these turns; None: compute them.

    Returns:
        A row per turn (ADVANTAGES).

    Raises:
        InputError: an episode has no turns, or the advantages do not fit the turns, the values or
            the estimator.
    """
    if advantages and config != AdvantageConfig():
        what = f"was computed by an estimator, so {ESTIMATOR} have no effect"
        raise InputError("--advantages", what, "leave these out")
    ids = [row["episode_id"] for row in played.episodes]
    arrays = turn_arrays(scored.filter(pl.col("episode_id").is_in(ids)))
    scored_ids = set(arrays.frame["episode_id"])
    if lacking := [episode for episode in ids if episode not in scored_ids]:
        what = f"no turns of episode '{lacking[0]}' ({len(lacking):,} lacking)"
        raise InputError(turns, what, f"rerun irc-cli score {played.path}")
    if advantages:
        return inspected_advantages(advantages, arrays, turns, values)
    reward = turn_rewards(arrays, values, config)
    return advantage_frame(arrays, reward, turn_advantages(arrays, reward, config), config)


def other_turns(played: Rollouts, scored: pl.DataFrame) -> Counter[str]:
    """Count the episodes with turns (TURNS) that are not among the rollouts.

    Args:
        played: the rollouts.
        scored: the turns (TURNS).

    Returns:
        A note with the number of such episodes; empty if there are none.
    """
    ids = [row["episode_id"] for row in played.episodes]
    others = ~pl.col("episode_id").is_in(ids) & COUNTS
    number = scored.filter(others)["episode_id"].n_unique()
    return left_out({"turns of episodes that the rollouts lack": number})


def read_values(calibration: str | None, turns: str, estimator: AdvantageConfig) -> Values | None:
    """Read the tiers' values from a calibration; return None if none is given.

    A tier that is missing in the calibration is worth 0.

    Args:
        calibration: path of a calibration.yaml, or None.
        turns: path of the turns.
        estimator: the estimator, which may need a critic.

    Returns:
        The value of each tier, how values are paid, and the critic; or None.

    Raises:
        InputError: the file is not a calibration, has tiers that the turns can't have, or lacks
            the critic that the estimator needs.
    """
    values = None if calibration is None else read_previous(calibration).values
    check_critic(values, calibration, estimator)
    if values is None or calibration is None:
        return None
    tiers = made_by(turns).get("settings", {}).get("rank")  # of irc-cli score
    if tiers and (strange := [tier for tier in values if tier not in tiers]):
        todo = f"calibrate {turns} itself, or turns of the same tiers"
        raise InputError(calibration, f"{turns} can have no tier '{strange[0]}'", todo)
    return values


def recorded_tools(path: str) -> list[dict[str, Any]]:
    """Return the tools that a policy saw, as recorded beside the rollouts.

    Args:
        path: path of the rollouts.

    Returns:
        Tools in OpenAI's format; [] if they are not recorded.

    Raises:
        InputError: the record is not JSON.
    """
    about = _meta(Path(RunFiles(path).sidecars[-1]))
    return [without_kind(tool) for tool in about.get("tools", [])]


def recorded_prompt(path: str) -> dict[str, str]:
    """Return how the policy's prompt described the tools, as recorded beside the rollouts.

    Args:
        path: path of the rollouts.

    Returns:
        The record of `Told`; {} if there is none.

    Raises:
        InputError: the record is not JSON.
    """
    return dict(_meta(Path(RunFiles(path).sidecars[-1])).get("prompt", {}))


def _message(message: dict[str, Any], place: int, where: str) -> dict[str, Any]:
    """Return a message with calls in OpenAI's format; raise InputError if that is impossible."""
    if not isinstance(message.get("role"), str):
        raise InputError(where, f"message {place} has no 'role'", "give each message a role")
    calls = message.get("tool_calls") or []
    try:
        converted = message | {"tool_calls": [_call(call) for call in calls]} if calls else message
    except (AttributeError, TypeError, UnreadableCallError):
        what = f"message {place} has an invalid call: {calls!r:.60}"
        raise InputError(where, what, "give {id, function: {name, arguments}}") from None
    if not _is_openai(message, len(calls)):
        what = f"message {place} holds a call or a result in another form than OpenAI's"
        todo = "give calls as 'tool_calls', and each result as a message of role 'tool'"
        raise InputError(where, what, todo)
    return converted


def _is_openai(message: dict[str, Any], calls: int) -> bool:
    """Return whether a message has all calls and results where chat templates look for them."""
    lost: list[str] = []
    events = read_message(message, lost, Counter())
    read = sum(len(event.calls) for event in events if not isinstance(event, Result))
    results = sum(isinstance(event, Result) for event in events)
    return not lost and read == calls and results == (message["role"] in ("tool", "function"))


def _without_arguments(messages: list[dict[str, Any]]) -> int:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return sum(read_call(call).arguments is None for call in calls)


def _call(call: Any) -> dict[str, Any]:
    """Return a call as {id, function: {name, arguments}}; raise if it is not a call."""
    written = read_call(call)
    arguments = "{}" if written.arguments is None else written.arguments
    function = {"name": written.name, "arguments": arguments}
    if isinstance(call.get("function"), dict):
        return {**call, "function": function}
    return {"id": written.id, "type": "function", "function": function}


def _objects(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in Stream(path, keep=True).lines():
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if line.startswith(PARQUET_MAGIC):
                what = "is Parquet, not JSON lines"
                raise InputError(path, what, "give a rollouts.jsonl, or 'messages'") from None
            raise InputError(f"{path}:{number}", f"not JSON: {error.msg}", "fix the line") from None
        if not isinstance(value, dict):
            raise InputError(f"{path}:{number}", "not an object", "give one object per line")
        yield number, value


class _Meta(TypedDict, total=False):
    """The fields of the rollouts' metadata that are read."""

    inputs: list[Input]
    tools: list[dict[str, Any]]
    prompt: dict[str, str]


def _meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    made_by: dict[str, Any] = read_state(path, _Meta, "restore or delete it")
    return made_by
