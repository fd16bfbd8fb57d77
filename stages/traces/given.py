"""Apply the user's options to records: where fields are, gold actions, and the score to use."""

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
NESTED = ("messages", "output", "tools", "gold_actions", "rewards")  # hold lists or objects
NOTHING = object()
GOLD_FORMS = "give {task_id: [actions]}, or records with 'task_id' and 'gold_actions'"

Gold = dict[str, tuple[GoldAction, ...]]


class Given:
    """The user's field paths, gold actions by task id, and score name, for all traces."""

    def __init__(
        self,
        fields: dict[str, str] | None = None,
        gold: Gold | None = None,
        score: str | None = None,
        gold_file: str | None = None,
    ) -> None:
        self.fields, self.gold, self.score = fields or {}, gold or {}, score
        self._gold_file = gold_file  # file of the gold actions, for errors
        self._unmatched = set(self.fields)  # fields whose path was in no record so far
        self._scores: dict[str, None] = {}  # names of scores seen so far, in order
        self._used = False  # whether any gold actions have matched a task

    def apply(self, record: Record, clean: Record) -> Record:
        """Return a clean record with the user's fields, gold actions and score.

        A path is looked up in the record as it is in the trace, then in the clean record. A mapped
        field that is missing in both is unknown, even if the format states a value.
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
        """Return the value of a record at a path; None if there is none.

        Raises:
            BadItemError: the field can't hold the value.
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
        """Set a record's outcome to the chosen or only score; else keep the stated outcome.

        Without a chosen score, an outcome that the format states or that the user maps is kept.
        A record whose score is null or missing is masked.

        Raises:
            BadItemError: there are several scores and none is chosen, or the score is no outcome.
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
        """Return the gold actions of a record's task, by its id or with its domain: "airline/5"."""
        task, domain = id_of(clean.get("task_id")), clean.get("domain")
        actions = self.gold.get(task)
        return self.gold.get(f"{domain}/{task}") if actions is None else actions

    def has_messages(self, record: Record) -> bool:
        """Return whether the user maps `messages` to a path that the record has."""
        path = self.fields.get("messages")
        return path is not None and at(record, path) is not NOTHING

    def add(self, other: Given) -> None:
        """Merge the fields, scores and gold actions that matched in other traces."""
        self._unmatched &= other._unmatched
        self._scores |= other._scores
        self._used |= other._used

    def check(self, traces: Sequence[str]) -> None:
        """Raise InputError if a path, the score or the gold actions matched no record.

        Args:
            traces: the paths of all traces, which have been read to the end.
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
    """Read the options --map, --gold and --score.

    Raises:
        InputError: a pair of --map is invalid, the file of --gold can't be read, or two options
            name the outcome.
    """
    paths = read_map(fields or ())
    if score is not None and "outcome" in paths:
        raise InputError("--score", "'--map outcome' names the outcome too", "use one of them")
    return Given(paths, read_gold(gold) if gold else None, score, gold)


def at(value: Any, path: str) -> Any:
    """Return the value at a dotted path; NOTHING if there is none.

    Args:
        value: an object or a list. It and any value inside it may be JSON text, as in flat columns.
        path: keys and list indices, e.g. "messages.-1.content". A key may itself contain dots.
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
    """Parse JSON text; return the text itself if it is not JSON."""
    try:
        return parse(text.encode(errors="surrogatepass"))[0]
    except BrokenJsonError:
        return text


def read_map(given: Iterable[str]) -> dict[str, str]:
    """Return the path of each field that `--map` names.

    Raises:
        InputError: a field is unknown or named twice, or a pair has no path.
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
    """Read gold actions by task id from a file of JSON, JSON lines or YAML.

    The file holds {task_id: [actions]}, records with `task_id` (or `id`) and `gold_actions` (or
    `actions`), or tasks of tau-bench or tau2-bench. Tasks without an id are numbered in order.

    Raises:
        InputError: the file is missing, broken, or has another form.
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
    """Return a task id as text; a float with an integer value is written as an integer."""
    if isinstance(task_id, float) and task_id.is_integer():
        task_id = int(task_id)
    return str(task_id)


def _tasks(document: Any, path: str) -> Iterator[tuple[str, Any, int]]:
    """Yield (task id, its actions, its number in the file)."""
    if isinstance(document, dict) and isinstance(document.get("tasks"), list):
        document = document["tasks"]  # tau2-bench results
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
    """Return the actions of a tau2-bench task; criteria that are no object are returned as is."""
    criteria = task.get("evaluation_criteria")
    return criteria.get("actions") if isinstance(criteria, dict) else criteria


def _is_task(record: dict[str, Any]) -> bool:
    has_actions = "gold_actions" in record or "actions" in record
    named = "task_id" in record or "id" in record or "instruction" in record
    return "evaluation_criteria" in record or (has_actions and named)


def _document(path: str) -> Any:
    """Parse a file of JSON, JSON lines (into a list) or YAML."""
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
