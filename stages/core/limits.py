"""Largest and least numbers that tables hold."""

from __future__ import annotations

LARGEST = 2**31 - 1  # id of a token, count, and any other whole number
LEAST_LOGPROB = -3.4e38  # of 32 bits
LOGPROB_SLACK = 1e-3  # above 0 that rounding may put a logprob
