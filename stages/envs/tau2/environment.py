"""The tools and databases of one episode, and the texts that tools return."""

from __future__ import annotations

import json
import warnings
from datetime import date
from typing import Any, NamedTuple

from stages.envs.tau2.database import State, UndoableDatabase, open_database
from stages.envs.tau2.package import Package, Toolbox, Toolkit

# Of the telecom tools that return a dict, the one that returns a model in tau2-bench.
_MODEL_AS_DICT = "get_details_by_id"


class Called(NamedTuple):
    """An executed tool call and its answer."""

    name: str
    arguments: Any  # an object, or what the model wrote in its place
    text: str
    failed: bool


class Environment:
    """The state that one episode can change, starting from a task's initial state.

    Attributes:
        calls: all calls so far, of the agent and of the user.
    """

    def __init__(self, package: Package, task: Any) -> None:
        self._package = package
        self._agent = _Desk(package.agent, package.agent.database)
        self._user = _Desk(package.user, package.user.database) if package.user else None
        self.calls: list[Called] = []
        self._sync()
        for action in (task.initial_state and task.initial_state.initialization_actions) or []:
            self._function(action)(**action.arguments)
            self._sync()
        self._end_call(failed=False)

    def call(self, name: str, arguments: Any, *, by_user: bool = False) -> Called:
        """Call a tool, whatever its name and arguments are; never raises.

        The text is tau2-bench's: models and their parts as JSON, and for any exception "Error: "
        with its message. A call that fails changes nothing.
        """
        toolbox = self._user if by_user else self._agent
        try:
            if toolbox is None:
                raise ValueError("User tools not available")
            tool = toolbox.tool(name)
            if isinstance(arguments, str):
                arguments = json.loads(arguments)
            if not isinstance(arguments, dict):
                raise ValueError("the arguments are not a JSON object")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydantic warns of odd values by a model
                text = _as_text(name, tool(**arguments))
                self._sync()
                self._end_call(failed=False)
            failed = False
        except Exception as error:
            self._end_call(failed=True)
            # The package's toolkits have longer names than tau2-bench's.
            text, failed = f"Error: {error}".replace("AgentTools.", "Tools."), True
        # A lone surrogate, which JSON can hold, can't be written to any file.
        text = text.encode("utf-8", "backslashreplace").decode()
        called = Called(name, arguments, text, failed)
        self.calls.append(called)
        return called

    def state(self) -> dict[str, State]:
        """Return what changed in the agent's and the user's database."""
        desks = {"agent": self._agent, "user": self._user}
        return {name: toolbox.database.state() for name, toolbox in desks.items() if toolbox}

    def holds(self, assertion: Any) -> bool:
        """Return whether one of the task's assertions on the environment holds."""
        try:
            value = self._function(assertion)(**assertion.arguments)
        except Exception:  # some assertions fail by raising
            return False
        return bool(value == assertion.assert_value)

    def _function(self, call: Any) -> Any:
        toolbox = self._user if call.env_type == "user" else self._agent
        assert toolbox is not None
        return getattr(toolbox.toolkit, call.func_name)

    def _sync(self) -> None:
        if self._user:
            self._package.sync(self._user.toolkit, self._agent.toolkit)

    def _end_call(self, *, failed: bool) -> None:
        for toolbox in (self._agent, self._user):
            if toolbox:
                toolbox.end_call(failed=failed)


class _Desk:
    """The toolkit of one side over its database."""

    def __init__(self, side: Toolbox, snapshot: Any) -> None:
        self._side = side
        self._names = {tool["function"]["name"] for tool in side.tools}
        self.database: UndoableDatabase = open_database(snapshot)
        self.toolkit: Toolkit = side.toolkit()
        self.toolkit.db = self.database.db

    def tool(self, name: str) -> Any:
        """Return the tool of a name."""
        if name not in self._names:
            raise ValueError(f"Tool '{name}' not found.")
        return self._side.elsewhere.get(name) or getattr(self.toolkit, name)

    def end_call(self, *, failed: bool) -> None:
        """Keep what a call changed, or undo it if the call failed."""
        if failed:
            self.database.undo()
            self.toolkit.db = self.database.db
        else:
            self.database.keep()


def _as_text(name: str, value: Any) -> str:
    """Return a tool's answer in tau2-bench's form.

    Source: `Environment.to_json_str` of sierra-research/tau2-bench, by which numbers outside of
    models become strings.
    """
    if isinstance(value, str):
        # The package's tools often dump models themselves, without spaces and unescaped.
        return json.dumps(json.loads(value)) if value.startswith(("{", "[")) else value
    if name == "list_all_product_types":
        return json.dumps(value, sort_keys=True)
    return json.dumps(value if name == _MODEL_AS_DICT else _plain(value), default=str)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (int, float)):
        return str(value)
    return value.isoformat() if isinstance(value, date) else value
