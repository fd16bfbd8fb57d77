"""The example trace: what its generator writes, and enough of everything to try the pipeline on.

Nothing here uses the readers or the scorer: these checks are on the raw JSON, so that a fault there
cannot hide one here.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from examples.trace.generate import TRACE, trace

Record = dict[str, Any]

WRITES = {
    "book_reservation",
    "cancel_reservation",
    "send_certificate",
    "update_reservation_baggages",
    "update_reservation_flights",
}
READS = {"calculate", "get_reservation_details", "get_user_details", "search_direct_flight"}
HANDOFF = "transfer_to_human_agents"
TIERS = (
    "gold_write",
    "gold_read",
    "soft",
    "read_only",
    "state_change",
    "handoff",
    "error",
    "duplicate",
    "unknown_tool",
    "message",
)

EPISODES: list[Record] = [orjson.loads(line) for line in TRACE.read_bytes().splitlines()]
FINISHED = [episode for episode in EPISODES if episode["status"] == "ok"]


def tool_calls(messages: list[Record]) -> Iterator[tuple[Record, str]]:
    """Yield the function and the result of each call."""
    results = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
    for message in messages:
        for call in message.get("tool_calls", ()):
            yield call["function"], results[call["id"]]


def is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def parsed(text: str) -> Any:
    return orjson.loads(text) if is_json(text) else ast.literal_eval(text)


def folded(arguments: Record) -> str:
    """Return arguments without the order of keys, the case of letters and the types of numbers."""
    return str(sorted((key, str(value)) for key, value in arguments.items())).lower()


def rough_tier(name: str, arguments: Record, result: str, gold: list[Record]) -> str:
    """Return the tier of a call that repeats none, as `extended` has it on this trace."""
    if result.startswith("Error"):
        return "error"
    if name == HANDOFF:
        return "handoff"
    if name not in WRITES | READS:
        return "unknown_tool"
    same_tool = [one["arguments"] for one in gold if one["name"] == name]
    if folded(arguments) in map(folded, same_tool):
        return "gold_write" if name in WRITES else "gold_read"
    if any(arguments[key] == value for one in same_tool for key, value in one.items()):
        return "soft"
    return "state_change" if name in WRITES else "read_only"


def rough_tiers(episode: Record) -> set[str]:
    """Return the tiers that an episode has calls or messages of."""
    found = set()
    since_write: set[str] = set()
    for function, result in tool_calls(episode["messages"]):
        name, arguments = function["name"], parsed(function["arguments"])
        call = name + folded(arguments)
        tier = rough_tier(name, arguments, result, episode["gold_actions"])
        found.add("duplicate" if call in since_write else tier)
        since_write = set() if name in WRITES else since_write | {call}
    if any(m["role"] == "assistant" and "tool_calls" not in m for m in episode["messages"]):
        found.add("message")
    return found


def success_rate(episodes: list[Record]) -> float:
    return float(sum(episode["outcome"] for episode in episodes) / len(episodes))


def split_by_gold_read(episodes: list[Record]) -> tuple[list[Record], list[Record]]:
    has = ["gold_read" in rough_tiers(episode) for episode in episodes]
    with_it = [episode for episode, read in zip(episodes, has, strict=True) if read]
    return with_it, [episode for episode, read in zip(episodes, has, strict=True) if not read]


def test_the_file_is_what_the_generator_writes() -> None:
    assert trace() == TRACE.read_bytes()


def test_the_file_is_small() -> None:
    assert TRACE.stat().st_size < 600_000


def test_every_task_has_eight_finished_trials() -> None:
    trials = Counter(episode["task_id"] for episode in FINISHED)
    assert len(trials) == 24
    assert set(trials.values()) == {8}
    assert len({episode["episode_id"] for episode in EPISODES}) == len(EPISODES)


def test_crashed_episodes_have_no_messages() -> None:
    crashed = [episode for episode in EPISODES if episode["status"] == "error"]
    assert len(crashed) == 3
    assert all(episode["messages"] == [] for episode in crashed)


def test_outcomes_are_mixed() -> None:
    assert 0.45 <= success_rate(FINISHED) <= 0.60
    successes: Counter[str] = Counter()
    for episode in FINISHED:
        successes[episode["task_id"]] += episode["outcome"]
    assert sum(0 < count < 8 for count in successes.values()) >= 20


@pytest.mark.parametrize("tier", TIERS)
def test_twenty_episodes_have_a_tier_and_twenty_do_not(tier: str) -> None:
    having = sum(tier in rough_tiers(episode) for episode in FINISHED)
    assert 20 <= having <= len(FINISHED) - 20


def test_gold_reads_help_within_tasks_but_not_across_them() -> None:
    """Simpson's paradox: the tasks whose gold actions include reads are the hard ones."""
    reading, others = split_by_gold_read(FINISHED)
    assert success_rate(reading) < success_rate(others)
    covariance = 0.0  # within tasks, summed over episodes: positive as the within-task r is
    for task in {episode["task_id"] for episode in FINISHED}:
        group = [episode for episode in FINISHED if episode["task_id"] == task]
        reading, _ = split_by_gold_read(group)
        covariance += sum(episode["outcome"] - success_rate(group) for episode in reading)
    assert covariance > 0


def test_a_failed_bag_task_lacks_the_gold_write_or_has_another_write() -> None:
    """An outcome follows from what was written, so it can be told from the writes here."""
    for episode in FINISHED:
        if episode["task_id"].startswith("bags"):
            (gold,) = episode["gold_actions"]
            writes = [
                (function["name"], folded(parsed(function["arguments"])))
                for function, _ in tool_calls(episode["messages"])
                if function["name"] in WRITES | {HANDOFF}
            ]
            # A wrong number of bags is overwritten by the right one; nothing else is undone.
            right = (gold["name"], folded(gold["arguments"]))
            done = writes[-1:] == [right] and {name for name, _ in writes} == {gold["name"]}
            assert episode["outcome"] == done, episode["episode_id"]


def test_some_arguments_are_gold_only_when_compared_deeply() -> None:
    only_deep = 0
    for episode in FINISHED:
        for function, _ in tool_calls(episode["messages"]):
            arguments = parsed(function["arguments"])
            gold = [
                one["arguments"]
                for one in episode["gold_actions"]
                if one["name"] == function["name"]
            ]
            only_deep += arguments not in gold and folded(arguments) in map(folded, gold)
    assert only_deep >= 10


def test_an_arguments_string_is_a_python_literal() -> None:
    texts = [f["arguments"] for episode in FINISHED for f, _ in tool_calls(episode["messages"])]
    assert 1 <= sum(not is_json(text) for text in texts) <= 2


def test_assistant_messages_count_their_tokens() -> None:
    for episode in FINISHED:
        for message in episode["messages"]:
            assert ("n_tokens" in message) == (message["role"] == "assistant")
            assert message.get("n_tokens", 1) > 0
