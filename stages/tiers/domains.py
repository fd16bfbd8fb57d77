"""Domains: the kind of each tool and how its arguments are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Generic, TypeVar

from stages.core.arguments import NO_RULES, ToolRules
from stages.messages.message import definitions
from stages.tables.yamlfile import Node, parse_yaml, read_yaml
from stages.tiers.failures import Failures, default_failures, own_failures
from stages.tiers.tool_names import guessed_kind

SHIPPED = ("airline", "retail", "telecom", "banking_knowledge", "airline-mini")
KINDS = ("read", "write", "terminal", "generic")
# Tools so common that their names do not identify a domain.
EVERYWHERE = frozenset({"calculate", "get_current_time", "grep", "shell", "think"})
RULES = ("ignore", "ordered", "paired", "booleans", "text")
_KEPT = 256  # most cached domains; in some traces every record defines its own tools
_T = TypeVar("_T")


@dataclass(frozen=True)
class Domain:
    """The tools of an agent.

    Attributes:
        name: name of the domain; "tool definitions" or "guessed" if it is not a known one.
        kinds: stated kind (read, write, terminal or generic) by tool.
        rules: comparison rules of arguments, by tool; tools without rules are missing.
        guessed: whether kinds that are not stated are guessed from names.
        tools: the agent's tools; None: those in `kinds`, or any tool if `guessed`.
        kind_by: name of the argument that holds an inner tool's name, by the tool that calls it.
        failures: rules for failed results.
    """

    name: str
    kinds: Mapping[str, str]
    rules: Mapping[str, ToolRules]
    guessed: bool
    tools: frozenset[str] | None = None
    kind_by: Mapping[str, str] = field(default_factory=dict)
    failures: Failures = field(default_factory=default_failures)

    def kind(self, tool: str, arguments: Any = None) -> str:
        """Return the tool's kind, stated or guessed from its name, or "unknown".

        A tool that the domain lacks is of unknown kind, too.

        Args:
            tool: name of the tool.
            arguments: parsed arguments of the call; they only matter for a tool that calls another.

        Returns:
            read | write | terminal | generic | unknown.
        """
        kind = self.kinds.get(tool)
        if kind is None:
            return guessed_kind(tool) if self.has(tool) else "unknown"
        if tool in self.kind_by and isinstance(arguments, dict):
            return self._inner_kind(arguments.get(self.kind_by[tool])) or kind
        return kind

    def guesses(self, tool: str) -> bool:
        """Return whether the agent has the tool and its kind is not stated."""
        return tool not in self.kinds and self.has(tool)

    def has(self, tool: str) -> bool:
        """Return whether the agent has this tool; in a guessed domain it has every tool."""
        if self.tools is None:
            return self.guessed or tool in self.kinds
        return tool in self.tools

    def may_write(self, tool: str, arguments: Any = None) -> bool:
        """Return whether a call of the tool writes or may write."""
        return self.kind(tool, arguments) == "write" or self.unclear(tool)

    def unclear(self, tool: str) -> bool:
        """Return whether the agent has this tool and its kind is unknown."""
        return self.kind(tool) == "unknown" and self.has(tool)

    def _inner_kind(self, inner: Any) -> str | None:
        """Return the kind of a tool called by another one; None: the calling tool's kind."""
        if not isinstance(inner, str):
            return None
        return self.kinds.get(inner) or ("read" if guessed_kind(inner) == "read" else None)


class PerDomain(Generic[_T]):
    """Cache of one object per domain."""

    def __init__(self, make: Callable[[Domain], _T]) -> None:
        self._make = make
        self._made: dict[int, tuple[Domain, _T]] = {}  # by the domain's identity: it has no hash

    def of(self, domain: Domain) -> _T:
        """Return the domain's object; make it on the first call."""
        if id(domain) not in self._made:
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[id(domain)] = domain, self._make(domain)
        return self._made[id(domain)][1]


def load_domain(name_or_path: str) -> Domain:
    """Load a shipped domain by name, or a domain from a YAML file of the same form.

    Args:
        name_or_path: name in SHIPPED, or path of a YAML file.

    Returns:
        The domain.

    Raises:
        InputError: the file is missing or malformed, with line and column.
    """
    return _shipped(name_or_path) if name_or_path in SHIPPED else _domain(read_yaml(name_or_path))


def find_domain(
    stated: str | None,
    tool_names: Iterable[str],
    tools: list[dict[str, Any]] | None,
    tool_types: Mapping[str, str] | None = None,
) -> Domain:
    """Return the domain of a trace.

    The candidates, in order: the shipped domain that the trace names; the shipped domain that knows
    most of its tools, and at least half; the trace's own tool definitions; a domain with kinds
    guessed from the tools' names. If several shipped domains know equally many tools, the first in
    SHIPPED is taken if it knows all tools and the others give them the same kinds, otherwise none.

    Args:
        stated: name that the trace gives, if any.
        tool_names: names of called or expected tools.
        tools: OpenAI tool definitions of the trace, if any.
        tool_types: tool types by tool name, as recorded by tau2-bench: "read", "write", "generic".

    Returns:
        The domain.
    """
    if stated in SHIPPED:
        return _shipped(stated)
    defined = definitions(tools or [])
    names = {*tool_names, *defined} - {""}
    kinds = {
        tool: kind
        for tool, text in (tool_types or {}).items()
        if (kind := _kind_of_type(tool, text))
    }
    return (
        _best_fit(names)
        or _from_definitions(defined, kinds)
        or Domain("guessed", kinds, {}, guessed=True)
    )


@functools.cache
def _shipped(name: str) -> Domain:
    file = files("data") / "domains" / f"{name}.yaml"
    return _domain(parse_yaml(file.read_text(encoding="utf-8"), f"data/domains/{name}.yaml"))


def _domain(root: Node) -> Domain:
    """Read a domain from its YAML."""
    fields = root.fields(("name", "tools", "failures"))
    for key in ("name", "tools"):
        if key not in fields:
            raise root.error(f"no key '{key}'", "give 'name' and 'tools'")
    kinds: dict[str, str] = {}
    rules: dict[str, ToolRules] = {}
    kind_by: dict[str, str] = {}
    for tool, node in fields["tools"].fields().items():
        parts = node.fields(("kind", "kind_by", *RULES))
        if "kind" not in parts:
            raise node.error(f"tool '{tool}' has no 'kind'", "give one of " + ", ".join(KINDS))
        kinds[tool] = parts["kind"].one_of(KINDS)
        if "kind_by" in parts:
            kind_by[tool] = parts["kind_by"].text()
        if not parts.keys().isdisjoint(RULES):
            rules[tool] = _rules(parts)
    own = fields.get("failures")
    return Domain(
        fields["name"].text(),
        kinds,
        rules,
        guessed=False,
        kind_by=kind_by,
        failures=own_failures(own) if own else default_failures(),
    )


def _rules(parts: Mapping[str, Node]) -> ToolRules:
    """Return the comparison rules of one tool."""

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
    """Return the shipped domains that know most of the names, or none below half of the names."""
    names = names - EVERYWHERE
    known = {name: len(names & _shipped(name).kinds.keys()) for name in SHIPPED}
    most = max(known.values())
    if most == 0 or 2 * most < len(names):
        return ()
    return tuple([name for name in SHIPPED if known[name] == most])


def _best_fit(names: set[str]) -> Domain | None:
    """Return the shipped domain that fits; if several do, the first if they agree, else None."""
    fit = fitting(frozenset(names))
    if not fit:
        return None
    first, *others = map(_shipped, fit)
    disagree = any(first.kind(name) != other.kind(name) for other in others for name in names)
    unknown = bool(others) and not names <= first.kinds.keys() | EVERYWHERE
    return None if disagree or unknown else first


def _from_definitions(
    defined: Mapping[str, dict[str, Any]], kinds: Mapping[str, str]
) -> Domain | None:
    """Return a domain from the tool definitions of a trace; None if there are none."""
    if not defined:
        return None
    stated = {name: _stated_kind(name, function) for name, function in defined.items()}
    kinds = {**kinds, **{name: kind for name, kind in stated.items() if kind}}
    rules = {name: _schema_rules(_schema(function)) for name, function in defined.items()}
    rules = {name: rule for name, rule in rules.items() if rule != NO_RULES}
    tools = frozenset(defined) | kinds.keys()
    guessed = not tools <= kinds.keys()
    return Domain("tool definitions", kinds, rules, guessed=guessed, tools=tools)


def _stated_kind(tool: str, function: Mapping[str, Any]) -> str | None:
    """Return the kind that a definition states: our own key, tau2-bench's type, or MCP hints.

    A tool that is not destructive has no stated kind: it may add something or only read.
    """
    for key in ("x-kind", "kind", "tool_type"):
        if isinstance(text := function.get(key), str) and (kind := _kind_of_type(tool, text)):
            return kind
    read_only = _hint(function, "readOnlyHint", "read_only_hint")
    if read_only is None:
        return "write" if _hint(function, "destructiveHint", "destructive_hint") else None
    return "read" if read_only else "write"


def _kind_of_type(tool: str, text: str) -> str | None:
    """Return the kind for a tool type such as "read" or "ToolType.WRITE"; None if it is unknown.

    tau2-bench has no type for tools that end the conversation; they are generic there.
    """
    kind = text.rpartition(".")[2].lower()
    if kind == "generic" and guessed_kind(tool) == "terminal":
        return "terminal"
    return "generic" if kind == "think" else kind if kind in KINDS else None


def _hint(function: Mapping[str, Any], *names: str) -> bool | None:
    """Return an MCP hint, inside the annotations or beside them; None if it is not given."""
    annotations = function.get("annotations")
    for place in (annotations if isinstance(annotations, dict) else {}, function):
        for name in names:
            if isinstance(place.get(name), bool):
                return bool(place[name])
    return None


def _schema(function: Mapping[str, Any]) -> Any:
    """Return the schema of the parameters, under the key of OpenAI, MCP or Anthropic."""
    schemas = (function.get(key) for key in ("parameters", "inputSchema", "input_schema"))
    return next((schema for schema in schemas if schema), None)


def _schema_rules(schema: Any) -> ToolRules:
    """Return the rules from a JSON schema: keys that are boolean or text, at any depth."""
    types: dict[str, set[str]] = {}
    pending = [schema]
    for part in pending:  # the loop extends the list
        if not isinstance(part, dict):
            continue
        pending += [part.get("items"), *(part.get("anyOf") or [])]
        properties = part.get("properties")
        if isinstance(properties, dict):
            pending += properties.values()
            for key, value in properties.items():
                types.setdefault(key, set()).update(_types(value))
    return ToolRules(
        booleans=frozenset(key for key, allowed in types.items() if allowed == {"boolean"}),
        text=frozenset(key for key, allowed in types.items() if allowed == {"string"}),
    )


def _types(schema: Any) -> set[str]:
    """Return the JSON types that a schema allows, without null; for a list those of its items."""
    if not isinstance(schema, dict):
        return {"unknown"}
    if isinstance(schema.get("anyOf"), list):
        return set().union(*(_types(choice) for choice in schema["anyOf"])) - {"null"}
    stated = schema.get("type", "unknown")
    types = set(stated) if isinstance(stated, list) else {stated}
    if "array" in types:
        types = types - {"array"} | _types(schema.get("items"))
    return types - {"null"}
