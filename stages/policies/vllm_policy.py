"""The policy `vllm`: vLLM's asynchronous engine in this process, with prefix caching."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

# vLLM and its processes read these on import; by default vLLM logs to standard output.
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
    """A vLLM engine as a policy; the engine batches requests and caches prefixes.

    Results of the same seed may differ in the last bits, because the engine's shapes depend on its
    load.

    Args:
        engine: vLLM's AsyncLLM with `logprobs_mode` processed_logprobs, so that logprobs are those
            of the sampling distribution.
        tokenizer: the model's tokenizer, with a chat template.
    """

    def __init__(self, engine: Any, tokenizer: Any) -> None:
        self._engine = engine
        self._chat = Renderer(tokenizer)
        self._context: int = engine.model_config.max_model_len
        # The engine adds the model's own end tokens.
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
        """Start an engine in a separate process.

        Args:
            folder: folder of the checkpoint, or the model's name.
            rows: most messages decoded at once.
            context: most tokens of an episode; None: the model's own limit.
            dtype: torch dtype of the computation; auto: the weights' own.
            engine: further settings of vLLM's AsyncEngineArgs.

        Returns:
            The policy.

        Raises:
            InputError: the model is missing, or vLLM does not support it.
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
                # On a CPU, chunked prefill of a request with a seed kills the engine: "CPU
                # Generator does not use offset".
                enable_chunked_prefill=False if current_platform.is_cpu() else None,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **engine,
            )
            started = AsyncLLM.from_engine_args(settings)
        return cls(started, tokenizer)

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
        settings = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, self._context - len(prompt)),
            seed=seed,
            logprobs=0,  # only of the sampled token
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
        self._engine = None  # its finalizer would fail at interpreter shutdown
