"""The environment package, as verifiers' own evaluation command plays it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("verifiers.v1", reason="needs verifiers >= 0.4, in an environment of its own")

from stages.envs.airline_mini import airline_mini
from stages.traces import open_trace
from tests.mock_openai import Body, MockServer, Reply, calls, says

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "examples" / "verifiers_env"


def agent(body: Body, number: int) -> Reply:
    """Ask who it is, look at nobody, then hand over."""
    said = sum(message["role"] == "assistant" for message in body["messages"])
    reply = [says("what is your user id?"), calls("get_user", '{"user_id": "nobody"}')]
    reply += [calls("transfer_to_human_agents", '{"summary": "flown"}')]
    answer = orjson.loads(reply[min(said, 2)].body)
    return Reply(orjson.dumps(answer | {"created": 0, "model": "m"}))


def evaluated(folder: Path, server: MockServer, *options: str) -> list[dict[str, Any]]:
    client = ("--client.base-url", server.base_url, "--client.api-key-var", "NONE")
    command = [str(Path(sys.executable).with_name("vf-eval")), "irc-env", "-m", "m", *client]
    command += ["--env.agent.runtime.type", "subprocess", "--no-push", "--no-rich"]
    paths = os.pathsep.join((str(ROOT), str(PACKAGE)))
    environ = os.environ | {"PYTHONPATH": paths, "HOME": str(folder)}
    ran = subprocess.run(
        [*command, *options, "-o", str(folder)], env=environ, capture_output=True, cwd=folder
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    [path] = folder.glob("*/traces.jsonl")
    return [orjson.loads(line)["traces"][0] for line in path.read_bytes().splitlines()]


def test_tiers_are_metrics_and_turn_rewards_are_sums(tmp_path: Path) -> None:
    with MockServer(agent) as server:
        traces = evaluated(tmp_path, server, "-n", "3", "-r", "2")
    assert len(traces) == 6 and not any(trace["errors"] for trace in traces)
    assert server.requests[0]["tools"]
    tasks = {task.task_id: task for task in airline_mini().tasks("test")}
    for trace in traces:
        ours, task = trace["info"]["irc_cli"], trace["task"]["data"]
        assert ours["tiers"][1] == "error"
        assert trace["metrics"]["tier/error"] == ours["tiers"].count("error")
        assert sum(trace["metrics"].values()) >= len(ours["tiers"]) == len(ours["rewards"])
        assert trace["info"]["turn_rewards"] == pytest.approx(list(accumulate(ours["rewards"])))
        assert trace["rewards"]["outcome"]["score"] == ours["outcome"]
        assert task["gold_actions"] == list(tasks[task["id"]].gold_actions)
    [path] = tmp_path.glob("*/traces.jsonl")
    episodes = list(open_trace(str(path)))
    assert [len(episode.turns) for episode in episodes] == [
        len(trace["info"]["turn_rewards"]) for trace in traces
    ]
    for episode, trace in zip(episodes, traces, strict=True):
        assert all(call.result is not None for turn in episode.turns for call in turn.calls)
        assert [a.name for a in episode.gold or ()] == [
            action["name"] for action in trace["task"]["data"]["gold_actions"]
        ]


def test_a_calibration_sets_the_rewards(tmp_path: Path) -> None:
    given = tmp_path / "calibration.yaml"
    given.write_text('{"rewards": {"error": -0.5, "message": 0.25}, "tiers": []}')
    with MockServer(agent) as server:
        options = ("--env.taskset.task.calibration", str(given), "-n", "1")
        [trace] = evaluated(tmp_path, server, *options)
    rewards = trace["info"]["irc_cli"]["rewards"]
    assert rewards[:2] == [0.25, -0.5]
