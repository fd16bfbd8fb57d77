"""The training examples of a run (rollouts or messages -> weighted examples)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from stages.core.advantages import AdvantageConfig
from stages.errors import InputError
from stages.messages.renderer import Renderer
from stages.train import TierCodes, engine_measures_otherwise
from stages.training.config import TrainConfig
from stages.training.examples import Demonstration, focused, reinforced, supervised
from stages.training.inputs import Rollouts, played_advantages, recorded_tools
from stages.training.material import Material, TrainFiles, Uses
from stages.training.model import learner, load_model, packable
from stages.training.sequences import Example, check, without_engine
from stages.training.trainer import Trainer

Watch: TypeAlias = Callable[[list[Demonstration]], Iterable[Demonstration]]  # shows progress


class Lesson(NamedTuple):
    """The examples of a run, with their tiers and counts."""

    examples: list[Example]
    tiers: TierCodes
    counts: dict[str, int]  # numbers of groups or conversations, and of what was left out

    @property
    def summary(self) -> str:
        """A one-line summary."""
        tokens = sum(len(example.at) for example in self.examples)
        parts = [f"{len(self.examples):,} sequences, {tokens:,} tokens to learn"]
        parts += [f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items()]
        return "; ".join(parts)

    @property
    def notes(self) -> Counter[str]:
        """Counts of what was left out or guessed."""
        texts = {
            "dropped_groups": "groups without advantages",
            "retokenised_episodes": "episodes tokenized again, for their tokens are unknown",
        }
        counts = {text: self.counts.get(name, 0) for name, text in texts.items()}
        return Counter({text: count for text, count in counts.items() if count})

    def focused(self, values: dict[str, float]) -> Lesson:
        """Restrict the lesson to turns whose tier has a value.

        Raises:
            InputError: no turn is left.
        """
        examples = focused(self.examples, self.tiers.names, values)
        if not examples:
            raise InputError("--only-valued", "no tier is worth anything", "leave it out")
        return self._replace(examples=examples)

    def check(self, model: Any, where: str) -> None:
        """Raise InputError if a token is not in the model's vocabulary."""
        vocabulary = model.get_input_embeddings().weight.shape[0]
        check((example.sequence for example in self.examples), vocabulary, where)


def lesson_of(
    material: Material,
    files: TrainFiles,
    uses: Uses,
    advantages: AdvantageConfig,
    chat: Renderer | None,
    watch: Watch,
) -> Lesson:
    """Return the lesson from the rollouts, or else from the messages.

    Args:
        material: content of the input files.
        files: paths of the input files.
        uses: which turns count.
        advantages: the estimator.
        chat: renderer that tokenizes messages; None only if all tokens are recorded.
        watch: shows the progress of tokenization.

    Returns:
        The lesson.

    Raises:
        InputError: there is nothing to learn.
    """
    if material.played is None or material.scored is None:
        return supervised_lesson(material.talks, str(files.sft), chat, watch)
    lesson = _reinforced(material.played, material, advantages, chat, str(files.turns))
    if uses.only_valued and material.values is not None:
        return lesson.focused(material.values)
    return lesson


def _reinforced(
    played: Rollouts,
    material: Material,
    advantages: AdvantageConfig,
    chat: Renderer | None,
    turns: str,
) -> Lesson:
    """Give each token of the rollouts the advantage of its turn."""
    assert material.scored is not None
    table = material.weighed
    if table is None:
        table = played_advantages(played, material.scored, material.values, advantages, turns)
    lesson = reinforced(played.episodes, played.tokens, table, played.tools, chat, played.path)
    counts = {
        "groups": lesson.groups,
        "dropped_groups": lesson.dropped_groups,
        "retokenised_episodes": lesson.retokenised,
    }
    return Lesson(lesson.examples, TierCodes(lesson.tiers, material.values or {}), counts)


def supervised_lesson(
    records: list[dict[str, Any]], path: str, chat: Renderer | None, watch: Watch
) -> Lesson:
    """Return the lesson of supervised fine-tuning, with equal weights on all assistant tokens.

    Args:
        records: conversations.
        path: path of the conversations.
        chat: renderer that tokenizes messages.
        watch: shows the progress of tokenization.

    Returns:
        The lesson.

    Raises:
        InputError: there is no assistant message.
    """
    assert chat is not None
    tools = recorded_tools(path)
    talks = [
        Demonstration(str(number), record["messages"], record.get("tools") or tools)
        for number, record in enumerate(records)
    ]
    examples = supervised(watch(talks), chat)
    if not examples:
        what = "nothing to learn: no message of an assistant"
        raise InputError(path, what, "give other messages")
    return Lesson(examples, TierCodes([], {}), {"conversations": len(records)})


def prompt_notes(chat: Renderer, material: Material, path: str) -> list[str]:
    """Return notes on how the prompt describes the tools when messages are tokenized.

    Args:
        chat: renderer that tokenizes messages.
        material: content of the input files.
        path: path of the rollouts or messages, beside which tools may be recorded.

    Returns:
        Notes for the user.

    Raises:
        InputError: the prompts of the rollouts described the tools in another way.
    """
    talks = [*material.talks, *material.held_out]
    tools = next((talk["tools"] for talk in talks if talk.get("tools")), recorded_tools(path))
    told, played = chat.template.told(tools), material.played
    if played and played.prompt.get("tools") not in (None, "server", told.record["tools"]):
        what = f"the policy got its tools from the {played.prompt['tools']}, and would now get them"
        what += f" from the {told.record['tools']}"
        raise InputError(played.path, what, "give the chat template that it was played with")
    return told.notes


def comparable(
    trainer: Trainer, lesson: Lesson, config: TrainConfig, notes: Counter[str]
) -> Lesson:
    """Drop the engine's logprobs if they are not those of the sampling distribution.

    Args:
        trainer: trainer with the weights that were sampled from.
        lesson: the lesson.
        config: settings of training.
        notes: counter of notes, updated in place.

    Returns:
        The lesson, without the engine's logprobs if they are not usable.

    Raises:
        InputError: they are not usable, and `old_logprobs` is engine.
    """
    reading = engine_measures_otherwise(trainer, lesson.examples, config)
    if reading is None:
        return lesson
    what = f"the engine's logprobs are those of {reading}, not of what was sampled"
    if config.old_logprobs == "engine":
        todo = "use trainer, or serve with '--logprobs-mode processed_logprobs'"
        raise InputError("--old-logprobs", what, todo)
    if config.loss.tis_cap:
        notes[f"{what}; left out, as are importance weights"] += 1
    return lesson._replace(examples=[without_engine(example) for example in lesson.examples])


def reference_model(
    reference: str | None, lesson: Lesson, trainer: Trainer, config: TrainConfig
) -> Trainer | None:
    """Load the reference model of the KL.

    Args:
        reference: folder or name of the model; None: the starting policy.
        lesson: its tokens are checked against the model's vocabulary.
        trainer: sets the precision.
        config: settings of training.

    Returns:
        The reference; None if there is no KL, or if it is the starting policy.
    """
    if reference is None or not config.loss.kl:
        return None
    model, _ = load_model(reference)
    lesson.check(model, reference)
    fits = packable(model)
    return Trainer.of(learner(model), config, packable=fits, bf16=trainer.bf16)
