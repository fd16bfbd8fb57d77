"""Memory of a training run, estimated from a model's config without loading weights.

Bytes on each of N devices, for P parameters of which P' are trained, in float32:

    weights, gradients, moments   4 P / N, 4 P' / N, 8 P' / N   (AdamW; FSDP2 shards all of them)
    copies       one device, or adapters: autocast's bf16 casts of the weights, held until the pass
                 ends; and the matrices of the same size that peft builds for adapters on experts
    gathered     several devices: two layers, the weights outside of layers, and the gradient of
                 the larger of both, in the dtype of the computation
    activations  tensors that autograd stores for T tokens, measured by running the model's own
                 code on fake tensors (`trace`); with gradient checkpointing 4 T width per layer
    layer        the backward pass of a layer: three gradients of the size of the largest stored
                 tensor; with gradient checkpointing also the recomputed activations
    logits       four matrices of a chunk: logits, their softmax, its product, their gradient; and
                 on one device twice the largest trained weights: a gradient sum and its new term

`layer` and `logits` follow each other, so the peak counts only the larger of them.

The reference model of the KL runs before the first step and is then dropped. Its weights coexist
with the policy's weights, but not with gradients or moments. Without --reference there is none.

Sources: the sum of parts ZeRO, arXiv 1910.02054, section 3; checkpointing arXiv 1604.06174; what
FSDP gathers arXiv 2304.11277, section 4. We trace activations instead of counting them by hand as
in arXiv 2205.05198, whose formula does not cover gates, experts or linear attention.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from stages.messages.loading import loading
from stages.training.logprobs import CHUNK, TokenLogprobs
from stages.training.model import learner, packable
from stages.training.model import trained as trained_weights

# Share of a device for memory that is not counted: CUDA context, NCCL buffers, fragmentation.
RESERVE = 0.1  # our choice, not measured
CONFIG = "give a folder that holds the config.json"
TRACED = (64, 128)  # tokens of the traced passes; stored bytes are linear in the tokens
ONE_EXPERT = "irc_one_expert"  # name of a stand-in for the experts
LORA_RANK = 16  # suggested rank
MOST_DEVICES = 1024  # most devices to suggest


@dataclass(frozen=True)
class Setup:
    """The settings of a run that determine its memory."""

    tokens: int  # tokens per pass; 0: not known yet
    bf16: bool = False
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    devices: int = 1
    device_gb: float = 0.0
    cpu: bool = False  # whether the device is this computer, whose memory other programs share


class Layer(NamedTuple):
    """Layers of the same kind."""

    times: int  # number of such layers
    parameters: int  # parameters per layer
    kept: int  # bytes per token stored for the backward pass
    casts: int  # bytes of bf16 casts of weights, independent of the tokens
    largest: int  # bytes per token of the largest stored tensor


@dataclass(frozen=True)
class Architecture:
    """A model's sizes, and the memory of a pass through it."""

    parameters: int
    trained: int  # trainable parameters
    active: int  # parameters used per token
    largest: int  # parameters of the largest trainable tensor
    width: int
    vocabulary: int
    packable: bool  # whether sequences can share a pass
    layers: tuple[Layer, ...]

    @property
    def outside(self) -> int:
        """Parameters outside of layers: embeddings, head and final norm."""
        return self.parameters - sum(kind.times * kind.parameters for kind in self.layers)


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by part; see the module's formulas."""

    weights: float
    gradients: float
    moments: float
    copies: float
    gathered: float
    activations: float
    layer: float
    logits: float

    @property
    def peak(self) -> float:
        """Peak of a step: logits are freed before a layer's backward pass, so the larger counts."""
        return float(sum(asdict(self).values())) - min(self.layer, self.logits)


Describe = Callable[[Setup], Architecture]


def read_config(name: str) -> Any:
    """Read the config of a model's text part.

    Args:
        name: a folder with a config.json, or the name of a hub model.

    Returns:
        The transformers config.

    Raises:
        InputError: there is no config, or it is not of a causal language model.
    """
    with loading(name, CONFIG):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config()
        bare(config)
    return config


def bare(config: Any, *, lora_rank: int | None = None) -> Any:
    """Build a model for training on torch's meta device, without weights.

    Args:
        config: transformers config.
        lora_rank: rank of adapters on all linear layers, which alone are trained; None: train all
            weights.

    Returns:
        The model, on the device "meta".
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # from peft, about expert patterns
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return learner(model, lora_rank=lora_rank).model


def describe(config: Any, setup: Setup) -> Architecture:
    """Count a model's parameters and trace the memory of a pass.

    Args:
        config: transformers config.
        setup: setup of the run; only adapters and bf16 matter.

    Returns:
        Numbers of parameters, and bytes per token.
    """
    model = bare(config, lora_rank=setup.lora_rank)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    kinds = [_kind(layer) for layer in base.get_decoder().layers]
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
    deepest = max(first.values()) + 1
    with loading(config.name_or_path, CONFIG):
        few, many = (trace(config, setup, deepest, tokens) for tokens in TRACED)
    step = TRACED[1] - TRACED[0]
    layers = []
    for kind, count in Counter(kinds).items():
        little, much = few[first[kind]], many[first[kind]]
        kept = (sum(much) - sum(little)) // step
        casts = max(0, sum(little) - kept * TRACED[0])
        grown = Counter(much) - Counter(little)  # the casts are in both, so they cancel
        parameters = sum(math.prod(shape) for _, shape in kind)
        layers.append(Layer(count, parameters, kept, casts, max(grown) // TRACED[1]))
    every, trained = list(model.parameters()), list(trained_weights(model).values())
    adapters = sum(weights.numel() for weights in trained) if setup.lora_rank else 0
    total = sum(weights.numel() for weights in every)
    return Architecture(
        parameters=total,
        trained=sum(weights.numel() for weights in trained),
        active=total - adapters - _idle(config, every),
        largest=max(weights.numel() for weights in trained),
        width=config.hidden_size,
        vocabulary=base.get_output_embeddings().weight.shape[0],
        packable=packable(base),
        layers=tuple(layers),
    )


def _kind(layer: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the kind of a layer: the names and shapes of its weights."""
    return tuple((name, tuple(weights.shape)) for name, weights in layer.named_parameters())


def _idle(config: Any, every: list[torch.Tensor]) -> int:
    """Return the number of parameters in the experts that a token does not use."""
    experts = _experts(config)
    if not experts:
        return 0
    weights = sum(
        tensor.numel() for tensor in every if tensor.ndim == 3 and tensor.shape[0] == experts
    )
    return weights * (experts - int(config.num_experts_per_tok)) // experts


def _experts(config: Any) -> int:
    """Return the number of experts per layer; 0 if the model is not a mixture of experts."""
    return int(getattr(config, "num_experts", 0) or getattr(config, "num_local_experts", 0) or 0)


def trace(config: Any, setup: Setup, layers: int, tokens: int) -> list[list[int]]:
    """Return the bytes of each tensor that the first layers store for the backward pass.

    The model's own code runs with our attention on fake tensors. Shapes and dtypes are those of CPU
    kernels, whose attention stores the same tensors as FlashAttention. Kernels that replace
    transformers' code, such as flash-linear-attention's, may store less.

    Args:
        config: transformers config.
        setup: setup of the run; only adapters and bf16 matter, not gradient checkpointing.
        layers: number of layers to trace.
        tokens: tokens of the pass.

    Returns:
        Bytes of each stored tensor, by layer.
    """
    short = copy.deepcopy(config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    kept: list[list[int]] = [[] for _ in range(layers)]
    place: list[int] = []  # number of the running layer, or empty
    seen: dict[int, torch.Tensor] = {}  # by storage id; kept alive so that no id is reused

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if place and storage._cdata not in seen:
            kept[place[-1]].append(storage.nbytes())
            seen[storage._cdata] = tensor
        return tensor

    model = bare(short, lora_rank=setup.lora_rank)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ours = TokenLogprobs(model.to_empty(device="cpu"))
        if _experts(short):
            ours.bare.set_experts_implementation(ONE_EXPERT)
        seen |= {weights.untyped_storage()._cdata: weights for weights in ours.parameters()}
        for number, layer in enumerate(ours.bare.get_decoder().layers):
            layer.register_forward_pre_hook(lambda *_, number=number: place.append(number))
            layer.register_forward_hook(lambda *_: place.clear())
        positions = torch.arange(tokens)
        inputs = (positions * 0, positions, [tokens], positions[1:], torch.ones(tokens - 1))
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=setup.bf16),
        ):
            ours(*inputs)
    return kept


def _one_expert(
    experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Store the same tensors as transformers' experts ('grouped_mm'), without real tokens.

    A single expert computes all tokens. Like the original it computes in the dtype of its weights,
    because autocast does not cover grouped matrix products.
    """
    n_tokens, n_chosen = chosen.shape
    order = chosen.reshape(-1).argsort()
    mixed = hidden[order // n_chosen]  # [T k, width]
    linear = torch.nn.functional.linear
    with torch.autocast("cpu", enabled=False):
        inner = linear(mixed.to(experts.gate_up_proj.dtype), experts.gate_up_proj[0])
        mixed = linear(experts._apply_gate(inner), experts.down_proj[0])
    mixed = mixed * weights.reshape(-1)[order][:, None]
    return mixed[order].view(n_tokens, n_chosen, -1).sum(1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(ONE_EXPERT, _one_expert)


def memory(model: Architecture, setup: Setup) -> Memory:
    """Return the memory of a step on each device; see the module's formulas.

    Args:
        model: architecture to train.
        setup: setup of the run.

    Returns:
        Bytes by part.

    Source: docs/method.md, "Memory of a training step".
    """
    shards, tokens, alone = setup.devices, setup.tokens, setup.devices == 1
    kept = sum(kind.times * kind.kept for kind in model.layers)
    casts = sum(kind.times * kind.casts for kind in model.layers)
    again = 0
    if setup.gradient_checkpointing:
        kept = 4 * model.width * sum(kind.times for kind in model.layers)
        again = max(kind.kept for kind in model.layers)
        if setup.lora_rank:  # autocast caches casts of trainable weights only
            casts = max(kind.casts for kind in model.layers)
    unit = max(kind.parameters for kind in model.layers)
    gathered = 2 * unit + model.outside + max(unit, model.outside)
    rows = min(tokens, max(1, CHUNK // model.vocabulary))
    return Memory(
        weights=4 * model.parameters / shards,
        gradients=4 * model.trained / shards,
        moments=8 * model.trained / shards,
        copies=casts if alone or setup.lora_rank else 0,
        gathered=0 if alone else (2 if setup.bf16 else 4) * gathered,
        activations=kept * tokens,
        layer=(again + 3 * max(kind.largest for kind in model.layers)) * tokens,
        logits=16 * rows * model.vocabulary + (8 * model.largest if alone else 0),
    )


def reference_peak(model: Architecture, reference: Architecture, setup: Setup) -> float:
    """Return the bytes on each device while the reference model runs, before the first step.

    Args:
        model: architecture to train.
        reference: architecture of the reference model.
        setup: setup of the run.

    Returns:
        Bytes.

    Source: docs/method.md, "Memory of a training step".
    """
    there = memory(reference, replace(setup, gradient_checkpointing=True))
    held = there.gradients + there.moments + there.activations  # none without a backward pass
    return 4 * model.parameters / setup.devices + there.peak - held


def fits(peak: float, setup: Setup) -> bool:
    """Return whether a peak leaves the reserve free.

    Args:
        peak: bytes on each device.
        setup: setup with the memory of a device.

    Returns:
        True if it fits.
    """
    return peak <= (1 - RESERVE) * setup.device_gb * 1e9


def remedies(setup: Setup, describe: Describe) -> list[str]:
    """Return the options that make a run fit.

    Args:
        setup: setup of the run that doesn't fit.
        describe: returns the architecture for a setup.

    Returns:
        Options as typed: each single option that suffices; otherwise one entry that combines as
        many as needed, in order; empty if even all together do not suffice.
    """
    enough = [option for option, changed in _knobs(setup, describe) if _fits(changed, describe)]
    together: list[str] = []
    names = [option.split()[0] for option, _ in _knobs(setup, describe)]
    for name in names if not enough else []:
        option, setup = next(knob for knob in _knobs(setup, describe) if knob[0].startswith(name))
        together.append(option)
        if _fits(setup, describe):
            return [" ".join(together)]
    return enough


def _fits(setup: Setup, describe: Describe) -> bool:
    return fits(memory(describe(setup), setup).peak, setup)


def _knobs(setup: Setup, describe: Describe) -> Iterator[tuple[str, Setup]]:
    """Yield each option that could save memory, with the setup that it gives."""
    if not setup.gradient_checkpointing:
        yield "--gradient-checkpointing", replace(setup, gradient_checkpointing=True)
    if not setup.bf16:
        yield "--bf16", replace(setup, bf16=True)
    if setup.tokens > 4096 and describe(setup).packable:
        yield "--pack-tokens 4096", replace(setup, tokens=4096)
    if not setup.lora_rank:
        yield f"--lora-rank {LORA_RANK}", replace(setup, lora_rank=LORA_RANK)
    more = setup
    while more.devices < MOST_DEVICES and not (more != setup and _fits(more, describe)):
        more = replace(more, devices=2 * more.devices)
    yield f"--devices {more.devices}", more
