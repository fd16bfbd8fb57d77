"""Guesses of a tool's kind from its name."""

from __future__ import annotations

import functools
import re

# Words by which a tool's name suggests its kind; a verb counts as the first word.
READING = frozenset(
    {"browse", "check", "compare", "count", "describe", "display", "fetch", "find", "get", "has"}
    | {"inspect", "is", "list", "lookup", "preview", "query", "read", "retrieve", "search", "show"}
    | {"verify", "view"}
)
WRITING = frozenset(
    {"accept", "activate", "add", "adjust", "append", "apply", "approve", "archive", "assign"}
    | {"ban", "block", "buy", "cancel", "change", "clear", "close", "commit", "create"}
    | {"deactivate", "decrease", "delete", "deploy", "destroy", "disable", "dispatch", "downgrade"}
    | {"edit", "enable", "erase", "extend", "freeze", "grant", "increase", "insert", "install"}
    | {"invite", "lock", "mark", "modify", "move", "notify", "pause", "pay", "publish", "push"}
    | {"put", "reactivate", "rebook", "redeem", "refuel", "register", "reject", "remove", "rename"}
    | {"renew", "reopen", "replace", "reply", "reschedule", "reset", "restart", "restore"}
    | {"resume", "revoke", "save", "sell", "send", "set", "submit", "subscribe", "suspend", "swap"}
    | {"terminate", "toggle", "unassign", "unblock", "unfreeze", "uninstall", "unlock"}
    | {"unregister", "unsubscribe", "update", "upgrade", "upload", "upsert", "void", "waive"}
    | {"withdraw"}
    | {"write"}
)
# Verbs that are also nouns: `order_pizza` writes, `order_lookup` and `order_status` read.
BOTH = frozenset(
    {"book", "charge", "checkout", "copy", "credit", "debit", "deposit", "dispute", "exchange"}
    | {"file", "issue", "log", "make", "order", "patch", "place", "post", "purchase", "record"}
    | {"refund", "release", "report", "request", "reserve", "return", "schedule", "ship", "store"}
    | {"transfer"}
)
READING_ENDS = frozenset({"fetch", "find", "get", "lookup", "query", "read", "retrieve", "search"})
WRITING_ENDS = frozenset(
    {"cancel", "create", "delete", "edit", "insert", "modify", "remove", "update"}
)
READ_NOUNS = frozenset({"detail", "details", "history", "info", "information", "policy", "status"})
# Read after a noun (`credit_score`) but written after a verb (`charge_fee`).
UNCLEAR_NOUNS = frozenset(
    {"amount", "balance", "count", "eligibility", "exists", "fee", "fees", "hours", "id", "ids"}
    | {"limit", "limits", "list", "location", "locations", "number", "price", "prices", "rate"}
    | {"rates", "schema", "score", "size", "summary", "total", "totals", "type", "types", "view"}
)
RECORDING = frozenset({"copy", "file", "log", "make", "patch", "place", "post", "record", "report"})
RECORDING |= {"store"}  # `store_details` may write details or read the details of a store
PHRASES = frozenset({"check", "log", "sign"})  # "in" or "out" after them changes their meaning
OPAQUE = frozenset({"call", "do", "exec", "execute", "handle", "invoke", "perform", "run"})
THINKING = frozenset({"calculate", "calculator", "compute", "reason", "think"})
ESCALATING = frozenset({"escalate", "handoff"})
PEOPLE = frozenset({"agent", "agents", "human", "humans", "operator", "person", "representative"})

PREFIX = re.compile(r"[.:/]|__")
WORD = re.compile(r"[^\W\d_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@functools.lru_cache(maxsize=10_000)
def guessed_kind(tool: str) -> str:
    """Guess a tool's kind from its name.

    `transfer_to_human` ends the conversation, `transfer_money` does not. The verb may also be the
    last word: `KB_search`. A server or module prefix ("shop.get_order", "mcp__shop__get_order") is
    ignored, and so are digits.

    Args:
        tool: name of the tool.

    Returns:
        read | write | terminal | generic | unknown.
    """
    words = _words(tool)
    if not words:
        return "unknown"
    first, last = words[0], words[-1]
    if first in PHRASES and words[1:2] in (["in"], ["out"]):
        return "unknown"
    if first in READING or words[:2] == ["look", "up"]:
        return _kind_with_second_verb(words)
    if _hands_over(words):
        return "terminal"
    if first in THINKING:
        return "generic"
    if first in WRITING:
        return "write"
    if first in OPAQUE:
        return "unknown"
    if last in READING_ENDS or words[-2:] == ["look", "up"]:
        return "read"
    if first in BOTH:
        return _kind_of_both(first, last)
    return "write" if last in WRITING_ENDS else "unknown"


def _kind_with_second_verb(words: list[str]) -> str:
    """Return the kind of a tool whose first verb reads; `get_or_create_user` writes."""
    for at in (i for i, word in enumerate(words[:-1]) if word in ("and", "or")):
        if at == 1 and words[2] in WRITING | BOTH:
            return "write"
        if words[at + 1] in WRITING:  # here it may be an adjective
            return "unknown"
    return "read"


def _kind_of_both(first: str, last: str) -> str:
    """Return the kind of a tool whose first word is both a writing verb and a noun."""
    if last in UNCLEAR_NOUNS or (last in READ_NOUNS and first in RECORDING):
        return "unknown"
    return "read" if last in READ_NOUNS else "write"


def _hands_over(words: list[str]) -> bool:
    """Return whether a tool of this name hands the conversation to a person."""
    if not ESCALATING.isdisjoint(words) or words[:2] == ["hand", "off"]:
        return True
    return "transfer" in words and not PEOPLE.isdisjoint(words)


def _words(tool: str) -> list[str]:
    """Return the words, in lower case, of the last part of the name that has words."""
    for part in reversed(PREFIX.split(tool)):
        if words := [word for run in WORD.findall(part) for word in CAMEL.split(run)]:
            return [word.lower() for word in words]
    return []
