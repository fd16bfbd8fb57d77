"""`irc-cli rollout`: an environment and a policy in, episodes out."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from irc_cli import console, options
from irc_cli.notes import Strict, check_notes, show_notes
from stages.envs.env import Env, Task
from stages.envs.llm_user import Budget, LlmUsers, is_local
from stages.envs.registry import ENVS, check_env, open_env
from stages.errors import InputError
from stages.messages.message import Told
from stages.policies.policy import Policy, Prompts, Sampling
from stages.policy_registry import POLICIES, SEED_POLICY, PolicyOptions, open_policy
from stages.rollout import Config, Pair, Run, plan, rollout, seen_tools
from stages.rollout_files import Journal, open_journal, run_id
from stages.serving.server_pool import addresses
from stages.serving.server_pool import load_weights as load
from stages.tables.artifacts import RolloutRow
from stages.tables.files import alone, digest, refuse_existing
from stages.tables.paths import RunFiles
from stages.tables.yamlfile import nearest
from stages.traces.episode import SUCCESS
from stages.traces.notes import left_out

USERS = ("scripted", "llm")
SHOWN_FAILURES = 5  # reasons, in the report


def command(
    env: Annotated[str, typer.Option(metavar="|".join(ENVS), help="The environment.")],
    policy: Annotated[
        str, typer.Option(metavar="|".join(POLICIES), help="Who plays.")
    ] = "transformers",
    out: options.Out = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the tasks.")] = "train",
    tasks: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this task; may be repeated.")
    ] = None,
    max_tasks: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N tasks.")
    ] = None,
    sample_tasks: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="N tasks, drawn with --seed.")
    ] = None,
    group_size: Annotated[
        int, typer.Option(metavar="G", min=1, help="Episodes per task.")
    ] = Config.group_size,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, help="Episodes that play at the same time.")
    ] = 32,
    max_turns: Annotated[
        int, typer.Option(metavar="N", min=1, help="Messages of the policy in one episode.")
    ] = Config.max_turns,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens of one message.")
    ] = Sampling.max_tokens,
    temperature: Annotated[
        float, typer.Option(metavar="T", min=0, help="Temperature of sampling.")
    ] = Sampling.temperature,
    top_p: Annotated[
        float, typer.Option(metavar="P", min=0.001, max=1, help="Nucleus of sampling.")
    ] = Sampling.top_p,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Model of the policy; in airline-mini else its seed policy.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Most tokens of an episode, in this process's model."
        ),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL|FILE",
            help="OpenAI-compatible server; may be repeated. Or a file of them, one a line.",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of --model on the servers.")
    ] = None,
    load_weights: Annotated[
        bool, typer.Option("--load-weights", help="The servers load the folder --model first.")
    ] = False,
    restart_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Starts a server anew that can't load weights; gets its URL and the folder.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Send token ids made with this to the servers."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds for one request to a server.")
    ] = PolicyOptions.timeout_s,
    retries: Annotated[
        int, typer.Option(metavar="N", min=0, help="Retries of one request to a server.")
    ] = PolicyOptions.retries,
    rate_limit: Annotated[
        float | None,
        typer.Option(metavar="N", min=0.001, help="Requests a second to each server, at most."),
    ] = None,
    noise: Annotated[
        float, typer.Option(metavar="P", min=0, max=1, help="Expert: chance of a slip per turn.")
    ] = PolicyOptions.noise,
    recording: Annotated[
        str | None, typer.Option(metavar="ROLLOUTS", help="Replay: the episodes to play again.")
    ] = None,
    user: Annotated[str, typer.Option(metavar="|".join(USERS), help="The user.")] = "scripted",
    user_model: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="LLM user: its model.")
    ] = None,
    user_base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="LLM user: its OpenAI-compatible server.")
    ] = None,
    user_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="LLM user: budget of the run.")
    ] = None,
    user_cost: Annotated[
        float | None, typer.Option(metavar="USD", min=0, help="LLM user: budget of the run.")
    ] = None,
    user_price: Annotated[
        str | None, typer.Option(metavar="IN/OUT", help="LLM user: USD per million tokens.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Play only what is missing or failed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and write nothing.")
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> Counter[str]:
    """Play a policy against an environment's users, in groups of episodes per task.

    Example: irc-cli rollout --env airline-mini --policy expert --noise 0.2 -o rollouts.jsonl
    """
    check_env(env)
    options.one_of("policy", policy, POLICIES)
    options.one_of("user", user, USERS)
    if policy == "expert" and env != "airline-mini":
        raise InputError("--policy", f"the expert does not know {env}", "choose another policy")
    _check_output(out, as_json=as_json, resume=resume, force=force)
    environment = open_env(env)
    if model is None and env == "airline-mini" and policy in ("transformers", "vllm"):
        model = SEED_POLICY
    chosen = _tasks(environment, split, tasks or [], max_tasks)
    if sample_tasks:
        chosen = _sample(chosen, sample_tasks, seed)
    playing = Config(group_size, max_turns, seed, Sampling(temperature, top_p, max_tokens))
    settings: dict[str, Any] = {"env": env, "split": split}
    settings |= {"tasks": tasks or [], "max_tasks": max_tasks, "sample_tasks": sample_tasks}
    settings |= {"policy": policy, "model": model, "context": context, "tokenizer": tokenizer}
    settings |= {"noise": noise, "recording": recording}
    settings |= {"user": user, "user_model": user_model}
    settings |= {"group_size": group_size, "max_turns": max_turns} | asdict(playing.sampling)
    if dry_run:
        _show_plan(chosen, playing, settings | {"seed": seed}, as_json=as_json)
        return Counter()
    # What the episodes do not follow from: a run may be resumed with other values.
    engine: dict[str, Any] = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
    base_urls = addresses(base_url or ())
    engine |= {"base_url": base_urls, "user_base_url": user_base_url}
    engine |= {"served_model_name": served_model_name, "rate_limit": rate_limit}
    engine |= {"load_weights": load_weights, "restart_command": restart_command}
    engine |= {"user_tokens": user_tokens, "user_cost": user_cost, "user_price": user_price}
    models = [model, tokenizer, user_model if is_local(user_model, user_base_url) else None]
    made_by = console.made_by("rollout", settings, seed, _inputs(models, recording))
    budget = Budget.of(user_tokens, user_cost, user_price)
    if user == "scripted":
        environment.reset(chosen[0], 0)  # refuses now where the environment has no user of its own
    notes = Counter[str]()
    if load_weights:
        base_urls = _load_weights(base_urls, model, restart_command, notes)
    policy_options = PolicyOptions(
        model=model,
        served_model_name=served_model_name,
        concurrency=concurrency,
        context=context,
        base_urls=base_urls,
        tokenizer=tokenizer,
        timeout_s=timeout,
        retries=retries,
        rate_limit=rate_limit,
        rejoin=not load_weights,  # what comes back has the weights that it starts with
        noise=noise,
        recording=recording,
    )
    player = open_policy(policy, policy_options)
    notes += getattr(player, "notes", {})  # on what it was read from
    told = _told(player, environment)
    notes.update(told.notes)
    check_notes(notes, strict=strict)
    with _files(out) as files:
        journal = open_journal(files, made_by | {"engine": engine}, resume=resume, force=force)
        with closing(journal):
            users = None
            if user == "llm":
                users = LlmUsers(user_model, user_base_url, budget, timeout, retries, concurrency)
            run = Run(
                run_id(made_by),
                environment,
                player,
                playing,
                policy_name=model or policy,
                user_name=user_model or user,
                new_user=users.new if users else None,
            )
            pairs = plan(chosen, group_size)
            try:
                tally = _complete(run, pairs, journal, concurrency, users, quiet=quiet)
            except KeyboardInterrupt:
                if out not in (None, "-"):
                    kept = sum(journal.done(pair.key) for pair in pairs)
                    text = f"{kept:,} of {len(pairs):,} episodes are kept; go on with --resume"
                    console.note(f"interrupted: {text}")
                raise
            failed = left_out(tally.failures)
            check_notes(failed, strict=strict)
            journal.finish([pair.key for pair in pairs], environment.tools, told.record)
        if out == "-":
            sys.stdout.buffer.write(Path(files.out).read_bytes())
    if as_json:
        console.print_json(tally.document() | {"notes": dict(notes + failed)})
    elif not quiet:
        _report(tally, stderr=out == "-")
        show_notes(notes)  # the report tells what failed
    return notes


def _told(policy: Policy, environment: Env) -> Told:
    """How the policy is told its tools."""
    return policy.told(seen_tools(environment)) if isinstance(policy, Prompts) else Told({}, [])


@dataclass
class Tally:
    """What is known of a run's episodes so far."""

    planned: int
    status: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)  # by what failed
    successes: int = 0
    turns: int = 0
    tokens: int = 0  # that the policy wrote, as far as they were counted
    uncounted: int = 0  # turns whose tokens are unknown
    new_tokens: int = 0  # of this process
    restarts: int = 0  # of this process: episodes that began again on another server
    began: float = field(default_factory=time.monotonic)

    @property
    def counted(self) -> int:
        """Episodes so far."""
        return self.status.total()

    @property
    def pass_rate(self) -> float | None:
        """Share of successes among the episodes that count; None without any."""
        counting = self.status["ok"] + self.status["truncated"]
        return self.successes / counting if counting else None

    @property
    def seconds(self) -> float:
        """How long this process has played."""
        return time.monotonic() - self.began

    def add(self, row: RolloutRow, *, new: bool = False) -> None:
        """Count an episode."""
        self.status[row["status"]] += 1
        if row["status"] == "error":
            self.failures[row["ended"]] += 1
        self.successes += (row["outcome"] or 0) >= SUCCESS
        wrote = [m.get("n_tokens") for m in row["messages"] if m["role"] == "assistant"]
        self.turns += len(wrote)
        self.uncounted += wrote.count(None)
        tokens = sum(filter(None, wrote))
        self.tokens += tokens
        self.new_tokens += tokens if new else 0

    def document(self) -> dict[str, Any]:
        """Return the counts as `--json` prints them."""
        return {
            "episodes": self.counted,
            "status": {name: self.status[name] for name in ("ok", "truncated", "error")},
            "pass_rate": self.pass_rate,
            "turns": self.turns,
            "tokens": None if self.uncounted else self.tokens,
            "seconds": round(self.seconds, 3),
            "restarts": self.restarts,
            "failures": dict(self.failures.most_common()),
        }


def _complete(
    run: Run,
    pairs: Sequence[Pair],
    journal: Journal,
    concurrency: int,
    users: LlmUsers | None,
    *,
    quiet: bool,
) -> Tally:
    """Play what the journal lacks; return the counts of all episodes."""
    tally = Tally(len(pairs))
    for row in journal.rows():
        tally.add(row)
    missing = [pair for pair in pairs if not journal.done(pair.key)]

    async def play() -> None:
        try:
            with _progress(tally, quiet=quiet) as show:
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

    asyncio.run(play())
    return tally


@contextmanager
def _progress(tally: Tally, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Yield what shows the tally on standard error, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
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


def _load_weights(
    base_urls: tuple[str, ...],
    model: str | None,
    restart_command: str | None,
    notes: Counter[str],
) -> tuple[str, ...]:
    """Have the servers load the policy; return those that did."""
    if model is None or not Path(model).is_dir():
        raise InputError("--load-weights", "needs a folder", "give '--model DIR'")
    if not base_urls:
        raise InputError("--load-weights", "there are no servers", "give '--base-url URL'")
    loaded = asyncio.run(load(base_urls, model, restart_command))
    notes.update(f"left out, {url} does not answer" for url in base_urls if url not in loaded)
    return loaded


def _check_output(out: str | None, *, as_json: bool, resume: bool, force: bool) -> None:
    if as_json and out == "-":
        raise InputError("--json", "standard output is taken by '-o -'", "use one of them")
    if resume and out in (None, "-"):
        raise InputError("--resume", "there is no file to go on with", "give '-o FILE'")
    if resume and force:
        raise InputError("--resume", "'--force' would start over", "give one of them")
    if out not in (None, "-"):  # now, before servers get new weights
        refuse_existing(str(out), force=force or resume)


def _tasks(environment: Env, split: str, wanted: list[str], most: int | None) -> list[Task]:
    tasks = environment.tasks(split)
    if wanted:
        known = {task.task_id: task for task in tasks}
        for name in wanted:
            if name not in known:
                what = f"no task '{name}' in split '{split}' of {environment.name}"
                raise InputError("--tasks", what, nearest(name, known))
        tasks = [known[name] for name in dict.fromkeys(wanted)]
    if not tasks:
        raise InputError("--split", f"split '{split}' has no tasks", "choose another one")
    return tasks[:most]


def _inputs(models: Iterable[str | None], recording: str | None) -> dict[str, str]:
    """The sha256 of each file that the episodes follow from."""
    folders = [Path(model) for model in models if model and Path(model).is_dir()]
    weights = [path for folder in folders for path in sorted(folder.iterdir()) if _of_model(path)]
    paths = [*map(str, weights), *([recording] if recording else [])]
    return {path: digest(path) for path in paths}


def _of_model(path: Path) -> bool:
    """Whether a file says how a model writes; metrics.jsonl of its training doesn't."""
    return path.is_file() and path.suffix != ".jsonl"


def _sample(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    """Draw some of the tasks, in the order of the split."""
    if count > len(tasks):
        what = f"there are {len(tasks):,} tasks only"
        raise InputError("--sample-tasks", what, "draw fewer, or take another split")
    places = sorted(Random(seed).sample(range(len(tasks)), count))
    return [tasks[place] for place in places]


@contextmanager
def _files(out: str | None) -> Iterator[RunFiles]:
    """Where the run's files lie: a folder of their own where they are not to be kept."""
    if out not in (None, "-"):
        with alone(str(out)):
            yield RunFiles(str(out))
        return
    with tempfile.TemporaryDirectory() as folder:
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
        screen.print(escape(f"  {name}: {value}"))


def _report(tally: Tally, *, stderr: bool) -> None:
    screen = console.console(stderr=stderr)
    found = tally.document()
    states = ", ".join(f"{count:,} {name}" for name, count in found["status"].items() if count)
    rate = "undefined" if tally.pass_rate is None else f"{tally.pass_rate:.1%}"
    screen.print(f"{tally.counted:,} episodes ({states}), {tally.turns:,} turns, pass rate {rate}")
    tokens = "tokens unknown" if found["tokens"] is None else f"{tally.tokens:,} tokens"
    screen.print(f"{tokens}, {tally.seconds:.1f} s")
    if tally.restarts:
        screen.print(f"begun again on another server: {tally.restarts:,} times")
    for reason, count in tally.failures.most_common(SHOWN_FAILURES):
        screen.print(escape(f"error, {reason}: {count:,}"))
    if tally.failures:
        screen.print("play those again with --resume")
