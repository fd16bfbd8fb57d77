"""Conversations to imitate, for supervised fine-tuning (conversations -> rows)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from stages.exports.conversations import Conversation, as_told
from stages.traces.episode import SUCCESS


def sft(talks: Iterable[Conversation], min_outcome: float) -> Iterator[dict[str, Any]]:
    """Yield `messages` and `tools` of the conversations whose outcome is at least this.

    Args:
        talks: conversations; those whose outcome is unknown are left out.
        min_outcome: in [0, 1], with SUCCESS's tolerance.
    """
    least = min_outcome - (1 - SUCCESS)
    for talk in talks:
        if talk.outcome is not None and talk.outcome >= least:
            messages, tools = as_told(talk.messages, talk.tools, talk.prompt)
            yield {"messages": messages, "tools": tools}
