"""`irc-cli rollout`: an environment and a policy in, episodes out."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from irc_cli import console, options
from irc_cli.notes import check_notes, show_notes
from stages.envs.env import Env, Task
from stages.envs.llm_user import Budget, LlmUsers, UserOptions, is_local
from stages.envs.registry import ENVS, check_env, open_env
from stages.envs.task_choice import TASKS, TaskChoice, chosen_tasks
from stages.errors import InputError
from stages.messages.message import Told
from stages.policies.policy import Policy, Prompts
from stages.policy_registry import (
    POLICIES,
    POLICY,
    SEED_POLICY,
    SERVERS,
    PolicyOptions,
    open_policy,
)
from stages.rollout import Config, Pair, Run, plan, rollout, seen_tools
from stages.rollout_files import Journal, open_journal, run_id
from stages.serving.address import shown, without_secrets
from stages.serving.server_pool import addresses
from stages.serving.server_pool import load_weights as load
from stages.settings import Setting
from stages.tables.files import alone, digest, refuse_existing, temporary_folder
from stages.tables.paths import RunFiles
from stages.tally import Tally
from stages.traces.notes import left_out

SHOWN_FAILURES = 5  # reasons shown in the report


@dataclass(frozen=True)
class WeightOptions:
    """How servers load the policy's weights."""

    load_weights: Annotated[
        bool, Setting("Load the folder --model into the servers first.", SERVERS)
    ] = False
    restart_command: Annotated[
        str | None,
        Setting(
            "Command to restart a server that cannot load weights; gets its URL and the folder.",
            SERVERS,
            metavar="COMMAND",
        ),
    ] = None


@dataclass(frozen=True)
class PlayOptions:
    """How episodes are played."""

    tasks: TaskChoice
    config: Config
    policy: PolicyOptions
    weights: WeightOptions
    user: UserOptions
    resume: Annotated[bool, Setting("Play only missing and failed episodes.", options.OUTPUT)] = (
        False
    )

    def settings(self, env: str, policy: str) -> dict[str, Any]:
        """Return the settings that determine the episodes."""
        tasks, engine, user, config = self.tasks, self.policy, self.user, self.config
        return (
            {"env": env, "split": tasks.split, "tasks": list(tasks.tasks)}
            | {"max_tasks": tasks.max_tasks, "sample_tasks": tasks.sample_tasks}
            | {"fresh": tasks.fresh}
            | {"policy": policy, "model": engine.model, "context": engine.context}
            | {"dtype": engine.dtype}
            | {"tokenizer": engine.tokenizer, "noise": engine.noise, "recording": engine.recording}
            | {"user": user.user, "user_model": user.user_model}
            | {"group_size": config.group_size, "max_turns": config.max_turns}
            | asdict(config.sampling)
        )

    def engine(self) -> dict[str, Any]:
        """Return the settings that don't determine the episodes; they may change on --resume."""
        policy, user = self.policy, self.user
        return (
            {"concurrency": policy.concurrency, "timeout": policy.timeout_s}
            | {"retries": policy.retries, "base_url": without_secrets(policy.base_urls)}
            | {"user_base_url": without_secrets(user.user_base_url)}
            | {"served_model_name": policy.served_model_name, "rate_limit": policy.rate_limit}
            | {"load_weights": self.weights.load_weights}  # a command may hold secrets
            | {"user_tokens": user.user_tokens, "user_cost": user.user_cost}
            | {"user_price": user.user_price}
        )


@options.expanded()
def command(
    *,
    env: Annotated[
        str,
        typer.Option(metavar="|".join(ENVS), help="Environment to play.", rich_help_panel=TASKS),
    ],
    policy: Annotated[
        str,
        typer.Option(metavar="|".join(POLICIES), help="Policy that plays.", rich_help_panel=POLICY),
    ] = "transformers",
    play: PlayOptions,
    out: options.Out = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan and write nothing.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    printing: options.Writing,
    config: options.Config = None,
) -> None:
    """Play episodes: a policy in an environment with simulated users, in groups per task.

    Example: irc-cli rollout --env airline-mini --policy expert --noise 0.2 -o rollouts.jsonl
    """
    roll_out(env, policy, play, out, printing, dry_run=dry_run)


def roll_out(
    env: str,
    policy: str,
    play: PlayOptions,
    out: str | None,
    printing: options.Writing,
    *,
    dry_run: bool = False,
) -> Counter[str]:
    """Play episodes, write and report them; return notes on the playing."""
    check_env(env)
    options.one_of("policy", policy, POLICIES)
    if policy == "expert" and env != "airline-mini":
        raise InputError("--policy", f"the expert does not know {env}", "choose another policy")
    _check_output(out, printing, resume=play.resume)
    environment = open_env(env)
    play = _with_defaults(play, env, policy)
    tasks = chosen_tasks(environment, play.tasks, play.config.seed)
    settings = play.settings(env, policy)
    if dry_run:
        settings["seed"] = play.config.seed
        _show_plan(tasks, play.config, settings, as_json=printing.as_json)
        return Counter()
    play = _with_servers(play)
    made_by = console.made_by("rollout", settings, play.config.seed, _inputs(play))
    return _played(policy, play, environment, tasks, made_by, out, printing)


def _with_defaults(play: PlayOptions, env: str, policy: str) -> PlayOptions:
    """Return the options with the seed policy as airline-mini's default model."""
    seeded = play.policy.model is None and env == "airline-mini"
    if not (seeded and policy in ("transformers", "vllm")):
        return play
    return replace(play, policy=replace(play.policy, model=SEED_POLICY))


def _with_servers(play: PlayOptions) -> PlayOptions:
    """Return the options with files of servers replaced by their addresses."""
    return replace(play, policy=replace(play.policy, base_urls=addresses(play.policy.base_urls)))


def _played(
    policy: str,
    play: PlayOptions,
    environment: Env,
    tasks: Sequence[Task],
    made_by: Mapping[str, Any],
    out: str | None,
    printing: options.Writing,
) -> Counter[str]:
    """Play the missing episodes, write and report all; return the notes."""
    user = play.user
    budget = Budget.of(user.user_tokens, user.user_cost, user.user_price)
    if user.user == "scripted":
        environment.reset(tasks[0], 0)  # fails now if the environment has no scripted user
    notes = Counter[str]()
    engine = play.engine()
    if play.weights.load_weights:
        # A server that restarts has stale weights, so it must not rejoin.
        loaded = replace(play.policy, base_urls=_load_weights(play, notes), rejoin=False)
        play = replace(play, policy=loaded)
    pairs = plan(tasks, play.config.group_size)
    # An engine computes every row of its batch, even if it is idle.
    live = min(play.policy.concurrency, len(pairs))
    player = open_policy(policy, replace(play.policy, concurrency=live))
    notes += getattr(player, "notes", {})  # on the recording that it replays
    told = _told(player, environment)
    notes.update(told.notes)
    check_notes(notes, strict=printing.strict)
    with _files(out) as files:
        journal = open_journal(
            files, {**made_by, "engine": engine}, resume=play.resume, force=printing.force
        )
        with closing(journal):
            users = _users(play, budget)
            name = play.policy.model or policy
            run = _run(run_id(made_by), environment, player, play, name, users)
            tally = _complete(run, pairs, journal, play.policy.concurrency, users, out, printing)
            failed = left_out(tally.failures)
            check_notes(failed, strict=printing.strict)
            journal.finish([pair.key for pair in pairs], environment.tools, told.record)
        if out == "-":
            sys.stdout.buffer.write(Path(files.out).read_bytes())
    if printing.as_json:
        console.print_json(tally.document() | {"notes": dict(notes + failed)})
    elif not printing.quiet:
        _report(tally, stderr=out == "-")
        show_notes(notes)  # the report has shown the failures
    return notes


def _users(play: PlayOptions, budget: Budget) -> LlmUsers | None:
    """Return the factory of LLM users; None: the environment has its own."""
    user, policy = play.user, play.policy
    if user.user != "llm":
        return None
    limits = (policy.timeout_s, policy.retries, policy.concurrency)
    return LlmUsers(user.user_model, user.user_base_url, budget, *limits)


def _run(
    name: str,
    environment: Env,
    player: Policy,
    play: PlayOptions,
    policy_name: str,
    users: LlmUsers | None,
) -> Run:
    return Run(
        name,
        environment,
        player,
        play.config,
        policy_name=policy_name,
        user_name=play.user.user_model or play.user.user,
        new_user=users.new if users else None,
    )


def _told(policy: Policy, environment: Env) -> Told:
    """Return how the policy's prompt presents the tools."""
    return policy.told(seen_tools(environment)) if isinstance(policy, Prompts) else Told({}, [])


def _complete(
    run: Run,
    pairs: Sequence[Pair],
    journal: Journal,
    concurrency: int,
    users: LlmUsers | None,
    out: str | None,
    printing: options.Writing,
) -> Tally:
    """Play the episodes that the journal lacks; return the tally of all."""
    tally = Tally(len(pairs))
    for row in journal.rows():
        tally.add(row)
    missing = [pair for pair in pairs if not journal.done(pair.key)]

    async def play() -> None:
        try:
            with _progress(tally, quiet=printing.quiet) as show:
                async with aclosing(rollout(run, missing, concurrency)) as episodes:
                    async for played in episodes:
                        journal.append(played)
                        tally.add(played.row, new=True)
                        tally.restarts += played.timing["restarts"]
                        show()
        finally:
            await run.policy.close()
            if users:
                await users.close()

    try:
        asyncio.run(play())
    except (InputError, KeyboardInterrupt) as end:
        kept = sum(journal.done(pair.key) for pair in pairs)
        if out not in (None, "-") and (kept or isinstance(end, KeyboardInterrupt)):
            text = f"{kept:,} of {len(pairs):,} episodes are kept; go on with --resume"
            console.note(f"interrupted: {text}")
        raise
    return tally


@contextmanager
def _progress(tally: Tally, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the tally on standard error if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console.console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=tally.planned)

        def show() -> None:
            bar.update(task, completed=tally.counted, description=_headline(tally))

        show()
        yield show


def _headline(tally: Tally) -> str:
    parts = [] if tally.pass_rate is None else [f"pass rate {tally.pass_rate:.1%}"]
    if tally.new_tokens:
        parts.append(f"{tally.new_tokens / tally.seconds:,.0f} tokens/s")
    return ", ".join([*parts, f"{tally.status['error']:,} errors"])


def _load_weights(play: PlayOptions, notes: Counter[str]) -> tuple[str, ...]:
    """Make the servers load the policy; return those that did."""
    base_urls, model = play.policy.base_urls, play.policy.model
    if model is None or not Path(model).is_dir():
        raise InputError("--load-weights", "needs a folder", "give '--model DIR'")
    if not base_urls:
        raise InputError("--load-weights", "there are no servers", "give '--base-url URL'")
    loaded = asyncio.run(load(base_urls, model, play.weights.restart_command))
    missing = (shown(url) for url in base_urls if url not in loaded)
    notes.update(f"left out, {url} does not answer" for url in missing)
    return loaded


def _check_output(out: str | None, printing: options.Writing, *, resume: bool) -> None:
    if printing.as_json and out == "-":
        raise InputError("--json", "standard output is taken by '-o -'", "use one of them")
    if resume and out in (None, "-"):
        raise InputError("--resume", "there is no file to resume", "give '-o FILE'")
    if resume and printing.force:
        raise InputError("--resume", "'--force' would start over", "give one of them")
    if out not in (None, "-"):  # check before servers load new weights
        refuse_existing(str(out), force=printing.force or resume)


def _inputs(play: PlayOptions) -> dict[str, str]:
    """Return the sha256 of each file that determines the episodes."""
    policy, user = play.policy, play.user
    local_user = user.user_model if is_local(user.user_model, user.user_base_url) else None
    models = (policy.model, policy.tokenizer, local_user)
    folders = [Path(model) for model in models if model and Path(model).is_dir()]
    weights = [path for folder in folders for path in sorted(folder.iterdir()) if _of_model(path)]
    paths = [*map(str, weights), *([policy.recording] if policy.recording else [])]
    return {path: digest(path) for path in paths}


def _of_model(path: Path) -> bool:
    """Return whether a file is part of a model; metrics.jsonl of its training is not."""
    return path.is_file() and path.suffix != ".jsonl"


@contextmanager
def _files(out: str | None) -> Iterator[RunFiles]:
    """Yield the paths of the run's files, in a temporary folder if they are not kept."""
    if out not in (None, "-"):
        with alone(str(out)):
            yield RunFiles(str(out))
        return
    with temporary_folder() as folder:
        yield RunFiles(str(Path(folder) / "rollouts.jsonl"))


def _show_plan(
    tasks: Sequence[Task], playing: Config, settings: Mapping[str, Any], *, as_json: bool
) -> None:
    episodes = len(tasks) * playing.group_size
    turns = episodes * playing.max_turns
    document = {"tasks": len(tasks), "episodes": episodes, "most_turns": turns}
    document |= {"most_tokens": turns * playing.sampling.max_tokens}
    if as_json:
        console.print_json(document | {"settings": dict(settings)})
        return
    screen = console.console()
    screen.print(f"{len(tasks):,} tasks x {playing.group_size} = {episodes:,} episodes")
    screen.print(f"at most {turns:,} turns and {document['most_tokens']:,} tokens")
    for name, value in settings.items():
        screen.print(f"  {name}: {value}")


def _report(tally: Tally, *, stderr: bool) -> None:
    screen = console.console(stderr=stderr)
    summary = tally.document()
    states = ", ".join(f"{count:,} {name}" for name, count in summary["status"].items() if count)
    rate = "undefined" if tally.pass_rate is None else f"{tally.pass_rate:.1%}"
    screen.print(f"{tally.counted:,} episodes ({states}), {tally.turns:,} turns, pass rate {rate}")
    tokens = "tokens unknown" if summary["tokens"] is None else f"{tally.tokens:,} tokens"
    screen.print(f"{tokens}, {tally.seconds:.1f} s")
    if tally.restarts:
        screen.print(f"begun again on another server: {tally.restarts:,} times")
    for reason, count in tally.failures.most_common(SHOWN_FAILURES):
        screen.print(f"error, {reason}: {count:,}")
    if tally.failures:
        screen.print("play those again with --resume")
