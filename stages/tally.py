"""Running counts of a rollout run's episodes."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stages.tables.artifacts import RolloutRow
from stages.traces.episode import SUCCESS


@dataclass
class Tally:
    """Counts of a run's episodes so far."""

    planned: int  # episodes of the whole run
    status: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)  # episodes with errors, by cause
    successes: int = 0
    turns: int = 0
    tokens: int = 0  # tokens that the policy wrote, as far as known
    uncounted: int = 0  # turns with an unknown number of tokens
    new_tokens: int = 0  # tokens of this process
    restarts: int = 0  # episodes of this process that restarted on another server
    began: float = field(default_factory=time.monotonic)

    @property
    def counted(self) -> int:
        """The number of episodes so far."""
        return self.status.total()

    @property
    def pass_rate(self) -> float | None:
        """Share of successes among the episodes that count; None without any."""
        counting = self.status["ok"] + self.status["truncated"]
        return self.successes / counting if counting else None

    @property
    def seconds(self) -> float:
        """The running time of this process."""
        return time.monotonic() - self.began

    def add(self, row: RolloutRow, *, new: bool = False) -> None:
        """Count an episode."""
        self.status[row["status"]] += 1
        if row["status"] == "error":
            self.failures[row["ended"]] += 1
        self.successes += (row["outcome"] or 0) >= SUCCESS
        wrote = [m.get("n_tokens") for m in row["messages"] if m["role"] == "assistant"]
        self.turns += len(wrote)
        self.uncounted += wrote.count(None)
        tokens = sum(filter(None, wrote))
        self.tokens += tokens
        self.new_tokens += tokens if new else 0

    def document(self) -> dict[str, Any]:
        """Return the counts as `--json` prints them."""
        return {
            "episodes": self.counted,
            "status": {name: self.status[name] for name in ("ok", "truncated", "error")},
            "pass_rate": self.pass_rate,
            "turns": self.turns,
            "tokens": None if self.uncounted else self.tokens,
            "seconds": round(self.seconds, 3),
            "restarts": self.restarts,
            "failures": dict(self.failures.most_common()),
        }
