"""A language model in this process that answers chat requests like a server."""

from __future__ import annotations

from typing import Any

from stages.errors import InputError
from stages.policies.policy import ContextOverflowError, Policy, PolicyError, Sampling
from stages.serving.answers import Answer
from stages.serving.endpoint import EndpointError


class LocalModel:
    """A chat endpoint backed by a policy, which writes the assistant's messages.

    Args:
        policy: policy that holds the model.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @classmethod
    def load(cls, folder: str, rows: int) -> LocalModel:
        """Load a checkpoint.

        Args:
            folder: folder of the checkpoint, or the name of a hub model.
            rows: number of conversations whose KV cache is kept.

        Returns:
            The model.

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
        """Return the answer to a chat request, in the format of /chat/completions.

        Args:
            name: name of the conversation, under which its KV cache is kept.
            body: messages, tools and seed; other fields are ignored in favour of `Sampling`'s
                defaults.

        Returns:
            The answer as JSON values.

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
        """Release the model."""
        await self._policy.close()
