"""Compare every call of traces with its best gold action, in every mode (episodes -> PAIRS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson
import polars as pl

from stages.core.arguments import MODES, PYTHON_REPR, Mode, canonical
from stages.tables.artifacts import PAIRS
from stages.tiers.domains import Domain, PerDomain
from stages.tiers.matching import FULL, Match, Matcher, Side, agent_gold
from stages.traces.episode import Episode
from stages.traces.identity import Renamed, settled
from stages.traces.notes import READ_AS_PYTHON, UNPARSEABLE

_EXAMPLES = 3  # of each change between modes
_SHOWN = 300  # characters of the arguments in an example


class Comparison:
    """Comparison of the calls of any number of traces with their gold actions."""

    def __init__(self, *, tool_rules: bool) -> None:
        self._matchers = PerDomain(
            lambda domain: {mode: Matcher(domain, mode, tool_rules=tool_rules) for mode in MODES}
        )
        self._columns: dict[str, list[Any]] = {name: [] for name in PAIRS.columns}
        self._changes: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], list[dict[str, str]]] = {}
        self.episodes = self.calls = self.same_name_calls = 0
        self.unparseable = self.python_repr = 0
        self.known_gold = False  # whether the gold actions of any episode are known
        self.matches: Counter[str] = Counter()
        self.agree = self.disagree = 0  # with tau2-bench's recorded verdicts

    def add(self, episodes: Iterable[Episode], domain: Domain) -> None:
        """Compare the calls of a domain's episodes."""
        matchers = self._matchers.of(domain)
        for episode in episodes:
            if episode.counts:
                self.episodes += 1
                self.known_gold |= episode.gold is not None
                self._add_episode(episode, matchers)
                self._check_recorded(episode, matchers["tau2"])

    @property
    def notes(self) -> Counter[str]:
        """Counts of arguments that were repaired or could not be read."""
        counts = {READ_AS_PYTHON: self.python_repr, UNPARSEABLE: self.unparseable}
        return Counter({text: count for text, count in counts.items() if count})

    def frame(self, renamed: Renamed | None = None) -> pl.DataFrame:
        """Return every call beside its best gold action (PAIRS), tasks by their final names."""
        return settled(PAIRS.frame(self._columns), renamed)

    def summary(self) -> dict[str, Any]:
        """Return the counts over all calls."""
        changed = [
            {"from": before, "to": after, "calls": calls, "examples": self._examples[before, after]}
            for (before, after), calls in self._changes.most_common()
        ]
        summary: dict[str, Any] = {
            "episodes": self.episodes,
            "calls": self.calls,
            "same_name_calls": self.same_name_calls,
            "unparseable": self.unparseable,
            "python_repr": self.python_repr,
            "matches": {mode: self.matches[mode] for mode in MODES},
            "changed": changed,
        }
        if self.agree or self.disagree:
            summary["recorded"] = {"agree": self.agree, "disagree": self.disagree}
        return summary

    def _add_episode(self, episode: Episode, matchers: dict[Mode, Matcher]) -> None:
        calls = [
            (k, i, call)
            for k, turn in enumerate(episode.turns)
            for i, call in enumerate(turn.calls)
        ]
        gold = agent_gold(episode.gold)
        sides = [matchers["deep"].read(call) for _, _, call in calls]
        best_by_mode = {
            mode: matcher.best(sides, [matcher.read_gold(action) for action in gold])
            for mode, matcher in matchers.items()
        }
        for j, (turn, position, call) in enumerate(calls):
            matches = {mode: best_by_mode[mode][j] for mode in MODES}
            best = matches["deep"]
            gold_arguments = None if best.gold is None else _text(gold[best.gold].arguments)
            self._count(sides[j], matches)
            self._note_changes(call.name, _text(call.arguments), gold_arguments, matches)
            row = {
                "source": episode.source,
                "episode_id": episode.episode_id,
                "task_id": episode.task,
                "turn": turn,
                "call": position,
                "name": call.name,
                "arguments": _text(call.arguments),
                "gold": best.gold,
                "gold_arguments": gold_arguments,
                "match_share": best.share,
            } | {mode: match.kind == FULL for mode, match in matches.items()}
            for name, column in self._columns.items():
                column.append(row[name])

    def _count(self, side: Side, matches: dict[Mode, Match]) -> None:
        self.calls += 1
        self.same_name_calls += matches["deep"].gold is not None
        self.unparseable += not side.parsed.readable
        self.python_repr += side.parsed.problem == PYTHON_REPR
        self.matches.update(mode for mode, match in matches.items() if match.kind == FULL)

    def _note_changes(
        self, name: str, arguments: str, gold: str | None, matches: dict[Mode, Match]
    ) -> None:
        """Count the modes whose match of a call differs from that of `exact`."""
        for mode in MODES[1:]:
            if matches[mode].kind != matches["exact"].kind:
                change = (f"exact {matches['exact'].kind}", f"{mode} {matches[mode].kind}")
                self._changes[change] += 1
                examples = self._examples.setdefault(change, [])
                if len(examples) < _EXAMPLES:
                    example = {"name": name, "arguments": arguments, "gold": gold or ""}
                    examples.append({key: text[:_SHOWN] for key, text in example.items()})

    def _check_recorded(self, episode: Episode, matcher: Matcher) -> None:
        """Compare tau2-bench's recorded verdicts with ours: whether any call meets a gold action.

        As in tau2-bench, calls of both agent and user count.
        """
        if not episode.checks:
            return
        calls = [call for turn in episode.turns for call in turn.calls] + episode.user_calls
        sides = [matcher.read(call) for call in calls]
        for action, recorded in episode.checks:
            gold = matcher.read_gold(action)
            met = any(
                side.name == gold.name and matcher.match(gold, side).kind == FULL for side in sides
            )
            self.agree += met == recorded
            self.disagree += met != recorded


def _text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    try:
        return orjson.dumps(arguments).decode()
    except orjson.JSONEncodeError:  # too deeply nested or too large a number for orjson
        return canonical(arguments)
