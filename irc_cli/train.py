"""`irc-cli train`: rollouts, turns and a calibration in, a better policy out."""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast, get_args

import polars as pl
import typer
from rich.live import Live

from irc_cli import console, estimator, options
from irc_cli.extras import LEARNING, PLANNING, needs
from irc_cli.notes import Strict, check_notes, show_notes
from stages.core.advantages import AdvantageConfig
from stages.core.payment import Values
from stages.errors import InputError
from stages.messages.renderer import Renderer
from stages.tables.artifacts import TURNS, read_table
from stages.tables.files import digest
from stages.training.config import (
    Aggregation,
    LossConfig,
    Old,
    Scale,
    Schedule,
    TrainConfig,
)
from stages.training.examples import Demonstration, focused, reinforced, supervised
from stages.training.inputs import (
    Rollouts,
    check_lineage,
    check_precision,
    other_turns,
    played_advantages,
    read_conversations,
    read_rollouts,
    read_values,
    recorded_tools,
)
from stages.training.sequences import Example, check

if TYPE_CHECKING:
    from stages.train import Known, OptimizerStep, TierCodes
    from stages.training.folder import RunFolder
    from stages.training.trainer import Trainer

_T, _L = TrainConfig, LossConfig
_SCHEDULES, _SCALES, _OLD = get_args(Schedule), get_args(Scale), get_args(Old)
_AGGREGATIONS = get_args(Aggregation)
ABOVE_ONE = math.nextafter(1, 2)
_ROWS = 12  # of the live table
_SHOWN = ("loss", "entropy", "policy_kl", "clip_high_share", "grad_norm", "advantage_rms")


def command(
    model: Annotated[str, typer.Option(metavar="DIR|NAME", help="The policy to start from.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder to write the policy to."),
    ] = None,
    rollouts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Episodes that the policy played.")
    ] = None,
    turns: Annotated[
        str | None, typer.Option(metavar="FILE", help="Their turns, of irc-cli score.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="What each tier is worth; else the rewards in the turns count."
        ),
    ] = None,
    sft: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Instead: learn the assistant's part of these messages."),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Messages held out from --sft: the checkpoint that tells them best is the policy.",
        ),
    ] = None,
    advantage: estimator.Advantage = estimator.DEFAULT.estimator,
    gamma: estimator.Gamma = estimator.DEFAULT.gamma,
    outcome_weight: estimator.OutcomeWeight = estimator.DEFAULT.outcome_weight,
    normalise: estimator.Against = estimator.DEFAULT.normalise,
    last_turn_reward: estimator.LastTurnReward = estimator.DEFAULT.last_turn_reward,
    only_valued: Annotated[
        bool,
        typer.Option(
            "--only-valued", help="Learn only from turns whose tier --calibration values."
        ),
    ] = False,
    advantage_scale: Annotated[
        str,
        typer.Option(
            metavar="|".join(_SCALES), help="rms: hold the size of each step's advantages at 1."
        ),
    ] = _T.advantage_scale,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = _T.lr,
    schedule: Annotated[
        str, typer.Option(metavar="|".join(_SCHEDULES), help="Course of the learning rate.")
    ] = _T.schedule,
    warmup: Annotated[
        int, typer.Option(min=0, help="Steps in which the learning rate rises.")
    ] = _T.warmup,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = _T.weight_decay,
    beta2: Annotated[
        float, typer.Option(help="Of AdamW: memory for the size of gradients.")
    ] = _T.beta2,
    max_grad_norm: Annotated[
        float, typer.Option(help="Larger gradients are scaled down to this norm.")
    ] = _T.max_grad_norm,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the episodes.")] = _T.epochs,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Episodes of an optimizer step, about.")
    ] = _T.batch_size,
    pack_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one pass: less takes less memory.")
    ] = _T.pack_tokens,
    clip_low: Annotated[float, typer.Option(help="Ratios below 1 - this learn no more.")] = (
        _L.clip_low
    ),
    clip_high: Annotated[float, typer.Option(help="Ratios above 1 + this learn no more.")] = (
        _L.clip_high
    ),
    dual_clip: Annotated[
        float | None, typer.Option(help="Bound on ratios of negative advantages, above 1.")
    ] = _L.dual_clip,
    kl: Annotated[float, typer.Option(help="Weight of the KL (k3) to the reference.")] = _L.kl,
    reference: Annotated[
        str | None, typer.Option(metavar="DIR|NAME", help="Of the KL; else the starting policy.")
    ] = None,
    entropy: Annotated[float, typer.Option(help="Weight of the entropy bonus.")] = _L.entropy,
    tis_cap: Annotated[
        float, typer.Option(help="Cap of importance weights, engine to trainer; 0: without.")
    ] = 2.0,
    old_logprobs: Annotated[
        str,
        typer.Option(
            metavar="|".join(_OLD), help="Ratios start from the trainer's or the engine's logprobs."
        ),
    ] = _T.old_logprobs,
    aggregation: Annotated[
        str, typer.Option(metavar="|".join(_AGGREGATIONS), help="What counts the same in the loss.")
    ] = _L.aggregation,
    constant_length: Annotated[
        int, typer.Option(min=1, help="Tokens that 'constant' divides an episode by.")
    ] = _L.constant_length,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train adapters of this rank, not all weights.")
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16; weights stay in float32.")
    ] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more time.")
    ] = False,
    keep_optimizer: Annotated[
        bool,
        typer.Option("--keep-optimizer", help="Go on with the optimizer that --model ended with."),
    ] = False,
    off_policy: Annotated[
        bool, typer.Option("--off-policy", help="Another policy may have played the rollouts.")
    ] = False,
    allow_retokenised: Annotated[
        bool,
        typer.Option("--allow-retokenised", help="Tokenize messages whose tokens are unknown."),
    ] = False,
    spike: Annotated[
        float, typer.Option(help="A gradient norm so many times the usual ends the run.")
    ] = _T.spike,
    save_every: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Steps between checkpoints.")
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep.")] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what the run would take; load no weights.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Plan: for so many; else those here.")
    ] = None,
    device_memory: Annotated[
        float | None, typer.Option(metavar="GB", min=0, help="Plan: of each; else as here.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Train a policy on its own episodes, or on messages.

    Example: irc-cli train --model MODEL --rollouts rollouts.jsonl --turns turns.parquet
    --calibration calibration.yaml -o better
    """
    settings = TrainConfig(
        lr=options.within("lr", lr, 0, sys.float_info.max),
        schedule=cast(Schedule, options.one_of("schedule", schedule, _SCHEDULES)),
        warmup=warmup,
        weight_decay=weight_decay,
        beta2=options.within("beta2", beta2, 0, options.BELOW_ONE),
        max_grad_norm=options.within("max-grad-norm", max_grad_norm, 0, math.inf),
        epochs=epochs,
        batch_size=batch_size,
        pack_tokens=pack_tokens,
        advantage_scale=cast(Scale, options.one_of("advantage-scale", advantage_scale, _SCALES)),
        old_logprobs=cast(Old, options.one_of("old-logprobs", old_logprobs, _OLD)),
        spike=options.within("spike", spike, 1, math.inf),
        seed=seed,
        loss=LossConfig(
            clip_low=options.within("clip-low", clip_low, 0, 1),
            clip_high=options.within("clip-high", clip_high, 0, sys.float_info.max),
            dual_clip=dual_clip and options.within("dual-clip", dual_clip, ABOVE_ONE, math.inf),
            kl=options.within("kl", kl, 0, sys.float_info.max),
            entropy=options.within("entropy", entropy, 0, sys.float_info.max),
            tis_cap=options.within("tis-cap", tis_cap, 0, math.inf) or None,
            aggregation=cast(
                Aggregation, options.one_of("aggregation", aggregation, _AGGREGATIONS)
            ),
            constant_length=constant_length,
        ),
    )
    advantages = estimator.chosen(advantage, gamma, outcome_weight, normalise, last_turn_reward)
    if plan:
        needs("irc-cli train --plan", "transformers", *PLANNING)
        if lora_rank:
            needs("--lora-rank", "train", "peft")
        from irc_cli.train_plan import show_plan
        from stages.training.plan import Setup

        setup = Setup(
            settings.pack_tokens,
            bf16,
            gradient_checkpointing,
            lora_rank,
            devices or 0,
            device_memory or 0,
        )
        show_plan(model, reference if kl else None, setup, as_json=as_json)
        return
    if out is None:
        raise InputError("--out", "missing", "give the folder to write the policy to")
    if (sft is None) == (rollouts is None):
        raise InputError("irc-cli train", "what to learn from?", "give --rollouts or --sft")
    if rollouts and turns is None:
        raise InputError("--turns", "missing", "give the turns.parquet of these rollouts")
    if only_valued and not calibration:
        raise InputError("--only-valued", "needs --calibration", "give it, or leave this out")
    if calibration and not rollouts:
        raise InputError("--calibration", "needs --rollouts", "leave it out")
    if dev and not sft:
        raise InputError("--dev", "needs --sft", "leave it out")
    needs("irc-cli train", "train", *LEARNING)
    import torch

    from stages.train import DivergedError, known_logprobs
    from stages.training.checkpoint import set_optimizer_state
    from stages.training.folder import RunFolder, optimizer_of, refuse_existing_run, result_of
    from stages.training.model import learner, load_model, packable, weights_of
    from stages.training.trainer import Trainer

    given = [path for path in (rollouts, turns, calibration, sft, dev) if path]
    refuse_existing_run(out, [model, reference or model, *given], resume=resume, force=force)
    notes = Counter[str]()
    played = read_rollouts(rollouts, notes) if rollouts else None
    if played and not off_policy:
        check_lineage(played, model)
    if played:
        weighted = settings.old_logprobs == "engine" or settings.loss.tis_cap is not None
        check_precision(played, weighted=weighted)
    values = read_values(calibration, turns) if turns else None
    scored = read_table(TURNS, turns) if turns else None
    talks = read_conversations(sft, notes) if sft else []
    held_out = read_conversations(dev, notes) if dev else []
    if played and scored is not None:
        notes += other_turns(played, scored)
    check_notes(notes, strict=strict)
    moments = optimizer_of(model) if keep_optimizer else None
    record = console.made_by(
        "train",
        {"model": model, "reference": reference, "lora_rank": lora_rank, "bf16": bf16}
        | {"keep_optimizer": keep_optimizer, "train": asdict(settings)}
        | {"advantage": asdict(advantages), "only_valued": only_valued},
        seed,
        {path: digest(path) for path in [*given, *weights_of(model)]},
    )
    if resume and (document := result_of(out, record)):
        _report(document, f"{out} is complete", as_json=as_json, quiet=quiet)
        return

    with _told_if_out_of_memory():
        torch.manual_seed(seed)  # of adapters, and of dropout where a model has it
        policy, tokenizer = load_model(model)
        chat = Renderer(tokenizer) if sft or allow_retokenised else None
        if chat:
            tools = recorded_tools(str(sft or rollouts))
            notes.update(_told(chat, played, [*talks, *held_out], tools))
        if played and scored is not None:
            lesson = _reinforced(played, scored, values, advantages, chat, str(turns))
            if only_valued and values is not None:
                lesson = lesson.focused(values)
        else:
            lesson = _supervised(talks, str(sft), chat)
        vocabulary = policy.get_input_embeddings().weight.shape[0]
        check((one.sequence for one in lesson.examples), vocabulary, given[0])
        dev_set = _supervised(held_out, str(dev), chat).examples if dev else []
        console.note(lesson.told, quiet=quiet)  # with the notes of the lesson

        fits = packable(policy)
        model_to_train = learner(
            policy, lora_rank=lora_rank, gradient_checkpointing=gradient_checkpointing
        )
        trainer = Trainer.of(model_to_train, settings, packable=fits, bf16=bf16)
        known = None
        if played:
            lesson = _comparable(trainer, lesson, settings, notes)
        check_notes(notes + lesson.notes, strict=strict)
        if not (quiet or as_json):
            show_notes(notes)
        if played:
            reference_model = _reference_model(reference, lesson, trainer, settings)
            known = known_logprobs(trainer, lesson.examples, reference_model, settings)
        folder = RunFolder(out, main=trainer.accelerator.is_main_process)
        if moments is not None:
            set_optimizer_state(trainer.bare, trainer.optimizer, moments)
        done = folder.begin(trainer, record, resume=resume)
        every = Every(save_every, keep)
        try:
            last = _run(trainer, lesson, known, dev_set, settings, folder, done, every, quiet=quiet)
        except DivergedError as error:
            where = folder.save_batch(error.batch)
            what = f"{error}; the run stopped before it, and the batch is in '{where}'"
            raise InputError(out, what, "look at the batch, or lower --lr") from None
        document = {"out": out, "examples": len(lesson.examples), **lesson.counts}
        document |= {"last_step": last, "notes": dict(notes + lesson.notes)}
        if dev_set:
            folder.take_best(trainer, last["dev_loss"])
        folder.finish(trainer, tokenizer, document)
    if trainer.accelerator.is_main_process:
        _report(document, f"wrote {out}", as_json=as_json, quiet=quiet)
    trainer.accelerator.end_training()


class Lesson(NamedTuple):
    """What a run learns from."""

    examples: list[Example]
    tiers: TierCodes
    counts: dict[str, int]  # of what was left out

    @property
    def told(self) -> str:
        """What it holds, as a line."""
        tokens = sum(len(one.at) for one in self.examples)
        parts = [f"{len(self.examples):,} sequences, {tokens:,} tokens to learn"]
        parts += [f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items()]
        return "; ".join(parts)

    @property
    def notes(self) -> Counter[str]:
        """What was left out, or guessed."""
        texts = {
            "dropped_groups": "groups without advantages",
            "retokenised_episodes": "episodes tokenized again, for their tokens are unknown",
        }
        counts = {text: self.counts.get(name, 0) for name, text in texts.items()}
        return Counter({text: count for text, count in counts.items() if count})

    def focused(self, values: dict[str, float]) -> Lesson:
        """Return what is left where only turns count whose tier is worth something.

        Raises:
            InputError: nothing is.
        """
        examples = focused(self.examples, self.tiers.names, values)
        if not examples:
            raise InputError("--only-valued", "no tier is worth anything", "leave it out")
        return self._replace(examples=examples)


class Every(NamedTuple):
    """How often a run is saved."""

    steps: int | None
    keep: int


def _told(
    chat: Renderer,
    played: Rollouts | None,
    talks: list[dict[str, Any]],
    tools: list[dict[str, Any]],
) -> list[str]:
    """Return notes on how messages that are to be tokenized tell the model its tools.

    Raises:
        InputError: the policy that played was told otherwise.
    """
    told = chat.template.told(next((talk["tools"] for talk in talks if talk.get("tools")), tools))
    if played and played.prompt.get("tools") not in (None, "server", told.record["tools"]):
        what = f"the policy was told of its tools by the {played.prompt['tools']}, now it would be"
        what += f" by the {told.record['tools']}"
        raise InputError(played.path, what, "give the chat template that it was played with")
    return told.notes


def _reinforced(
    played: Rollouts,
    scored: pl.DataFrame,
    values: Values | None,
    advantages: AdvantageConfig,
    chat: Renderer | None,
    turns: str,
) -> Lesson:
    """Give each token of the rollouts the advantage of its turn."""
    from stages.train import TierCodes

    table = played_advantages(played, scored, values, advantages, turns)
    lesson = reinforced(played.episodes, played.tokens, table, played.tools, chat, played.path)
    counts = {
        "groups": lesson.groups,
        "dropped_groups": lesson.dropped_groups,
        "retokenised_episodes": lesson.retokenised,
    }
    return Lesson(lesson.examples, TierCodes(lesson.tiers, values or {}), counts)


def _supervised(records: list[dict[str, Any]], path: str, chat: Renderer | None) -> Lesson:
    from stages.train import TierCodes

    assert chat is not None
    tools = recorded_tools(path)
    talks = [
        Demonstration(str(number), one["messages"], one.get("tools") or tools)
        for number, one in enumerate(records)
    ]
    progress = console.progress(talks, "tokenizing")
    examples = supervised(progress, chat)
    if not examples:
        what = "nothing to learn: no message of an assistant"
        raise InputError(path, what, "give other messages")
    return Lesson(examples, TierCodes([], {}), {"conversations": len(records)})


def _comparable(
    trainer: Trainer, lesson: Lesson, config: TrainConfig, notes: Counter[str]
) -> Lesson:
    """Return the lesson without the engine's logprobs where they are not of what was sampled.

    Raises:
        InputError: they are not, and ratios were to start from them.
    """
    from stages.train import engine_measures_otherwise
    from stages.training.sequences import without_engine

    reading = engine_measures_otherwise(trainer, lesson.examples, config)
    if reading is None:
        return lesson
    what = f"the engine's logprobs are those of {reading}, not of what was sampled"
    if config.old_logprobs == "engine":
        todo = "use trainer, or serve with '--logprobs-mode processed_logprobs'"
        raise InputError("--old-logprobs", what, todo)
    if config.loss.tis_cap:
        notes[f"{what}; left out, as are importance weights"] += 1
    return lesson._replace(examples=[without_engine(one) for one in lesson.examples])


def _reference_model(
    reference: str | None, lesson: Lesson, trainer: Trainer, config: TrainConfig
) -> Trainer | None:
    """Load the reference of the KL; None: there is no KL, or it is the starting policy."""
    if reference is None or not config.loss.kl:
        return None
    from stages.training.model import learner, load_model, packable
    from stages.training.trainer import Trainer

    other, _ = load_model(reference)
    vocabulary = other.get_input_embeddings().weight.shape[0]
    check((one.sequence for one in lesson.examples), vocabulary, reference)
    fits = packable(other)
    return Trainer.of(learner(other), config, packable=fits, bf16=trainer.bf16)


def _run(
    trainer: Trainer,
    lesson: Lesson,
    known: Known | None,
    dev_set: list[Example],
    config: TrainConfig,
    folder: RunFolder,
    done: int,
    every: Every,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Take the steps that are left; return what the last one logged."""
    from stages.train import dev_loss, train

    last: dict[str, Any] = {}
    with _live(quiet=quiet or not folder.main) as show:
        for step in train(trainer, lesson.examples, known, lesson.tiers, config, done):
            log, final = step.log, step.number == step.of
            saves = every.steps is not None and step.number % every.steps == 0
            if dev_set and (saves or final):
                log["dev_loss"] = dev_loss(trainer, dev_set, config)
            last = {"step": step.number} | log
            folder.log(step.number, log)
            show(step)
            if saves and not final:
                folder.save(trainer, step.number, log.get("dev_loss"), every.keep)
    return last


@contextmanager
def _told_if_out_of_memory() -> Iterator[None]:
    """Say which knobs to turn where memory does not suffice."""
    import torch

    try:
        yield
    except RuntimeError as error:  # torch's own OutOfMemoryError is one, too
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate" not in str(error):
            raise
        todo = "lower --pack-tokens, or pass --gradient-checkpointing, --bf16 or --lora-rank"
        raise InputError("irc-cli train", "out of memory", todo) from None


def _report(document: dict[str, Any], line: str, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        console.print_json(document)
    else:
        console.note(line, quiet=quiet)


@contextmanager
def _live(*, quiet: bool) -> Iterator[Callable[[OptimizerStep], None]]:
    """Yield what shows the last steps as a table on standard error, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    recent: deque[OptimizerStep] = deque(maxlen=_ROWS)
    with Live(console=console.console(stderr=True), transient=True) as live:

        def show(step: OptimizerStep) -> None:
            recent.append(step)
            table = console.table("step", *_SHOWN)
            for one in recent:
                numbers = [f"{one.log[name]:.4g}" if name in one.log else "" for name in _SHOWN]
                table.add_row(f"{one.number:,} of {one.of:,}", *numbers)
            live.update(table)

        yield show
