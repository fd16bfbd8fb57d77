"""A batch as verl makes it, without GPUs.

verl's dataset, agent loop worker, reward manager, batches and trainer are its own here. Stand-ins
are the engine, which repeats recorded episodes; Ray's calls, which stay in this process; and the
TransferQueue, which is a dictionary.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson
import pytest
import torch
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo import padding_utils
from verl.trainer.ppo.v1 import agent_loop_tq, trainer_base
from verl.utils import hf_tokenizer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.rollout.replica import TokenOutput

from stages.envs.airline_mini import airline_mini
from stages.envs.airline_mini.expert import Expert
from stages.messages.message import Message
from stages.messages.renderer import Renderer
from stages.policies.policy import Action, Sampling
from stages.rollout import Config, Played, Run, plan, play_episode
from tests.conftest import exit_code

SEED_POLICY = Path(__file__).parents[2] / "data/seed_policy"
TASKS, GROUP, STEP = 6, 4, 3  # the step settles how users speak
FILL = 32  # rows of a batch that verl fills up

Worker: Any = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class


class Dictated:
    """A slipping expert whose messages are written in a model's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.chat, self.expert = Renderer(tokenizer), Expert(noise=0.24)

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        prompt = self.chat.prompt(episode_id, messages, tools)
        message = self.expert(messages, Random(seed))
        ids = self.chat.recorded(episode_id, [*messages, message], tools)
        return Action(message, prompt.ids, ids, [-0.5] * len(ids))

    async def close(self) -> None: ...


class Engine:
    """Repeats what was recorded, if it is asked the same."""

    def __init__(self, episodes: Sequence[Played]) -> None:
        self.waiting = {one.row["episode_id"]: deque(one.tokens) for one in episodes}
        self.seen: dict[str, list[int]] = {}

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> TokenOutput:
        turn = self.waiting[request_id].popleft()
        before = self.seen.get(request_id, []) if turn["appended"] else []
        assert prompt_ids == before + turn["prompt_ids"]
        assert len(turn["token_ids"]) <= sampling_params["max_tokens"]
        self.seen[request_id] = prompt_ids + turn["token_ids"]
        versions = {"min_global_steps": STEP, "max_global_steps": STEP}
        return TokenOutput(
            token_ids=turn["token_ids"], log_probs=turn["logprobs"], extra_fields=versions
        )


class Queue:
    """A TransferQueue without its servers."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, dict[str, Any]] = {}

    def init(self) -> None: ...

    def kv_batch_put(
        self, keys: list[str], partition_id: str, fields: Any = None, tags: Any = None
    ) -> KVBatchMeta:
        for i, key in enumerate(keys):
            if fields is not None:
                names = list(fields.keys())  # iterating a TensorDict gives its rows
                row = {name: tu.get(fields, name)[i] for name in names}
                self.rows[key] = self.rows.get(key, {}) | row
            if tags is not None:
                self.tags[key] = tags[i]
        return KVBatchMeta(keys=keys, tags=[self.tags[key] for key in keys], partition_id="train")

    async def async_kv_batch_put(self, **rest: Any) -> None:
        self.kv_batch_put(**rest)

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        assert tag["status"] != "failure"

    def kv_batch_get(
        self, keys: list[str], partition_id: str, select_fields: Sequence[str] | None = None
    ) -> TensorDict:
        rows = [self.rows[key] for key in keys]
        names = [name for name in select_fields or rows[0] if name in rows[0]]
        return tu.list_of_dict_to_tensordict([{name: row[name] for name in names} for row in rows])


class Exported(NamedTuple):
    """What `irc-cli export verl` wrote, as verl reads it."""

    folder: Path
    config: Any
    tokenizer: Any
    dataset: Any


class Batch(NamedTuple):
    """A batch of episodes in verl's queue, and what we know of the same episodes."""

    queue: Queue
    meta: Any
    exported: Exported
    turns: Path


def export(calibration: Path, folder: Path) -> Exported:
    """Export the first tasks, and read them as verl does."""
    options = ("--env", "airline-mini", "--model", SEED_POLICY, "--calibration", calibration)
    sizes = ("--max-tasks", TASKS, "--tasks-per-step", TASKS, "--group-size", GROUP, "--gpus", 1)
    assert exit_code(["export", "verl", *map(str, (*options, *sizes, "-o", folder))]) == 0
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("irc", [f"+data.cache_dir={folder}/verl"])
    tokenizer = hf_tokenizer(config.actor_rollout_ref.model.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        dataset = RLHFDataset(config.data.train_files, tokenizer, config.data)
    return Exported(folder, config, tokenizer, dataset)


def play(exported: Exported, calibration: Path, folder: Path) -> Batch:
    """Play episodes of all tasks of the dataset, in verl and without it."""
    torch.set_num_threads(1)
    recorded = asyncio.run(_record(exported.tokenizer))
    rollouts, turns = folder / "rollouts.jsonl", folder / "turns.parquet"
    rollouts.write_bytes(b"".join(orjson.dumps(one.row) + b"\n" for one in recorded))
    score = ["score", rollouts, "--rewards", calibration, "-o", turns, "--quiet"]
    assert exit_code([*map(str, score)]) == 0
    queue = Queue()
    with pytest.MonkeyPatch.context() as patch:
        for module in (agent_loop_tq, trainer_base, padding_utils):
            patch.setattr(module, "tq", queue)
        asyncio.run(_play(exported, Engine(recorded)))
        keys = [*queue.rows]
        meta = KVBatchMeta(keys, [queue.tags[key] for key in keys], "train")
        meta = padding_utils.upsample_batch_to_divisible_size(meta, FILL, 0)
    for row in queue.rows.values():  # what the actor would have found
        row["old_log_probs"] = row["rollout_log_probs"]
    return Batch(queue, meta, exported, turns)


async def _record(tokenizer: Any) -> list[Played]:
    environment, config = airline_mini(), Config(group_size=GROUP, max_turns=30, seed=STEP)
    policy = Dictated(tokenizer)
    return [
        await play_episode(Run(f"uid-{i}", environment, policy, config, "dictated"), pair)
        for i, task in enumerate(environment.tasks("train")[:TASKS])
        for pair in plan([task], GROUP)
    ]


async def _play(exported: Exported, engine: Engine) -> None:
    """Have verl's worker play the dataset, as its trainer asks it to."""
    rewards = RewardLoopWorker(exported.config)

    async def score(data: Any) -> Any:
        return await rewards.compute_score(deepcopy(data))  # Ray would send a copy, too

    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=score))
    worker = Worker(exported.config, engine, reward_loop_worker_handles=[handle])
    rows = collate_fn([exported.dataset[i] for i in range(TASKS)])
    rows["uid"] = [f"uid-{i}" for i in range(TASKS)]
    prompts = tu.get_tensordict(rows)
    tu.assign_non_tensor_data(prompts, "global_steps", STEP)
    await worker.generate_sequences(prompts)
    await asyncio.gather(*worker.background_tasks)
