"""Policies by name, each imported only when requested."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from typing import Annotated, Any, Literal, TypeAlias

from stages.envs.users import Rng
from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.tokenizer import load_tokenizer
from stages.policies.policy import Action, Policy, Sampling
from stages.settings import Setting
from stages.tables.yamlfile import nearest

# A tiny model for airline-mini, shipped with the package.
SEED_POLICY = str(files("data") / "seed_policy")
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
POLICY, SERVERS = "Policy", "Servers"  # panels of the options in --help
POLICIES = ("expert", "refuse", "hand-off", "replay", "openai", "transformers", "vllm")


@dataclass(frozen=True)
class PolicyOptions:
    """Options of all policies; each policy uses only some of them."""

    model: Annotated[
        str | None,
        Setting(
            "Model of the policy, a name or folder; for airline-mini the seed policy by default.",
            POLICY,
            metavar="NAME|DIR",
        ),
    ] = None
    concurrency: Annotated[int, Setting("Episodes to play at the same time.", POLICY, low=1)] = 32
    context: Annotated[
        int | None,
        Setting(
            "Maximum tokens of an episode (transformers, vllm); default: the model's limit.",
            POLICY,
            low=1,
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        Setting("Precision to compute in (transformers, vllm); auto: that of the weights.", POLICY),
    ] = "auto"
    noise: Annotated[
        float,
        Setting(
            "Probability per turn that the expert makes a mistake.",
            POLICY,
            low=0,
            high=1,
            metavar="P",
        ),
    ] = 0.0
    recording: Annotated[
        str | None,
        Setting("Rollouts for --policy replay.", POLICY, metavar="ROLLOUTS"),
    ] = None
    base_urls: Annotated[
        tuple[str, ...],
        Setting(
            "OpenAI-compatible server, or a file with one per line; may be repeated.",
            SERVERS,
            option="base-url",
            metavar="URL|FILE",
        ),
    ] = ()
    served_model_name: Annotated[
        str | None, Setting("Name of --model on the servers.", SERVERS, metavar="NAME")
    ] = None
    tokenizer: Annotated[
        str | None,
        Setting(
            "Send token ids made with this tokenizer; default: the servers tokenize.",
            SERVERS,
            metavar="NAME|DIR",
        ),
    ] = None
    timeout_s: Annotated[
        float,
        Setting(
            "Timeout per request to a server, in seconds.",
            SERVERS,
            low=0,
            high=math.inf,
            option="timeout",
            metavar="S",
        ),
    ] = 120.0
    retries: Annotated[int, Setting("Retries per request to a server.", SERVERS, low=0)] = 5
    rate_limit: Annotated[
        float | None,
        Setting("Maximum requests per second to each server.", SERVERS, low=0.001, high=math.inf),
    ] = None
    rejoin: bool = True  # openai: whether a server that recovers gets episodes again


def open_policy(name: str, options: PolicyOptions) -> Policy:
    """Load a policy.

    Args:
        name: one of POLICIES.
        options: options of all policies.

    Returns:
        The policy.

    Raises:
        InputError: the policy is unknown, or an option or a package that it needs is missing.
    """
    # Imported here, so that the expert does not wait for the import of an engine.
    match name:
        case "expert":
            from stages.envs.airline_mini.expert import Expert

            return RulePolicy(Expert(options.noise))
        case "refuse":
            from stages.envs.airline_mini.baselines import refuse

            return RulePolicy(refuse)
        case "hand-off":
            from stages.envs.airline_mini.baselines import hand_off

            return RulePolicy(hand_off)
        case "replay":
            from stages.policies.replay import ReplayPolicy

            return ReplayPolicy(_given("--recording", options.recording, "a rollouts file"))
        case "openai":
            from stages.policies.openai_policy import OpenAIPolicy

            model = _given("--model", options.model, "the name that the servers know")
            return OpenAIPolicy(
                options.served_model_name or model,
                options.base_urls,
                options.timeout_s,
                options.retries,
                tokenizer=load_tokenizer(options.tokenizer) if options.tokenizer else None,
                rate_limit=options.rate_limit,
                rejoin=options.rejoin,
            )
        case "transformers" | "vllm":
            model = _given("--model", options.model, "a folder that holds a model")
            engine = _engine(name)
            player: Policy = engine.load(
                model, rows=options.concurrency, context=options.context, dtype=options.dtype
            )
            return player
    raise InputError("--policy", f"no policy '{name}'", nearest(name, POLICIES))


class RulePolicy:
    """A rule-based policy: a function of the messages and a random generator."""

    def __init__(self, rules: Callable[[Sequence[Message], Rng], Message]) -> None:
        self._rules = rules

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the next message; see `Policy`."""
        return Action(self._rules(messages, Random(seed)))

    async def close(self) -> None:
        """Do nothing; there is nothing to release."""


def _engine(name: str) -> Any:
    """Return the class of a policy that runs a model in this process."""
    try:
        if name == "vllm":
            from stages.policies.vllm_policy import VLLMPolicy

            return VLLMPolicy
        from stages.policies.transformers_policy import TransformersPolicy

        return TransformersPolicy
    except ModuleNotFoundError as error:
        what, todo = f"needs the package '{error.name}'", f"pip install 'irc-cli[{name}]'"
        raise InputError(f"--policy {name}", what, todo) from None


def _given(option: str, value: str | None, what: str) -> str:
    if value is None:
        raise InputError(option, "missing", f"give {what}")
    return value
