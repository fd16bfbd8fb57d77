"""Bounds of the numbers in tables."""

from __future__ import annotations

LARGEST = 2**31 - 1  # token ids, counts and all other integers
LEAST_LOGPROB = -3.4e38  # the range of float32
LOGPROB_SLACK = 1e-3  # rounding may put a logprob this far above 0
