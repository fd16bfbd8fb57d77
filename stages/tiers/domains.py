"""What each tool of a domain does, and how its arguments are compared."""

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
EVERYWHERE = frozenset({"calculate", "get_current_time", "grep", "shell", "think"})  # tell nothing
RULES = ("ignore", "ordered", "paired", "booleans", "text")
_KEPT = 256  # domains of which something is kept, in traces whose records define their own tools
_T = TypeVar("_T")


@dataclass(frozen=True)
class Domain:
    """The tools that an agent has.

    Attributes:
        name: of the domain; "tool definitions" or "guessed" where it is not a known one.
        kinds: read, write, terminal or generic, by tool, where that is stated.
        rules: how arguments are compared, by tool; tools without rules are missing.
        guessed: kinds that are not stated are guessed from names.
        tools: that the agent has; None: those of `kinds`, or any at all if guessed.
        kind_by: argument that names an inner tool, by the tool that calls it.
        failures: which results of the tools are failures.
    """

    name: str
    kinds: Mapping[str, str]
    rules: Mapping[str, ToolRules]
    guessed: bool
    tools: frozenset[str] | None = None
    kind_by: Mapping[str, str] = field(default_factory=dict)
    failures: Failures = field(default_factory=default_failures)

    def kind(self, tool: str, arguments: Any = None) -> str:
        """The tool's kind: stated, else guessed from its name; "unknown" where neither tells.

        A tool that the domain lacks is of unknown kind, too.

        Args:
            tool: its name.
            arguments: of the call, as parsed; only those of a tool that calls another count.
        """
        kind = self.kinds.get(tool)
        if kind is None:
            return guessed_kind(tool) if self.has(tool) else "unknown"
        if tool in self.kind_by and isinstance(arguments, dict):
            return self._inner_kind(arguments.get(self.kind_by[tool])) or kind
        return kind

    def guesses(self, tool: str) -> bool:
        """Whether the tool's kind is only guessed from its name."""
        return tool not in self.kinds and self.has(tool)

    def has(self, tool: str) -> bool:
        """Whether the agent has this tool; where only names are known, it has any."""
        if self.tools is None:
            return self.guessed or tool in self.kinds
        return tool in self.tools

    def may_write(self, tool: str, arguments: Any = None) -> bool:
        """Whether a call of the tool writes, or may do so for all that is known."""
        return self.kind(tool, arguments) == "write" or self.unclear(tool)

    def unclear(self, tool: str) -> bool:
        """Whether the agent has this tool, but nothing tells its kind."""
        return self.kind(tool) == "unknown" and self.has(tool)

    def _inner_kind(self, inner: Any) -> str | None:
        """The kind of a tool that another one calls; None: that of the calling tool."""
        if not isinstance(inner, str):
            return None
        return self.kinds.get(inner) or ("read" if guessed_kind(inner) == "read" else None)


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
    stated: str | None,
    tool_names: Iterable[str],
    tools: list[dict[str, Any]] | None,
    tool_types: Mapping[str, str] | None = None,
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
        tool_types: of tools by name, as tau2-bench records them: "read", "write", "generic".
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
    """A domain from its YAML."""
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
    names = names - EVERYWHERE
    known = {name: len(names & _shipped(name).kinds.keys()) for name in SHIPPED}
    most = max(known.values())
    if most == 0 or 2 * most < len(names):
        return ()
    return tuple([name for name in SHIPPED if known[name] == most])


def _best_fit(names: set[str]) -> Domain | None:
    """The shipped domain that fits; of several, one that knows all names as the others do."""
    fit = fitting(frozenset(names))
    if not fit:
        return None
    first, *others = map(_shipped, fit)
    torn = any(first.kind(name) != other.kind(name) for other in others for name in names)
    strange = bool(others) and not names <= first.kinds.keys() | EVERYWHERE
    return None if torn or strange else first


def _from_definitions(
    defined: Mapping[str, dict[str, Any]], kinds: Mapping[str, str]
) -> Domain | None:
    """A domain from the tool definitions of a trace; None where there are none."""
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
    """The kind that a definition gives: ours, tau2-bench's tool type, or by the hints of MCP.

    That a tool is not destructive says nothing: it may add something, or only read.
    """
    for key in ("x-kind", "kind", "tool_type"):
        if isinstance(text := function.get(key), str) and (kind := _kind_of_type(tool, text)):
            return kind
    read_only = _hint(function, "readOnlyHint", "read_only_hint")
    if read_only is None:
        return "write" if _hint(function, "destructiveHint", "destructive_hint") else None
    return "read" if read_only else "write"


def _kind_of_type(tool: str, text: str) -> str | None:
    """The kind that a type of tool names, such as "read" or "ToolType.WRITE".

    The types of tau2-bench have none for a tool that ends the conversation.
    """
    kind = text.rpartition(".")[2].lower()
    if kind == "generic" and guessed_kind(tool) == "terminal":
        return "terminal"
    return "generic" if kind == "think" else kind if kind in KINDS else None


def _hint(function: Mapping[str, Any], *names: str) -> bool | None:
    """A hint of MCP, among the annotations or beside them; None where it is not given."""
    annotations = function.get("annotations")
    for place in (annotations if isinstance(annotations, dict) else {}, function):
        for name in names:
            if isinstance(place.get(name), bool):
                return bool(place[name])
    return None


def _schema(function: Mapping[str, Any]) -> Any:
    """The parameters' schema, as OpenAI, MCP or Anthropic name it."""
    schemas = (function.get(key) for key in ("parameters", "inputSchema", "input_schema"))
    return next((schema for schema in schemas if schema), None)


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
        booleans=frozenset(key for key, allowed in types.items() if allowed == {"boolean"}),
        text=frozenset(key for key, allowed in types.items() if allowed == {"string"}),
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
