"""TRL's GRPOTrainer with one advantage per turn instead of one per completion.

TRL's loss takes advantages of shape [B, T]. The tool mask shows the turns: each run of tokens that
the model wrote is one. Sampling, the loss and the optimizer are TRL's.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer
from trl.chat_template_utils import add_response_schema

from irc_cli.trl.environment import Dialogue
from irc_cli.trl.turns import Completion, TurnAdvantages
from stages.core.advantages import AdvantageConfig
from stages.core.correlation import Floats
from stages.errors import InputError
from stages.messages.renderer import Renderer
from stages.messages.template import Template


class TurnGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # untyped
    """GRPOTrainer with the advantages of `irc-cli train`, one per turn.

    The outcome of a completion is the weighted sum of TRL's rewards: those of `reward_funcs` and of
    the environment's `get_reward`. Turns are scored by columns of the dataset: `gold_actions` and,
    if it has them, `tools`, `domain` and `task_id`.

    Args:
        args: TRL's own.
        calibration: a calibration.yaml, "online", or None; see `TurnAdvantages`.
        tiers: extended, paper, flat, goldless, or a YAML file of tiers.
        advantage: settings of the estimator; None: those of `irc-cli train`.
        kwargs: TRL's own.

    Raises:
        InputError: the calibration can't be read, or lacks the critic that the estimator needs.
    """

    def __init__(
        self,
        *args: Any,
        calibration: str | None = None,
        tiers: str = "extended",
        advantage: AdvantageConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.turns = TurnAdvantages(calibration, tiers=tiers, advantage=advantage)
        if kwargs.get("environment_factory") and kwargs.get("processing_class"):
            _with_calls(kwargs["processing_class"])
        super().__init__(*args, **kwargs)
        if self.environment_factories is not None:
            for name, [probe, *_] in self._environment_pool.items():
                if isinstance(probe, Dialogue):
                    self._env_tools[name] = probe._tools
        self._by_turn: list[Floats] = []  # advantages of this process's last completions
        self._chat: Any = None  # the Renderer of the last dialogues

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:  # an evaluation has no groups to compare
            mask = output["completion_mask"] * output.get("tool_mask", 1)
            output["advantages"] = per_token(mask, self._by_turn)
        return output

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        if self.model.training:
            if isinstance(prompts[0], str):
                what, todo = "prompts that are text", "give lists of messages"
                raise InputError("train_dataset", what, todo)
            known = (~rewards.isnan()).any(dim=1).tolist()
            totals = (rewards * self.reward_weights.to(rewards)).nansum(dim=1).tolist()
            talks = gather_object(list(zip(inputs, prompts, completions, strict=True)))
            batch = [
                Completion(
                    [*prompt, *completion],
                    sum(message["role"] == "assistant" for message in completion),
                    _outcome(totals[place]) if known[place] else None,
                    place // self.num_generations,
                    row,
                )
                for place, (row, prompt, completion) in enumerate(talks)
            ]
            mine = self.accelerator.process_index * len(prompts)
            self._by_turn = self.turns(batch)[mine : mine + len(prompts)]
        return rewards

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if not self._in_dialogue():
            return super()._tokenize_prompts(prompts)
        self._chat = Renderer(self._tokenizer)
        ids = [
            self._chat.prompt(str(place), prompt, self.environments[place]._tools).ids
            for place, prompt in enumerate(prompts)
        ]
        return ids, None, {}

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its completion may have."""
        if self.use_vllm and self.vllm_mode == "colocate":
            return int(self.vllm_generation.llm.llm_engine.model_config.max_model_len)
        return int(self.model.config.get_text_config().max_position_embeddings)

    def _in_dialogue(self) -> bool:
        return bool(self.environments) and all(isinstance(e, Dialogue) for e in self.environments)

    def _tool_call_loop(
        self,
        prompts: list[Any],
        prompt_ids: list[list[int]],
        completion_ids: list[list[int]],
        completions: list[Any],
        logprobs: list[list[float]] | None,
        *multimodal: Any,
    ) -> Any:
        """Continue the episodes from their first messages; a dialogue, until its user ends it."""
        if not self._in_dialogue():
            return super()._tool_call_loop(
                prompts, prompt_ids, completion_ids, completions, logprobs, *multimodal
            )
        talks = [
            _Talk(self, place, prompts[place], prompt_ids[place]) for place in range(len(prompts))
        ]
        said, measured, live = completion_ids, logprobs or [], talks
        for turn in range(self.max_tool_calling_iterations + 1):
            for place, talk in enumerate(live):
                talk.say(said[place], measured[place] if measured else [])
            more = turn < self.max_tool_calling_iterations
            live = [talk for talk in live if more and talk.hear()]
            if not live:
                break
            prompts_so_far = [talk.prompt for talk in live]
            said, logs = self._generate_single_turn(prompts_so_far, None, {}, num_generations=1)
            measured = logs or []
        return (
            [talk.mask for talk in talks],
            [talk.messages for talk in talks],
            [talk.ids for talk in talks],
            logprobs and [talk.logprobs for talk in talks],
            sum(talk.calls for talk in talks),
            sum(talk.failures for talk in talks),
            [[] for _ in talks],
        )


class _Talk:
    """A completion in progress, as messages and as tokens."""

    def __init__(
        self, trainer: TurnGRPOTrainer, place: int, opening: list[Any], prompt: list[int]
    ) -> None:
        self._chat, self._env = trainer._chat, trainer.environments[place]
        self._name, self._opening = str(place), opening
        self._room = min(trainer.max_completion_length, trainer.context - len(prompt) - 1)
        self._first = len(prompt)
        self.prompt = prompt  # token ids of the next message's prompt
        self.messages: list[Any] = []
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.calls = self.failures = 0

    def say(self, ids: list[int], logprobs: list[float]) -> None:
        """Append a sampled message, cut to the remaining room."""
        ids = ids[: self._room - len(self.ids)]
        self.messages.append(self._chat.answer(self._name, ids, self._env._tools))
        self.ids += ids
        self.mask += [1] * len(ids)
        self.logprobs += logprobs[: len(ids)]

    def hear(self) -> bool:
        """Append the environment's answers; return whether the episode continues."""
        answers, goes_on = self._env._take(self.messages[-1])
        calls = [message for message in answers if message["role"] == "tool"]
        self.calls += len(calls)
        self.failures += sum(str(message["content"]).startswith("Error") for message in calls)
        self.messages += answers
        if not goes_on:
            return False
        messages = [*self._opening, *self.messages]
        prompt = self._chat.prompt(self._name, messages, self._env._tools)
        if not prompt.appended:
            what = "the chat template rewrites what stood before"
            raise InputError(
                "irc_cli.trl", what, "use one that only appends: TRL takes one sequence"
            )
        if len(prompt.ids) - self._first >= self._room:
            return False
        heard = prompt.ids[self._first + len(self.ids) :]
        self.ids += heard
        self.mask += [0] * len(heard)
        self.logprobs += [0.0] * len(heard)
        self.prompt = prompt.ids
        return True


def per_token(mask: torch.Tensor, by_turn: list[Floats]) -> torch.Tensor:
    """Return the advantage of each token: that of its turn.

    Args:
        mask: 1 on the tokens that the model wrote, [B, T]; each run of them is a turn.
        by_turn: advantages of the turns of each completion, B times [K].

    Returns:
        Shape [B, T], float32, 0 where the model did not write.

    Raises:
        ValueError: there are not as many runs of tokens as turns.
    """
    written = mask.bool().cpu().numpy()
    begins = written & ~np.pad(written, ((0, 0), (1, 0)))[:, :-1]
    advantages = np.zeros(written.shape, np.float32)
    for row, (tokens, starts, turns) in enumerate(zip(written, begins, by_turn, strict=True)):
        if tokens.any() and starts.sum() != len(turns):  # none: TRL masks truncated completions
            raise ValueError(f"{starts.sum()} runs of tokens, but {len(turns)} turns")
        advantages[row, tokens] = turns[(np.cumsum(starts) - 1)[tokens]]
    return torch.from_numpy(advantages).to(mask.device)


def _outcome(total: float) -> float:
    if not -1e-6 <= total <= 1 + 1e-6:
        what = f"an outcome of {total:g}: TRL's weighted rewards add up to it"
        raise InputError(
            "reward_funcs", what, "give reward_funcs and weights that make one in [0, 1]"
        )
    return min(max(total, 0.0), 1.0)


def _with_calls(tokenizer: Any) -> None:
    """Make TRL parse calls in Hermes form if it does not know the tokenizer's template."""
    if getattr(tokenizer, "response_template", None) is not None:
        return
    try:
        add_response_schema(tokenizer)
    except ValueError:
        template, opening = Template(tokenizer), [{"role": "user", "content": "hello"}]
        begins = template.render(opening, [], prompt=True)
        tokenizer.response_template = {
            "defaults": {"role": "assistant"},
            "start_anchor": begins.removeprefix(template.render(opening, [], prompt=False)),
            "fields": {
                "tool_calls": {
                    "open": "<tool_call>",
                    "close_pattern": r"</tool_call>\s*",
                    "repeats": True,
                    "content": "json",
                    "transform": {"type": "function", "function": "{content}"},
                },
                "content": {"close_pattern": re.escape(template.end), "content": "text"},
            },
        }
