"""A language model in this process that answers chat requests as a server does."""

from __future__ import annotations

from typing import Any

from stages.errors import InputError
from stages.policies.policy import ContextOverflowError, Policy, PolicyError, Sampling
from stages.serving.answers import Answer
from stages.serving.endpoint import EndpointError


class LocalModel:
    """Answers with what a policy writes: for it, the one who speaks is the agent.

    Args:
        policy: holds the model.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @classmethod
    def load(cls, folder: str, rows: int) -> LocalModel:
        """Load a checkpoint, with room for so many conversations.

        Raises:
            InputError: a package is missing, or the folder holds no model.
        """
        try:
            from stages.policies.transformers_policy import TransformersPolicy
        except ModuleNotFoundError as error:
            what, todo = f"needs the package '{error.name}'", "pip install 'irc-cli[transformers]'"
            raise InputError(folder, what, todo) from None
        return cls(TransformersPolicy.load(folder, rows))

    async def complete(self, name: str, body: dict[str, Any]) -> Answer:
        """Return the answer to a chat request, in the form of /chat/completions.

        Args:
            name: of the conversation, whose keys and values are kept.
            body: messages, tools and seed; the rest is left to `Sampling`.

        Raises:
            EndpointError: the model failed, or the conversation is too long for it.
        """
        messages, tools = body["messages"], body.get("tools", [])
        try:
            action = await self._policy.act(name, messages, tools, Sampling(), body["seed"])
        except PolicyError as error:
            raise EndpointError(str(error)) from None
        except ContextOverflowError:
            raise EndpointError("the conversation is too long") from None
        usage = {
            "prompt_tokens": len(action.prompt_ids or ()),
            "completion_tokens": len(action.token_ids or ()),
        }
        return {"choices": [{"message": action.message}], "usage": usage}

    async def close(self) -> None:
        """Let go of the model."""
        await self._policy.close()
