"""The layout: imports between packages of `stages` point one way; a name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "core",
    "tables",
    "messages",
    "traces",
    "tiers",
    "calibration",
    "envs",
    "policies",
    "serving",
    "training",
    "exports",
    "reporting",
}
SHARED = {"errors", "settings"}  # modules without imports of ours, which every package may import
OURS = ("stages", "irc_cli", "data", "examples", "tests")

Graph = dict[str, set[str]]


def modules(folder: str) -> dict[str, Path]:
    """Every module below a folder by its dotted name."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    return {".".join(part for part in parts[path] if part != "__init__"): path for path in paths}


def imports(source: str) -> Iterator[str]:
    """Yield what a module imports, also within functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(name: str) -> str:
    """The package of `stages`, or its module at the top, that holds a dotted name."""
    parts = name.split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else ""


def graph() -> Graph:
    """What each package, and each module at the top of `stages`, imports of the others."""
    edges: Graph = {}
    for name, path in modules("stages").items():
        here = room(name)
        there = {room(target) for target in imports(path.read_text(encoding="utf-8"))}
        edges.setdefault(here, set()).update(there - {here, ""})
    edges.pop("", None)
    return edges


def cycle(edges: Graph) -> list[str]:
    """The first cycle of a graph; [] if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


GRAPH = graph()


def test_every_package_is_known() -> None:
    folders = {path.parent.name for path in (ROOT / "stages").glob("*/__init__.py")}
    assert folders == PACKAGES
    assert set(GRAPH) > PACKAGES | SHARED


def test_no_package_cycle() -> None:
    assert cycle({name: GRAPH[name] & PACKAGES for name in PACKAGES}) == []


def test_no_cycle_of_the_modules_at_the_top() -> None:
    assert cycle(GRAPH) == []


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_package_imports_a_verb(package: str) -> None:
    assert GRAPH[package] - PACKAGES - SHARED == set()


def test_what_all_share_imports_nothing_of_ours() -> None:
    assert [GRAPH[name] for name in SHARED] == [set()] * len(SHARED)


def test_the_core_needs_no_other_package() -> None:
    assert GRAPH["core"] == SHARED


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("stages", {"stages"}),
        ("irc_cli", {"stages", "irc_cli"}),
    ],
)
def test_imports_point_one_way(folder: str, allowed: set[str]) -> None:
    for name, path in modules(folder).items():
        tops = {target.partition(".")[0] for target in imports(path.read_text(encoding="utf-8"))}
        assert tops & set(OURS) <= allowed, name


def test_data_holds_data() -> None:
    programs = [path.relative_to(ROOT).as_posix() for path in (ROOT / "data").rglob("*.py")]
    assert programs == ["data/__init__.py"]  # which makes it a package, for importlib.resources
    tree = ast.parse((ROOT / "data/__init__.py").read_text(encoding="utf-8"))
    assert [type(node) for node in tree.body] == [ast.Expr]  # its docstring


def test_a_cycle_would_be_seen() -> None:
    assert set(cycle({"traces": {"messages"}, "messages": {"envs"}, "envs": {"traces"}})) == {
        "traces",
        "messages",
        "envs",
    }
    source = (
        "from __future__ import annotations\n"
        "if TYPE_CHECKING:\n    from stages.calibrate import Calibration\n"
        "def load() -> None:\n    import stages.train as stage\n"
    )
    assert {room(target) for target in imports(source)} == {"", "calibrate", "train"}


def programs() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the tree of every program but the tests."""
    for folder in ("stages", "irc_cli", "examples"):
        for path in modules(folder).values():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield path.relative_to(ROOT).as_posix(), tree


def test_one_class_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in programs():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path}:{node.lineno}")
    assert len(places) > 100
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


LONGEST = 80  # lines of a function


def test_functions_of_the_command_line_are_short() -> None:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in programs()
        if str(path).startswith("irc_cli")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 100
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
