"""Make the seed policy: a tiny Qwen3 that learns airline-mini from a noisy expert.

Run as `python -m examples.seed_policy.make` (`make seed-policy`); it takes half an hour on one
core. The expert plays each episode on a fresh task, so that there is nothing to memorise: the
policy plays held-out tasks as well as others. A policy this small finds it hard to copy ids, names
and numbers from earlier in the episode. Therefore it starts with induction heads, and copied tokens
weigh more, rare kinds most. Prompt tokens get a small weight too, because an episode's own
repetitions teach copying.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import torch

from examples.seed_policy.induction import add_induction
from irc_cli import __version__
from stages.envs.airline_mini import airline_mini
from stages.envs.airline_mini.expert import Expert
from stages.envs.airline_mini.vocabulary import vocabulary
from stages.envs.env import Task
from stages.messages.renderer import Renderer
from stages.policy_registry import RulePolicy
from stages.rollout import Config, Run, plan, rollout
from stages.train import TierCodes, train
from stages.training.batches import Pack
from stages.training.config import TrainConfig
from stages.training.examples import Demonstration, supervised
from stages.training.model import learner, load_model, whole_weights, write_policy
from stages.training.sequences import NO_TIER, PROMPT, Example
from stages.training.tiny_model import make_tiny_model
from stages.training.trainer import Trainer

SHIPPED = Path(__file__).parents[2] / "data/seed_policy"
RECORD = "made.json"
REPORT_EVERY = 200  # steps
TASKS = 100  # per airline
FIRST_AIRLINE = 1_000_000_000  # far from any seed used in training
PROMPT_WEIGHT, COPY_WEIGHT = 0.1, 2.0  # of prompt tokens; of the most frequent copied kind

# Token kinds that episodes repeat: the vocabulary's classes and the meanings of numbers.
CLASSES = (
    *("first", "last", "user_last", "reservation_left", "reservation_right", "flight"),
    *("payment", "date", "city", "choice"),
)
# The piece before a number sets its kind: a flight's, for example. Other numbers are amounts of
# money or, below LEAST_AMOUNT, counts of bags, which are as often computed as copied.
NUMBERS = {
    "user_last": "user_number",
    "flight": "flight_number",
    "payment": "payment_number",
    "date": "day",
}
KINDS = (*CLASSES, *NUMBERS.values(), "amount")
LEAST_AMOUNT = 40
OTHER = -1


class Phase(NamedTuple):
    """A phase of the training with its own schedule."""

    episodes: int
    noise: float  # the expert's chance of a mistake per turn
    lr: float


PHASES = (Phase(34_000, 0.28, 3e-3), Phase(25_500, 0.2, 2e-3))
TRAINING = TrainConfig(
    schedule="cosine",
    warmup=100,
    beta2=0.98,
    epochs=1,
    batch_size=17,
    pack_tokens=4096,
    spike=1e3,
)


def expert_episodes(tasks: List[Task], noise: float, seed: int) -> list[Demonstration]:
    """Return one expert episode per task, as demonstrations."""
    policy = RulePolicy(Expert(noise))
    run = Run("seed", airline_mini(), policy, Config(1, seed=seed), policy_name="expert")

    async def play() -> list[Demonstration]:
        return [
            Demonstration(played.row["episode_id"], played.row["messages"], [])
            async for played in rollout(run, plan(tasks, 1), concurrency=32)
        ]

    return sorted(asyncio.run(play()))


def fresh_examples(phase: Phase, airline: int, chat: Renderer) -> Iterator[Example]:
    """Yield the training examples of a phase: fresh episodes of airlines from `airline` on."""
    for number in range(airline, airline + phase.episodes // TASKS):
        tasks = airline_mini().fresh_tasks(number, TASKS)
        yield from supervised(expert_episodes(tasks, phase.noise, number), chat)


class Copied:
    """Classifies tokens by the kinds that episodes repeat.

    Args:
        tokenizer: tokenizer of the policy.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._class = np.full(len(tokenizer), OTHER)
        for code, name in enumerate(CLASSES):
            self._class[tokenizer.convert_tokens_to_ids(vocabulary()[name])] = code
        numbers = vocabulary()["number"]
        self._number = np.full(len(tokenizer), np.nan)
        self._number[tokenizer.convert_tokens_to_ids(numbers)] = [int(number) for number in numbers]

    def kinds(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the kind of each token, an index into KINDS or OTHER, shape [L]."""
        of_class = self._class[token_ids]
        before = np.concatenate([[OTHER], of_class[:-1]])
        number = self._number[token_ids]
        of_number = np.where(number < LEAST_AMOUNT, OTHER, KINDS.index("amount"))
        for name, kind in NUMBERS.items():
            of_number[before == CLASSES.index(name)] = KINDS.index(kind)
        return np.where(np.isnan(number), of_class, of_number)


def weighted(examples: List[Example], copied: Copied) -> list[Example]:
    """Return examples with a weight per token; rare copied kinds weigh most."""
    kinds = [copied.kinds(example.sequence.token_ids) for example in examples]
    counts = np.zeros(len(KINDS) + 1)  # the last is OTHER's
    for example, kind in zip(examples, kinds, strict=True):
        counts += np.bincount(kind[example.at] % len(counts), minlength=len(counts))
    weight = COPY_WEIGHT * np.sqrt(counts[:-1].max() / np.maximum(counts, 1))
    weight[-1] = 1.0
    weighed = []
    for example, kind in zip(examples, kinds, strict=True):
        sequence = example.sequence
        by_token = np.where(sequence.written, weight[kind], PROMPT_WEIGHT)[1:]
        everything = np.arange(len(sequence), dtype=np.int32) + PROMPT  # all but the first
        n = len(by_token)
        weighed.append(
            Example(
                replace(sequence, turn=everything),
                np.zeros(n, np.float32),
                np.full(n, NO_TIER, np.int32),
                by_token.astype(np.float32),
            )
        )
    return weighed


def copy_accuracy(model: Any, examples: List[Example], copied: Copied) -> dict[str, float]:
    """Return the top-1 accuracy on copied tokens, by kind.

    Teacher-forced: the context is the expert's. A token counts as copied if it occurs earlier in
    the episode.
    """
    right, of = np.zeros(len(KINDS)), np.zeros(len(KINDS))
    for example in examples:
        ids = example.sequence.token_ids
        pack = Pack.of([example], torch.device("cpu"))
        with torch.inference_mode():
            logits = model(pack.token_ids[None], lengths=pack.lengths, use_cache=False).logits[0]
        best = logits.argmax(-1).numpy()
        kind = copied.kinds(ids)
        for at in example.at:
            if kind[at] != OTHER and ids[at] in ids[:at]:
                of[kind[at]] += 1
                right[kind[at]] += best[at - 1] == ids[at]
    return {name: round(float(right[c] / max(of[c], 1)), 4) for c, name in enumerate(KINDS)}


def make(out: Path, seed: int) -> None:
    """Train the policy in a folder, and record there how it was made."""
    out.mkdir(exist_ok=True)
    make_tiny_model(out, [piece for group in vocabulary().values() for piece in group], seed)
    model, tokenizer = load_model(str(out))
    add_induction(model, seed)
    accuracy: dict[str, float] = {}
    for number in range(len(PHASES)):
        accuracy = learn(model, tokenizer, number, seed, out)
    made = {"irc_cli": __version__, "command": "make seed-policy", "seed": seed}
    made |= {"parameters": model.num_parameters()}
    made |= {"phases": [phase._asdict() for phase in PHASES]}
    made |= {"train": {name: value for name, value in asdict(TRAINING).items() if name != "lr"}}
    made |= {"prompt_weight": PROMPT_WEIGHT, "copy_weight": COPY_WEIGHT}
    made |= {"copy_accuracy": accuracy}
    (out / RECORD).write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2))


def learn(model: Any, tokenizer: Any, number: int, seed: int, out: Path) -> dict[str, float]:
    """Train for one phase, saving the policy periodically; return the final copy accuracy."""
    began, phase = time.monotonic(), PHASES[number]
    chat, copied = Renderer(tokenizer), Copied(tokenizer)
    airline = FIRST_AIRLINE * (1 + seed) + sum(p.episodes // TASKS for p in PHASES[:number])
    written = list(fresh_examples(phase, airline, chat))
    checked = supervised(expert_episodes(airline_mini().tasks("dev"), 0.0, seed), chat)
    config = replace(TRAINING, seed=seed, lr=phase.lr)
    trainer = Trainer.of(learner(model), config, packable=True, bf16=False)
    accuracy: dict[str, float] = {}
    for step in train(trainer, weighted(written, copied), None, TierCodes([], {}), config):
        if step.number % REPORT_EVERY and step.number < step.of:
            continue
        accuracy = copy_accuracy(model.eval(), checked, copied)
        line = f"{step.number:,} of {step.of:,}, loss {step.log['loss']:.4f}"
        shares = ", ".join(f"{name} {share:.2f}" for name, share in accuracy.items())
        sys.stderr.write(f"{line}, {time.monotonic() - began:.0f} s; copied: {shares}\n")
        write_policy(model, whole_weights(model), tokenizer, out)
    return accuracy


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make(given.out, given.seed)


if __name__ == "__main__":
    main()
