"""The typer app: commands that load when called, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from irc_cli import __version__
from stages.core.printable import printable
from stages.errors import InputError
from stages.serving.address import without_secrets
from stages.tables.inputs import keeping

_READ = re.compile("FILE|DIR|TRACES|TURNS|ROLLOUTS")  # metavars of inputs
YOUNG = 10_000  # gc's threshold of new objects; few objects of a trace are garbage

# Errors of the system, not of ours: permissions, disk space, I/O errors, too many open files.
REFUSALS = (
    {errno.EACCES, errno.EPERM, errno.EROFS}
    | {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    | {errno.EIO, errno.EMFILE, errno.ENFILE}
)

# Command, module, one line of help. A module is imported when its command is called: `--help`
# stays instant, and a command pays only for the libraries that it needs.
COMMANDS = {
    "rollout": (
        "irc_cli.rollout",
        "Play episodes: a policy in an environment with simulated users.",
    ),
    "score": ("irc_cli.score", "Assign every turn of traces a reward tier."),
    "calibrate": ("irc_cli.calibrate", "Measure which tiers separate success from failure."),
    "train": ("irc_cli.train", "Train a policy on per-turn advantages."),
    "loop": ("irc_cli.loop", "Repeat rollout, score, calibrate and train."),
    "report": ("irc_cli.report", "Write one HTML page that shows why each tier has its value."),
    "eval": ("irc_cli.evaluate", "Measure pass rate, pass^k, turns and tokens per episode."),
    "compare-args": ("irc_cli.compare_args", "Compare tool calls, and explain the differences."),
    "export": ("irc_cli.export", "Write rollouts and rewards in the formats of other libraries."),
}


def without_types(parameters: list[Any]) -> list[Any]:
    """Hide types in the help: flags take no value, and arguments have metavars."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        if isinstance(parameter, TyperArgument):
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # typer has no option for it
    return parameters


def _is_read(parameter: Any) -> bool:
    """Return whether a parameter names files or folders that the command only reads."""
    written = getattr(parameter, "rich_help_panel", None) == "Output"
    if written or parameter.name in ("keep_rollouts", "online"):
        return False
    return bool(_READ.search(str(parameter.metavar)))


class PlainCommand(TyperCommand):
    """A command whose help shows panels and no types, and which never overwrites its inputs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and refuse to overwrite its input files."""
        paths: list[str] = []
        for parameter in filter(_is_read, self.params):
            given = ctx.params.get(str(parameter.name)) or ()
            paths += [given] if isinstance(given, str) else given
        if not gc.isenabled():  # disabled by `main`; the imports are done now
            gc.freeze()  # collections skip the imported objects from now on, also at exit
            gc.set_threshold(YOUNG)
            gc.enable()
        with keeping(paths):
            return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters as the help shows them."""
        return without_types(super().get_params(ctx))

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`, placed in a panel like all options."""
        option: Any = super().get_help_option(ctx)
        if option:
            option.rich_help_panel = "Output"
        return option

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces after the command's name in the 'Usage:' line."""
        arguments = [part for part in self.params if isinstance(part, TyperArgument)]
        return ["[OPTIONS]", *(str(argument.metavar) for argument in arguments)]


class LazyGroup(TyperGroup):
    """Imports a command's module when it is called, and prints every error as one line."""

    modules: ClassVar = COMMANDS

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters as the help shows them."""
        return without_types(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the real command instead of the placeholder that the help lists."""
        name, _, rest = super().resolve_command(ctx, args)
        module = import_module(self.modules[str(name)][0])
        if hasattr(module, "app"):  # a group of commands
            return name, typer.main.get_command(module.app), rest
        single = typer.Typer(add_completion=False)
        single.command(name, cls=PlainCommand)(module.command)
        return name, typer.main.get_command(single), rest

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run and exit with 0 (done), 1 (a check fails), 2 (bad input) or 130 (interrupted)."""
        options["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **options)
            sys.stdout.flush()
        except InputError as error:
            code = _fail(str(error))
        except typer.TyperException as error:
            code = _usage(error)
        except OSError as error:
            code = _refused(error)
        sys.exit(code if isinstance(code, int) else 0)


def _refused(error: OSError) -> int:
    """Report an error of the system; re-raise any other error, which is a bug of ours."""
    if error.errno not in REFUSALS:
        raise error
    reason = (error.strerror or str(error)).lower()
    if error.filename:
        return _fail(f"{error.filename}: {reason}; check its permissions and the disk")
    if error.errno != errno.ENOSPC:
        raise error
    # Discard what is still buffered: flushing it at exit would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return _fail(f"standard output: {reason}; free space or write elsewhere")


def _fail(line: str) -> int:
    sys.stderr.write(f"error: {printable(without_secrets(line))}\n")
    return 2


def _usage(error: typer.TyperException) -> int:
    message = " ".join(error.format_message().split()).rstrip(".")
    if not message:  # called without arguments: typer has printed the help
        return 2
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx else "irc-cli"
    line = "; ".join(f"{part[0].lower()}{part[1:]}" for part in message.split(". "))
    return _fail(f"{line}{'' if line.endswith('?') else ';'} see '{command} --help'")


def group(cls: type[LazyGroup], *, completion: bool = False) -> typer.Typer:
    """Return an app that lists its commands without loading them."""
    named = typer.Typer(
        cls=cls,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
    )
    for name, (_, text) in cls.modules.items():
        named.command(name, help=text)(lambda: None)
    return named


app = group(LazyGroup, completion=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"irc-cli {__version__}\n")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Calibrate the per-turn rewards of tool-calling agents from their own rollouts.

    The stages read and write Parquet and JSON lines; `-` is standard input or output.
    """


def main() -> None:
    """Run the command line; the entry point of `irc-cli`."""
    gc.disable()  # imports create hundreds of thousands of objects and hardly any garbage
    # On a closed pipe (`| head`), end quietly with 141 like other tools; 1 means a failed check.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    app(prog_name="irc-cli")
