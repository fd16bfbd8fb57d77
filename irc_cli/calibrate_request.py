"""What a call of `irc-cli calibrate` asks for, and whether its options fit together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irc_cli import options
from stages.calibration.estimate import CalibrateConfig
from stages.core.advantages import AdvantageConfig
from stages.core.forgetting import GateConfig
from stages.errors import InputError
from stages.tables.paths import files_of, remote

OF_SUMS = ("partial", "merge", "stream")  # ways to calibrate that never hold the turns


@dataclass(frozen=True)
class Request:
    """The options of one call."""

    inputs: list[str]  # files
    config: CalibrateConfig
    estimator: AdvantageConfig
    gate: GateConfig
    out: str | None = None
    ways: tuple[str, ...] = ()  # of OF_SUMS; none: from the turns themselves
    method: str | None = None
    advantages: str | None = None
    keep_rewards: bool = False
    check: bool = False
    previous: str | None = None
    tests: dict[str, list[str]] = field(default_factory=dict)  # files by the name that was given
    landmark_at: int | None = None
    online: str | None = None
    half_life: float | None = None
    plots: str | None = None
    report: str | None = None
    markdown: str | None = None
    as_json: bool = False
    quiet: bool = False
    strict: bool = False
    force: bool = False
    seed: int = 0

    @property
    def way(self) -> str:
        """How the calibration is made: turns | partial | merge | stream."""
        return self.ways[0] if self.ways else "turns"

    @property
    def beside(self) -> str | None:
        """Where the advantages go."""
        if self.ways or not self.out or self.out == "-":
            return None
        return str(Path(self.out).with_name("advantages.parquet"))

    @property
    def read(self) -> list[str]:
        """All files that are read, but for the state of --online."""
        named = [*self.inputs, self.previous, self.advantages]
        named += [path for paths in self.tests.values() for path in paths]
        return [path for path in named if path]

    def settings(self) -> dict[str, Any]:
        """What artifacts record of the options."""
        return {"calibrate": asdict(self.config), "advantage": asdict(self.estimator)}


def named_files(inputs: list[str], tests: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the files that inputs and tests mean.

    Raises:
        InputError: a folder or pattern without files.
    """
    return files_of(inputs), {name: files_of([name]) for name in tests}


def check_request(request: Request) -> None:
    """Raise InputError where options contradict each other or do nothing."""
    _check_online(request)
    _check_sums(request)
    outputs = [
        path
        for path in (request.out, request.beside, request.online, request.report, request.markdown)
        if path != "-"
    ]
    for files in (request.inputs, [request.advantages]):
        options.refuse_twice([path for path in (*files, *outputs) if path])


def _check_online(request: Request) -> None:
    if request.half_life is not None and not request.online:
        raise InputError("--half-life", "does nothing by itself", "give --online STATE")
    if not request.online:
        return
    if request.method:
        what = f"follows the correlation within tasks, --method {request.method} the pooled one"
        raise InputError("--online", what, "drop one of them")
    if request.config.correlation == "pooled":
        raise InputError("--online", "follows the correlation within tasks", "drop --correlation")


def _check_sums(request: Request) -> None:
    ways = [f"--{way}" for way in request.ways]
    if len(ways) > 1:
        raise InputError(ways[0], f"can't go with {ways[1]}", "use one of them")
    if request.way == "partial" and request.plots:
        raise InputError("--plots", "sums of one shard are no figures yet", "plot with --merge")
    if request.way == "partial" and not request.out:
        raise InputError("--partial", "nothing to write the sums to", "name a file with --out")
    if ways and request.landmark_at:
        what = "sums hold no turns to tell the first of"
        raise InputError(ways[0], what, "calibrate the turns themselves for --landmark")
    pages = {"--report": request.report, "--markdown": request.markdown}
    for option in [name for name, path in pages.items() if path and ways]:
        what = f"sums hold no turns for {option}"
        raise InputError(ways[0], what, "calibrate the turns themselves for that")
    needs_turns = (request.check, request.keep_rewards, request.advantages, request.previous)
    if ways and (any(needs_turns) or request.online or request.tests):
        what = "sums hold no turns to judge advantages by"
        raise InputError(ways[0], what, "calibrate the turns themselves for that")


def check_local(request: Request) -> None:
    """Raise InputError for what --online can't know again."""
    if request.online and any(map(remote, request.inputs)):
        what = "knows turns again by their sha256, which takes a file"
        raise InputError("--online", what, "copy them from the object store first")
