"""The layout: imports between packages of `stages` point one way; a name means one thing."""

from __future__ import annotations

import ast
import re
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


LONGEST_FUNCTION = 80  # lines
LONGEST_FILE = 489


def test_functions_are_short() -> None:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in programs()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 1000
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_files_are_short() -> None:
    lengths = {
        path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path, _ in programs()
    }
    assert len(lengths) > 200
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


NAMELESS = ("one", "found")  # which say nothing of what they hold


def bindings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each name and attribute that is bound, and its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield name, node.lineno
            case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name, node.lineno
            case ast.alias():
                yield node.asname or node.name, node.lineno


def test_names_say_what_they_hold() -> None:
    places = [
        (path, line)
        for path, tree in programs()
        for name, line in bindings(tree)
        if name in NAMELESS
    ]
    assert places == []


def test_a_nameless_binding_would_be_seen() -> None:
    tree = ast.parse(
        "def found(one, /, *, found=0):\n"
        "    one = [one for one in found]\n"
        "    with open(one) as one: pass\n"
        "    if (one := 1): pass\n"
        "    match one:\n        case [*one] | {**one} | one: pass\n"
        "    from a import b as one\n"
        "    one.found = one.two\n"
    )
    lines = sorted(line for name, line in bindings(tree) if name in NAMELESS)
    assert lines == [1, 1, 1, 2, 2, 3, 4, 6, 6, 6, 7, 8]


METHOD = "docs/method.md"


def titles(page: str) -> set[str]:
    """The titles of a page's sections, without their numbers."""
    return set(re.findall(r"^##+ (?:\d+\. )?(.+)$", page, re.MULTILINE))


def citations(source: str) -> Iterator[str]:
    """Yield the titles that a program cites of the method; "" where it names the page alone."""
    text = re.sub(r"\s*\n\s*(# )?", " ", source)  # comments and docstrings break anywhere
    for after in text.split(METHOD)[1:]:
        cited = re.match(r'(?:,(?: and)? "[^"]+"| and "[^"]+")+', after)
        yield from re.findall(r'"([^"]+)"', cited[0]) if cited else [""]


def test_every_citation_of_the_method_names_a_section() -> None:
    known = titles((ROOT / METHOD).read_text(encoding="utf-8"))
    cited = {
        (path.relative_to(ROOT).as_posix(), title)
        for folder in ("stages", "irc_cli", "examples", "tests")
        for path in modules(folder).values()
        if path != Path(__file__)
        for title in citations(path.read_text(encoding="utf-8"))
    }
    assert len(cited) > 20
    assert {(path, title) for path, title in cited if title not in known} == set()


def test_a_wrong_citation_would_be_seen() -> None:
    assert titles("# Page\n## 1. Words\n### Early\n") == {"Words", "Early"}
    source = f"""# as in {METHOD}, "Two\n# words" and "Early"; {METHOD}, section 3"""
    assert list(citations(source)) == ["Two words", "Early", ""]


def test_what_is_cited_ships() -> None:
    unshipped = re.compile(r"\bSPEC\b")
    for folder in ("stages", "irc_cli", "examples", "tests", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".txt") and path != Path(__file__):
                assert not unshipped.search(path.read_text(encoding="utf-8")), path


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Yield the parameters of public functions and methods that no `Args:` entry names."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bodies = [(tree.body, False)]
    bodies += [(owner.body, True) for owner in classes if not owner.name.startswith("_")]
    for body, method in bodies:
        for node in body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                for name in parameters(node.args, method=method):
                    entry = rf"^ +\*{{0,2}}{re.escape(name)}:"
                    if not re.search(entry, ast.get_docstring(node) or "", re.MULTILINE):
                        yield f"{node.name}({name})"


def silent(tree: ast.Module) -> Iterator[str]:
    """Yield the public functions that do not say what they return."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            says = re.search("^(Returns|Yields):", ast.get_docstring(node) or "", re.MULTILINE)
            if not says and node.returns and ast.unparse(node.returns) != "None":
                yield node.name


def parameters(arguments: ast.arguments, *, method: bool) -> Iterator[str]:
    """Yield the names that a caller can give."""
    extra = [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    given = [*arguments.posonlyargs, *arguments.args, *extra, *arguments.kwonlyargs]
    for place, argument in enumerate(given):
        bound = method and place == 0 and argument.arg in ("self", "cls")
        if not bound and not argument.arg.startswith("_"):
            yield argument.arg


@pytest.mark.parametrize("package", ["core", "training"])
def test_numerical_functions_say_what_they_return(package: str) -> None:
    lacking = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in modules(f"stages/{package}").values()
        for name in silent(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert lacking == set()


@pytest.mark.parametrize("package", ["core", "training"])
def test_numerical_functions_say_what_each_parameter_is(package: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix(): lacking
        for path in modules(f"stages/{package}").values()
        if (lacking := list(undocumented(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert found == {}


def own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function, but for those of functions and classes within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def unannounced(tree: ast.Module) -> Iterator[str]:
    """Yield the public functions and methods that raise, and whose docstring does not say so."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bodies = [tree.body, *(owner.body for owner in classes if not owner.name.startswith("_"))]
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            says = re.search("^(Raises:|Raise )", ast.get_docstring(node) or "", re.MULTILINE)
            if not says and any(isinstance(part, ast.Raise) for part in own(node)):
                yield node.name


FORMULAS = {"exp", "expm1", "log", "log1p", "sqrt", "arctanh", "tanh", "logsumexp"}


def computes(function: ast.FunctionDef, *, divisions: bool) -> bool:
    """Whether a function holds a formula: a power, a root, an exponential, a logarithm.

    With `divisions` those count too. They are formulas in `core`; elsewhere `/` joins paths.
    """
    kinds = (ast.Pow, ast.Div) if divisions else (ast.Pow,)
    for node in ast.walk(function):
        match node:
            case ast.BinOp(op=kind) if isinstance(kind, kinds):
                return True
            case ast.Call(func=ast.Attribute(attr=name)) if name in FORMULAS:
                return True
    return False


def unsourced(tree: ast.Module, *, divisions: bool) -> Iterator[str]:
    """Yield the functions with formulas whose source is nowhere named.

    A public function or its module names it. A private one serves the others of its module, so
    that any docstring there may name it.
    """
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    texts = {
        node: ast.get_docstring(node) or ""
        for node in ast.walk(tree)
        if isinstance(node, documented)
    }
    naming = {node for node, text in texts.items() if re.search(r"\bSources?: ", text)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and computes(node, divisions=divisions):
            private = node.name.startswith("_")
            if not (naming if private else naming & {tree, node}):
                yield node.name


@pytest.mark.parametrize("package", ["core", "training"])
def test_numerical_functions_say_what_they_raise(package: str) -> None:
    lacking = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in modules(f"stages/{package}").values()
        for name in unannounced(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert lacking == set()


@pytest.mark.parametrize("package", ["core", "training"])
def test_formulas_name_their_source(package: str) -> None:
    divisions = package == "core"
    lacking = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in modules(f"stages/{package}").values()
        for name in unsourced(ast.parse(path.read_text(encoding="utf-8")), divisions=divisions)
    }
    assert lacking == set()


def test_a_silent_raise_would_be_seen() -> None:
    tree = ast.parse(
        "def a():\n    '''Do.'''\n    if x: raise E\n"
        "def b():\n    '''Do.\n\n    Raises:\n        E: x.\n    '''\n    raise E\n"
        "def c():\n    '''Do.'''\n    def d(): raise E\n"
        "class F:\n    def g(self): raise E\n"
    )
    assert list(unannounced(tree)) == ["a", "g"]


def test_a_formula_without_source_would_be_seen() -> None:
    formulas = "def a(x): return x / 2\ndef _b(x): return np.exp(x)\ndef c(x): return x**2\n"
    cited = formulas + "def d(x):\n    '''Do.\n\n    Source: me.\n    '''\n    return x / 3\n"
    assert list(unsourced(ast.parse(formulas), divisions=True)) == ["a", "_b", "c"]
    assert list(unsourced(ast.parse(formulas), divisions=False)) == ["_b", "c"]
    assert list(unsourced(ast.parse(cited), divisions=True)) == ["a", "c"]
    module = "'''All.\n\nSource: me.\n'''\n" + formulas
    assert list(unsourced(ast.parse(module), divisions=True)) == []


def test_an_undocumented_parameter_would_be_seen() -> None:
    tree = ast.parse(
        "def _private(a): pass\n"
        "def public(a, _b, *c, d=0):\n    '''Do.\n\n    Args:\n        a: first.\n    '''\n"
        "class Public:\n    def of(cls, e): pass\n    def _of(self, f): pass\n"
        "class _Private:\n    def of(self, g): pass\n"
    )
    assert list(undocumented(tree)) == ["public(c)", "public(d)", "of(e)"]
    assert list(silent(ast.parse("def a() -> int: ...\ndef b() -> None: ..."))) == ["a"]
