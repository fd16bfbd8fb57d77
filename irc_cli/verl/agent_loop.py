"""Our environments as an agent loop of verl: its engine plays them as `irc-cli rollout` does.

In verl's configuration: an entry {name: irc, _target_: irc_cli.verl.agent_loop.WorldLoop} in the
file of `actor_rollout_ref.rollout.agent.agent_loop_config_path`. An episode whose user fails raises
an error, and verl leaves its group out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import orjson
import torch
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from stages.envs.env import Env, Task
from stages.envs.registry import open_env
from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.renderer import Renderer
from stages.policies.policy import Action, ContextOverflowError, Sampling
from stages.rollout import Config, Pair, Played, Run, play_episode
from stages.tables.artifacts import TOKENS
from stages.training.sequences import sequences

VERSIONS = ("min_global_steps", "max_global_steps")  # of the weights that played an episode


class TurnOutput(AgentLoopOutput):
    """An episode in verl's form, with a reward per turn beside the outcome."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that verl's trainer reads, with turn rewards in `rm_scores`.

        verl puts the score on the last token, which the policy did not write. The reward of each
        turn goes to its last token, as `irc_cli.verl.plugin` expects.

        Raises:
            ValueError: there are not as many turns as rewards.
        """
        fields: dict[str, Any] = super().as_dict()
        if "rm_scores" in fields:
            rewards = orjson.loads(self.extra_fields["reward_extra_info"]["turn_rewards"])
            mask = fields["response_mask"]
            ends = torch.nonzero(mask[:-1] > mask[1:]).ravel()
            if len(ends) != len(rewards):
                raise ValueError(f"{len(ends)} turns of tokens, but {len(rewards)} of messages")
            fields["rm_scores"][ends] = torch.tensor(rewards, dtype=torch.float32)
        return fields


class WorldLoop(AgentLoopBase):  # type: ignore[misc]  # untyped
    """Plays a task of an environment with its scripted user.

    Args:
        max_turns: most assistant messages per episode.
        max_tokens: most tokens per assistant message.
        args: verl's own.
        kwargs: verl's own.
    """

    def __init__(
        self, *args: Any, max_turns: int = 30, max_tokens: int = 512, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._max_turns, self._max_tokens = max_turns, max_tokens

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> TurnOutput:
        """Play an episode.

        Args:
            sampling_params: temperature and the like, for the engine.
            kwargs: fields of the dataset; and verl's `uid`, `session_id` and `global_steps`, from
                which the user's seed derives.

        Raises:
            InputError: the first prompt is too long, or the chat template rewrites history.
            RuntimeError: the user failed.
        """
        info = kwargs["extra_info"]
        environment = _environment(info["env"])
        policy = EnginePolicy(self, sampling_params)
        sampling = Sampling(max_tokens=self._max_tokens)
        config = Config(
            max_turns=self._max_turns, seed=int(kwargs["global_steps"]), sampling=sampling
        )
        run = Run(str(kwargs["uid"]), environment, policy, config, policy_name="verl")
        pair = Pair(_tasks(info["env"], info["split"])[info["task_id"]], int(kwargs["session_id"]))
        played = await play_episode(run, pair)
        if played.row["status"] == "error":
            raise RuntimeError(f"episode '{played.row['episode_id']}': {played.row['ended']}")
        return output_of(played, self.tokenizer.eos_token_id, policy.versions)


class EnginePolicy:
    """verl's engine as a policy, for one episode.

    Attributes:
        versions: versions of the weights, if the engine reports them.
    """

    def __init__(self, loop: WorldLoop, sampling_params: Mapping[str, Any]) -> None:
        self.versions: dict[str, Any] = {}
        self._engine = loop.server_manager
        self._sampling = sampling_params
        self._chat = Renderer(loop.tokenizer)
        self._most_prompt = loop.rollout_config.prompt_length
        self._most_response = loop.rollout_config.response_length
        self._first: int | None = None  # tokens of the first prompt

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the next message; see `Policy`. verl's engine takes no seed."""
        prompt = self._chat.prompt(episode_id, messages, tools).ids
        if self._first is None:
            self._first = len(prompt)
            if self._first > self._most_prompt:
                what = f"a first prompt has {self._first:,} tokens"
                raise InputError("data.max_prompt_length", what, "give more")
        # One position is reserved for the token that carries the outcome.
        room = self._most_response - 1 - (len(prompt) - self._first)
        if room <= 0:
            raise ContextOverflowError
        params = {**self._sampling, "max_tokens": min(sampling.max_tokens, room)}
        output = await self._engine.generate(
            request_id=episode_id, prompt_ids=prompt, sampling_params=params
        )
        self._note(output.extra_fields)
        message = self._chat.answer(episode_id, output.token_ids, tools)
        return Action(message, prompt, output.token_ids, output.log_probs)

    async def close(self) -> None:
        """Do nothing: the engine belongs to verl."""

    def _note(self, known: Mapping[str, Any]) -> None:
        least, most = VERSIONS
        if least in known:
            self.versions.setdefault(least, known[least])
        if most in known:
            self.versions[most] = known[most]


def output_of(played: Played, closing: int, versions: Mapping[str, Any]) -> TurnOutput:
    """Return an episode in verl's form: a prompt, and a response that holds all turns.

    Args:
        played: the episode, with tokens.
        closing: id of a token appended to the last turn to carry the outcome; the response mask
            excludes it from the loss.
        versions: versions of the weights.

    Raises:
        InputError: the chat template rewrites history, so that the episode is several sequences.
    """
    row = played.row
    table = TOKENS.frame({name: [row[name] for row in played.tokens] for name in TOKENS.columns})
    sequence, *more = sequences(table)
    if more:
        what = f"episode '{row['episode_id']}' is {1 + len(more)} sequences of tokens"
        raise InputError("the chat template", what, "use one that only appends: verl takes one")
    begin = int(np.argmax(sequence.written))
    written, logprobs = sequence.written[begin:], sequence.logprobs[begin:]
    known = not np.isnan(logprobs[written]).any()
    return TurnOutput(
        prompt_ids=sequence.token_ids[:begin].tolist(),
        response_ids=[*sequence.token_ids[begin:].tolist(), closing],
        response_mask=[*written.astype(int).tolist(), 0],
        response_logprobs=[*np.nan_to_num(logprobs).tolist(), 0.0] if known else None,
        num_turns=sum(message["role"] != "system" for message in row["messages"]),
        metrics=AgentLoopMetrics(generate_sequences=sum(played.timing["turn_seconds"])),
        extra_fields={**versions, "messages": row["messages"], "outcome": row["outcome"]},
    )


@cache
def _environment(name: str) -> Env:
    return open_env(name)


@cache
def _tasks(name: str, split: str) -> dict[str, Task]:
    return {task.task_id: task for task in _environment(name).tasks(split)}
