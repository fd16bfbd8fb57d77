"""The fields that trace formats share: outcomes, gold actions, and who an episode is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, TypeGuard

from stages.core.limits import LARGEST
from stages.traces.calls import UnreadableCallError, object_in, read_call
from stages.traces.episode import GoldAction

ROUNDING = 1e-6  # outcomes this far outside [0, 1] are rounding noise, not another scale
PLAIN_ACTIONS = {frozenset({"name", key}): key for key in ("kwargs", "arguments")}
POLICY = ("policy", "model", "model_name", "model_id", "llm")  # fields that name what acted
OF_AGENT = ("agent", "agent_info", "metadata", "info")  # objects that may hold them
NAMING = frozenset([*POLICY, *OF_AGENT])


class BadItemError(Exception):
    """One record that can't be read: why, and what to do. The caller knows its place."""

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(what, todo)
        self.what, self.todo = what, todo


def outcome_of(value: Any, field: str) -> float | None:
    """The outcome in [0, 1] that a field holds; None where it is null.

    Raises:
        BadItemError: not a number, not finite, or outside [0, 1].
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise BadItemError(f"'{field}' is {value!r:.40}, not a number", f"give '{field}' in [0, 1]")
    if not -ROUNDING <= value <= 1 + ROUNDING:  # also catches NaN
        raise BadItemError(
            f"'{field}' is {value!r:.40}, outside [0, 1]",
            "rescale it so that 1 is a full success, or name another field by --map outcome=FIELD",
        )
    return min(max(float(value), 0.0), 1.0)


def sampled_tokens(token_ids: Any, prompt_ids: Any, logprobs: Any) -> dict[str, Any]:
    """Fields of a message whose tokens are recorded; none where they are not.

    Args:
        token_ids: those that the policy wrote, [T].
        prompt_ids: all that it had read, [P].
        logprobs: of the tokens, [T]; others are left out.
    """
    if not isinstance(token_ids, list):
        return {}
    tokens: dict[str, Any] = {"token_ids": token_ids, "n_tokens": len(token_ids)}
    if isinstance(prompt_ids, list):
        tokens["prompt_ids"] = prompt_ids
    if isinstance(logprobs, list) and len(logprobs) == len(token_ids):
        tokens["logprobs"] = logprobs
    return tokens


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a number that a float holds."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e308)


def list_in(item: Mapping[str, Any], field: str) -> list[Any]:
    """The list that a field holds; empty where it holds anything else."""
    value = item.get(field)
    return value if isinstance(value, list) else []


def object_of(item: dict[str, Any], field: str) -> dict[str, Any]:
    """The object that a field holds; empty where it is null.

    Raises:
        BadItemError: it holds something else.
    """
    value = item.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadItemError(
            f"'{field}' is {value!r:.40}, not an object", "give the file as it was written"
        )
    return value


def gold_of(actions: Any, field: str) -> tuple[GoldAction, ...] | None:
    """Gold actions from {name, arguments, compare_args, requestor}; None where null.

    The arguments may have any of the names in `calls.ARGUMENTS`.

    Raises:
        BadItemError: not a list of objects with a name and arguments each.
    """
    if actions is None or type(actions) is tuple:  # read before, with all of its trace's
        return actions
    if not isinstance(actions, list):
        raise BadItemError(f"'{field}' is not a list", "give a list of {name, arguments}")
    return tuple([gold_action(action, field) for action in actions])


def gold_in(*places: Any) -> tuple[GoldAction, ...] | None:
    """The gold actions of a task in the first place that lists some; None: none does.

    Args:
        places: objects that tell of the task, with `gold_actions`, or `evaluation_criteria` with
            `actions` as tau2-bench has them. Any other format may mean something else by these, so
            that what is no action is passed over.
    """
    for place in places:
        if not isinstance(place, dict):
            continue
        criteria = place.get("evaluation_criteria")
        for holder, field in ((place, "gold_actions"), (criteria, "actions")):
            if isinstance(holder, dict) and isinstance(holder.get(field), list):
                try:
                    return gold_of(holder[field], field)
                except BadItemError:
                    continue
    return None


def gold_action(action: Any, field: str) -> GoldAction:
    """One gold action; see `gold_of`."""
    key = PLAIN_ACTIONS.get(frozenset(action)) if type(action) is dict else None
    if key:  # tau-bench's and ours: most of all
        name, arguments = action["name"], action[key]
        if type(name) is str and arguments is not None:
            return GoldAction(name, arguments)
    try:
        name, arguments, _ = read_call(action)
        if arguments is None:  # unknown ones would equal those of a call without any
            raise UnreadableCallError("a call whose arguments are null")
        compare, requestor = _beside(action, "compare_args"), _beside(action, "requestor")
        return GoldAction(
            name,
            arguments,
            None if compare is None else tuple(compare),
            requestor or "assistant",
        )
    except UnreadableCallError as error:
        what = f"an entry of '{field}' is {error}: {action!r:.60}"
        raise BadItemError(what, "give {name, arguments}") from None
    except TypeError:
        raise BadItemError(
            f"an entry of '{field}' is not an action: {action!r:.60}", "give {name, arguments}"
        ) from None


def name_in(item: dict[str, Any], *fields: str) -> str | None:
    """The first of some fields that holds a name; anything but text says nothing."""
    for field in fields:  # a generator would take twice as long, and every record comes by here
        value = item.get(field)
        if isinstance(value, str) and value:
            return value
    return None


def policy_in(item: dict[str, Any]) -> str | None:
    """What acted, as a record names it or as an object in it that tells of the agent does."""
    if NAMING.isdisjoint(item):
        return None
    for place in (item, *map(item.get, OF_AGENT)):
        if isinstance(place, dict) and (name := name_in(place, *POLICY)):
            return name
    for value in map(item.get, ("policy", "model", "agent")):
        if isinstance(value, dict) and (name := name_in(value, "name", "id")):
            return name
    return name_in(item, "agent")


def opening_of(messages: list[Any]) -> Any:
    """The content of the user's first message, as recorded; None where there is none."""
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "user":
            return message.get("content")
    return None


def kin_of(policy: str | None, domain: str | None, gold: tuple[GoldAction, ...] | None) -> Hashable:
    """What else tells tasks of one id apart within a trace, for `Names.give`."""
    return policy, domain, frozenset([action.name for action in gold or ()])


def _beside(action: Any, key: str) -> Any:
    """What stands beside a gold action's name, where it has one or in OpenAI's `function`."""
    outer = object_in(action)
    inner = outer.get("function")
    return outer.get(key) if key in outer or not isinstance(inner, dict) else inner.get(key)


class Names:
    """Gives every episode of one trace its task, trial, group and an id of its own.

    Where the trace has none, tasks are numbered in the order of the records and trials in the
    order within their group. Two records with the same group and trial are kept apart; they are
    noted unless something else shows that their tasks or policies differ.
    """

    def __init__(self, source: str, notes: Counter[str]) -> None:
        self._source, self._notes = source, notes
        self._records = 0
        # By group, its trials and whether a record states them. A million episodes pass here.
        self._trials: dict[Hashable, dict[int, bool]] = {}
        self._kin: dict[Hashable, Hashable] = {}  # each one once
        self._ids: set[int] = set()  # hashes: names would take three times as much

    def give(
        self,
        task_id: Any,
        trial: Any,
        *,
        episode_id: Any = None,
        group_id: Any = None,
        kin: Hashable = None,
    ) -> tuple[str, str, int, str | None]:
        """(episode id, task id, trial, stated group id) from what the record states, null or not.

        `kin` is what else tells tasks apart, see `kin_of`: trials are counted within it.
        """
        if task_id is None:
            task_id = self._records if group_id is None else group_id
            self._notes["no task id"] += 1
        self._records += 1
        if isinstance(task_id, float) and task_id.is_integer():
            task_id = int(task_id)  # a column of whole numbers that has nulls
        task = str(task_id)
        group = None if group_id is None else str(group_id)
        kin = self._kin.setdefault(kin, kin)
        number = self._trial((task if group is None else group, group is None, kin), trial)
        name = f"{self._source}:{task}:{number}" if episode_id is None else str(episode_id)
        if hash(name) in self._ids:
            if episode_id is not None:
                self._notes["episode id twice"] += 1
            copy = 2
            while hash(f"{name}#{copy}") in self._ids:
                copy += 1
            name = f"{name}#{copy}"
        self._ids.add(hash(name))
        return name, task, number, group

    def _trial(self, group: Hashable, trial: Any) -> int:
        taken = self._trials.setdefault(group, {})
        try:
            number = int(trial)
            if abs(number) > LARGEST:
                raise OverflowError
        except (TypeError, ValueError, OverflowError):
            self._notes["no trial"] += 1
            number, stated = len(taken), False
        else:
            if taken.get(number):
                self._notes["same task and trial twice"] += 1
            stated = number not in taken
            if not stated:
                taken[number] = True
        if number in taken:
            number = len(taken)
            while number in taken:
                number += 1
        taken[number] = stated
        return number
