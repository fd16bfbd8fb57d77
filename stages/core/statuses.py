"""How an episode ended.

A low outcome of one that is ok, or truncated by a limit of its own, is a failure of the policy.
One that crashed (error) says nothing of the policy; one is masked where its trace says not to
learn from it, or where its reward was never computed.
"""

from __future__ import annotations

STATUSES = ("ok", "truncated", "error", "masked")
LEFT_OUT = ("error", "masked")  # no statistic counts them
