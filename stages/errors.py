"""The one error that users see as a single line."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: where it is, what is wrong with it, and what to do.

    The command line prints `error: WHERE: WHAT; TODO` on standard error and exits with code 2.
    Each part is lower case without a full stop; names stand in quotes.
    """

    def __init__(self, where: str, what: str, todo: str) -> None:
        super().__init__(where, what, todo)
        self.where, self.what, self.todo = where, what, todo

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.todo}"
