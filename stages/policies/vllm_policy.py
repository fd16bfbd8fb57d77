"""The policy `vllm`: vLLM's asynchronous engine in this process, with prefix caching."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

# Read as vLLM is imported, and by its processes: by default it logs to standard output.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from transformers import AutoConfig
from vllm import AsyncEngineArgs, SamplingParams
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from stages.messages.loading import loading
from stages.messages.message import Message, Told
from stages.messages.renderer import Renderer
from stages.messages.tokenizer import load_tokenizer
from stages.policies.model_folder import TODO
from stages.policies.policy import Action, ContextOverflowError, PolicyError, Sampling


class VLLMPolicy:
    """Plays with an engine, which batches and caches by itself.

    Results of the same seed can differ in the last bits with what shares the batch, since the
    engine's shapes follow its load.

    Args:
        engine: vLLM's AsyncLLM; its `logprobs_mode` is processed_logprobs, so that logprobs are
            those of the distribution that was sampled from.
        tokenizer: of the model, with a chat template.
    """

    def __init__(self, engine: Any, tokenizer: Any) -> None:
        self._engine = engine
        self._chat = Renderer(tokenizer)
        self._context: int = engine.model_config.max_model_len
        # The engine knows the model's own ends.
        self._ends = [id for id in {tokenizer.eos_token_id, self._chat.end_id} if id is not None]
        self._numbers = count()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        rows: int = 64,
        context: int | None = None,
        dtype: str = "auto",
        **engine: Any,
    ) -> VLLMPolicy:
        """Start an engine, in a process of its own.

        Args:
            folder: of the checkpoint, or the model's name.
            rows: how many messages are decoded at once.
            context: most tokens of an episode; None: what the model was made for.
            dtype: that it computes in, as torch names it; auto: the weights' own.
            engine: further settings of vLLM's AsyncEngineArgs.

        Raises:
            InputError: there is no such model, or vLLM doesn't take it.
        """
        tokenizer = load_tokenizer(str(folder), TODO)
        with loading(folder, TODO):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            auto = dtype == "auto"
            settings = AsyncEngineArgs(
                model=str(folder),
                trust_remote_code=False,
                # vLLM's own "auto" would halve the precision of a float32 model.
                dtype=str(config.dtype or dtype).removeprefix("torch.") if auto else dtype,
                max_num_seqs=rows,
                max_model_len=context,
                enable_prefix_caching=True,
                # On a CPU a prompt that is read in pieces kills the engine if its request has a
                # seed: "CPU Generator does not use offset".
                enable_chunked_prefill=False if current_platform.is_cpu() else None,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **engine,
            )
            started = AsyncLLM.from_engine_args(settings)
        return cls(started, tokenizer)

    def told(self, tools: list[dict[str, Any]]) -> Told:
        """Return how the model is told of its tools; see `Prompts`."""
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
        settings = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, self._context - len(prompt)),
            seed=seed,
            logprobs=0,  # of the sampled token alone
            stop_token_ids=self._ends,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request_id = f"{episode_id}/{next(self._numbers)}"
        output: Any = None
        try:
            answers = self._engine.generate({"prompt_token_ids": prompt}, settings, request_id)
            async for answer in answers:
                output = answer.outputs[0]
        except (EngineDeadError, EngineGenerateError) as error:
            raise PolicyError(f"{type(error).__name__}: {error}") from error
        ids = list(output.token_ids)
        logprobs = [at[token].logprob for at, token in zip(output.logprobs, ids, strict=True)]
        message = self._chat.answer(episode_id, ids, tools)
        cut = output.finish_reason == "length"
        return Action(message, prompt, ids, logprobs, "length" if cut else "stop")

    async def close(self) -> None:
        """Stop the engine."""
        self._engine.shutdown()
        self._engine = None  # its finalizer fails where it runs as Python ends
