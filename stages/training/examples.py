"""Training examples from recorded episodes (messages, or rollouts with advantages -> Example)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stages.core.direction import DEAD
from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.renderer import Renderer
from stages.tables.artifacts import TOKENS, RolloutRow
from stages.training.sequences import NO_TIER, Example, TokenSequence, retokenised, sequences

# Sampling options that change a distribution in other ways, and the values that switch them off.
UNTRUNCATED = {"top_k": (0, -1), "min_p": (0,), "typical_p": (1,), "repetition_penalty": (1,)}


class Demonstration(NamedTuple):
    """A conversation for supervised fine-tuning."""

    name: str
    messages: List[Message]
    tools: List[dict[str, Any]]


class Reinforced(NamedTuple):
    """Examples from rollouts, and counts of what was left out."""

    examples: list[Example]
    tiers: list[str]  # tier names, indexed by the examples' codes
    groups: int
    dropped_groups: int  # groups in which every advantage is 0
    retokenised: int  # episodes without recorded tokens


def supervised(conversations: Iterable[Demonstration], chat: Renderer) -> list[Example]:
    """Return examples for supervised fine-tuning, with equal weights on all assistant tokens.

    Args:
        conversations: conversations whose assistant messages are learned.
        chat: renderer from messages to tokens.

    Returns:
        An example for each sequence with at least one assistant token; all weights are 1.
    """
    rows = [
        row
        for demonstration in conversations
        for row in retokenised(
            demonstration.name, demonstration.messages, demonstration.tools, chat
        )
    ]
    return [
        Example(
            sequence, np.zeros(n, np.float32), np.full(n, NO_TIER, np.int32), np.ones(n, np.float32)
        )
        for sequence in sequences(_table(rows))
        if (n := int(sequence.written.sum()))
    ]


def reinforced(
    episodes: List[RolloutRow],
    tokens: pl.DataFrame,
    advantages: pl.DataFrame,
    tools: List[dict[str, Any]],
    chat: Renderer | None,
    where: str,
) -> Reinforced:
    """Return examples in which each token has its turn's advantage.

    Args:
        episodes: the episodes that count.
        tokens: their recorded tokens (TOKENS).
        advantages: advantages of all their turns (ADVANTAGES).
        tools: tools that the policy saw, for tokenizing messages.
        chat: renderer for episodes without recorded tokens; None: such episodes are an error.
        where: name of the rollouts in errors.

    Returns:
        The examples of groups in which some advantage differs from 0, and what was left out.

    Raises:
        InputError: tokens were not recorded, turns and advantages do not match, the sampling is
            not supported, or all advantages are 0.
    """
    missing = [row for row in episodes if not row["tokens_recorded"]]
    if missing and chat is None:
        what = f"{len(missing):,} of {len(episodes):,} episodes have no recorded tokens"
        todo = "record them, or pass --allow-retokenised to train on a guess at what was sampled"
        raise InputError(where, what, todo)
    made = [
        row
        for episode in missing
        if chat
        for row in retokenised(episode["episode_id"], episode["messages"], tools, chat)
    ]
    ids = [row["episode_id"] for row in episodes if row["tokens_recorded"]]
    wanted = pl.Series(ids, dtype=pl.String)
    recorded = tokens.filter(pl.col("episode_id").is_in(wanted.implode()))
    rows = pl.concat([recorded, _table(made)])
    _check_turns(rows, advantages, wanted, where)
    live = _live(advantages)
    sampled = {row["episode_id"]: _sampled(row, where) for row in episodes}
    tiers = advantages["tier"].unique().sort().to_list()
    turns = _by_turn(advantages, tiers)
    examples = [
        _example(sequence, turns, *sampled[sequence.episode_id])
        for sequence in sequences(rows.filter(pl.col("episode_id").is_in(list(live))))
    ]
    groups = advantages["group_id"].n_unique()
    if not examples:
        what = f"nothing to learn: no advantage of {groups:,} groups differs from 0"
        raise InputError(where, what, "collect groups with successes and failures")
    alive = advantages.filter(pl.col("episode_id").is_in(list(live)))["group_id"].n_unique()
    return Reinforced(examples, tiers, groups, groups - alive, len(missing))


def focused(
    examples: List[Example], tiers: List[str], values: Mapping[str, float]
) -> list[Example]:
    """Restrict examples to turns whose tier has a value.

    Args:
        examples: any examples.
        tiers: tier names, indexed by the examples' codes.
        values: value of each tier; a missing tier is worth 0.

    Returns:
        Examples with weight 0 on all other turns; examples without a remaining turn are dropped.
    """
    worth = np.array([bool(values.get(tier)) for tier in tiers])
    chosen = []
    for example in examples:
        counts = worth[example.tier]
        if counts.any():
            tier = np.where(counts, example.tier, NO_TIER).astype(np.int32)
            chosen.append(replace(example, tier=tier, weight=example.weight * counts))
    return chosen


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return TOKENS.frame({name: [row[name] for row in rows] for name in TOKENS.columns})


def _check_turns(
    rows: pl.DataFrame, advantages: pl.DataFrame, recorded: pl.Series, where: str
) -> None:
    """Raise InputError unless each turn has both tokens and an advantage."""
    key, todo = ["episode_id", "turn"], "rerun irc-cli score on these rollouts"
    for episode, turn in rows.join(advantages, on=key, how="anti").select(key).head(1).iter_rows():
        what = f"turn {turn} of episode '{episode}' was not scored"
        raise InputError(where, what, todo)
    scored = advantages.filter(pl.col("episode_id").is_in(recorded.implode()))
    for episode, turn in scored.join(rows, on=key, how="anti").select(key).head(1).iter_rows():
        what = f"turn {turn} of episode '{episode}' was scored but has no tokens"
        raise InputError(where, what, todo)


def _live(advantages: pl.DataFrame) -> set[str]:
    """Return the episodes of groups in which some advantage is not 0."""
    moves = (pl.col("advantage").abs() > DEAD).any().over("group_id")
    return set(advantages.filter(moves)["episode_id"])


def _sampled(row: RolloutRow, where: str) -> tuple[float, float]:
    """Return the temperature and top_p with which an episode was sampled."""
    sampling = row["sampling"]
    for name, off in UNTRUNCATED.items():
        if sampling.get(name) not in (None, *off):
            what = f"episode '{row['episode_id']}' was sampled with {name} {sampling[name]}"
            raise InputError(where, what, "sample without it: train supports temperature and top_p")
    # With greedy decoding (temperature 0), engines record log-probabilities at temperature 1.
    return float(sampling.get("temperature") or 1.0), float(sampling.get("top_p") or 1.0)


Turns = Mapping[tuple[str, int], tuple[float, int]]  # (episode, turn): (advantage, tier code)


def _by_turn(advantages: pl.DataFrame, tiers: list[str]) -> Turns:
    code = {name: place for place, name in enumerate(tiers)}
    rows = advantages.select("episode_id", "turn", "advantage", "tier").iter_rows()
    return {(episode, turn): (value, code[tier]) for episode, turn, value, tier in rows}


def _example(sequence: TokenSequence, turns: Turns, temperature: float, top_p: float) -> Example:
    turn = sequence.turn[sequence.written]
    of = [turns[sequence.episode_id, number] for number in turn.tolist()]
    return Example(
        sequence=sequence,
        advantage=np.array([advantage for advantage, _ in of], np.float32),
        tier=np.array([tier for _, tier in of], np.int32),
        weight=np.ones(len(turn), np.float32),
        temperature=temperature,
        top_p=top_p,
    )


def offending(batch: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """Yield the sequences of a rejected step as table rows, for debugging.

    Args:
        batch: the examples of the step.

    Yields:
        A row per example.
    """
    for example in batch:
        yield {
            "episode_id": example.episode_id,
            "token_ids": example.sequence.token_ids.tolist(),
            "turn": example.sequence.turn.tolist(),
            "at": example.at.tolist(),
            "advantage": example.advantage.tolist(),
            "logprobs": example.engine.tolist(),
        }
