"""Recursion over values nested deeper than Python's recursion limit."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from stages.errors import InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FRAMES = 10_000  # the comparisons take at most four per level, so they handle all parsed values
_limit_lock = threading.RLock()


def with_frames(frames: int, call: Callable[[], _T]) -> _T:
    """Call a function with a raised recursion limit; Python-to-Python calls take no C stack.

    Args:
        frames: number of additional Python frames to allow.
        call: function without arguments.

    Returns:
        The result of the call.

    Raises:
        RecursionError: the call needs more frames.
    """
    with _limit_lock:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit + frames)
        try:
            return call()
        finally:
            sys.setrecursionlimit(limit)


def at_any_depth(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a recursive function take values nested deeper than Python's recursion limit.

    Args:
        function: function that recurses over nested values.

    Returns:
        The same function; it raises InputError if a value is nested too deep.
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except RecursionError:
            pass
        try:
            return with_frames(_FRAMES, lambda: function(*args, **kwargs))
        except RecursionError:
            pass
        raise InputError("arguments", "nested too deep to compare", "flatten them to 1,000 levels")

    return wrapped
