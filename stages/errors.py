"""The one error that users see as a single line."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 8  # names in one line


class InputError(ValueError):
    """Bad input: where it is, what is wrong, and what to do.

    The command line prints `error: WHERE: WHAT; TODO` on standard error and exits with code 2.
    Each part is in lower case without a full stop; names are in quotes.
    """

    def __init__(self, where: str, what: str, todo: str) -> None:
        super().__init__(where, what, todo)
        self.where, self.what, self.todo = where, what, todo

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.todo}"


def few(names: Iterable[str], joint: str = ", ") -> str:
    """Join names for an error; of many names, only the first ones and the number of others.

    Args:
        names: the names.
        joint: text between names.

    Returns:
        A text of at most SHOWN entries.
    """
    known = list(names)
    if len(known) <= SHOWN:
        return joint.join(known)
    return joint.join([*known[: SHOWN - 2], f"{len(known) - SHOWN + 2:,} others"])
