"""Render the page of a report: document and conversations in, parts of HTML out.

All content of traces is escaped: jinja2 escapes it in the markup, and the script only sets text.
The page makes no network requests, and its content security policy forbids them.
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
CHUNK = 1 << 20  # approximate size of a chunk, in bytes of its conversations' JSON
LONG = 160  # repeated texts of at least this many characters are stored once


def render_page(document: dict[str, Any], conversations: Conversations | None) -> Iterator[str]:
    """Yield the parts of the page.

    Args:
        document: report document of `stages.report`.
        conversations: conversations of the shown episodes; None: unavailable.
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
    """Return a content security policy that allows only the page's own script and style."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, style)
    ]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


class Packing:
    """Packs conversations into chunks that the page unpacks on demand."""

    def __init__(self, document: dict[str, Any], conversations: Conversations | None) -> None:
        self._document, self._conversations = document, conversations
        self._place: dict[str, int] = {}  # chunk of each episode
        self._failed: dict[str, set[int]] = {}  # turns of each episode with a failed call
        self._systems: dict[str, int] = {}  # long system messages, which all chunks share

    def chunks(self) -> Iterator[str]:
        """Yield chunks task by task, because episodes of a task share most of their texts."""
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
        """Replace long texts by numbers: n for a text of the chunk, -1 - n for one of the page."""
        system = entry["role"] in ("system", "developer")
        if len(entry["text"]) >= LONG:
            shared = self._systems if system else texts
            at = shared.setdefault(entry["text"], len(shared))
            entry["text"] = -1 - at if system else at
        for call in entry.get("calls", ()):
            if len(call["result"] or "") >= LONG:
                call["result"] = texts.setdefault(call["result"], len(texts))

    def index(self) -> str:
        """Return the index that the script unpacks at the start; call this after `chunks`."""
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
        """Return an episode in compact form, its turns column by column."""
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
    """Round a number to the digits that the page shows."""
    return None if value is None else round(value, 4)


def packed(value: Any) -> str:
    """Return a value as JSON, deflated and in base64, for the page's script to unpack."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(orjson.dumps(value)) + deflate.flush()
    return base64.b64encode(data).decode()
