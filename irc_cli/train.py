"""`irc-cli train`: rollouts, turns and a calibration in, a trained policy out."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from rich.live import Live

from irc_cli import console, options
from irc_cli.extras import LEARNING, PLANNING, needs
from irc_cli.notes import check_notes, show_notes
from stages.core.advantages import AdvantageConfig
from stages.errors import InputError
from stages.settings import Setting
from stages.tables.files import digest
from stages.training.config import Checkpoints, MemorySaving, TrainConfig
from stages.training.examples import Demonstration
from stages.training.material import (
    Material,
    TrainFiles,
    Uses,
    check_files,
    read_material,
)
from stages.training.sequences import Example

if TYPE_CHECKING:
    from stages.lesson import Lesson
    from stages.messages.renderer import Renderer
    from stages.train import Known, OptimizerStep
    from stages.training.folder import RunFolder
    from stages.training.trainer import Trainer

PLAN = "Plan"  # panel of the help
_ROWS = 12  # rows of the live table
_SHOWN = ("loss", "entropy", "policy_kl", "clip_high_share", "grad_norm", "advantage_rms")


@dataclass(frozen=True)
class Plan:
    """Whether a run is only planned, and for which devices."""

    plan: Annotated[
        bool, Setting("Print the memory that the run would need, without loading weights.", PLAN)
    ] = False
    devices: Annotated[
        int | None,
        Setting("Number of devices to plan for; default: those of this machine.", PLAN, low=1),
    ] = None
    device_memory: Annotated[
        float | None,
        Setting(
            "Memory per device to plan for; default: that of this machine.",
            PLAN,
            low=0,
            metavar="GB",
        ),
    ] = None


@dataclass(frozen=True)
class TrainRequest:
    """The options of one call."""

    files: TrainFiles
    uses: Uses
    advantages: AdvantageConfig
    train: TrainConfig
    memory: MemorySaving
    checkpoints: Checkpoints
    plan: Plan
    printing: options.Writing
    out: Annotated[
        str | None,
        Setting("Folder to write the policy to.", options.OUTPUT, short="o", metavar="DIR"),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Return the options that a run records."""
        memory = {"lora_rank": self.memory.lora_rank, "bf16": self.memory.bf16}
        return (
            {"model": self.files.model, "reference": self.files.reference}
            | memory
            | {"keep_optimizer": self.uses.keep_optimizer, "train": asdict(self.train)}
            | {"advantage": None if self.files.advantages else asdict(self.advantages)}
            | {"only_valued": self.uses.only_valued}
        )


@options.expanded()
def command(*, request: TrainRequest, config: options.Config = None) -> None:
    """Train a policy on its own rollouts, or fine-tune it on conversations.

    Example: irc-cli train --model MODEL --rollouts rollouts.jsonl --turns turns.parquet
    --calibration calibration.yaml -o better
    """
    if request.plan.plan:
        _plan(request)
        return
    if request.out is None:
        raise InputError("--out", "missing", "give the folder to write the policy to")
    check_files(request.files, request.uses)
    needs("irc-cli train", "train", *LEARNING)
    _train(request, request.out)


def _plan(request: TrainRequest) -> None:
    """Print the memory that a run would take."""
    memory, plan, files = request.memory, request.plan, request.files
    needs("irc-cli train --plan", "transformers", *PLANNING)
    if memory.lora_rank:
        needs("--lora-rank", "train", "peft")
    from irc_cli.train_plan import show_plan
    from stages.training.plan import Setup

    setup = Setup(
        request.train.pack_tokens or 0,
        memory.bf16,
        memory.gradient_checkpointing,
        memory.lora_rank,
        plan.devices or 0,
        plan.device_memory or 0,
    )
    reference = files.reference if request.train.loss.kl else None
    show_plan(files.model, reference, setup, as_json=request.printing.as_json)


def _train(request: TrainRequest, out: str) -> None:
    """Read all files, then train, unless the run is complete already."""
    from stages.training.folder import optimizer_of, refuse_existing_run, result_of
    from stages.training.model import weights_of

    files, printing, resume = request.files, request.printing, request.checkpoints.resume
    refuse_existing_run(out, resume=resume, force=printing.force)
    material = read_material(files, request.uses, request.train, request.advantages)
    check_notes(material.notes, strict=printing.strict)
    moments = optimizer_of(files.model) if request.uses.keep_optimizer else None
    digests = {path: digest(path) for path in [*files.data, *weights_of(files.model)]}
    record = console.made_by("train", request.settings(), request.train.seed, digests)
    if resume and (document := result_of(out, record)):
        _report(document, f"{out} is complete", printing)
        return
    with _advice_if_out_of_memory():
        _learn(request, out, material, moments, record)


def _learn(
    request: TrainRequest, out: str, material: Material, moments: Any, record: dict[str, Any]
) -> None:
    """Load the policy, train it, and write the result."""
    import torch

    from stages.lesson import supervised_lesson
    from stages.training.checkpoint import set_optimizer_state
    from stages.training.folder import RunFolder
    from stages.training.model import load_model

    files, notes = request.files, material.notes
    torch.manual_seed(request.train.seed)  # for adapters, and for dropout if the model has it
    policy, tokenizer = load_model(files.model)
    chat = _renderer(request, material, tokenizer)
    lesson = _lesson(request, material, policy, chat)
    dev_set: list[Example] = []
    if files.dev:
        dev_set = supervised_lesson(material.held_out, files.dev, chat, _tokenizing).examples
    console.note(lesson.summary, quiet=request.printing.quiet)  # has the counts that are notes
    trainer = _trainer(request, policy)
    config = policy.config.get_text_config()
    request = _with_pass_size(request, trainer, config, [*lesson.examples, *dev_set])
    lesson, known = _before_training(request, material, trainer, lesson)
    main, keep = trainer.accelerator.is_main_process, request.checkpoints.keep
    folder = RunFolder(out, main=main, keep=keep)
    if moments is not None:
        set_optimizer_state(trainer.bare, trainer.optimizer, moments)
    done = folder.begin(trainer, record, resume=request.checkpoints.resume)
    last = _take_steps(request, trainer, lesson, known, dev_set, folder, done)
    document = {"out": out, "examples": len(lesson.examples), **lesson.counts}
    document |= {"last_step": last, "notes": dict(notes + lesson.notes)}
    if dev_set:
        folder.take_best(trainer, last["dev_loss"])
    folder.finish(trainer, tokenizer, document)
    if main:
        _report(document, f"wrote {out}", request.printing)
    trainer.accelerator.end_training()


def _renderer(request: TrainRequest, material: Material, tokenizer: Any) -> Renderer | None:
    """Return the renderer of messages, if any are needed, and note how it presents the tools."""
    from stages.lesson import prompt_notes
    from stages.messages.renderer import Renderer

    if not (request.files.sft or request.uses.allow_retokenised):
        return None
    chat = Renderer(tokenizer)
    path = str(request.files.sft or request.files.rollouts)
    material.notes.update(prompt_notes(chat, material, path))
    return chat


def _lesson(
    request: TrainRequest, material: Material, policy: Any, chat: Renderer | None
) -> Lesson:
    from stages.lesson import lesson_of

    files = request.files
    lesson = lesson_of(material, files, request.uses, request.advantages, chat, _tokenizing)
    lesson.check(policy, files.data[0])
    return lesson


def _tokenizing(talks: list[Demonstration]) -> Iterable[Demonstration]:
    return console.progress(talks, "tokenizing")


def _trainer(request: TrainRequest, policy: Any) -> Trainer:
    from stages.training.model import learner, packable
    from stages.training.trainer import Trainer

    memory, fits = request.memory, packable(policy)
    model = learner(
        policy,
        lora_rank=memory.lora_rank,
        gradient_checkpointing=memory.gradient_checkpointing,
    )
    return Trainer.of(model, request.train, packable=fits, bf16=memory.bf16)


def _with_pass_size(
    request: TrainRequest, trainer: Trainer, config: Any, examples: list[Example]
) -> TrainRequest:
    """Return the request with the tokens per pass, by default as many as memory allows."""
    from stages.training.pass_size import tokens_here
    from stages.training.plan import Setup

    if request.train.pack_tokens or not trainer.packable:
        return request
    memory = request.memory
    saving = (memory.bf16, memory.gradient_checkpointing, memory.lora_rank)
    longest = max(len(example.sequence) for example in examples)
    tokens = tokens_here(config, Setup(0, *saving, devices=trainer.shards), longest)
    return replace(request, train=replace(request.train, pack_tokens=tokens))


def _before_training(
    request: TrainRequest, material: Material, trainer: Trainer, lesson: Lesson
) -> tuple[Lesson, Known | None]:
    """Show the notes; return the lesson and, for rollouts, the logprobs before training."""
    from stages.lesson import comparable, reference_model
    from stages.train import known_logprobs

    printing, notes = request.printing, material.notes
    if material.played:
        lesson = comparable(trainer, lesson, request.train, notes)
    check_notes(notes + lesson.notes, strict=printing.strict)
    if not (printing.quiet or printing.as_json):
        show_notes(notes)
    if not material.played:
        return lesson, None
    reference = reference_model(request.files.reference, lesson, trainer, request.train)
    return lesson, known_logprobs(trainer, lesson.examples, reference, request.train)


def _take_steps(
    request: TrainRequest,
    trainer: Trainer,
    lesson: Lesson,
    known: Known | None,
    dev_set: list[Example],
    folder: RunFolder,
    done: int,
) -> dict[str, Any]:
    """Take the remaining steps; return the log of the last.

    Raises:
        InputError: the run diverged.
    """
    from stages.train import DivergedError, dev_loss, train

    every, settings, last = request.checkpoints, request.train, dict[str, Any]()
    try:
        with _live(quiet=request.printing.quiet or not folder.main) as show:
            for step in train(trainer, lesson.examples, known, lesson.tiers, settings, done):
                log, final = step.log, step.number == step.of
                saves = every.save_every is not None and step.number % every.save_every == 0
                if dev_set and (saves or final):
                    log["dev_loss"] = dev_loss(trainer, dev_set, settings)
                last = {"step": step.number} | log
                folder.log(step.number, log)
                show(step)
                if saves and not final:
                    folder.save(trainer, step.number, log.get("dev_loss"))
    except DivergedError as error:
        where = folder.save_batch(error.batch)
        what = f"{error}; the run stopped before it, and the batch is in '{where}'"
        raise InputError(str(request.out), what, "look at the batch, or lower --lr") from None
    return last


@contextmanager
def _advice_if_out_of_memory() -> Iterator[None]:
    """Raise an out-of-memory error as an InputError that names options which save memory."""
    import torch

    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate" not in str(error):
            raise
        todo = "lower --pack-tokens, or pass --gradient-checkpointing, --bf16 or --lora-rank"
        raise InputError("irc-cli train", "out of memory", todo) from None


def _report(document: dict[str, Any], line: str, printing: options.Printing) -> None:
    if printing.as_json:
        console.print_json(document)
    else:
        console.note(line, quiet=printing.quiet)


@contextmanager
def _live(*, quiet: bool) -> Iterator[Callable[[OptimizerStep], None]]:
    """Yield a function that shows the last steps on standard error if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    recent: deque[OptimizerStep] = deque(maxlen=_ROWS)
    with Live(console=console.console(stderr=True), transient=True) as live:

        def show(step: OptimizerStep) -> None:
            recent.append(step)
            table = console.table("step", *_SHOWN)
            for taken in recent:
                numbers = [f"{taken.log[name]:.4g}" if name in taken.log else "" for name in _SHOWN]
                table.add_row(f"{taken.number:,} of {taken.of:,}", *numbers)
            live.update(table)

        yield show
