"""The conversations of a report: messages, calls with their results, and gold actions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import orjson

from stages.core.arguments import NO_RULES, Mode, differences
from stages.core.arguments.depth import at_any_depth
from stages.errors import InputError
from stages.tiers.domains import Domain, PerDomain
from stages.tiers.matching import FULL, NO_MATCH, Match, Matcher, Side, agent_gold
from stages.tiers.rules import Tiers
from stages.traces.envelopes import text_of
from stages.traces.episode import Call, Episode, GoldAction, Turn
from stages.traces.events import Heard, Spoken
from stages.traces.forms import read_message

MOST_DIFFERENCES = 40  # shown per call; the others are only counted
Entry = dict[str, Any]
# The calls of an episode in order, each as (turn, call of the turn, digest of the call).
Track: TypeAlias = tuple[tuple[int, int, str], ...]


class Conversations:
    """Makes the conversations of a report from episodes, and keeps them packed.

    Attributes:
        packed: JSON of each conversation by episode id.
        tracks: the calls of each episode by its id.
        silent: task, trial and id of the episodes without a turn of the agent.
    """

    def __init__(self, tiers: Tiers) -> None:
        self.packed: dict[str, bytes] = {}
        self.tracks: dict[str, Track] = {}
        self.silent: list[tuple[str, int, str]] = []
        self._tiers = tiers
        self._explainers = PerDomain(lambda domain: _Explainer(domain, tiers))

    def add(self, episode: Episode, domain: Domain) -> None:
        """Add the conversation of an episode whose tools are those of the domain."""
        if not episode.turns:
            self.silent.append((episode.task, episode.trial, episode.episode_id))
            return
        conversation = self._explainers.of(domain).conversation(episode)
        entries = conversation["entries"]
        calls = [
            (entry["turn"], i, call["key"])
            for entry in entries
            for i, call in enumerate(entry.get("calls", ()))
        ]
        self.tracks[episode.episode_id] = tuple(calls)
        # JSON can't hold a lone surrogate, such as half an emoji that a model wrote.
        self.packed[episode.episode_id] = _json(conversation)

    def __getitem__(self, episode_id: str) -> Entry:
        return dict(orjson.loads(self.packed[episode_id]))


def _json(value: Any) -> bytes:
    """Return plain values as JSON; lone surrogates become question marks."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return orjson.dumps(_encodable(value))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


class _Explainer:
    """Compares the calls of one domain's episodes with their gold actions."""

    def __init__(self, domain: Domain, tiers: Tiers) -> None:
        self._domain, self._tiers = domain, tiers
        self._matcher = Matcher(domain, tiers.arguments, tool_rules=tiers.tool_rules)
        self._rules = domain.rules if tiers.tool_rules else {}

    def conversation(self, episode: Episode) -> Entry:
        """Return all messages of an episode, with its calls explained."""
        calls = [call for turn in episode.turns for call in turn.calls]
        actions = agent_gold(episode.gold)
        explained = self._explained(calls, actions)
        turns = _by_turn(episode.turns, explained)
        return {
            "entries": _entries(episode, turns),
            "gold": None if episode.gold is None else self._gold(actions, episode, explained),
            "info": list(episode.required_info or ()),
            "stop": episode.stop,
            "rewards": episode.rewards,
        }

    def _explained(self, calls: list[Call], actions: list[GoldAction]) -> list[Entry]:
        matcher, rule = self._matcher, self._domain.failures.rule
        sides = [matcher.read(call) for call in calls]
        gold = [matcher.read_gold(action) for action in actions]
        failed = [rule(call.flagged, call.result) for call in calls]
        nearest = matcher.best(sides, gold)
        matches = nearest
        if self._tiers.match != "any":
            unmet = [
                by is not None or not s.parsed.readable for by, s in zip(failed, sides, strict=True)
            ]
            matches = matcher.one_to_one(sides, gold, unmet) if gold else [NO_MATCH] * len(sides)
        rows = zip(calls, sides, failed, matches, nearest, strict=True)
        return [self._call(*row, gold) for row in rows]

    def _call(
        self,
        call: Call,
        side: Side,
        failed: str | None,
        match: Match,
        nearest: Match,
        gold: list[Side],
    ) -> Entry:
        entry: Entry = {
            "name": call.name,
            "arguments": written(call.arguments),
            "result": call.result,
            "key": _digest(side),
        }
        if not side.parsed.readable:
            entry["problem"] = str(side.parsed.problem)
        if failed:
            entry["failed"] = failed
        if match.kind != "none":
            entry |= {"match": match.kind, "gold": match.gold}
        if match.kind != FULL and nearest.gold is not None:
            entry |= self._difference(side, gold[nearest.gold], nearest)
        return entry

    def _difference(self, side: Side, gold: Side, nearest: Match) -> Entry:
        """Return how a call differs from its nearest gold action, with the rules that decided."""
        if nearest.kind == FULL:  # another call has met the action
            return {"nearest": nearest.gold, "taken": True}
        mode: Mode = self._tiers.arguments
        rules = self._rules.get(side.name, NO_RULES)
        try:
            differing = differences(
                gold.parsed.value,
                side.parsed.value,
                mode,
                rules=rules,
                compare_args=gold.compare_args,
            )
        except InputError:  # nested too deeply to be explained
            return {"nearest": nearest.gold}
        rows = [
            [
                difference.path,
                written(difference.expected),
                written(difference.actual),
                difference.rule,
            ]
            for difference in differing[:MOST_DIFFERENCES]
        ]
        more = len(differing) - len(rows)
        return {"nearest": nearest.gold, "differences": rows} | ({"more": more} if more else {})

    def _gold(
        self, actions: list[GoldAction], episode: Episode, explained: list[Entry]
    ) -> list[Entry]:
        """Return the gold actions with the call that meets each."""
        places = [(k, i) for k, turn in enumerate(episode.turns) for i in range(len(turn.calls))]
        met: dict[int, tuple[int, int, str]] = {}
        for place, call in zip(places, explained, strict=True):
            if "match" not in call:
                continue
            known = met.get(call["gold"])
            if known is None or (call["match"] == FULL and known[2] != FULL):
                met[call["gold"]] = (*place, call["match"])
        return [
            {"name": action.name, "arguments": written(action.arguments), "met": met.get(j)}
            for j, action in enumerate(actions)
        ]


def _digest(side: Side) -> str:
    """Return a digest that equal calls share; it is short, because a report holds one per call."""
    return hashlib.blake2b(
        f"{side.name}\0{side.key}".encode(errors="replace"), digest_size=6
    ).hexdigest()


def written(value: Any) -> str:
    """Return readable arguments: text unchanged, values as JSON with one key per line."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return str(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:  # too deep, over 64 bits, a lone surrogate
        return _as_json(value)


@at_any_depth
def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)


def _by_turn(turns: Sequence[Turn], calls: list[Entry]) -> list[list[Entry]]:
    rows, first = [], 0
    for turn in turns:
        rows.append(calls[first : first + len(turn.calls)])
        first += len(turn.calls)
    return rows


def _entries(episode: Episode, calls: list[list[Entry]]) -> list[Entry]:
    """Return the entries of a conversation in order: recorded messages, and turns with calls."""
    said = list(_said(episode.messages))
    began = sum(message.begins_turn for message in said)
    if began != len(episode.turns):  # an unknown form of messages
        opening = [{"role": "user", "text": text_of(episode.opening)}] if episode.opening else []
        turns = enumerate(episode.turns)
        return opening + [_turn(k, text_of(turn.text), "", calls[k]) for k, turn in turns]
    entries: list[Entry] = []
    awaited, k = 0, -1  # results that the turns' calls hold already; the turn
    for message in said:
        if message.begins_turn:
            k += 1
            entries.append(_turn(k, message.text, message.reasoning, calls[k]))
            awaited = len(calls[k])
        elif message.role == "assistant":  # the turn continues
            entries[-1]["text"] += message.text
        elif message.role == "tool" and awaited:
            awaited -= 1
        else:
            entries.append({"role": message.role, "text": message.text} | message.more)
    return entries


class _Said(NamedTuple):
    """A message, or a part of one."""

    role: str
    text: str
    begins_turn: bool = False
    reasoning: str = ""
    more: Entry = {}  # noqa: RUF012  # never changed


def _said(messages: Sequence[Any]) -> Iterator[_Said]:
    """Yield the parts of messages of any form, in order; turns begin as in `read_turns`."""
    last: str | None = None  # the policy's last item: a "message" or a "call"
    for message in messages:
        role = str(message.get("role")) if isinstance(message, dict) else ""
        events = read_message(message, [], Counter())
        if not events and isinstance(message, dict):
            yield _Said(role, text_of(message.get("content")))
        for event in events:
            if isinstance(event, Spoken):
                begins = not (
                    (event.item == "call" and last is not None)
                    or (event.item == "message" and last == "call")
                )
                yield _Said("assistant", text_of(event.content), begins, _reasoning(message))
                last = event.item or "message"
                continue
            last = None
            if isinstance(event, Heard):
                yield _Said("user", text_of(event.content), more=_own_calls(event))
            else:
                role = "tool of the user" if event.of_user else "tool"
                yield _Said(role, event.text)


def _reasoning(message: Any) -> str:
    """Return the policy's thoughts that a message records."""
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    thoughts = [
        str(block["thinking"])
        for block in blocks
        if isinstance(block, dict) and "thinking" in block
    ]
    return text_of(message.get("reasoning_content") or message.get("reasoning")) or "".join(
        thoughts
    )


def _turn(k: int, text: str, reasoning: str, calls: list[Entry]) -> Entry:
    entry: Entry = {"role": "assistant", "turn": k, "text": text, "calls": calls}
    return entry | ({"reasoning": reasoning} if reasoning else {})


def _own_calls(event: Heard) -> Entry:
    """Return the calls of a simulated user, which belong to no turn."""
    calls = [f"{call.name} {written(call.arguments)}" for call in event.calls]
    return {"own_calls": "\n".join(calls)} if calls else {}
