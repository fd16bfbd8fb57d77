"""What each tool of a domain does, and how its arguments are compared."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, TypeVar

from stages.core.arguments import NO_RULES, ToolRules
from stages.yamlfile import Node, parse_yaml, read_yaml

SHIPPED = ("airline", "retail", "telecom", "airline-mini")
KINDS = ("read", "write", "terminal", "generic")
RULES = ("ignore", "ordered", "paired", "booleans", "text")
_KEPT = 256  # domains of which something is kept, in traces whose records define their own tools
_T = TypeVar("_T")

# What the words of a tool's name say about its kind; a verb counts as its first word.
READING = frozenset(
    {"browse", "check", "count", "describe", "fetch", "find", "get", "is", "list", "lookup"}
    | {"query", "read", "retrieve", "search", "show", "verify", "view"}
)
THINKING = frozenset({"calculate", "calculator", "reason", "think"})
ESCALATING = frozenset({"escalate", "handoff"})
PEOPLE = frozenset({"agent", "agents", "human", "humans", "operator", "person", "representative"})
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


@dataclass(frozen=True)
class Domain:
    """The tools that an agent has.

    Attributes:
        name: of the domain; "tool definitions" or "guessed" where it is not a known one.
        kinds: read, write, terminal or generic, by tool.
        rules: how arguments are compared, by tool; tools without rules are missing.
        guessed: some kinds are only guessed from names. Without `kinds`, all are.
    """

    name: str
    kinds: Mapping[str, str]
    rules: Mapping[str, ToolRules]
    guessed: bool

    def kind(self, tool: str) -> str:
        """The tool's kind; "unknown" for one that the domain lacks, unless all are guessed."""
        kind = self.kinds.get(tool)
        if kind is not None:
            return kind
        return guessed_kind(tool) if self.guessed and not self.kinds else "unknown"


class PerDomain(Generic[_T]):
    """What is made once for each domain, while its episodes last."""

    def __init__(self, make: Callable[[Domain], _T]) -> None:
        self._make = make
        self._made: dict[int, tuple[Domain, _T]] = {}  # by the domain's identity: it has no hash

    def of(self, domain: Domain) -> _T:
        """Return what was made for a domain, or make it."""
        if id(domain) not in self._made:
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[id(domain)] = domain, self._make(domain)
        return self._made[id(domain)][1]


def load_domain(name_or_path: str) -> Domain:
    """A shipped domain by name, or one from a YAML file of the same form.

    Raises:
        InputError: the file is missing or malformed, with line and column.
    """
    return _shipped(name_or_path) if name_or_path in SHIPPED else _domain(read_yaml(name_or_path))


def find_domain(
    stated: str | None, tool_names: Iterable[str], tools: list[dict[str, Any]] | None
) -> Domain:
    """The domain of a trace.

    In this order: the shipped domain that the trace names; the shipped one that knows most of its
    tools, and at least half; the trace's own tool definitions; a guess from the tools' names.
    Where two shipped domains know equally many, the first by name is taken if both give every tool
    the same kind, and none otherwise.

    Args:
        stated: name that the trace gives, if any.
        tool_names: of tools called or expected, in any number.
        tools: OpenAI tool definitions of the trace, if any.
    """
    if stated in SHIPPED:
        return _shipped(stated)
    defined = definitions(tools or [])
    names = {*tool_names, *defined} - {""}
    return _best_fit(names) or _from_definitions(defined) or Domain("guessed", {}, {}, guessed=True)


def guessed_kind(tool: str) -> str:
    """What a tool's name suggests that it does; anything unclear may be a write.

    `transfer_to_human` ends the conversation, `transfer_money` does not. A prefix that names a
    server or module ("shop.get_order", "mcp__shop__get_order") says nothing.
    """
    words = [word.lower() for word in WORD.findall(tool.rpartition(".")[2].rpartition("__")[2])]
    if not ESCALATING.isdisjoint(words) or words[:2] == ["hand", "off"]:
        return "terminal"
    if "transfer" in words and not PEOPLE.isdisjoint(words):
        return "terminal"
    verb = words[0] if words else ""
    if verb in THINKING:
        return "generic"
    return "read" if verb in READING else "write"


def definitions(tools: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """The functions of OpenAI tool definitions by name; entries may also be bare functions."""
    functions = {}
    for tool in tools:
        if isinstance(tool, dict):
            function = tool.get("function")
            # Annotations may stand beside the function as well as within it.
            function = {**tool, **function} if isinstance(function, dict) else tool
            if isinstance(name := function.get("name"), str):
                functions[name] = function
    return functions


@functools.cache
def _shipped(name: str) -> Domain:
    file = files("data") / "domains" / f"{name}.yaml"
    return _domain(parse_yaml(file.read_text(encoding="utf-8"), f"data/domains/{name}.yaml"))


def _domain(root: Node) -> Domain:
    """A domain from its YAML."""
    fields = root.fields(("name", "tools"))
    for key in ("name", "tools"):
        if key not in fields:
            raise root.error(f"no key '{key}'", "give 'name' and 'tools'")
    kinds: dict[str, str] = {}
    rules: dict[str, ToolRules] = {}
    for tool, node in fields["tools"].fields().items():
        parts = node.fields(("kind", *RULES))
        if "kind" not in parts:
            raise node.error(f"tool '{tool}' has no 'kind'", "give one of " + ", ".join(KINDS))
        kinds[tool] = parts["kind"].one_of(KINDS)
        if len(parts) > 1:
            rules[tool] = _rules(parts)
    return Domain(fields["name"].text(), kinds, rules, guessed=False)


def _rules(parts: Mapping[str, Node]) -> ToolRules:
    """The comparison rules of one tool."""

    def keys(node: Node | None) -> tuple[str, ...]:
        return tuple(item.text() for item in node.items()) if node else ()

    paired = parts["paired"].items() if "paired" in parts else []
    for group in paired:
        if len(keys(group)) < 2:
            raise group.error("a pair of one list", "name the lists that belong together")
    return ToolRules(
        ignore=frozenset(keys(parts.get("ignore"))),
        ordered=frozenset(keys(parts.get("ordered"))),
        paired=tuple(keys(group) for group in paired),
        booleans=frozenset(keys(parts.get("booleans"))),
        text=frozenset(keys(parts.get("text"))),
    )


@functools.lru_cache(maxsize=4096)
def fitting(names: frozenset[str]) -> tuple[str, ...]:
    """The shipped domains that know most of the names; none where that is less than half."""
    known = {name: len(names & _shipped(name).kinds.keys()) for name in SHIPPED}
    most = max(known.values())
    if most == 0 or 2 * most < len(names):
        return ()
    return tuple([name for name in SHIPPED if known[name] == most])


def _best_fit(names: set[str]) -> Domain | None:
    """The shipped domain that knows most of the names; None below half, or torn between two."""
    fit = fitting(frozenset(names))
    if not fit:
        return None
    first, *others = map(_shipped, fit)
    torn = any(first.kind(name) != other.kind(name) for other in others for name in names)
    return None if torn else first


def _from_definitions(defined: Mapping[str, dict[str, Any]]) -> Domain | None:
    """A domain from the tool definitions of a trace; None where there are none."""
    if not defined:
        return None
    stated = {name: _stated_kind(function) for name, function in defined.items()}
    kinds = {name: kind or guessed_kind(name) for name, kind in stated.items()}
    rules = {name: _schema_rules(function.get("parameters")) for name, function in defined.items()}
    rules = {name: rule for name, rule in rules.items() if rule != NO_RULES}
    return Domain("tool definitions", kinds, rules, guessed=None in stated.values())


def _stated_kind(function: Mapping[str, Any]) -> str | None:
    """The kind that a definition gives, ours (`kind`, `x-kind`) or by MCP's `readOnlyHint`."""
    for key in ("x-kind", "kind"):
        if function.get(key) in KINDS:
            return str(function[key])
    annotations = function.get("annotations")
    hint = annotations.get("readOnlyHint") if isinstance(annotations, dict) else None
    return {True: "read", False: "write"}.get(hint) if isinstance(hint, bool) else None


def _schema_rules(schema: Any) -> ToolRules:
    """Keys that are booleans or text by a JSON schema, at any depth."""
    types: dict[str, set[str]] = {}
    pending = [schema]
    for part in pending:  # grows as it is walked
        if not isinstance(part, dict):
            continue
        pending += [part.get("items"), *(part.get("anyOf") or [])]
        properties = part.get("properties")
        if isinstance(properties, dict):
            pending += properties.values()
            for key, value in properties.items():
                types.setdefault(key, set()).update(_types(value))
    return ToolRules(
        booleans=frozenset(key for key, found in types.items() if found == {"boolean"}),
        text=frozenset(key for key, found in types.items() if found == {"string"}),
    )


def _types(schema: Any) -> set[str]:
    """The JSON types that a schema allows, of a list those of its elements; null aside."""
    if not isinstance(schema, dict):
        return {"unknown"}
    if isinstance(schema.get("anyOf"), list):
        return set().union(*(_types(choice) for choice in schema["anyOf"])) - {"null"}
    stated = schema.get("type", "unknown")
    types = set(stated) if isinstance(stated, list) else {stated}
    if "array" in types:
        types = types - {"array"} | _types(schema.get("items"))
    return types - {"null"}
