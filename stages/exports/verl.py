"""The inputs of verl's trainer: tasks of an environment as its dataset, and a configuration.

Loading the configuration needs verl and our plugin, `irc_cli.verl`; writing it needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson
import polars as pl

from stages.core.advantages import AdvantageConfig
from stages.core.seeds import derived_seed
from stages.envs.env import Env, Task
from stages.envs.registry import ENVS
from stages.settings import Setting
from stages.tables.table import Table
from stages.tiers.file import SHIPPED

INPUT, TRAINING = "Input", "Training"  # panels of the help
NAME = "irc"  # of our estimator and our agent loop

DATASET = Table(
    name="verl dataset",
    columns={
        "data_source": pl.String(),  # the environment
        # The opening of an episode; in the agent loop's episodes the user may phrase it otherwise.
        "prompt": pl.List(pl.Struct({"role": pl.String(), "content": pl.String()})),
        # Gold actions as JSON, because their arguments differ from task to task.
        "reward_model": pl.Struct({"style": pl.String(), "ground_truth": pl.String()}),
        "extra_info": pl.Struct(
            {
                "index": pl.Int64(),  # of the row
                "env": pl.String(),
                "split": pl.String(),
                "task_id": pl.String(),
                "domain": pl.String(),
            }
        ),
    },
    key=("extra_info",),
    made_by="irc-cli export verl",
)


@dataclass(frozen=True)
class VerlConfig:
    """The part of verl's configuration that we set; the rest can be set at launch."""

    model: Annotated[str, Setting("Policy to start from.", INPUT, metavar="DIR|NAME")]
    env: Annotated[str, Setting("Environment to train on.", INPUT, metavar="|".join(ENVS))]
    calibration: Annotated[
        str | None,
        Setting(
            "Calibration with the value of each tier; default: the rewards of --tiers.",
            INPUT,
            metavar="FILE",
        ),
    ] = None
    tiers: Annotated[
        str,
        Setting(f"Tiers: {', '.join(SHIPPED)} or a file.", INPUT, metavar="NAME|FILE.yaml"),
    ] = "extended"
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    group_size: Annotated[int, Setting("Episodes per task.", TRAINING, low=1, metavar="G")] = 8
    batch_size: Annotated[
        int, Setting("Tasks per optimizer step.", TRAINING, low=1, option="tasks-per-step")
    ] = 32
    max_turns: Annotated[
        int, Setting("Maximum messages of the policy per episode.", TRAINING, low=1)
    ] = 30
    max_tokens: Annotated[
        int, Setting("Maximum tokens per message of the policy.", TRAINING, low=1)
    ] = 512
    gpus: Annotated[int, Setting("Number of GPUs of the machine.", TRAINING, low=1)] = 8


def dataset(environment: Env, split: str, tasks: Iterable[Task]) -> pl.DataFrame:
    """Return a row for each task (DATASET).

    Args:
        environment: an environment with a scripted user.
        split: split of the tasks.
        tasks: tasks of the split, all or some.
    """
    rows = [_row(environment, split, index, task) for index, task in enumerate(tasks)]
    return DATASET.frame({name: [row[name] for row in rows] for name in DATASET.columns})


def _row(environment: Env, split: str, index: int, task: Task) -> dict[str, Any]:
    messages = environment.reset(task, derived_seed(0, task.task_id, 0)).messages
    return {
        "data_source": environment.name,
        "prompt": [{key: message[key] for key in ("role", "content")} for message in messages],
        "reward_model": {
            "style": "rule",
            "ground_truth": orjson.dumps(task.gold_actions).decode(),
        },
        "extra_info": {
            "index": index,
            "env": environment.name,
            "split": split,
            "task_id": task.task_id,
            "domain": environment.name.removeprefix("tau2-"),
        },
    }


def agent_loops(config: VerlConfig) -> list[dict[str, Any]]:
    """Return verl's configuration of our agent loop."""
    loop = {"name": NAME, "_target_": "irc_cli.verl.agent_loop.WorldLoop"}
    return [loop | {"max_turns": config.max_turns, "max_tokens": config.max_tokens}]


def trainer_config(config: VerlConfig, folder: Path) -> dict[str, Any]:
    """Return the differences from verl's `ppo_trainer` configuration, for hydra.

    Args:
        config: our part of the configuration.
        folder: folder of train.parquet, val.parquet and agent.yaml; an absolute path, because
            Ray's workers may run anywhere.
    """
    calibration = config.calibration and str(Path(config.calibration).absolute())
    reward_kwargs: dict[str, Any] = {"calibration": calibration, "tiers": config.tiers}
    if config.advantage.estimator == "potential":
        reward_kwargs["potential"] = True
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "data": {
            "train_files": str(folder / "train.parquet"),
            "val_files": str(folder / "val.parquet"),
            "train_batch_size": config.batch_size,
            "max_prompt_length": 8192,
            "max_response_length": 16384,
        },
        "algorithm": {"adv_estimator": NAME, NAME: asdict(config.advantage)},
        "actor_rollout_ref": {
            "model": {"path": config.model},
            "actor": {
                "ppo_mini_batch_size": config.batch_size,
                "use_dynamic_bsz": True,
                "ppo_max_token_len_per_gpu": 24576,  # room for the longest episode
                "clip_ratio_low": 0.2,
                "clip_ratio_high": 0.28,
                "loss_agg_mode": "token-mean",
                "use_kl_loss": False,
                "optim": {"lr": 1e-6},
            },
            "rollout": {
                "name": "vllm",
                "n": config.group_size,
                "tensor_model_parallel_size": 1,
                "agent": {
                    "default_agent_loop": NAME,
                    "agent_loop_config_path": str(folder / "agent.yaml"),
                },
            },
        },
        "reward": {
            "custom_reward_function": {
                "path": "pkg://irc_cli.verl.reward",
                "name": "compute_score",
                "reward_kwargs": reward_kwargs,
            },
        },
        "trainer": {
            "project_name": "irc-cli",
            "experiment_name": config.env,
            "logger": ["console"],
            "n_gpus_per_node": config.gpus,
            "test_freq": 10,
            "save_freq": 10,
        },
    }
