"""A report's first screen as Markdown: for a job's summary and for comments on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from irc_cli.page.forms import VERDICTS, interval, percent, signed, small
from irc_cli.page.visible import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~<>@&]|:(?=[\w/]))")
MOST_TIERS = 50  # of the table: a comment on GitHub has at most 65,536 characters
SIGNS = {"passes": "\u2705", "fails": "\u274c", "undecided": "\u2754"}


def render_markdown(document: dict[str, Any]) -> str:
    """Return verdict, tiers, directions and changes as GitHub's Markdown.

    Args:
        document: of `stages.report`.
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
    """The tiers with their values and where both reward sets push them."""
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
        for tier in _telling(document["tiers"])
    ]
    left_out = len(document["tiers"]) - len(rows)
    more = ["", f"{left_out:,} tiers more are on the page."] if left_out else []
    return table(names, rows, left=(0, 6, 7, 8)) + more


def _telling(tiers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tiers that tell most, in the order of the document."""
    most = sorted(tiers, key=lambda tier: (-abs(tier["value"]), -abs(tier["r"] or 0.0)))
    names = {tier["tier"] for tier in most[:MOST_TIERS]}
    return [tier for tier in tiers if tier["tier"] in names]


def _pushed(row: dict[str, Any] | None) -> str:
    """Where a tier is pushed, and whether that is intended."""
    if row is None:
        return ""
    return f"{signed(row['mean_advantage'])} {VERDICTS[row['verdict']][0]} {row['verdict']}"


def _critic(rows: list[dict[str, Any]]) -> list[str]:
    """What turns of each tier add to the forecast."""
    cells = [
        (
            plain(row["tier"]),
            *(f"{signed(row[of])} +- {row[f'{of}_error']:.3f}" for of in ("first", "again")),
        )
        for row in rows[:MOST_TIERS]
    ]
    return table(("tier", "first turn adds to the forecast", "each repeat adds"), cells)


def _changes(changes: dict[str, Any]) -> list[str]:
    """What changed since the earlier calibration."""
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
    """Return text that Markdown shows as it is: no markup, no mention, no link, one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(visible(text)).split()))
