"""What `train` reads, checked against each other before any model is loaded."""

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
    """Episodes that were played, with their tokens."""

    path: str
    episodes: list[RolloutRow]  # those that count
    tokens: pl.DataFrame  # TOKENS
    tools: list[dict[str, Any]]  # that the policy saw
    weights: set[str]  # sha256 of the policy's weights; empty: unknown
    prompt: dict[str, str]  # how it was told of its tools (the record of Told); empty: unknown


def read_rollouts(path: str, notes: Counter[str] | None = None) -> Rollouts:
    """Read rollouts.jsonl and what lies beside it.

    Args:
        path: of the rollouts.
        notes: gets the episodes that are left out.

    Returns:
        The episodes that count, their tokens, and what is recorded of their policy.

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
    """Tell rollouts from other traces.

    Args:
        path: of any file.

    Returns:
        Whether it begins with an episode that `irc-cli rollout` played.
    """
    try:
        _, first = next(_objects(path), (0, {}))
    except InputError:
        return False
    return all(name in first for name in REQUIRED)


def check_logprobs(tokens: pl.DataFrame, path: str) -> None:
    """Raise InputError where a recorded logprob can't be one.

    Args:
        tokens: of some episodes (TOKENS).
        path: of their file, in errors.

    Raises:
        InputError: a logprob is not finite, or above 0.
    """
    logprob = pl.element()
    possible = (logprob.is_finite() & (logprob <= LOGPROB_SLACK)).fill_null(False)
    fine = pl.col("logprobs").list.eval(possible).list.all()  # null where none are recorded
    for row in tokens.filter(~fine).head(1).iter_rows(named=True):
        what = f"turn {row['turn']} of episode '{row['episode_id']}' has an invalid logprob"
        raise InputError(path, what, "find out what the engine recorded: want finite and <= 0")


def check_tokens(rollouts: Rollouts) -> None:
    """Raise InputError where the tokens of an episode were not recorded.

    Args:
        rollouts: the episodes.

    Raises:
        InputError: some have no tokens.
    """
    if missing := sum(not row["tokens_recorded"] for row in rollouts.episodes):
        raise InputError(rollouts.path, *without_tokens(missing, len(rollouts.episodes)))


def without_tokens(missing: int, several: int) -> tuple[str, str]:
    """Say that episodes have no tokens.

    Args:
        missing: how many have none.
        several: how many there are.

    Returns:
        What is wrong, and what to do.
    """
    what = f"{missing:,} of {several:,} episodes have no recorded tokens"
    return what, "play them with an engine that tells what it sampled"


def check_precision(rollouts: Rollouts, *, weighted: bool) -> None:
    """Raise InputError where rounded logprobs would enter importance ratios.

    Args:
        rollouts: whose episodes say `logprobs_rounded` where their format rounded them.
        weighted: ratios or importance weights take the engine's logprobs.

    Raises:
        InputError: some logprobs are rounded, and ratios or weights would take them.
    """
    rounded = [row["episode_id"] for row in rollouts.episodes if row.get("logprobs_rounded")]
    if weighted and rounded:
        what = f"episode '{rounded[0]}' has rounded logprobs ({len(rounded):,} such episodes)"
        todo = "pass --old-logprobs trainer --tis-cap 0, or record them at full precision"
        raise InputError(rollouts.path, what, todo)


def check_lineage(rollouts: Rollouts, model: str) -> None:
    """Raise InputError if another policy than this one played the rollouts.

    Args:
        rollouts: with the policies' names and the digests of their weights, where recorded.
        model: the folder of the policy.

    Raises:
        InputError: there are several policies, or the weights are other ones.
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
    """Read the records with `messages` of JSON lines; rollouts are such records.

    Calls that are flat, as {id, name, arguments} or {id, name, args}, come in OpenAI's form.

    Args:
        path: of the conversations.
        notes: gets what was guessed.
        given: fields and gold actions that the user names.

    Returns:
        The records, with messages in OpenAI's form.

    Raises:
        InputError: the file is missing or broken, or a line has no messages as templates take them.
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
        told = [_message(message, place, where) for place, message in enumerate(messages, 1)]
        if notes is not None and (guessed := _without_arguments(messages)):
            notes["call without arguments, read as {}"] += guessed
        records.append(record | {"messages": told})
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
    """Return the advantage of every turn of the episodes that were played (TURNS -> ADVANTAGES).

    Args:
        played: the episodes.
        scored: their turns (TURNS), and maybe others.
        values: what each tier is worth, and how it is paid; None: the rewards in the turns count.
        config: the estimator.
        turns: path of the turns.
        advantages: path of advantages that `calibrate` made of these turns; None: they are made.

    Returns:
        A row for each turn (ADVANTAGES).

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
    """Return a note on the turns (TURNS) of episodes that are not among the rollouts.

    Args:
        played: the rollouts.
        scored: the turns (TURNS).

    Returns:
        The note with the number of such episodes; empty where there is none.
    """
    ids = [row["episode_id"] for row in played.episodes]
    others = ~pl.col("episode_id").is_in(ids) & COUNTS
    number = scored.filter(others)["episode_id"].n_unique()
    return left_out({"turns of episodes that the rollouts lack": number})


def read_values(calibration: str | None, turns: str, estimator: AdvantageConfig) -> Values | None:
    """Return what a calibration says that the tiers of turns are worth; None: none is given.

    A tier that the calibration never met has shown nothing, and is worth nothing.

    Args:
        calibration: path of a calibration.yaml, or None.
        turns: path of the turns.
        estimator: which may take a critic.

    Returns:
        The value of each tier, and how values are paid.

    Raises:
        InputError: the file is no calibration, one of other tiers than those of the turns, or
            without the critic that the estimator takes.
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
    """Return the tools that a policy saw, where they are recorded beside rollouts.

    Args:
        path: of the rollouts.

    Returns:
        Tools in OpenAI's form; [] where they are not recorded.

    Raises:
        InputError: the record is not JSON.
    """
    about = _meta(Path(RunFiles(path).sidecars[-1]))
    return [without_kind(tool) for tool in about.get("tools", [])]


def recorded_prompt(path: str) -> dict[str, str]:
    """Return how a policy was told of its tools, where that is recorded beside rollouts.

    Args:
        path: of the rollouts.

    Returns:
        The record of `Told`; {} where there is none.

    Raises:
        InputError: the record is not JSON.
    """
    return dict(_meta(Path(RunFiles(path).sidecars[-1])).get("prompt", {}))


def _message(message: dict[str, Any], place: int, where: str) -> dict[str, Any]:
    """Return a message whose calls are in OpenAI's form; raise InputError where it is none."""
    if not isinstance(message.get("role"), str):
        raise InputError(where, f"message {place} has no 'role'", "give each message a role")
    calls = message.get("tool_calls") or []
    try:
        told = message | {"tool_calls": [_call(call) for call in calls]} if calls else message
    except (AttributeError, TypeError, UnreadableCallError):
        what = f"message {place} has an invalid call: {calls!r:.60}"
        raise InputError(where, what, "give {id, function: {name, arguments}}") from None
    if not _is_openai(message, len(calls)):
        what = f"message {place} holds a call or a result in another form than OpenAI's"
        todo = "give calls as 'tool_calls', and each result as a message of role 'tool'"
        raise InputError(where, what, todo)
    return told


def _is_openai(message: dict[str, Any], calls: int) -> bool:
    """Whether all that a message says is where chat templates look for it."""
    lost: list[str] = []
    events = read_message(message, lost, Counter())
    read = sum(len(event.calls) for event in events if not isinstance(event, Result))
    results = sum(isinstance(event, Result) for event in events)
    return not lost and read == calls and results == (message["role"] in ("tool", "function"))


def _without_arguments(messages: list[dict[str, Any]]) -> int:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return sum(read_call(call).arguments is None for call in calls)


def _call(call: Any) -> dict[str, Any]:
    """Return a call as {id, function: {name, arguments}}, or raise where it can't be one."""
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
    """What is read again of what made rollouts."""

    inputs: list[Input]
    tools: list[dict[str, Any]]
    prompt: dict[str, str]


def _meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    made_by: dict[str, Any] = read_state(path, _Meta, "restore or delete it")
    return made_by
