"""Every table's declaration: its columns and what they hold, its key, its rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import polars as pl

from stages.core.statuses import LEFT_OUT, STATUSES
from stages.tables.table import Table

COUNTS = ~pl.col("status").is_in(LEFT_OUT)  # whether statistics count a turn

TURNS = Table(
    name="turns",
    columns={
        "source": pl.String(),  # the trace it was read from
        "episode_id": pl.String(),
        "task_id": pl.String(),  # within its domain, where that is known: "airline/5"
        "trial": pl.Int32(),
        "group_id": pl.String(),  # episodes sampled for one task under one policy
        "domain": pl.String(),  # of the task; null: unknown
        "policy": pl.String(),  # what acted: as the trace states it, else the source
        "turn": pl.Int32(),  # 0-based position in the episode
        "tool_names": pl.List(pl.String()),  # empty: the turn called no tool
        "n_calls": pl.Int32(),
        "tier": pl.String(),
        "match": pl.String(),  # full | partial | none; null: no call, or gold actions unknown
        "match_share": pl.Float64(),  # share of the best gold action's arguments that agree
        "reward": pl.Float64(),  # dimensionless
        "outcome": pl.Float64(),  # of the whole episode, in [0, 1]
        "success": pl.Boolean(),  # outcome >= 1 - 1e-6
        "status": pl.String(),  # ok | truncated; error | masked: left out of every statistic
        "n_tokens": pl.Int32(),  # null: unknown
    },
    key=("episode_id", "turn"),
    made_by="irc-cli score",
    made_from="trace",
    rules={
        f"{name} not null": pl.col(name).is_not_null()
        for name in ("episode_id", "task_id", "group_id", "turn", "tier", "reward", "status")
    }
    | {
        "turn at least 0": pl.col("turn") >= 0,
        "outcome within [0, 1]": pl.col("outcome").is_between(0, 1),
        "reward finite": pl.col("reward").is_finite(),
        "status is ok, truncated, error or masked": pl.col("status").is_in(STATUSES),
    },
)

ADVANTAGES = Table(
    name="advantages",
    columns={
        "episode_id": pl.String(),
        "group_id": pl.String(),
        "turn": pl.Int32(),
        "tier": pl.String(),
        "reward": pl.Float64(),
        "advantage": pl.Float64(),
        "return_part": pl.Float64(),  # return_part + outcome_part = advantage
        "outcome_part": pl.Float64(),
        "group_mean": pl.Float64(),  # of the quantity that was normalised at this turn
        "group_std": pl.Float64(),
        "forecast_before": pl.Float64(),  # of the outcome, by a critic; null: there is none
        "forecast_after": pl.Float64(),  # after the last turn: the outcome
        "td_error": pl.Float64(),  # forecast_after - forecast_before
    },
    key=("episode_id", "turn"),
    made_by="irc-cli calibrate",
    made_from="turns",
    rules={"advantage finite": pl.col("advantage").is_finite()},
)

# Exact integer sums: shards computed anywhere add up to the sums of one run. They are split by
# length, because what length explains is known only once the whole group is.
SUMS = Table(
    name="sums",
    columns={
        "task_id": pl.String(),
        "group_id": pl.String(),
        "policy": pl.String(),  # of the group
        "domain": pl.String(),  # of the group; null: unknown
        "length": pl.Int64(),  # turns of each of these episodes
        "tier": pl.String(),  # null: all of the group's episodes of this length
        "episodes": pl.Int64(),  # with the tier
        "successes": pl.Int64(),  # among them
        "turns": pl.Int64(),  # of the tier
        "turns_in_successes": pl.Int64(),
        "x": pl.Int64(),  # sum of the measure, in its unit (stages.calibration.sums.UNITS)
        "xx": pl.Int64(),  # sum of its squares
        "xo": pl.Int64(),  # sum over the successes
    },
    key=("task_id", "group_id", "policy", "domain", "length", "tier"),
    made_by="irc-cli calibrate --partial",
    made_from="turns",
    rules={"successes at most episodes": pl.col("successes") <= pl.col("episodes")},
)

# The same with forgetting: an episode followed by n others weighs w = 2^(-n / half-life). `x` is in
# the measure's own unit. Deviations are from the means of each group within one addition.
ONLINE = Table(
    name="online",
    columns={
        "task_id": pl.String(),
        "tier": pl.String(),
        **{name: pl.Float64() for name in SUMS.columns if name not in SUMS.key},
        "squares": pl.Float64(),  # sum of w^2 over the episodes with the tier
        "xo_deviation": pl.Float64(),
        "xx_deviation": pl.Float64(),
        "yo_deviation": pl.Float64(),  # y: x minus what the lengths of episodes explain
        "yy_deviation": pl.Float64(),
        "oo_deviation": pl.Float64(),  # only in rows with tier null
    },
    key=("task_id", "tier"),
    made_by="irc-cli calibrate --online",
    rules={"weights finite": pl.col("episodes").is_finite()},
)

EPISODES = Table(
    name="episodes",
    columns={
        "source": pl.String(),
        "episode_id": pl.String(),
        "task_id": pl.String(),
        "trial": pl.Int32(),
        "domain": pl.String(),  # of the task; null: unknown
        "policy": pl.String(),
        "success": pl.Boolean(),  # null: the episode is left out
        "turns": pl.Int32(),
        "tokens": pl.Int64(),  # that the policy wrote; null: unknown
        "gold_writes": pl.Int32(),  # writes that the task expects of the agent
        "gold_writes_done": pl.Int32(),
        "family": pl.String(),  # of the task; null: unknown
        "forbidden_writes": pl.Int32(),  # that worked, and that no gold action expects
    },
    key=("episode_id",),
    made_by="irc-cli eval",
)

TOKENS = Table(
    name="tokens",
    columns={
        "episode_id": pl.String(),
        "turn": pl.Int32(),  # 0-based; a turn whose ids are unknown has no row
        "appended": pl.Boolean(),  # the prompt continues the previous turn's tokens
        "prompt_ids": pl.List(pl.Int32()),  # if appended, the ids added; else the whole prompt
        "token_ids": pl.List(pl.Int32()),  # as sampled, including the end token
        "logprobs": pl.List(pl.Float32()),  # of token_ids; null: unknown
    },
    key=("episode_id", "turn"),
    made_by="irc-cli rollout",
    rules={
        "one logprob per token": pl.col("logprobs").list.len() == pl.col("token_ids").list.len(),
    },
)


# The lists of a row are equally long. Where the mask is false, logprobs and advantage are 0, not
# null: a loss multiplies by the mask, and null times 0 is not 0.
SEQUENCES = Table(
    name="sequences",
    columns={
        "episode_id": pl.String(),
        "group_id": pl.String(),
        "part": pl.Int32(),  # 0-based; a rewritten prompt starts another part of an episode
        "token_ids": pl.List(pl.Int32()),
        "mask": pl.List(pl.Boolean()),  # true on tokens that the policy wrote
        "turn": pl.List(pl.Int32()),  # of each such token; -1 elsewhere
        "logprobs": pl.List(pl.Float32()),  # in nats, when it was sampled; null: unknown
        "advantage": pl.List(pl.Float32()),  # of the token's turn
        "temperature": pl.Float64(),  # of sampling
    },
    key=("episode_id", "part"),
    made_by="irc-cli export tokens",
    rules={
        f"a {name} for each token": pl.col(name).list.len() == pl.col("token_ids").list.len()
        for name in ("mask", "turn", "logprobs", "advantage")
    },
)


# Keys that `rollout` adds to an assistant message: n_tokens (null: unknown), and finish "length" if
# a limit cut the message. No chat template knows them.
OF_ROLLOUT = frozenset({"n_tokens", "finish"})


class RolloutRow(TypedDict):
    """A line of rollouts.jsonl: one episode."""

    episode_id: str  # run/task/trial; the run is a digest of the settings
    task_id: str
    trial: int
    group_id: str  # run/task: the episodes sampled for one task under one policy
    domain: str  # whose tool kinds `score` uses
    env: str
    policy: str
    user: str
    sampling: dict[str, Any]  # temperature, top_p, max_tokens
    seed: int  # of the run; those of turns derive from it, the task, the trial and the turn
    family: str
    status: str  # ok | truncated (by max-turns or the context) | error (left out of statistics)
    ended: str  # done | max-turns | context | why the policy or the user failed
    outcome: float | None  # in [0, 1]; null if the status is error
    outcome_parts: dict[str, bool | None]
    tokens_recorded: bool  # each turn's token ids are in the tokens table
    messages: list[dict[str, Any]]  # the assistant's with OF_ROLLOUT
    gold_actions: list[Mapping[str, Any]]
    required_info: list[str]
    tools: NotRequired[list[dict[str, Any]]]  # only of domains that do not ship
    logprobs_rounded: NotRequired[bool]  # of tokens from a format that rounds: verifiers


PAIRS = Table(
    name="pairs",
    columns={
        "source": pl.String(),
        "episode_id": pl.String(),
        "task_id": pl.String(),
        "turn": pl.Int32(),
        "call": pl.Int32(),  # 0-based position in the turn
        "name": pl.String(),
        "arguments": pl.String(),  # as recorded
        "gold": pl.Int32(),  # index of the best gold action; null: none has the name
        "gold_arguments": pl.String(),
        "exact": pl.Boolean(),
        "deep": pl.Boolean(),
        "tau2": pl.Boolean(),
        "bfcl": pl.Boolean(),
        "match_share": pl.Float64(),
    },
    key=("episode_id", "turn", "call"),
    made_by="irc-cli compare-args",
)
