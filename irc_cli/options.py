"""Options that every command has, and `--config`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import typer

from stages.errors import InputError
from stages.settings import Declared, Setting, declared, parts
from stages.tables.files import reachable, refuse_existing
from stages.tables.yamlfile import Node, nearest, read_yaml

T = TypeVar("T")


def use_config(ctx: typer.Context, path: str | None) -> str | None:
    """Take the defaults of this command's options from a YAML file."""
    if path is None or ctx.resilient_parsing:
        return path
    known = {
        flag.removeprefix("--"): parameter
        for parameter in ctx.command.params
        for flag in parameter.opts
        if flag.startswith("--") and parameter.name not in ("config", "help")
    }
    document = read_yaml(path)
    for key in document.keys.keys() & known.keys():
        if new := _renamed(known[key]):
            raise InputError(document.keys[key], f"'{key}' was renamed", f"use '{new}'")
    given = document.fields(key for key, parameter in known.items() if not _renamed(parameter))
    settings = {
        str(known[key].name): _setting(node, several=known[key].multiple)
        for key, node in given.items()
    }
    ctx.default_map = dict(ctx.default_map or {}) | settings  # --method may have set some
    return path


def _renamed(parameter: Any) -> str | None:
    """Return the new name of an option that is only there to tell it."""
    return str(parameter.help) if getattr(parameter, "hidden", False) else None


def _setting(node: Node, *, several: bool) -> Any:
    """Return what a config file says of one option; a list only where it takes several values."""
    if several:
        return [item.plain() for item in node.items()]
    if isinstance(node.value, (list, dict)):
        raise node.error("expected a single value")
    return node.value


def added_to_config(ctx: typer.Context, name: str, given: list[str] | None) -> list[str]:
    """Return the values of --config, then those of the command line.

    Args:
        ctx: of the command.
        name: of the parameter, whose option may be repeated.
        given: its values: of the command line, or where that has none of --config.
    """
    of_config = (ctx.default_map or {}).get(name) or []
    source = ctx.get_parameter_source(name)
    if source and source.name == "DEFAULT_MAP":
        return list(of_config)
    return [*of_config, *(given or [])]


def _option(panel: str, text: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=text, metavar=metavar, **more)


INPUT, OUTPUT = "Input", "Output"  # panels of the help
Config = Annotated[
    str | None,
    _option(
        INPUT,
        "Read options from this file; its keys are the long option names.",
        metavar="FILE.yaml",
        callback=use_config,
        is_eager=True,
    ),
]
Out = Annotated[
    str | None,
    _option(OUTPUT, "File to write; '-' for standard output.", "--out", "-o", metavar="FILE"),
]
Force = Annotated[bool, _option(OUTPUT, "Overwrite existing outputs.", "--force")]
Seed = Annotated[int, _option(OUTPUT, "Random seed.", metavar="N", min=0)]


@dataclass(frozen=True)
class Reporting:
    """What a command prints."""

    as_json: Annotated[
        bool,
        Setting(
            "Print one JSON document to standard output and nothing else.", OUTPUT, option="json"
        ),
    ] = False
    quiet: Annotated[bool, Setting("Print no report and no notes.", OUTPUT, short="q")] = False


@dataclass(frozen=True)
class Printing(Reporting):
    """The same, and whether it tolerates flaws of its input."""

    strict: Annotated[
        bool,
        Setting("Fail and write nothing if anything was repaired, guessed or left out.", OUTPUT),
    ] = False


@dataclass(frozen=True)
class Writing(Printing):
    """The same, and whether a command may replace what exists."""

    force: Annotated[bool, Setting("Overwrite existing outputs.", OUTPUT)] = False


def expanded(
    renamed: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Make options of the settings in a command's dataclasses, and hand it these, checked.

    Args:
        renamed: old names of options by which the new one is named where they are used.
    """

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        shape = signature(command, eval_str=True)
        configs = {
            name: parameter.annotation
            for name, parameter in shape.parameters.items()
            if is_dataclass(parameter.annotation)
        }

        @wraps(command)
        def run(**given: Any) -> T:
            built = {name: built_from(config, given) for name, config in configs.items()}
            return command(**{name: built.get(name, given.get(name)) for name in shape.parameters})

        parameters = [
            option
            for parameter in shape.parameters.values()
            for option in _options_of(parameter, configs)
        ]
        parameters += [_refused(old, new) for old, new in (renamed or {}).items()]
        names = [parameter.name for parameter in parameters]
        assert len(names) == len(set(names)), f"an option twice: {names}"
        run.__signature__ = shape.replace(parameters=parameters)  # type: ignore[attr-defined]  # what inspect reads
        del run.__wrapped__  # its hints are of other parameters
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def all_settings(config: Any) -> Iterator[Declared]:
    """Yield the settings of a dataclass and of the dataclasses in it, in the order of fields."""
    own, nested = {field.name: field for field in declared(config)}, parts(config)
    for field in fields(config):
        if field.name in own:
            yield own[field.name]
        elif field.name in nested:
            yield from all_settings(nested[field.name])


def values_of(config: Any) -> Iterator[tuple[Declared, Any]]:
    """Yield the settings of a config and of the configs in it, each with its value."""
    for field in declared(type(config)):
        yield field, getattr(config, field.name)
    for name in parts(type(config)):
        yield from values_of(getattr(config, name))


def built_from(config: Any, given: Mapping[str, Any]) -> Any:
    """Return a dataclass with the values of options.

    Args:
        config: the class.
        given: values by the names of its fields, and of those of the dataclasses in it.

    Raises:
        InputError: a value that its option does not take.
    """
    values = {field.name: _checked(field, given[field.name]) for field in declared(config)}
    nested = {name: built_from(part, given) for name, part in parts(config).items()}
    return config(**values, **nested)


def flag(field: Declared) -> str:
    """Return the name of a setting's option."""
    return f"--{field.setting.option or field.name.replace('_', '-')}"


def _options_of(parameter: Parameter, configs: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters that stand for one of a command, for typer to read."""
    if parameter.name not in configs:
        return [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
    return [_parameter(field) for field in all_settings(configs[parameter.name])]


def _parameter(field: Declared) -> Parameter:
    setting, kind, default = field.setting, field.kind, field.default
    names = [flag(field)] + ([f"-{setting.short}"] if setting.short else [])
    if kind is bool and default:
        names[0] += f"/--no-{names[0].removeprefix('--')}"
    bounds = {"min": setting.low, "max": setting.high} if kind is int else {}
    option = typer.Option(
        *names,
        rich_help_panel=setting.panel,
        help=setting.help,
        show_default=setting.shown or True,
        metavar=setting.metavar or "|".join(field.choices) or _METAVARS.get(kind),
        **bounds,  # type: ignore[arg-type]
    )
    required = default is MISSING
    if get_origin(kind) is tuple:
        kind, default = list[str], list(default) or None
    elif field.choices:
        kind = str
    annotation: Any = Annotated[kind if required else kind | None, option]
    if kind is bool:
        annotation = Annotated[bool, option]
    place = Parameter.KEYWORD_ONLY
    return Parameter(
        field.name, place, default=Parameter.empty if required else default, annotation=annotation
    )


_METAVARS: dict[Any, str] = {int: "N", float: "X"}


def _refused(old: str, new: str) -> Parameter:
    """Return a hidden option that only says its new name."""

    def refuse(value: str | None) -> None:
        if value is not None:
            raise InputError(f"--{old}", "was renamed", f"use --{new}")

    option = typer.Option(f"--{old}", help=new, hidden=True, callback=refuse, is_eager=True)
    name = f"{old.replace('-', '_')}_renamed"
    annotation = Annotated[str | None, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _checked(field: Declared, value: Any) -> Any:
    """Return the value of a setting from that of its option."""
    setting = field.setting
    if get_origin(field.kind) is tuple:
        return tuple(value or ())
    if value is None or isinstance(value, bool):
        return value
    if field.choices:
        return one_of(flag(field).removeprefix("--"), value, field.choices)
    if setting.bounded and not setting.allows(value):
        todo = f"use a number {setting.bounds}"
        raise InputError(flag(field), f"{value:g} is out of range", todo)
    return None if value == setting.none and setting.none is not None else value


def check_outputs(outs: list[str | None], *, as_json: bool, force: bool) -> None:
    """Raise InputError before any work if an output could not be written."""
    if as_json and "-" in outs:
        raise InputError("--json", "standard output is taken by '-o -'", "use one of them")
    for out in outs:
        if out and out != "-":
            refuse_existing(out, force=force)


def refuse_twice(paths: list[str]) -> None:
    """Raise InputError if a file is named twice, by whatever path."""
    seen: set[Path] = set()
    for path in paths:
        if Path(path).resolve() in seen:
            raise InputError(path, "given twice", "name each file once")
        seen.add(Path(path).resolve())


def name_or_file(option: str, value: str, names: tuple[str, ...]) -> str:
    """Return the value if it is one of the names or a file, or raise InputError."""
    with reachable(value):
        if value not in names and not Path(value).exists():
            what = f"unknown name '{value}', and no such file"
            raise InputError(f"--{option}", what, nearest(value, names))
    return value


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return the value, or raise InputError naming what is allowed."""
    if value not in allowed:
        todo = nearest(value, allowed)
        if not todo.startswith("did you mean"):
            todo = f"use {' | '.join(allowed)}"
        raise InputError(f"--{option}", f"unknown value '{value}'", todo)
    return value
