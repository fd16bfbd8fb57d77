"""The scorer that other programs import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from examples.trace.generate import TRACE
from irc_cli.scorer import Score, load_calibration, score
from stages.core.payment import Values
from stages.errors import InputError
from stages.tiers.domains import load_domain
from stages.traces import open_trace
from tests.builders import line_of, scored

TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": {}}, "x-kind": "read"},
    {"type": "function", "function": {"name": "buy", "parameters": {}}, "x-kind": "write"},
]
GOLD = [{"name": "buy", "arguments": {"item": "tea", "count": 2}}]


def asks(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    return {"role": "assistant", "tool_calls": [{"id": name, "function": function}]}


def answers(name: str, content: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": content}


TALK = [
    {"role": "user", "content": "Two teas."},
    asks("look", item="tea"),
    answers("look"),
    asks("buy", item="tea", count=2),
    answers("buy"),
    {"role": "assistant", "content": "Done."},
]


def test_turns_have_tiers_and_rewards_in_order() -> None:
    assert score(TALK, TOOLS, GOLD, outcome=1) == Score(
        1.0, [0.3, 1.0, 0.0], ["read_only", "gold_write", "message"]
    )


def test_a_calibration_gives_the_rewards_and_zero_to_tiers_that_it_lacks() -> None:
    assert score(TALK, TOOLS, GOLD, {"gold_write": 0.7}).turn_rewards == [0.0, 0.7, 0.0]


def test_a_value_paid_once_goes_to_the_first_turn_of_its_tier() -> None:
    talk = [*TALK, *TALK]
    every, once = (Values({"read_only": 0.25, "message": 0.5}, pay) for pay in ("turn", "once"))
    assert score(talk, TOOLS, GOLD, every).turn_rewards == [0.25, 0.0, 0.5] * 2
    assert score(talk, TOOLS, GOLD, once).turn_rewards == [0.25, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert score(talk, TOOLS, GOLD, dict(once)) == score(talk, TOOLS, GOLD, every)


def test_an_outcome_is_given_never_guessed() -> None:
    assert score(TALK, TOOLS, GOLD).outcome is None
    assert score(TALK, TOOLS, GOLD, outcome=0.25).outcome == 0.25


def test_unknown_gold_actions_match_nothing() -> None:
    assert score(TALK, TOOLS).turn_tiers == ["read_only", "state_change", "message"]
    assert score(TALK, TOOLS, []).turn_tiers == score(TALK, TOOLS).turn_tiers


def test_a_conversation_without_turns_has_no_rewards() -> None:
    assert score(TALK[:1], TOOLS, GOLD) == Score(None, [], [])


@pytest.mark.parametrize("tiers", ["extended", "paper", "flat"])
def test_equals_irc_cli_score_on_every_example(tiers: str) -> None:
    expected = scored(*open_trace(str(TRACE)), tiers=tiers, domain=load_domain("airline"))
    columns = expected.columns
    rows = [orjson.loads(line) for line in TRACE.read_bytes().splitlines()]

    def score_of(row: dict[str, Any], domain: str | None) -> Score:
        given = {"outcome": row["outcome"], "tiers": tiers, "domain": domain}
        return score(row["messages"], None, row["gold_actions"], **given)

    found = [score_of(row, "airline") for row in rows]
    # A tool that no shipped domain has, beside one that several have, hides the domain.
    assert sum(score_of(row, None) == one for row, one in zip(rows, found, strict=True)) >= 192
    assert [tier for one in found for tier in one.turn_tiers] == columns["tier"]
    assert [reward for one in found for reward in one.turn_rewards] == columns["reward"]
    assert [one.outcome for one in found for _ in one.turn_tiers] == columns["outcome"]


def test_reads_the_values_of_a_calibration(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text("rewards: {gold_write: 1.0, soft: -0.5}\ntiers: []\n")
    assert load_calibration(str(path)) == {"gold_write": 1.0, "soft": -0.5}
    assert load_calibration(str(path)).pay == "turn"
    path.write_text("rewards: {gold_write: 1.0}\ntiers: []\npay: once\n")
    assert load_calibration(str(path)).pay == "once"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"calibration": {"golden": 1.0}},
            "irc_cli.scorer: calibration of unknown tier 'golden'; use a tier of 'extended'",
        ),
        (
            {"gold_actions": [{"arguments": {}}]},
            "irc_cli.scorer: an entry of 'gold_actions' is a call without a name: "
            "{'arguments': {}}; "
            "give {name, arguments}",
        ),
        (
            {"outcome": 7},
            "irc_cli.scorer: 'outcome' is 7, outside [0, 1]; rescale it so that 1 is a full "
            "success",
        ),
    ],
)
def test_errors(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        score(TALK, TOOLS, **given)
    assert line_of(caught) == line


def test_importing_and_scoring_load_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from irc_cli.scorer import score\n"
        "score([{'role': 'assistant', 'content': 'Hello.'}], [], [])\n"
        "print(*{'torch', 'numpy', 'polars', 'scipy', 'typer', 'rich'} & sys.modules.keys())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.split() == []


def test_text_that_looks_like_a_call_is_a_message_where_all_calls_are_known() -> None:
    """A weak policy writes such text; the environment that it played in took it as speech."""
    text = 'get_reservation", "arguments": {"reservation_id":"deep-dune"}}\n</tool_call>'
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
    assert score(messages, played=True).turn_tiers == ["message"]
    with pytest.raises(InputError, match="looks like a call"):
        score(messages)
