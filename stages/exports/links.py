"""Pair results with calls, even if ids are missing or repeated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


class Links:
    """Gives every call of a message a unique id, and pairs results with calls as readers do."""

    def __init__(self) -> None:
        self._open: list[tuple[Any, str, str, Any]] = []  # recorded id, id, name, holder of a call
        self._given = 0

    def ids(self, calls: Iterable[Row], holder: Any) -> list[str]:
        """Return the ids of a message's calls, and keep the calls open for their results.

        Args:
            calls: calls in OpenAI's form.
            holder: what `answered` returns with a call of this message.
        """
        ids = list[str]()
        for call in calls:
            recorded = call.get("id")
            call_id = str(recorded)
            if not recorded or call_id in ids:
                self._given += 1
                call_id = f"irc_{self._given}"
            ids.append(call_id)
            self._open.append((recorded, call_id, call["function"]["name"], holder))
        return ids

    def answered(self, message: Row) -> tuple[str, Any] | None:
        """Return the id and the holder of the call that a result answers; None: there is none.

        It is the call with the result's id. Without one, it is a call of the last message with open
        calls: the first with the result's name, or else the first.

        Args:
            message: the result.
        """
        recorded, name = message.get("tool_call_id"), message.get("name")
        by_id = [call for call in self._open if recorded and call[0] == recorded]
        last = [call for call in self._open if call[3] is self._open[-1][3]]
        named = [call for call in last if call[2] == name]
        call = next(iter(by_id or named or last), None)
        if call is None:
            return None
        self._open.remove(call)
        return call[1], call[3]
