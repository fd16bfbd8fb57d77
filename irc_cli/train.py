"""`irc-cli train`: rollouts, turns and a calibration in, a better policy out."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast, get_args

import polars as pl
import typer
from rich.live import Live

from irc_cli import console, options
from stages.artifacts import TURNS, read_table
from stages.calibration_file import read_previous
from stages.core.advantages import AdvantageConfig, Estimator, Normalise
from stages.errors import InputError
from stages.files import digest
from stages.judge import advantage_frame, tier_rewards, turn_advantages, turn_arrays

try:
    import torch

    from irc_cli.train_plan import show_plan
    from stages.policies.chat import Chat
    from stages.train import (
        DivergedError,
        Known,
        Old,
        Scale,
        Schedule,
        Step,
        Tiers,
        TrainConfig,
        Trainer,
        token_logprobs,
        train,
    )
    from stages.training.batches import Example
    from stages.training.examples import Conversation, reinforced, supervised
    from stages.training.folder import RunFolder, refuse_existing_run, take_optimizer
    from stages.training.inputs import (
        Rollouts,
        check_lineage,
        read_conversations,
        read_rollouts,
        recorded_tools,
    )
    from stages.training.loss import Aggregation, LossConfig
    from stages.training.model import learner, load_model, packable, weights_of
    from stages.training.plan import Setup
    from stages.training.sequences import check
except ModuleNotFoundError as error:
    _WHAT = f"needs the package '{error.name}'"
    raise InputError("irc-cli train", _WHAT, "pip install 'irc-cli[train]'") from None

_T, _L, _A = TrainConfig, LossConfig, AdvantageConfig
_SCHEDULES, _SCALES, _OLD = get_args(Schedule), get_args(Scale), get_args(Old)
_AGGREGATIONS, _ESTIMATORS, _NORMALISE = (
    get_args(Aggregation),
    get_args(Estimator),
    get_args(Normalise),
)
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
    advantage: Annotated[
        str, typer.Option(metavar="|".join(_ESTIMATORS), help="Estimator of the advantages.")
    ] = _A.estimator,
    gamma: Annotated[float, typer.Option(help="Discount per turn.")] = _A.gamma,
    outcome_weight: Annotated[
        float, typer.Option("--lambda", help="Weight of the outcome in the hybrid.")
    ] = _A.outcome_weight,
    normalise: Annotated[
        str, typer.Option(metavar="|".join(_NORMALISE), help="What a return is held against.")
    ] = _A.normalise,
    last_turn_reward: Annotated[
        bool,
        typer.Option(
            "--last-turn-reward/--no-last-turn-reward",
            help="Whether an episode's last turn carries its own reward.",
        ),
    ] = _A.last_turn_reward,
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
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = _T.weight_decay,
    beta2: Annotated[
        float, typer.Option(min=0, max=1, help="Of AdamW: memory for the size of gradients.")
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
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Train a policy on its own episodes, or on messages.

    Example: irc-cli train --model MODEL --rollouts rollouts.jsonl --turns turns.parquet
    --calibration calibration.yaml -o better
    """
    settings = TrainConfig(
        lr=lr,
        schedule=cast(Schedule, options.one_of("schedule", schedule, _SCHEDULES)),
        warmup=warmup,
        weight_decay=weight_decay,
        beta2=beta2,
        max_grad_norm=max_grad_norm,
        epochs=epochs,
        batch_size=batch_size,
        pack_tokens=pack_tokens,
        advantage_scale=cast(Scale, options.one_of("advantage-scale", advantage_scale, _SCALES)),
        old_logprobs=cast(Old, options.one_of("old-logprobs", old_logprobs, _OLD)),
        spike=spike,
        seed=seed,
        loss=LossConfig(
            clip_low=options.within("clip-low", clip_low, 0, 1),
            clip_high=options.within("clip-high", clip_high, 0, sys.float_info.max),
            dual_clip=dual_clip and options.within("dual-clip", dual_clip, 1, sys.float_info.max),
            kl=options.within("kl", kl, 0, sys.float_info.max),
            entropy=entropy,
            tis_cap=tis_cap or None,
            aggregation=cast(
                Aggregation, options.one_of("aggregation", aggregation, _AGGREGATIONS)
            ),
            constant_length=constant_length,
        ),
    )
    estimator = AdvantageConfig(
        cast(Estimator, options.one_of("advantage", advantage, _ESTIMATORS)),
        options.within("gamma", gamma, 0, 1),
        options.within("lambda", outcome_weight, 0, sys.float_info.max),
        cast(Normalise, options.one_of("normalise", normalise, _NORMALISE)),
        last_turn_reward,
    )
    if plan:
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
    refuse_existing_run(out, resume=resume, force=force)
    played = read_rollouts(rollouts) if rollouts else None
    if played and not off_policy:
        check_lineage(played, model)
    values = read_previous(calibration).values if calibration else None
    scored = read_table(TURNS, turns) if turns else None
    talks = read_conversations(sft) if sft else []
    paths = [path for path in (rollouts, turns, calibration, sft) if path]
    record = console.made_by(
        "train",
        {"model": model, "reference": reference, "lora_rank": lora_rank, "bf16": bf16}
        | {"keep_optimizer": keep_optimizer, "train": asdict(settings)}
        | {"advantage": asdict(estimator)},
        seed,
        {path: digest(path) for path in [*paths, *weights_of(model)]},
    )

    policy, tokenizer = load_model(model)
    chat = Chat(tokenizer)
    if played and scored is not None:
        lesson = _reinforced(
            played, scored, values, estimator, chat if allow_retokenised else None, str(turns)
        )
    else:
        lesson = _supervised(talks, str(sft), chat)
    if not lesson.examples:
        todo = "collect groups with successes and failures"
        raise InputError(paths[0], "nothing to learn: no advantage differs from 0", todo)
    vocabulary = policy.get_input_embeddings().weight.shape[0]
    check((one.sequence for one in lesson.examples), vocabulary, paths[0])
    if not quiet:
        _announce(lesson, settings)

    fits = packable(policy)
    model_to_train = learner(
        policy, lora_rank=lora_rank, gradient_checkpointing=gradient_checkpointing
    )
    trainer = Trainer.of(model_to_train, settings, packable=fits, bf16=bf16)
    known = _known(trainer, lesson.examples, settings, reference) if played else None
    folder = RunFolder(out, main=trainer.accelerator.is_main_process)
    if keep_optimizer:
        take_optimizer(Path(model), trainer)
    position = folder.begin(trainer, record, resume=resume)
    every = Every(save_every, keep)
    try:
        last = _run(trainer, lesson, known, settings, folder, position, every, quiet=quiet)
    except DivergedError as error:
        where = folder.save_batch(error.batch)
        what = f"{error}; the run stopped before it, and the batch is in '{where}'"
        raise InputError(out, what, "look at the batch, or lower --lr") from None
    except torch.OutOfMemoryError:
        todo = "lower --pack-tokens, or pass --gradient-checkpointing, --bf16 or --lora-rank"
        raise InputError("irc-cli train", "out of memory", todo) from None
    folder.finish(trainer, tokenizer, record | {"last_step": last})
    if not trainer.accelerator.is_main_process:
        return
    document = {"out": out, "examples": len(lesson.examples)} | lesson.counts | {"last_step": last}
    if as_json:
        console.print_json(document)
    elif not quiet:
        console.note(f"wrote {out}")


class Lesson(NamedTuple):
    """What a run learns from."""

    examples: list[Example]
    tiers: Tiers
    counts: dict[str, int]  # of what was left out


class Every(NamedTuple):
    """How often a run is saved."""

    steps: int | None
    keep: int


def _reinforced(
    played: Rollouts,
    scored: pl.DataFrame,
    values: dict[str, float] | None,
    estimator: AdvantageConfig,
    chat: Chat | None,
    turns: str,
) -> Lesson:
    """Give each token of the rollouts the advantage of its turn."""
    played_ids = [row["episode_id"] for row in played.episodes]
    arrays = turn_arrays(scored.filter(pl.col("episode_id").is_in(played_ids)))
    found = set(arrays.frame["episode_id"])
    if lacking := [episode for episode in played_ids if episode not in found]:
        what = f"no turns of episode '{lacking[0]}' ({len(lacking):,} lacking)"
        raise InputError(turns, what, f"rerun irc-cli score {played.path}")
    reward = arrays.frame["reward"].to_numpy() if values is None else tier_rewards(arrays, values)
    made = turn_advantages(arrays, reward, estimator)
    table = advantage_frame(arrays, reward, made)
    lesson = reinforced(played.episodes, played.tokens, table, played.tools, chat, played.path)
    counts = {
        "groups": lesson.groups,
        "dropped_groups": lesson.dropped_groups,
        "retokenised_episodes": lesson.retokenised,
    }
    return Lesson(lesson.examples, Tiers(lesson.tiers, values or {}), counts)


def _supervised(records: list[dict[str, Any]], path: str, chat: Chat) -> Lesson:
    tools = recorded_tools(path)
    talks = [
        Conversation(str(number), one["messages"], one.get("tools") or tools)
        for number, one in enumerate(records)
    ]
    progress = console.progress(talks, "tokenizing")
    return Lesson(supervised(progress, chat), Tiers([], {}), {"conversations": len(records)})


def _known(
    trainer: Trainer, examples: list[Example], config: TrainConfig, reference: str | None
) -> Known:
    """Compute what the loss compares with, before the first step."""
    by_trainer: list[Any] | None = None
    if config.old_logprobs == "trainer" or (config.loss.kl and reference is None):
        by_trainer = token_logprobs(trainer, examples, config)
    old = by_trainer
    if config.old_logprobs == "engine" or old is None:
        old = [torch.from_numpy(one.sequence.logprobs[one.at]) for one in examples]
    if not config.loss.kl:
        return Known(old, None)
    if reference is None:
        return Known(old, by_trainer)
    other, _ = load_model(reference)
    fits = packable(other)
    referee = Trainer.of(learner(other), config, packable=fits, bf16=trainer.bf16)
    return Known(old, token_logprobs(referee, examples, config))


def _run(
    trainer: Trainer,
    lesson: Lesson,
    known: Known | None,
    config: TrainConfig,
    folder: RunFolder,
    done: int,
    every: Every,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Take the steps that are left; return what the last one logged."""
    last: dict[str, Any] = {}
    with _live(quiet=quiet or not folder.main) as show:
        for step in train(trainer, lesson.examples, known, lesson.tiers, config, done):
            last = {"step": step.number} | step.log
            folder.log(step.number, step.log)
            show(step)
            if every.steps and step.number % every.steps == 0 and step.number < step.of:
                folder.save(trainer, step.number, every.keep)
    return last


@contextmanager
def _live(*, quiet: bool) -> Iterator[Callable[[Step], None]]:
    """Yield what shows the last steps as a table on standard error, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    recent: deque[Step] = deque(maxlen=_ROWS)
    with Live(console=console.console(stderr=True), transient=True) as live:

        def show(step: Step) -> None:
            recent.append(step)
            table = console.table("step", *_SHOWN)
            for one in recent:
                numbers = [f"{one.log[name]:.4g}" if name in one.log else "" for name in _SHOWN]
                table.add_row(f"{one.number:,} of {one.of:,}", *numbers)
            live.update(table)

        yield show


def _announce(lesson: Lesson, config: TrainConfig) -> None:
    tokens = sum(len(one.at) for one in lesson.examples)
    parts = [f"{len(lesson.examples):,} sequences, {tokens:,} tokens to learn"]
    parts += [f"{count:,} {name.replace('_', ' ')}" for name, count in lesson.counts.items()]
    console.note("; ".join(parts))
