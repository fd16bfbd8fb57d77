"""The page of a report: the document and its conversations in, HTML out, part by part.

Everything that comes from a trace is escaped: jinja2 does it for the markup, and the script only
ever sets text. The page asks the network for nothing, and its policy forbids the browser to.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from irc_cli import __version__
from irc_cli.page import forms
from irc_cli.page.visible import visible
from stages.reporting.conversations import Conversations

TEMPLATE = "page.html.jinja"
STYLES = ("page.css", "episode.css")
SCRIPTS = ("text.js", "data.js", "episode.js", "compare.js", "filters.js", "tasks.js", "main.js")
CHUNK = 1 << 20  # characters of conversations that are packed together, about
LONG = 160  # characters from which on a text that repeats is stored once


def render_page(document: dict[str, Any], conversations: Conversations | None) -> Iterator[str]:
    """Yield the parts of the page.

    Args:
        document: of `stages.report`.
        conversations: of the episodes that it shows; None: not at hand.
    """
    style, script = _asset(*STYLES), _asset(*SCRIPTS)
    packing = Packing(document, conversations)
    template = _environment().get_template(TEMPLATE)
    yield from template.generate(
        **{name: part for name, part in document.items() if name != "loop"},
        loop_panel=document["loop"],
        version_of_cli=__version__,
        style=Markup(style),  # our own file
        script=Markup(script),  # our own file
        policy=_policy(style, script),
        chunks=packing.chunks(),
        index=packing.index,
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("irc_cli", "page"),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= forms.FILTERS
    environment.globals |= forms.GLOBALS
    return environment


def _asset(*names: str) -> str:
    folder = files("irc_cli").joinpath("page")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def _policy(style: str, script: str) -> str:
    """The page's content security policy: its own script and style, and nothing from anywhere."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, style)
    ]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


class Packing:
    """Packs conversations into chunks that the page unpacks when it needs them."""

    def __init__(self, document: dict[str, Any], conversations: Conversations | None) -> None:
        self._document, self._conversations = document, conversations
        self._place: dict[str, int] = {}  # chunk of each episode
        self._failed: dict[str, set[int]] = {}  # turns of each episode with a failed call
        self._systems: dict[str, int] = {}  # long texts that every chunk may name

    def chunks(self) -> Iterator[str]:
        """Yield chunks, the episodes of a task together: they share most of their texts."""
        if self._conversations is None:
            return
        by_task: dict[str, list[str]] = {}
        for row in self._document["episodes"]:
            by_task.setdefault(row["task"], []).append(row["id"])
        number, held, size = 0, list[str](), 0
        for name in (name for names in by_task.values() for name in names):
            held.append(name)
            size += len(self._conversations.packed[name])
            if size >= CHUNK:
                yield self._chunk(number, held)
                number, held, size = number + 1, [], 0
        if held:
            yield self._chunk(number, held)

    def _chunk(self, number: int, names: Iterable[str]) -> str:
        assert self._conversations is not None
        texts: dict[str, int] = {}
        episodes = {}
        for name in names:
            self._place[name] = number
            conversation = visible(self._conversations[name])
            failed = self._failed.setdefault(name, set())
            for entry in conversation["entries"]:
                self._share(entry, texts)
                if any("failed" in call for call in entry.get("calls", ())):
                    failed.add(entry["turn"])
            episodes[visible(name)] = conversation
        return packed({"texts": list(texts), "episodes": episodes})

    def _share(self, entry: dict[str, Any], texts: dict[str, int]) -> None:
        """Put numbers in the place of long texts: n of the chunk's, -1 - n of the page's."""
        system = entry["role"] in ("system", "developer")
        if len(entry["text"]) >= LONG:
            shared = self._systems if system else texts
            at = shared.setdefault(entry["text"], len(shared))
            entry["text"] = -1 - at if system else at
        for call in entry.get("calls", ()):
            if len(call["result"] or "") >= LONG:
                call["result"] = texts.setdefault(call["result"], len(texts))

    def index(self) -> str:
        """Return what the script knows from the start; to be called after the chunks."""
        tiers = {row["tier"]: i for i, row in enumerate(self._document["tiers"])}
        tools: dict[str, int] = {}
        rows = [self._row(row, tiers, tools) for row in self._document["episodes"]]
        index = {
            "tiers": [{n: row[n] for n in ("tier", "value")} for row in self._document["tiers"]],
            "tools": list(tools),
            "texts": list(self._systems),
            "episodes": rows,
            "leverage": {row["task"]: row["leverage"] for row in self._document["tasks"]},
        }
        return packed(visible(index))

    def _row(
        self, row: dict[str, Any], tiers: dict[str, int], tools: dict[str, int]
    ) -> dict[str, Any]:
        """An episode in few characters: its turns column by column."""
        turns, failed = row["turns"], self._failed.get(row["id"], ())
        columns: dict[str, Any] = {
            "tier": [tiers.setdefault(turn["tier"], len(tiers)) for turn in turns],
            "tools": [[tools.setdefault(t, len(tools)) for t in turn["tools"]] for turn in turns],
            "marks": [
                bool(turn["against"]) * 1 + bool(turn["flips"]) * 2 + (turn["turn"] in failed) * 4
                for turn in turns
            ],
        }
        for name in ("reward", "value", "return_part", "outcome_part", "advantage"):
            columns[name] = [_short(turn[name]) for turn in turns]
        names = ("id", "ref", "task", "trial", "state", "status", "policy", "outcome")
        kept = {name: row[name] for name in names} | {"turns": columns}
        if parting := row.get("parting"):
            kept["parting"] = parting
        return kept | {"chunk": self._place.get(row["id"])}


def _short(value: float | None) -> float | None:
    """A number to the digits that the page shows."""
    return None if value is None else round(value, 4)


def packed(value: Any) -> str:
    """Return JSON, deflated, in base64: what the page's script unpacks."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(orjson.dumps(value)) + deflate.flush()
    return base64.b64encode(data).decode()
