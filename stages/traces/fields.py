"""Read the fields that trace formats share: outcomes, gold actions and the ids of episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, TypeGuard

from stages.core.limits import LARGEST
from stages.traces.calls import UnreadableCallError, object_in, read_call
from stages.traces.episode import GoldAction

ROUNDING = 1e-6  # outcomes outside [0, 1] by at most this are rounding noise, not another scale
PLAIN_ACTIONS = {frozenset({"name", key}): key for key in ("kwargs", "arguments")}
POLICY = ("policy", "model", "model_name", "model_id", "llm")  # fields that name the policy
OF_AGENT = ("agent", "agent_info", "metadata", "info")  # objects that may hold such fields
NAMING = frozenset([*POLICY, *OF_AGENT])


class BadItemError(Exception):
    """A record that can't be read: what is wrong and what to do. The caller adds the place."""

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(what, todo)
        self.what, self.todo = what, todo


def outcome_of(value: Any, field: str) -> float | None:
    """Return the outcome in [0, 1] that a field holds; None if the field is null.

    Raises:
        BadItemError: the value is not a number, not finite, or outside [0, 1].
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
    """Return the token fields of a message; empty if its tokens are not recorded.

    Args:
        token_ids: token ids that the policy sampled, shape [T].
        prompt_ids: token ids of the whole prompt, shape [P].
        logprobs: logprobs of the sampled tokens, shape [T]; dropped if the length differs.

    Returns:
        The fields `token_ids` and `n_tokens`, with `prompt_ids` and `logprobs` if recorded.
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
    """Return whether a JSON value is a number within the range of a float."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e308)


def list_in(item: Mapping[str, Any], field: str) -> list[Any]:
    """Return the list in a field; an empty list if the field holds anything else."""
    value = item.get(field)
    return value if isinstance(value, list) else []


def object_of(item: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the object in a field; an empty object if the field is null.

    Raises:
        BadItemError: the field holds anything else.
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
    """Read gold actions from a list of {name, arguments, compare_args, requestor}.

    Args:
        actions: the list; each action may have its arguments under any key in `calls.ARGUMENTS`.
            Null and a tuple of gold actions are returned unchanged.
        field: name of the field in errors.

    Raises:
        BadItemError: it is not a list of objects that each have a name and arguments.
    """
    if actions is None or type(actions) is tuple:  # a tuple: read before, for the whole trace
        return actions
    if not isinstance(actions, list):
        raise BadItemError(f"'{field}' is not a list", "give a list of {name, arguments}")
    return tuple([gold_action(action, field) for action in actions])


def gold_in(*places: Any) -> tuple[GoldAction, ...] | None:
    """Return the gold actions from the first place that lists them; None if no place does.

    Args:
        places: objects that describe the task. They hold `gold_actions`, or tau2-bench's
            `evaluation_criteria` with `actions`. These keys may mean something else in another
            format, so lists that are not gold actions are skipped.
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
    """Read one gold action; see `gold_of`."""
    key = PLAIN_ACTIONS.get(frozenset(action)) if type(action) is dict else None
    if key:  # the form of tau-bench and ours, the most common
        name, arguments = action["name"], action[key]
        if type(name) is str and arguments is not None:
            return GoldAction(name, arguments)
    try:
        name, arguments, _ = read_call(action)
        if arguments is None:  # unknown arguments would match a call without arguments
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
    """Return the first non-empty string in the given fields; None if there is none."""
    for field in fields:  # a generator would be twice as slow, and every record passes here
        value = item.get(field)
        if isinstance(value, str) and value:
            return value
    return None


def policy_in(item: dict[str, Any]) -> str | None:
    """Return the name of the policy from a record or from an object in it about the agent."""
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
    """Return the content of the user's first message, as recorded; None if there is none."""
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "user":
            return message.get("content")
    return None


def kin_of(policy: str | None, domain: str | None, gold: tuple[GoldAction, ...] | None) -> Hashable:
    """Return a key that distinguishes tasks with the same id in a trace, for `Names.give`."""
    return policy, domain, frozenset([action.name for action in gold or ()])


def _beside(action: Any, key: str) -> Any:
    """Return a field of a gold action, from the action itself or from its OpenAI `function`."""
    outer = object_in(action)
    inner = outer.get("function")
    return outer.get(key) if key in outer or not isinstance(inner, dict) else inner.get(key)


class Names:
    """Assigns every episode of one trace a task, a trial, a group and a unique id.

    If the trace has no task ids, tasks are numbered in the order of the records. If it has no
    trials, they are numbered within their group. Trials are counted separately for each `kin_of`.
    If two records of a group state the same trial, the second gets a new one, and this is noted.
    """

    def __init__(self, source: str, notes: Counter[str]) -> None:
        self._source, self._notes = source, notes
        self._records = 0
        # Group -> trial -> whether a record states that trial.
        self._trials: dict[Hashable, dict[int, bool]] = {}
        self._kin: dict[Hashable, Hashable] = {}  # interns equal keys to save memory
        self._ids: set[int] = set()  # hashes, because strings would take three times the memory

    def give(
        self,
        task_id: Any,
        trial: Any,
        *,
        episode_id: Any = None,
        group_id: Any = None,
        kin: Hashable = None,
    ) -> tuple[str, str, int, str | None]:
        """Return (episode id, task id, trial, stated group id) of a record.

        Args:
            task_id: as the record states it, or None; so are the next three.
            trial: number of the trial.
            episode_id: id of the episode.
            group_id: id of the group.
            kin: key that distinguishes tasks with the same id, from `kin_of`. Trials are counted
                separately for each key.
        """
        if task_id is None:
            task_id = self._records if group_id is None else group_id
            self._notes["no task id"] += 1
        self._records += 1
        if isinstance(task_id, float) and task_id.is_integer():
            task_id = int(task_id)  # an integer column with nulls is read as floats
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
