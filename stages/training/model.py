"""Models to train: load, check, wrap with LoRA adapters, and write (safetensors only)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from stages.errors import InputError
from stages.messages.model_code import refuse_code
from stages.policies.model_folder import load_causal_model
from stages.policies.threads import limit_threads
from stages.training.logprobs import TokenLogprobs
from stages.training.packing import PACKED

TRIAL = 8  # length of the sequences on which a model is tested
ALIKE = 4  # length of their shared prefix


def load_model(folder: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model in float32, and its tokenizer.

    Args:
        folder: a checkpoint in Hugging Face's format, or the name of a model on the hub.

    Returns:
        The transformers model and its tokenizer.

    Raises:
        InputError: the model is missing, pickled or damaged, holds NaN, or its tokenizer doesn't
            fit.
    """
    if not Path(folder).is_dir() and (folder.startswith((".", "/")) or folder.count("/") > 1):
        todo = "give a folder that holds a model, or a name like 'Qwen/Qwen3-4B'"
        raise InputError(folder, "no such folder", todo)
    refuse_code(folder)
    refuse_pickle(folder)
    model, tokenizer = load_causal_model(folder, dtype=torch.float32)
    check_model(folder, model, tokenizer)
    return model, tokenizer


def check_model(folder: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError unless weights are finite and cover the tokenizer's ids.

    Args:
        folder: name of the model in errors.
        model: transformers model.
        tokenizer: tokenizer to use with the model.

    Raises:
        InputError: a weight is NaN or infinite, or the tokenizer has more tokens than the model.
    """
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            todo = "take a checkpoint from before it diverged"
            raise InputError(folder, f"weights '{name}' hold NaN or infinity", todo)
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        what = f"the tokenizer has {len(tokenizer):,} tokens, the model {known:,}"
        raise InputError(folder, what, "give the tokenizer that the model was trained with")


def refuse_pickle(folder: str) -> None:
    """Raise InputError if a checkpoint's weights are a pickle, which can run any code.

    Args:
        folder: folder of the checkpoint; the name of a hub model passes.

    Raises:
        InputError: there are pickled weights and no safetensors.
    """
    files = list(Path(folder).glob("*")) if Path(folder).is_dir() else []
    if any(f.suffix in (".bin", ".pt", ".pth") for f in files) and not any(
        f.suffix == ".safetensors" for f in files
    ):
        what = "its weights are a pickle, which can run any code when it is read"
        raise InputError(folder, what, "convert them to safetensors")


def packable(model: Any) -> bool:
    """Return whether sequences can be packed: every layer has full causal attention.

    Args:
        model: transformers model.

    Returns:
        False for sliding windows, linear attention and models with a recurrent state.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        windowed = getattr(config, "sliding_window", None) is not None
        return model._supports_attention_backend and not (model._is_stateful or windowed)
    return set(kinds) == {"full_attention"}


def learner(
    model: Any, *, lora_rank: int | None = None, gradient_checkpointing: bool = False
) -> TokenLogprobs:
    """Prepare a model for training: packed attention if possible, LoRA adapters, checkpointing.

    Args:
        model: transformers model.
        lora_rank: rank of adapters on all linear layers, which alone are trained; None: train all
            weights.
        gradient_checkpointing: recompute activations in the backward pass instead of storing them.

    Returns:
        The model, wrapped to return log-probabilities.

    Raises:
        InputError: the wrapped model does not reproduce the model's own log-probabilities.
    """
    if model.config._attn_implementation == PACKED:  # the config comes from another learner
        model.set_attn_implementation("eager")
    weightless = model.device.type == "meta"  # only planned, see `stages.training.plan`
    expected = [] if weightless else [_own_logprobs(model, trial) for trial in _trials(model)]
    if packable(model):
        model.set_attn_implementation(PACKED)
    model.config.use_cache = False
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora_rank is not None:
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapters)
    if not torch.cuda.is_available():
        limit_threads(model)
    made = TokenLogprobs(model)
    if not weightless:
        _check_learner(made, expected)
    return made


def _trials(model: Any) -> list[torch.Tensor]:
    """Return two short token sequences that share a prefix."""
    ids = torch.arange(2 * TRIAL) * 7 % model.config.get_text_config().vocab_size
    first, second = ids.split(TRIAL)
    return [first, torch.cat((first[:ALIKE], second[ALIKE:]))]


@torch.no_grad()
def _own_logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]


@torch.no_grad()
def _check_learner(made: TokenLogprobs, expected: list[torch.Tensor]) -> None:
    """Raise InputError unless log-probabilities agree with the model's own logits.

    They disagree if logits are scaled or capped after the head (Gemma 2, Granite, Cohere), or if
    layers depend on more than our attention provides.
    """
    trials = _trials(made.bare)
    packs = [trials] if made.packed else [[trial] for trial in trials]
    try:
        given = [made(*_pack(pack)).logprobs for pack in packs]
        if made.packed:
            given.append(made(*_sharing_pack(trials), shared=True).logprobs)
            expected = [*expected, *(own[ALIKE:] for own in expected)]
        close = torch.allclose(torch.cat(given), torch.cat(expected), rtol=1e-4, atol=1e-4)
    except (AttributeError, TypeError):  # other modules, or other arguments of modules
        close = False
    if not close:
        what = f"a {type(made.bare).__name__} does not compute as irc-cli train expects"
        todo = "choose a model whose logits are its output layer's, unscaled"
        raise InputError(made.bare.config.name_or_path, what, todo)


def _pack(sequences: list[torch.Tensor]) -> tuple[Any, ...]:
    """Return TokenLogprobs' arguments for a pack, scoring all but each sequence's first token."""
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])
    at = torch.nonzero(positions)[:, 0]
    lengths = [len(ids) for ids in sequences]
    return torch.cat(sequences), positions, lengths, at, torch.ones(len(at))


def _sharing_pack(sequences: list[torch.Tensor]) -> tuple[Any, ...]:
    """Return TokenLogprobs' arguments for a pack with a shared prefix, scoring what follows it."""
    rests = [torch.arange(ALIKE, len(ids)) for ids in sequences]
    positions = torch.cat([torch.arange(ALIKE), *rests])
    ids = torch.cat([sequences[0][:ALIKE], *(ids[ALIKE:] for ids in sequences)])
    lengths = [ALIKE, *(len(rest) for rest in rests)]
    at = torch.nonzero(positions > ALIKE)[:, 0]
    return ids, positions, lengths, at, torch.ones(len(at))


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Return the trainable weights, by name.

    Args:
        model: transformers model, possibly wrapped by peft.

    Returns:
        The parameters themselves, not copies.
    """
    return {name: weights for name, weights in model.named_parameters() if weights.requires_grad}


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return a model's full weights with adapters merged; a collective call on sharded weights.

    Args:
        model: transformers model, possibly wrapped by peft; merging changes it.

    Returns:
        Unsharded tensors, named as in a model without adapters.
    """
    if hasattr(model, "peft_config"):
        model = model.merge_and_unload()
    return {name: whole(value) for name, value in model.state_dict().items()}


def write_policy(
    model: Any, weights: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write a model that transformers and vLLM can load.

    Args:
        model: transformers model, possibly wrapped by peft; provides the config.
        weights: weights to write, as from `whole_weights`.
        tokenizer: tokenizer to write beside them.
        folder: output folder.
    """
    bare = model.get_base_model() if hasattr(model, "peft_config") else model
    attention = bare.config._attn_implementation
    bare.config._attn_implementation = None  # no other program knows our attention
    bare.config.use_cache = True
    with _saving():
        bare.save_pretrained(folder, state_dict=weights)
    bare.config._attn_implementation = attention
    tokenizer.save_pretrained(folder)


@contextmanager
def _saving() -> Iterator[None]:
    """Convert safetensors' error for a full disk to OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from None


def weights_of(folder: str) -> list[str]:
    """Return the files that hold a checkpoint's weights.

    Args:
        folder: folder of the checkpoint, or the name of a hub model.

    Returns:
        Sorted paths of safetensors files; empty if there is no such folder.
    """
    return sorted(str(path) for path in Path(folder).glob("*.safetensors"))


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor unsharded; a collective call on a sharded tensor.

    Args:
        value: a tensor, sharded or not.

    Returns:
        The same values.
    """
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def write_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors.

    Args:
        weights: tensors by name, on any device.
        path: path of the file.
    """
    from safetensors.torch import save_file

    held = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
    with _saving():
        save_file(held, path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Args:
        path: path of the file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        InputError: the file is missing or damaged, or holds NaN, infinity or integers.
    """
    try:
        with safe_open(path, framework="pt") as file:
            read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        what = f"damaged: {str(error).splitlines()[0]}"
        raise InputError(str(path), what, "take another checkpoint") from None
    for name, value in read.items():
        if not (value.is_floating_point() and torch.isfinite(value).all()):
            what = f"damaged: '{name}' holds something else than finite numbers"
            raise InputError(str(path), what, "take another checkpoint")
    return read
