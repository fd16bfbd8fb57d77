"""The options of an `irc-cli calibrate` call, and the checks that they fit together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from irc_cli import options
from irc_cli.options import OUTPUT
from stages.calibration.estimate import CHECK, POLICIES, STATISTICS, CalibrateConfig
from stages.calibration.online import HALF_LIFE
from stages.core.advantages import AdvantageConfig
from stages.core.forgetting import PANEL as ONLINE
from stages.core.forgetting import GateConfig
from stages.errors import InputError
from stages.settings import Setting
from stages.tables.paths import files_of, remote

OF_SUMS = ("partial", "merge", "stream")  # ways to calibrate that never hold all turns in memory


SHARDS = "Shards"  # panel of the help


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of one call, and its input files."""

    config: CalibrateConfig
    landmark: Annotated[
        int | None,
        Setting(
            "First turns that the landmark correlation covers; default: the median length.",
            STATISTICS,
            low=1,
            metavar="K",
        ),
    ] = None
    seed: Annotated[int, Setting("Seed of the bootstrap.", STATISTICS, low=0)] = 0
    estimator: AdvantageConfig
    check: Annotated[
        bool, Setting("Exit with 1 if misaligned, not converged or farmable.", CHECK)
    ] = False
    advantages: Annotated[
        str | None,
        Setting(
            "Check these advantages (episode_id, turn, advantage) instead of our own.",
            CHECK,
            metavar="FILE",
        ),
    ] = None
    keep_rewards: Annotated[
        bool, Setting("Check the rewards in the turns, not the calibrated values.", CHECK)
    ] = False
    previous: Annotated[
        str | None,
        Setting("Earlier calibration to show changes against.", CHECK, metavar="FILE.yaml"),
    ] = None
    test: Annotated[
        tuple[str, ...],
        Setting("Other turns to judge the values on; may be repeated.", POLICIES, metavar="TURNS"),
    ] = ()
    partial: Annotated[bool, Setting("Write only the sums of these turns to --out.", SHARDS)] = (
        False
    )
    merge: Annotated[bool, Setting("Calibrate from sums that --partial wrote.", SHARDS)] = False
    stream: Annotated[
        bool,
        Setting("Sum turns while reading, in little memory; check a sample of groups.", SHARDS),
    ] = False
    online: Annotated[
        str | None,
        Setting(
            "Calibrate while a policy trains: add these turns to this state file of decaying sums.",
            ONLINE,
            metavar="STATE",
        ),
    ] = None
    half_life: Annotated[
        float | None,
        Setting(
            f"Episodes after which the weight of an episode has halved; default: {HALF_LIFE:g}.",
            ONLINE,
            metavar="N",
        ),
    ] = None
    gate: GateConfig
    out: Annotated[
        str | None,
        Setting(
            "Calibration to write (YAML), with advantages.parquet beside it.",
            OUTPUT,
            short="o",
            metavar="FILE",
        ),
    ] = None
    plots: Annotated[
        str | None, Setting("Folder for figures, as PNG and SVG.", OUTPUT, metavar="DIR")
    ] = None
    report: Annotated[
        str | None,
        Setting(
            "Write the HTML page of irc-cli report.",
            OUTPUT,
            metavar="FILE.html",
        ),
    ] = None
    markdown: Annotated[
        str | None,
        Setting(
            "Write verdict, tiers and changes as Markdown, for a job summary or a comment.",
            OUTPUT,
            metavar="FILE.md",
        ),
    ] = None
    printing: options.Writing
    method: str | None = None
    inputs: list[str] = field(default_factory=list)  # files
    tests: dict[str, list[str]] = field(default_factory=dict)  # files by the given name

    @property
    def ways(self) -> tuple[str, ...]:
        """The requested ways of OF_SUMS; empty: the turns themselves are calibrated."""
        return tuple(way for way in OF_SUMS if getattr(self, way))

    @property
    def way(self) -> str:
        """How the calibration is made: turns | partial | merge | stream."""
        return self.ways[0] if self.ways else "turns"

    @property
    def has_checks(self) -> bool:
        """Whether there are turns, or a sample of them, to check advantages on."""
        return self.way in ("turns", "stream")

    @property
    def beside(self) -> str | None:
        """The path of the advantages; None: they are not written."""
        if self.ways or not self.out or self.out == "-":
            return None
        return str(Path(self.out).with_name("advantages.parquet"))

    @property
    def read(self) -> list[str]:
        """All input files except the state of --online."""
        named = [*self.inputs, self.previous, self.advantages]
        named += [path for paths in self.tests.values() for path in paths]
        return [path for path in named if path]

    def settings(self) -> dict[str, Any]:
        """Return the options that artifacts record."""
        return {"calibrate": asdict(self.config), "advantage": asdict(self.estimator)}


def with_files(request: Request, inputs: list[str]) -> Request:
    """Return a request with its inputs and tests resolved to files.

    Raises:
        InputError: a folder or pattern without files.
    """
    tests = {name: files_of([name]) for name in request.test}
    return replace(request, inputs=files_of(inputs), tests=tests)


def check_request(request: Request) -> None:
    """Raise InputError if options contradict each other or do nothing."""
    _check_gate(request.gate)
    _check_online(request)
    _check_sums(request)
    _check_critic(request)
    outputs = [
        path
        for path in (request.out, request.beside, request.online, request.report, request.markdown)
        if path != "-"
    ]
    options.refuse_twice([*request.inputs, *([request.online] if request.online else [])])
    options.refuse_twice([path for path in outputs if path])


def _check_critic(request: Request) -> None:
    """Raise InputError if --advantage potential has no turns to fit, or would go unused."""
    if request.estimator.estimator != "potential":
        return
    if request.ways:
        what = "sums hold no turns to fit the critic of --advantage potential to"
        raise InputError(f"--{request.way}", what, "calibrate the turns themselves for that")
    if request.keep_rewards:
        what = "judges the rewards as scored, but --advantage potential computes its own"
        raise InputError("--keep-rewards", what, "drop one of them")


def _check_gate(gate: GateConfig) -> None:
    if not gate.open_p <= gate.close_p <= 1:
        todo = f"use a number from {gate.open_p:g} to 1"
        raise InputError("--close-p", f"{gate.close_p:g} is out of range", todo)


def _check_online(request: Request) -> None:
    if request.half_life is not None and not request.online:
        raise InputError("--half-life", "does nothing by itself", "give --online STATE")
    if not request.online:
        return
    if request.method:
        what = f"uses the correlation within tasks, but --method {request.method} the pooled one"
        raise InputError("--online", what, "drop one of them")
    if request.config.correlation == "pooled":
        raise InputError("--online", "uses the correlation within tasks", "drop --correlation")


def _check_sums(request: Request) -> None:
    ways = [f"--{way}" for way in request.ways]
    if len(ways) > 1:
        raise InputError(ways[0], f"can't go with {ways[1]}", "use one of them")
    if request.way == "partial" and request.plots:
        raise InputError("--plots", "sums of one shard are no figures yet", "plot with --merge")
    if request.way == "partial" and not request.out:
        raise InputError("--partial", "nothing to write the sums to", "name a file with --out")
    if ways and request.landmark:
        what = "sums hold no turns to compute a landmark from"
        raise InputError(ways[0], what, "calibrate the turns themselves for --landmark")
    pages = {"--report": request.report, "--markdown": request.markdown}
    for option in [name for name, path in pages.items() if path and ways]:
        what = f"sums hold no turns for {option}"
        raise InputError(ways[0], what, "calibrate the turns themselves for that")
    needs_all = (request.advantages, request.online, request.tests)
    needs_some = (request.check, request.keep_rewards, request.previous)
    if (ways and any(needs_all)) or (not request.has_checks and any(needs_some)):
        what = "sums hold no turns to judge advantages by"
        raise InputError(ways[0], what, "calibrate the turns themselves for that")


def check_local(request: Request) -> None:
    """Raise InputError for remote inputs, which --online can't recognise by their sha256."""
    if request.online and any(map(remote, request.inputs)):
        what = "recognises turns by their sha256, which needs a local file"
        raise InputError("--online", what, "copy them from the object store first")
