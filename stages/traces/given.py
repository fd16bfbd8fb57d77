"""What the user says of records beside the trace: where fields are, and the tasks' gold actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.core.statuses import LEFT_OUT
from stages.errors import InputError, few
from stages.tables.yamlfile import nearest, parse_yaml
from stages.traces.episode import GoldAction
from stages.traces.fields import BadItemError, gold_of, outcome_of
from stages.traces.formats import Record
from stages.traces.messages import FIELDS, OUTCOMES
from stages.traces.stream import BrokenJsonError, Stream, parse

TARGETS = (*FIELDS, "policy", "rewards", "stop")
NESTED = ("messages", "output", "tools", "gold_actions", "rewards")  # lists or objects
NOTHING = object()
GOLD_FORMS = "give {task_id: [actions]}, or records with 'task_id' and 'gold_actions'"

Gold = dict[str, tuple[GoldAction, ...]]


class Given:
    """Fields by path, gold actions by task id and the score that counts; for all traces."""

    def __init__(
        self,
        fields: dict[str, str] | None = None,
        gold: Gold | None = None,
        score: str | None = None,
        gold_file: str | None = None,
    ) -> None:
        self.fields, self.gold, self.score = fields or {}, gold or {}, score
        self._gold_file = gold_file  # where the gold actions are from
        self._unmatched = set(self.fields)
        self._scores: dict[str, None] = {}  # names that were met, in their order
        self._used = False  # whether a task of the gold actions was met

    def apply(self, record: Record, clean: Record) -> Record:
        """Return a clean record with the fields that the user names.

        A path is looked up in the record as it stands in the trace and, where nothing is there, in
        the clean record. What is named and missing is unknown, whatever the format says itself.
        """
        if not self.fields and not self.gold and not clean.get("rewards"):
            return clean
        given = dict(clean)
        if "outcome" in self.fields:
            for key in OUTCOMES:
                given.pop(key, None)
        for target, path in self.fields.items():
            given[target] = self._named(target, path, record, clean)
        if isinstance(given.get("rewards"), dict):
            self._choose(given)
        if self.gold and (actions := self._gold_of(given)) is not None:
            given["gold_actions"], self._used = actions, True
        return given

    def _named(self, target: str, path: str, record: Record, clean: Record) -> Any:
        """What a record has at a path; None where nothing is there.

        Raises:
            BadItemError: it is no value for such a field.
        """
        value = at(record, path)
        if value is NOTHING:
            value = at(clean, path)
        if value is NOTHING:
            return None
        self._unmatched.discard(target)
        if isinstance(value, (list, dict)) and target not in NESTED:
            what = f"'{path}' is {value!r:.40}, no value for '{target}'"
            raise BadItemError(what, f"name a text or a number by --map {target}=PATH")
        return value

    def _choose(self, clean: Record) -> None:
        """Let one of a record's scores be its outcome, or keep what the format says itself.

        A record whose score is null, or missing among its scores, is masked.

        Raises:
            BadItemError: there are several, and nobody says which counts, or it is no outcome.
        """
        scores = {n: s for n, s in clean["rewards"].items() if isinstance(s, (int, float))}
        self._scores |= dict.fromkeys(clean["rewards"])
        name = self.score
        if name is None:
            stated = any(clean.get(key) is not None for key in OUTCOMES)
            if stated or "outcome" in self.fields:
                return
            if len(scores) > 1 and clean.get("status") in LEFT_OUT:
                return
            if len(scores) > 1:
                quoted = few([f"'{score}'" for score in scores])
                todo = "name the outcome by --score NAME"
                raise BadItemError(f"has several scores: {quoted}", todo)
            name = next(iter(scores or clean["rewards"]), None)
        for key in OUTCOMES:
            clean.pop(key, None)
        if (value := clean["rewards"].get(name)) is not None:
            clean["outcome"] = outcome_of(value, str(name))
        elif clean.get("status") not in LEFT_OUT:  # nobody computed it
            clean |= {"status": "masked", "stop": "not scored"}

    def _gold_of(self, clean: Record) -> tuple[GoldAction, ...] | None:
        """The gold actions of a record's task, by its id or as tables have it: "airline/5"."""
        task, domain = id_of(clean.get("task_id")), clean.get("domain")
        actions = self.gold.get(task)
        return self.gold.get(f"{domain}/{task}") if actions is None else actions

    def has_messages(self, record: Record) -> bool:
        """Whether the user says where a record has its messages, and they are there."""
        path = self.fields.get("messages")
        return path is not None and at(record, path) is not NOTHING

    def add(self, other: Given) -> None:
        """Add what records in other traces had of what the user names."""
        self._unmatched &= other._unmatched
        self._scores |= other._scores
        self._used |= other._used

    def check(self, traces: Sequence[str]) -> None:
        """Raise InputError if a path, a score or the gold actions fitted nothing in all traces.

        Args:
            traces: the paths that were read to their end.
        """
        if self.score is not None and self.score not in self._scores:
            todo = nearest(self.score, list(self._scores)) if self._scores else "leave it out"
            what = f"no score '{self.score}' in {few(traces)}"
            raise InputError("--score", what, todo)
        for target in sorted(self._unmatched):
            what = f"'{self.fields[target]}' is in no record of {few(traces)}"
            raise InputError(f"--map {target}", what, "give the dotted path of a field of records")
        if self._gold_file and not self._used:
            first = next(iter(self.gold), "")
            what = f"names no task of {few(traces)} (its first task is '{first}')"
            raise InputError(
                self._gold_file, what, "give gold actions by the task ids of the traces"
            )


def named(fields: Iterable[str] | None, gold: str | None, score: str | None) -> Given:
    """Return what --map, --gold and --score say.

    Raises:
        InputError: a pair of --map is none, the file of --gold can't be read, or two options name
            the outcome.
    """
    paths = read_map(fields or ())
    if score is not None and "outcome" in paths:
        raise InputError("--score", "'--map outcome' names the outcome too", "use one of them")
    return Given(paths, read_gold(gold) if gold else None, score, gold)


def at(value: Any, path: str) -> Any:
    """Return what stands at a dotted path; NOTHING where there is nothing.

    Args:
        value: an object.
        path: keys, and places in lists, such as "messages.-1.content". A key may have dots itself,
            and an object or a list may be JSON text, as in flat columns.
    """
    if isinstance(value, str) and value[:1] in ("{", "["):
        value = _parsed(value)
    if isinstance(value, dict):
        if path in value:
            return value[path]
        parts = path.split(".")
        for end in range(len(parts) - 1, 0, -1):  # the longest key first
            key = ".".join(parts[:end])
            if key in value:
                below = at(value[key], ".".join(parts[end:]))
                if below is not NOTHING:
                    return below
    elif isinstance(value, list):
        place, _, rest = path.partition(".")
        try:
            item = value[int(place)]
        except (ValueError, IndexError):
            return NOTHING
        return at(item, rest) if rest else item
    return NOTHING


def _parsed(text: str) -> Any:
    """The value of JSON text; the text itself where it is none."""
    try:
        return parse(text.encode(errors="surrogatepass"))[0]
    except BrokenJsonError:
        return text


def read_map(given: Iterable[str]) -> dict[str, str]:
    """Return the path of each field that `--map` names.

    Raises:
        InputError: a field that records do not have, one that is named twice, or no path.
    """
    fields: dict[str, str] = {}
    for pair in (pair for text in given for pair in text.split(",")):
        target, equals, path = (part.strip() for part in pair.partition("="))
        if not equals or not path or not target:
            raise InputError("--map", f"'{pair:.60}' is not FIELD=PATH", "as outcome=info.reward")
        if target not in TARGETS:
            todo = nearest(target, TARGETS)
            raise InputError("--map", f"unknown field '{target:.40}'", todo)
        if target in fields:
            raise InputError("--map", f"'{target}' is named twice", "name it once")
        fields[target] = path
    return fields


def read_gold(path: str) -> Gold:
    """Return the gold actions by task id that a file of JSON, JSON lines or YAML has.

    It may be {task_id: [actions]}, records with `task_id` (or `id`) and `gold_actions` (or
    `actions`), or tasks of tau-bench (numbered in their order where they have no id) or tau2-bench.

    Raises:
        InputError: missing, broken, or none of these.
    """
    gold: Gold = {}
    for task, actions, number in _tasks(_document(path), path):
        try:
            known = gold_of(actions, "gold_actions")
        except BadItemError as bad:
            raise InputError(f"{path}:task {number}", bad.what, bad.todo) from None
        if known is None:
            continue
        if gold.setdefault(task, known) != known:
            what = f"task '{task}' occurs twice, with other gold actions"
            raise InputError(path, what, "give each task once")
    if not gold:
        raise InputError(path, "holds no gold actions", GOLD_FORMS)
    return gold


def id_of(task_id: Any) -> str:
    """Return a task id as text; a float that is a whole number is one."""
    if isinstance(task_id, float) and task_id.is_integer():
        task_id = int(task_id)
    return str(task_id)


def _tasks(document: Any, path: str) -> Iterator[tuple[str, Any, int]]:
    """Yield (task id, its actions, its number in the file)."""
    if isinstance(document, dict) and isinstance(document.get("tasks"), list):
        document = document["tasks"]  # of tau2-bench results
    if isinstance(document, dict) and not _is_task(document):
        for number, (task, actions) in enumerate(document.items(), 1):
            if not isinstance(actions, list):
                what = f"'{task:.40}' has no list of actions"
                raise InputError(path, what, GOLD_FORMS)
            yield task, actions, number
        return
    records = document if isinstance(document, list) else [document]
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not _is_task(record):
            raise InputError(f"{path}:task {number}", "has no gold actions", GOLD_FORMS)
        task = record.get("task_id", record.get("id", number - 1))
        actions = record.get("gold_actions", record.get("actions", _of_criteria(record)))
        # tau2-bench: a task without criteria or actions expects none.
        yield id_of(task), [] if actions is None and "id" in record else actions, number


def _of_criteria(task: dict[str, Any]) -> Any:
    """The actions of a task of tau2-bench; what can't have any stands for itself."""
    criteria = task.get("evaluation_criteria")
    return criteria.get("actions") if isinstance(criteria, dict) else criteria


def _is_task(record: dict[str, Any]) -> bool:
    has_actions = "gold_actions" in record or "actions" in record
    named = "task_id" in record or "id" in record or "instruction" in record
    return "evaluation_criteria" in record or (has_actions and named)


def _document(path: str) -> Any:
    """The value of a file of JSON, JSON lines (a list of their values) or YAML."""
    stream = Stream(path)
    data = stream.read()
    if Path(path).name.removesuffix(".gz").endswith((".yaml", ".yml")):
        return parse_yaml(data.decode(errors="replace"), stream.where).plain()
    try:
        return parse(data)[0]
    except BrokenJsonError as whole:
        lines = [line for line in data.splitlines() if line.strip()]
        try:
            return [parse(line)[0] for line in lines]
        except BrokenJsonError:
            where = f"{stream.where}:byte {whole.offset}"
            raise InputError(where, whole.what, "give JSON, JSON lines or YAML") from None
