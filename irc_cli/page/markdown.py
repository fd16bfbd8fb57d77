"""A report's first screen as Markdown: for a job's summary and for comments on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from irc_cli.page.forms import VERDICTS, interval, percent, signed, small
from irc_cli.page.visible import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~<>@&]|:(?=[\w/]))")
MOST_TIERS = 50  # rows of the table: GitHub limits a comment to 65,536 characters
SIGNS = {"passes": "\u2705", "fails": "\u274c", "undecided": "\u2754"}


def render_markdown(document: dict[str, Any]) -> str:
    """Return verdict, tiers, directions and changes as GitHub's Markdown.

    Args:
        document: report document of `stages.report`.
    """
    verdict, summary = document["verdict"], document["summary"]
    rate = f"{percent(summary['ci_low'])} to {percent(summary['ci_high'])}"
    lines = [
        f"### {SIGNS[verdict['state']]} {plain(verdict['sentence'])}",
        "",
        f"**Next:** {plain(verdict['next'])}",
        "",
        f"{summary['counted']:,} episodes of {summary['tasks']:,} tasks "
        f"({summary['mixed_tasks']:,} mixed), pass rate {percent(summary['pass_rate'])} "
        f"({rate}); {summary['masked']:,} left out.",
        "",
        *_tiers(document),
    ]
    if document["critic"]:
        lines += ["", *_critic(document["critic"])]
    if document["changes"]:
        lines += ["", *_changes(document["changes"])]
    return "\n".join(lines) + "\n"


def _tiers(document: dict[str, Any]) -> list[str]:
    """Return a table of the tiers, their values and their directions under both reward sets."""
    pushed = {
        side: {row["tier"]: row for row in document["direction"][side]["direction"]}
        for side in ("before", "after")
    }
    r = "r" if document["summary"]["adjust"] == "none" else "excess"
    names = ("tier", "episodes", r, "95 %", "q", "value", "status", "as scored", "calibrated")
    rows = [
        (
            plain(tier["tier"]),
            f"{tier['episodes']:,}",
            signed(tier["r"]),
            interval(tier["ci_low"], tier["ci_high"]),
            small(tier["q"]),
            f"**{signed(tier['value'])}**" if tier["value"] else "0",
            plain(tier["status"]),
            *(_pushed(pushed[side].get(tier["tier"])) for side in ("before", "after")),
        )
        for tier in _largest(document["tiers"])
    ]
    left_out = len(document["tiers"]) - len(rows)
    more = ["", f"{left_out:,} tiers more are on the page."] if left_out else []
    return table(names, rows, left=(0, 6, 7, 8)) + more


def _largest(tiers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tiers of the largest values, then of the largest r, in document order."""
    most = sorted(tiers, key=lambda tier: (-abs(tier["value"]), -abs(tier["r"] or 0.0)))
    names = {tier["tier"] for tier in most[:MOST_TIERS]}
    return [tier for tier in tiers if tier["tier"] in names]


def _pushed(row: dict[str, Any] | None) -> str:
    """Return a tier's mean advantage and the verdict on it."""
    if row is None:
        return ""
    return f"{signed(row['mean_advantage'])} {VERDICTS[row['verdict']][0]} {row['verdict']}"


def _critic(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of what turns of each tier add to the forecast."""
    cells = [
        (
            plain(row["tier"]),
            *(f"{signed(row[of])} +- {row[f'{of}_error']:.3f}" for of in ("first", "again")),
        )
        for row in rows[:MOST_TIERS]
    ]
    return table(("tier", "first turn adds to the forecast", "each repeat adds"), cells)


def _changes(changes: dict[str, Any]) -> list[str]:
    """Return the changes since the earlier calibration."""
    rows = [
        (
            plain(row["tier"]),
            "new" if row["value_then"] is None else signed(row["value_then"]),
            "gone" if row["value_now"] is None else signed(row["value_now"]),
            plain(row["status_then"] or ""),
            plain(row["status_now"] or ""),
        )
        for row in changes["tiers"]
        if (row["value_then"], row["status_then"]) != (row["value_now"], row["status_now"])
    ]
    flips = f"{changes['flipped_advantages']:,} of {changes['turns']:,} advantages change sign."
    if not rows:
        return [f"No tier changed since the earlier calibration; {flips}"]
    names = ("tier", "value then", "value now", "status then", "status now")
    return [f"Since the earlier calibration: {flips}", "", *table(names, rows, left=(0, 3, 4))]


def table(
    names: Sequence[str], rows: Iterable[Sequence[str]], left: tuple[int, ...] = (0,)
) -> list[str]:
    """Return the lines of a table; columns are aligned right, except those of `left`."""
    marks = ["---" if i in left else "--:" for i in range(len(names))]
    return [f"| {' | '.join(row)} |" for row in (names, marks, *rows)]


def plain(text: str) -> str:
    """Return text escaped for Markdown: one line, without markup, mentions or links."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(visible(text)).split()))
