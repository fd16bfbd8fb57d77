"""How an episode ended.

ok         the episode ended by itself; a low outcome is a failure of the policy.
truncated  the episode hit one of its own limits; a low outcome is a failure of the policy, too.
error      the episode crashed, which says nothing about the policy.
masked     the trace excludes the episode from learning, or its reward was never computed.
"""

from __future__ import annotations

STATUSES = ("ok", "truncated", "error", "masked")
LEFT_OUT = ("error", "masked")  # excluded from every statistic
