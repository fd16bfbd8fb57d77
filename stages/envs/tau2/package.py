"""A tau2-bench domain from the optional package inspect-evals, loaded once.

The package's tools, databases, policies, tasks and splits are used unchanged. Only the base class
of its toolkits is left out: `StoreModel` validates the whole database at each attribute access.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import json
import warnings
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from stages.errors import InputError
from stages.tiers.domains import Domain, load_domain

PREFIX = "tau2-"
NAMES = ("airline", "retail", "telecom")

_INSTRUCTIONS = (
    "You are a customer service agent. Help the user and follow the policy below. In each turn, "
    "either write to the user or call tools, never both."
)
# Modules and names in the package, by domain.
_DATABASES = {
    "airline": ("airline.data_model", "FlightDB", "db.json.gz"),
    "retail": ("retail.data_model", "RetailDB", "db.json.gz"),
    "telecom": ("telecom.data_model", "TelecomDB", "db.toml"),
}
_TASKS = {"airline": "tasks.json", "retail": "tasks.json", "telecom": "tasks.json.gz"}

Toolkit = Any  # methods of one of the package's toolkits, over its attribute `db`


@dataclass(frozen=True)
class Toolbox:
    """The tools of the agent or of the user, and the database they work on."""

    toolkit: Callable[[], Toolkit]
    tools: list[dict[str, Any]]  # OpenAI definitions
    elsewhere: Mapping[str, Callable[..., str]]  # tools that are not methods of the toolkit
    database: Any  # the package's model, never to be changed


@dataclass(frozen=True)
class Package:
    """One domain of the package."""

    name: str
    policy: str
    agent: Toolbox
    user: Toolbox | None  # telecom: the user's phone
    sync: Callable[[Toolkit, Toolkit], None]  # carries changes between agent and user
    records: Mapping[str, dict[str, Any]]  # tasks as the package writes them, by id
    splits: Mapping[str, list[str]]

    @functools.cached_property
    def _task_model(self) -> Any:
        return _module("data_model.tasks").Task

    def task(self, task_id: str) -> Any:
        """Return the package's own model of a task."""
        return self._task_model.model_validate(self.records[task_id])


@functools.cache
def load_package(name: str) -> Package:
    """Load a domain and cache it; this takes about a second, after some seconds of imports.

    Args:
        name: one of NAMES.

    Raises:
        InputError: the package, or one that it needs, is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package's dependencies warn of each other
            return _load(name)
    except ModuleNotFoundError as error:
        raise InputError(
            PREFIX + name,
            f"needs the package '{error.name}', which is not installed",
            "run pip install 'irc-cli[tau2]'",
        ) from None


def _load(name: str) -> Package:
    folder = Path(_module("utils").TAU2_DATA_DIR) / "domains" / name
    policy = _module(f"{name}.agents").get_domain_policy
    policy = policy(workflow=False) if name == "telecom" else policy()
    module, model, file = _DATABASES[name]
    database = getattr(_module(module), model).model_validate(_read(folder / file))
    tools = getattr(_module(f"{name}.tools"), f"all_{name}{'_agent' * (name == 'telecom')}_tools")
    agent = _side(f"{name}.{name.title()}AgentTools", tools, database, load_domain(name))
    user = None
    if name == "telecom":
        tools = _module("telecom.user_tools").all_telecom_user_tools
        database = _module("telecom.user_data_model").TelecomUserDB
        database = database.model_validate(_read(folder / "user_db.toml"))
        user = _side("telecom.TelecomUserTools", tools, database, None)
    return Package(
        name=name,
        policy=f"{_INSTRUCTIONS}\n\n{policy.strip()}\n",
        agent=agent,
        user=user,
        sync=_module("telecom.environment").Environment if user else lambda user, agent: None,
        records={str(record["id"]): record for record in _read(folder / _TASKS[name])},
        splits=_read(folder / "split_tasks.json"),
    )


def _module(path: str) -> Any:
    return importlib.import_module(f"inspect_evals.tau2.{path}")


def _read(path: Path) -> Any:
    """Read a JSON or TOML file; the package's own reader leaves a copy of each .gz in /tmp."""
    if path.suffix == ".toml":
        return importlib.import_module("toml").loads(path.read_text(encoding="utf-8"))
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def _side(path: str, factories: list[Any], database: Any, domain: Domain | None) -> Toolbox:
    module = _module(path)
    toolkit = _without_store(getattr(module, path.rpartition(".")[2]))
    if hasattr(toolkit, "_apply_one_time_charge"):
        toolkit = _with_counted_bills(toolkit)
    definition = importlib.import_module("inspect_ai.tool").ToolDef
    tools, elsewhere = [], {}
    for factory in factories:
        tool = factory()
        described = definition(tool)
        kind = {"x-kind": domain.kind(described.name)} if domain else {}
        function = {
            "name": described.name,
            "description": described.description,
            "parameters": described.parameters.model_dump(exclude_none=True),
        }
        tools.append({"type": "function", "function": function, **kind})
        if not hasattr(toolkit, described.name):
            elsewhere[described.name] = _finished(tool)
    return Toolbox(toolkit, tools, elsewhere, database)


def _without_store(store_model: Any) -> Any:
    """Return a plain class with a toolkit's methods, and new default fields for each object."""
    fields = {
        name: field
        for name, field in store_model.model_fields.items()
        if name not in ("store", "instance", "initialized", "db")
    }

    def set_fields(self: Toolkit) -> None:
        for name, field in fields.items():
            setattr(self, name, field.get_default(call_default_factory=True))

    methods = {
        name: value
        for name, value in vars(store_model).items()
        if isinstance(value, (FunctionType, property)) and not name.startswith("__")
    }
    return type(store_model.__name__, (), {**methods, "__init__": set_fields})


def _with_counted_bills(toolkit: Any) -> Any:
    """Return the telecom toolkit with numbered ids of new bills in place of random ones."""

    def charge(self: Toolkit, customer_id: str, amount: float, description: str) -> None:
        known = len(self.db.bills)
        toolkit._apply_one_time_charge(self, customer_id, amount, description)
        for number, bill in enumerate(self.db.bills[known:], known):
            bill.bill_id = self.get_customer_by_id(customer_id).bill_ids[-1] = f"B{number:08x}"

    return type(toolkit.__name__, (toolkit,), {"_apply_one_time_charge": charge})


def _finished(tool: Callable[..., Coroutine[Any, Any, str]]) -> Callable[..., str]:
    """Return a tool of the package, which is asynchronous in form only, as a plain function."""

    def call(**arguments: Any) -> str:
        try:
            tool(**arguments).send(None)
        except StopIteration as end:
            return str(end.value)
        raise RuntimeError("a tool of inspect-evals waits for something")

    return call
