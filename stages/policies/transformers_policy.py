"""The policy `transformers`: a model in this process, on a CPU or a GPU, batched over episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import torch

from stages.errors import InputError
from stages.messages.message import Message, Told
from stages.messages.renderer import Renderer
from stages.policies.batch_decoder import BatchDecoder, MessageRequest
from stages.policies.model_folder import load_causal_model
from stages.policies.policy import Action, ContextOverflowError, PolicyError, Sampling
from stages.policies.threads import limit_threads


@dataclass(frozen=True)
class _Job:
    """A request and the future that awaits it."""

    request: MessageRequest
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[MessageRequest]

    def settle(self, error: Exception | None = None) -> None:
        """Resolve the future, from the worker's thread."""
        self.loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: Exception | None) -> None:
        if self.done.done():  # the caller was cancelled
            return
        if error:
            self.done.set_exception(error)
        else:
            self.done.set_result(self.request)


class TransformersPolicy:
    """A transformers model as a policy; a thread decodes all pending messages in one batch.

    The model must not change while the policy is in use, because its KV cache is kept between
    turns. After a training step, create a new policy, which is cheap.

    Args:
        model: a causal language model with full attention in every layer.
        tokenizer: its tokenizer, with a chat template.
        rows: number of episodes whose KV cache is kept between turns; each row takes the memory of
            the longest episode. With at least as many rows as concurrent episodes, the same seeds
            give the same bits.
        context: most tokens of an episode; None: the model's own limit.
    """

    def __init__(
        self, model: Any, tokenizer: Any, rows: int = 32, context: int | None = None
    ) -> None:
        _check(model.config.get_text_config())
        self._chat = Renderer(tokenizer)
        self._context = context or model.config.get_text_config().max_position_embeddings
        self._decoder = BatchDecoder(
            model, rows, self._context, _stops(model, tokenizer, self._chat.end_id)
        )
        self._queue: SimpleQueue[_Job | str | None] = SimpleQueue()  # str: an episode's end
        self._closed = False
        self._jobs: dict[int, _Job] = {}  # used by the worker only, by the id() of their requests
        self._thread = Thread(target=self._work, name="decoder", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        rows: int = 32,
        context: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> TransformersPolicy:
        """Load a checkpoint or a hub model; a small model on a CPU sets torch to a single thread.

        Args:
            folder: folder of the checkpoint, or the model's name.
            rows: see the class.
            context: see the class.
            device: torch device; None: a GPU if there is one.
            dtype: torch dtype of the computation; auto: the weights' own.

        Returns:
            The policy.

        Raises:
            InputError: the model is missing, or its architecture is not supported.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer = load_causal_model(folder, dtype=dtype, attn_implementation="sdpa")
        if device == "cpu":
            limit_threads(model)
        return cls(model.to(device), tokenizer, rows, context)

    def told(self, tools: list[dict[str, Any]]) -> Told:
        """Return how the prompt describes the tools; see `Prompts`."""
        return self._chat.template.told(tools)

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the next message; see `Policy`."""
        prompt = self._chat.prompt(episode_id, messages, tools).ids
        if len(prompt) >= self._context:
            raise ContextOverflowError
        if self._closed:
            raise PolicyError("the policy is closed")
        loop = asyncio.get_running_loop()
        opening = self._chat.opening(prompt, messages, tools)
        asked = MessageRequest(episode_id, prompt, sampling, seed, opening)
        job = _Job(asked, loop, loop.create_future())
        self._queue.put(job)
        request = await job.done
        message = self._chat.answer(episode_id, request.token_ids, tools)
        finish = request.finish or "stop"
        return Action(message, prompt, request.token_ids, request.logprobs, finish)

    def forget(self, episode_id: str) -> None:
        """Free the row of an episode that has ended."""
        self._queue.put(episode_id)

    async def close(self) -> None:
        """Stop the worker; pending messages fail."""
        self._closed = True  # so that nothing follows the None in the queue
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        """Decode in the worker's thread until the policy is closed."""
        while self._take_jobs():
            try:
                finished = self._decoder.step()
            except Exception as error:  # for example out of memory; the cache may be corrupt
                failure = PolicyError(f"{type(error).__name__}: {error}")
                self._fail(failure)
                while (job := self._queue.get()) is not None:
                    if not isinstance(job, str):
                        job.settle(failure)
                return
            for request in finished:
                self._jobs.pop(id(request)).settle()
        self._fail(PolicyError("the policy was closed"))

    def _take_jobs(self) -> bool:
        """Pass new requests to the decoder, waiting if it is idle; return False to stop."""
        try:
            while True:
                job = self._queue.get(block=not self._decoder.busy)
                if job is None:
                    return False
                if isinstance(job, str):
                    self._decoder.forget(job)
                    continue
                self._jobs[id(job.request)] = job
                self._decoder.submit(job.request)
        except Empty:
            return True

    def _fail(self, error: PolicyError) -> None:
        for job in self._jobs.values():
            job.settle(error)
        self._jobs.clear()


def _check(config: Any) -> None:
    """Raise InputError unless all layers have full attention, with a plain KV cache."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or config.is_encoder_decoder:
        raise InputError(
            f"model '{config.name_or_path}'",
            f"layers of kind {', '.join(sorted(kinds - {'full_attention'})) or 'encoder'}",
            "use --policy vllm or openai",
        )


def _stops(model: Any, tokenizer: Any, end: int) -> list[int]:
    """Return the ids that end a message: the template's, the tokenizer's and the model's own."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends] if ends else []
    if not all(isinstance(end, int) for end in ends):
        where = f"model '{model.config.name_or_path}'"
        what = "'eos_token_id' of its generation_config.json is no token id"
        raise InputError(where, what, "give the id of the token that ends a message")
    return [
        end,
        *(token_id for token_id in (tokenizer.eos_token_id, *ends) if token_id is not None),
    ]
