"""Train a policy on its rollouts, or on messages (rollouts, turns, calibration -> weights).

The algorithm is PPO's clipped update on turn-level advantages (MT-GRPO arXiv 2505.11821, GTPO
arXiv 2511.14846, their hybrid arXiv 2604.02869), without a value function:

    for each epoch, for each step's episodes:
        loss = sum over the policy's tokens of  weight * clipped(ratio, advantage)
        one step of AdamW

The advantages are those of `stages.core.advantages`. Sampling is not part of this module: each step
of the published loop (sample, score, calibrate, train) is a separate command.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from stages.core.direction import DEAD
from stages.errors import InputError
from stages.training.batches import Pack, steps
from stages.training.config import LossConfig, TrainConfig
from stages.training.logprobs import Nuclei
from stages.training.loss import METRICS, TokenBatch, policy_loss, token_weights
from stages.training.sequences import NO_TIER, Example
from stages.training.trainer import Trainer

T = TypeVar("T")

HISTORY = 50  # steps whose median is the usual gradient norm
SETTLING = 10  # steps before spikes are detected
TRIED = 16  # examples used to identify the distribution of an engine's logprobs


class TierCodes(NamedTuple):
    """The tiers behind the examples' codes."""

    names: list[str]  # indexed by code
    values: Mapping[str, float]  # value of each tier; its sign is the intended direction


class OptimizerStep(NamedTuple):
    """A completed optimizer step."""

    number: int  # from 1
    of: int  # steps of the whole run
    log: dict[str, Any]


class Known(NamedTuple):
    """Log-probabilities from before training, a tensor [M] per example."""

    old: list[torch.Tensor | None]  # None: taken from the step's own pass, with ratio 1
    reference: list[torch.Tensor] | None  # None: no KL term
    nuclei: list[Nuclei] | None = None  # None: all tokens were sampled from all words


class DivergedError(Exception):
    """A step was rejected because training diverges; the weights are those before the step."""

    def __init__(self, step: int, what: str, batch: List[Example]) -> None:
        super().__init__(f"step {step}: {what}")
        self.step, self.what, self.batch = step, what, batch


def train(
    trainer: Trainer,
    examples: List[Example],
    known: Known | None,
    tiers: TierCodes,
    config: TrainConfig,
    done: int = 0,
) -> Iterator[OptimizerStep]:
    """Take the optimizer steps of a run, yielding after each.

    Args:
        trainer: model and optimizer, changed in place.
        examples: all examples.
        known: log-probabilities of their tokens; None: supervised fine-tuning.
        tiers: the tiers behind the examples' codes.
        config: settings of training.
        done: number of steps taken before a restart.

    Yields:
        Each step after it was taken.

    Raises:
        DivergedError: loss or gradient norm is not finite, or the norm is far above the usual one.
    """
    plan = steps(examples, config.batch_size, config.epochs, config.seed)
    norms: list[float] = []
    for number, places in enumerate(plan[done:], done + 1):
        began = time.perf_counter()
        batch = [examples[place] for place in places]
        lr = learning_rate(number, len(plan), config)
        for group in trainer.optimizer.param_groups:
            group["lr"] = lr
        trainer.model.train()
        scale = 1 / max(_rms(batch), DEAD) if config.advantage_scale == "rms" else 1.0
        sums = accumulate(trainer, batch, _of(known, places), scale, config)
        norm = float(
            trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), config.max_grad_norm)
        )
        if what := _diverged(sums["loss"], norm, norms[-HISTORY:], config.spike):
            trainer.optimizer.zero_grad()
            raise DivergedError(number, what, batch)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        norms.append(norm)
        log = {"lr": lr, "grad_norm": norm} | sums
        if known:
            log |= advantage_log(batch, tiers)
            log["effective_step"] = lr * log["advantage_rms"] * scale
        tokens = sum(len(example.sequence) for example in batch)
        log |= {"tokens_per_s": tokens / (time.perf_counter() - began), "memory_gb": memory_gb()}
        yield OptimizerStep(number, len(plan), log)


def accumulate(
    trainer: Trainer,
    batch: List[Example],
    known: Known | None,
    scale: float,
    config: TrainConfig,
) -> dict[str, float]:
    """Accumulate the gradients of a step over its passes and processes.

    Args:
        trainer: gradients are added to its weights.
        batch: examples of the step.
        known: log-probabilities of these examples; None: supervised fine-tuning.
        scale: factor of the advantages.
        config: settings of training.

    Returns:
        The loss, and means over the tokens.
    """
    weights = example_weights(batch, config.loss)
    device = trainer.accelerator.device
    names = ("loss", *METRICS)
    sums = np.zeros(len(names))

    def tensor(parts: List[Any]) -> torch.Tensor:  # [M] of a pass
        return torch.cat([torch.as_tensor(part) for part in parts]).to(device)

    for chosen, counts in trainer.passes(batch, config):
        pack = Pack.of([batch[i] for i in chosen], device)
        nuclei = None
        if known and known.nuclei:
            nuclei = Nuclei.cat([known.nuclei[i] for i in chosen]).to(device)
        bonus = config.loss.entropy != 0
        values = trainer.model(*pack, entropy_gradient=bonus, nuclei=nuclei)
        weight = tensor([weights[i] for i in chosen]) * counts
        of_pass = {"entropy": values.entropy.sum().item()}
        if known is None:
            loss = -(weight * values.logprobs).sum()
        else:
            old = values.logprobs.detach()
            if known.old[chosen[0]] is not None:
                old = tensor([known.old[i] for i in chosen])
            fixed = TokenBatch(
                advantage=tensor([batch[i].advantage for i in chosen]) * scale,
                weight=weight,
                old=old,
                engine=tensor([batch[i].engine for i in chosen]),
                reference=tensor([known.reference[i] for i in chosen]) if known.reference else None,
            )
            loss, of_pass = policy_loss(values.logprobs, values.entropy, fixed, config.loss)
        # accelerate averages gradients over processes, but the loss is a sum.
        trainer.accelerator.backward(loss * trainer.accelerator.num_processes)
        of_pass["loss"] = loss.item()
        sums += counts * np.array([of_pass.get(name, 0.0) for name in names])
    total = dict(zip(names, trainer.total(list(sums)), strict=True))
    n_tokens = sum(len(example.at) for example in batch)
    means = {name: total[name] / n_tokens for name in METRICS} if known else {}
    return {"loss": total["loss"], "entropy": total["entropy"] / n_tokens} | means


def known_logprobs(
    trainer: Trainer, examples: List[Example], reference_model: Trainer | None, config: TrainConfig
) -> Known:
    """Compute the log-probabilities that the loss needs from before the first step.

    Args:
        trainer: trainer with the initial weights.
        examples: all examples.
        reference_model: reference model of the KL; None: the initial weights.
        config: settings of training.

    Returns:
        The log-probabilities of each example's tokens.

    Raises:
        InputError: the engine's log-probabilities are required, but some are unknown.
    """
    reference: list[torch.Tensor] | None = None
    nuclei: list[Nuclei] | None = None
    own: list[torch.Tensor] = []  # the trainer's logprobs, if a pass has already computed them
    if any(example.top_p < 1 for example in examples):
        own, nuclei = found_nuclei(trainer, examples, config)
    if config.loss.kl:
        reference = token_logprobs(reference_model or trainer, examples, config, nuclei)
    if config.old_logprobs == "engine":
        if unknown := [
            example.episode_id for example in examples if np.isnan(example.engine).any()
        ]:
            what = f"episode '{unknown[0]}' has tokens whose logprobs were not recorded"
            raise InputError("--old-logprobs", what, "use trainer")
        return Known([torch.from_numpy(example.engine) for example in examples], reference, nuclei)
    if reference and not reference_model:
        own = reference
    if own:
        return Known([*own], reference, nuclei)
    # The first step starts with these weights, so its own pass computes its logprobs.
    plan = steps(examples, config.batch_size, config.epochs, config.seed)
    first = set(plan[0]) if config.epochs == 1 else set()
    rest = [place for place in range(len(examples)) if place not in first]
    measured = token_logprobs(trainer, [examples[place] for place in rest], config)
    old = dict(zip(rest, measured, strict=True))
    return Known([old.get(place) for place in range(len(examples))], reference)


def token_logprobs(
    trainer: Trainer,
    examples: List[Example],
    config: TrainConfig,
    nuclei: List[Nuclei] | None = None,
) -> list[torch.Tensor]:
    """Return the model's log-probabilities of the policy's tokens, [M] per example.

    Args:
        trainer: trainer with the model.
        examples: examples with the tokens.
        config: settings of training.
        nuclei: nuclei of each example's tokens; None: all words.

    Returns:
        Log-probabilities in nats, on the CPU.
    """
    device = trainer.accelerator.device

    def measure(parts: List[Example], chosen: List[int]) -> list[torch.Tensor]:
        limit = Nuclei.cat([nuclei[i] for i in chosen]).to(device) if nuclei else None
        values = trainer.model(*Pack.of(parts, device), nuclei=limit)
        return list(values.logprobs.cpu().split([len(example.at) for example in parts]))

    return _measured(trainer, examples, config, measure)


def found_nuclei(
    trainer: Trainer, examples: List[Example], config: TrainConfig
) -> tuple[list[torch.Tensor], list[Nuclei]]:
    """Determine the nuclei under the current weights, and the log-probabilities within them.

    Args:
        trainer: trainer with the model.
        examples: examples with the tokens and their top_p.
        config: settings of training.

    Returns:
        Log-probabilities and nuclei, per example.
    """
    device = trainer.accelerator.device

    def measure(parts: List[Example], _: List[int]) -> list[tuple[torch.Tensor, Nuclei]]:
        sizes = [len(example.at) for example in parts]
        top_p = torch.tensor([example.top_p for example in parts], device=device)
        top_p = top_p.repeat_interleave(torch.tensor(sizes, device=device))  # [M]
        values = trainer.model(*Pack.of(parts, device), top_p=top_p)
        nuclei = values.nuclei.to(torch.device("cpu")).split(sizes)
        return list(zip(values.logprobs.cpu().split(sizes), nuclei, strict=True))

    measured = _measured(trainer, examples, config, measure)
    return [logprobs for logprobs, _ in measured], [nuclei for _, nuclei in measured]


def _measured(
    trainer: Trainer,
    examples: List[Example],
    config: TrainConfig,
    measure: Callable[[List[Example], List[int]], list[T]],
) -> list[T]:
    """Apply a function to all examples without gradients, spread over passes and processes.

    Args:
        trainer: trainer with the model.
        examples: all examples.
        config: settings of training.
        measure: function of the examples of a pass and their positions among all.

    Returns:
        The result of each example.
    """
    measured: dict[int, T] = {}
    trainer.model.eval()
    with torch.no_grad():
        for chosen, counts in trainer.passes(examples, config):
            pieces = measure([examples[i] for i in chosen], chosen)
            if counts:
                measured |= dict(zip(chosen, pieces, strict=True))
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        measured = dict(gather_object(list(measured.items())))
    return [measured[place] for place in range(len(examples))]


def engine_measures_otherwise(
    trainer: Trainer, examples: List[Example], config: TrainConfig
) -> str | None:
    """Identify the distribution of the engine's log-probabilities if it is not the sampling one.

    Servers differ: vLLM's default is temperature 1 and all words; others apply the temperature but
    not top_p. The distribution under which the trainer's own log-probabilities are closest to the
    engine's is taken.

    Args:
        trainer: trainer with the weights that were sampled from.
        examples: all examples; only those sampled with top_p below 1 or another temperature than 1
            are used.
        config: settings of training.

    Returns:
        The distribution, for example "temperature 1, top_p 1"; None if it is the sampling one.
    """
    some = [example for example in examples if np.isfinite(example.engine).all()]
    some = [example for example in some if example.top_p < 1 or example.temperature != 1][:TRIED]
    if not some:
        return None
    engine = torch.from_numpy(np.concatenate([example.engine for example in some]))

    def distance(parts: List[Example]) -> float:
        own = torch.cat(found_nuclei(trainer, parts, config)[0])
        return float((own - engine).abs().median())

    readings = {
        None: some,
        f"temperature {some[0].temperature:g}, top_p 1": [
            replace(example, top_p=1.0) for example in some
        ],
        "temperature 1, top_p 1": [
            replace(example, top_p=1.0, temperature=1.0) for example in some
        ],
    }
    far = {reading: distance(parts) for reading, parts in readings.items()}
    return min(far, key=lambda reading: far[reading])  # ties go to the sampling distribution


def dev_loss(trainer: Trainer, examples: List[Example], config: TrainConfig) -> float:
    """Return the mean loss per token on held-out examples, in nats.

    Args:
        trainer: trainer with the model.
        examples: examples of the dev set.
        config: settings of training.

    Returns:
        The mean negative log-probability.
    """
    return -float(torch.cat(token_logprobs(trainer, examples, config)).double().mean())


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step: linear warmup, then the schedule.

    Args:
        step: number of the step, 1..steps.
        steps: steps of the whole run.
        config: settings of training.

    Returns:
        The learning rate.
    """
    if step <= config.warmup:
        return config.lr * step / config.warmup
    share = (step - config.warmup) / max(1, steps - config.warmup)  # of the schedule, in (0, 1]
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - share) + config.lr * 0.01 * share
        case "cosine":
            return config.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def example_weights(batch: List[Example], config: LossConfig) -> list[np.ndarray[Any, Any]]:
    """Return the weight of each token in a step's loss, [M] per example.

    Args:
        batch: examples of the step.
        config: settings of the loss.

    Returns:
        Weights.
    """
    totals: dict[str, float] = {}
    for example in batch:
        totals[example.episode_id] = totals.get(example.episode_id, 0.0) + float(
            example.weight.sum()
        )
    by_episode = token_weights(np.array(list(totals.values())), config)
    weight = dict(zip(totals, by_episode, strict=True))
    return [(example.weight * weight[example.episode_id]).astype(np.float32) for example in batch]


def _of(known: Known | None, places: List[int]) -> Known | None:
    if known is None:
        return None
    reference = known.reference
    return Known(
        [known.old[place] for place in places],
        reference and [reference[place] for place in places],
        known.nuclei and [known.nuclei[place] for place in places],
    )


def _diverged(loss: float, norm: float, norms: List[float], spike: float) -> str | None:
    """Return why a step must be rejected; None if it is fine."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"the loss is {loss:g} and the gradient norm {norm:g}"
    if len(norms) >= SETTLING and norm > spike * median(norms):
        return f"the gradient norm is {norm:g}, usually {median(norms):g}"
    return None


def advantage_log(batch: List[Example], tiers: TierCodes) -> dict[str, Any]:
    """Return metrics of a step's advantages.

    Args:
        batch: examples of the step.
        tiers: the tiers behind the examples' codes.

    Returns:
        The root mean square of the advantages; each tier's share of the gradient mass, the sum of
        |A| over its tokens; and the share of each tier's turns with an advantage against the sign
        of its value.
    """
    log: dict[str, Any] = {"advantage_rms": _rms(batch)}
    if not tiers.names:
        return log
    advantage = np.concatenate([example.advantage for example in batch]).astype(np.float64)
    tier = np.concatenate([example.tier for example in batch])
    known = tier != NO_TIER
    mass = np.bincount(tier[known], np.abs(advantage[known]), len(tiers.names))
    shares = mass / max(mass.sum(), DEAD)
    log["gradient_mass"] = dict(zip(tiers.names, shares.tolist(), strict=True))
    first = np.concatenate([_first_of_turn(example) for example in batch]) & known
    log["wrong_sign_share"] = {}
    for code, name in enumerate(tiers.names):
        sign, mine = np.sign(tiers.values.get(name, 0.0)), first & (tier == code)
        if sign and mine.any():
            log["wrong_sign_share"][name] = float((sign * advantage[mine] < -DEAD).mean())
    return log


def _first_of_turn(example: Example) -> np.ndarray[Any, Any]:
    turn = example.sequence.turn[example.at]
    return np.asarray(np.diff(turn, prepend=turn[:1] - 1) != 0)


def _rms(batch: List[Example]) -> float:
    counting = [example.advantage[example.weight > 0] for example in batch]
    return float(np.sqrt(np.mean(np.concatenate(counting).astype(np.float64) ** 2)))


def memory_gb() -> float:
    """Return the peak memory of this process in GB, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
