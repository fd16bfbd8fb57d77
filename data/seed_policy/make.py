"""Make the seed policy: a tiny Qwen3 that learns airline-mini from an expert who slips.

Run as `python -m data.seed_policy.make` (`make seed-policy`); it takes about an hour on one core.
The episodes are the expert's on the train split. What a policy this small finds hard is to copy
ids, names and numbers from where they were said, so that such tokens weigh more, rare kinds most;
and all other tokens are learnt a little, too, for the episode's own repetitions teach copying.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence as List
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch

from irc_cli import __version__
from stages.policies.chat import Chat
from stages.policies.expert import Expert
from stages.policies.registry import RulePolicy
from stages.rollout import Config, Run, plan, rollout
from stages.tiny_model import make_tiny_model
from stages.train import Tiers, TrainConfig, Trainer, train
from stages.training.batches import Example, Pack
from stages.training.examples import Conversation, supervised
from stages.training.model import learner, load_model, whole_weights, write_policy
from stages.worlds.airline_mini import airline_mini
from stages.worlds.airline_mini.vocabulary import vocabulary

HERE = Path(__file__).parent
COPIED = (  # classes of the vocabulary that episodes repeat
    *("first", "last", "user_last", "reservation_left", "reservation_right", "flight"),
    *("payment", "date", "city", "choice", "number"),
)
NOISE, TRIALS = 0.22, 16  # of the expert: chance of a slip in a turn; episodes of a task
PROMPT_WEIGHT, COPY_WEIGHT = 0.1, 2.0  # of tokens of others; of the most frequent copied class
TRAINING = TrainConfig(
    lr=3e-3,
    schedule="cosine",
    warmup=100,
    beta2=0.98,
    epochs=2,
    batch_size=17,
    pack_tokens=4096,
    spike=1e3,
)
RECORD = "made.json"
REPORT_EVERY = 100  # steps


def expert_episodes(split: str, trials: int, noise: float, seed: int) -> list[Conversation]:
    """Return what the expert plays, as conversations."""
    world = airline_mini()
    policy = RulePolicy(Expert(noise))
    run = Run("seed", world, policy, Config(trials, seed=seed), policy_name="expert")

    async def play() -> list[Conversation]:
        return [
            Conversation(one.row["episode_id"], one.row["messages"], [])
            async for one in rollout(run, plan(world.tasks(split), trials), concurrency=32)
        ]

    return sorted(asyncio.run(play()))


def copied_class(tokenizer: Any) -> npt.NDArray[np.int64]:
    """Return the class of each token, a position in COPIED or -1."""
    found = np.full(len(tokenizer), -1)
    for code, name in enumerate(COPIED):
        found[tokenizer.convert_tokens_to_ids(vocabulary()[name])] = code
    return found


def weighted(examples: List[Example], classes: npt.NDArray[np.int64]) -> list[Example]:
    """Return examples in which every token counts, those that are copied most."""
    written = np.concatenate([one.sequence.token_ids[one.at] for one in examples])
    counts = np.bincount(classes[written] + 1, minlength=len(COPIED) + 1)[1:]
    by_class = np.append(COPY_WEIGHT * np.sqrt(counts.max() / counts), 1.0)  # -1: no class
    found = []
    for one in examples:
        sequence = one.sequence
        mine = sequence.written[1:]
        weight = np.where(mine, by_class[classes[sequence.token_ids[1:]]], PROMPT_WEIGHT)
        turn = np.arange(len(sequence), dtype=np.int32) - 1  # all but the first are to be learnt
        everything = type(sequence)(one.episode_id, sequence.token_ids, turn, sequence.logprobs)
        n = len(mine)
        found.append(
            Example(
                everything,
                np.zeros(n, np.float32),
                np.full(n, -1, np.int32),
                weight.astype(np.float32),
            )
        )
    return found


def copy_accuracy(
    model: Any, examples: List[Example], classes: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Return the share of copied tokens that a policy finds likeliest, given all before, by class.

    Copied is a token of a class that was in the episode before.
    """
    right, of = np.zeros(len(COPIED)), np.zeros(len(COPIED))
    for one in examples:
        ids = one.sequence.token_ids
        pack = Pack.of([one], torch.device("cpu"))
        with torch.inference_mode():
            logits = model(pack.token_ids[None], lengths=pack.lengths, use_cache=False).logits[0]
        best = logits.argmax(-1).numpy()
        for at in one.at:
            if classes[ids[at]] >= 0 and ids[at] in ids[:at]:
                of[classes[ids[at]]] += 1
                right[classes[ids[at]]] += best[at - 1] == ids[at]
    return {name: round(float(right[c] / max(of[c], 1)), 4) for c, name in enumerate(COPIED)}


def make(out: Path, seed: int, config: TrainConfig, trials: int) -> None:
    """Make the policy in a folder, and record beside it how it was made."""
    began = time.monotonic()
    out.mkdir(exist_ok=True)
    make_tiny_model(out, [piece for group in vocabulary().values() for piece in group], seed)
    model, tokenizer = load_model(str(out))
    chat, classes = Chat(tokenizer), copied_class(tokenizer)
    played = expert_episodes("train", trials, NOISE, seed)
    examples = weighted(supervised(played, chat), classes)
    checked = supervised(expert_episodes("dev", 1, 0.0, seed), chat)
    trainer = Trainer.of(learner(model), config, packable=True, bf16=False)
    accuracy: dict[str, float] = {}
    for step in train(trainer, examples, None, Tiers([], {}), config):
        if step.number % REPORT_EVERY and step.number < step.of:
            continue
        accuracy = copy_accuracy(model.eval(), checked, classes)
        model.train()
        seconds = time.monotonic() - began
        least = ", ".join(f"{name} {share:.2f}" for name, share in accuracy.items())
        line = f"{step.number:,} of {step.of:,}, {seconds:.0f} s, loss {step.log['loss']:.4f}"
        sys.stderr.write(f"{line}; copied: {least}\n")
        write_policy(model, whole_weights(model), tokenizer, out)
    made = {"irc_cli": __version__, "command": "make seed-policy", "seed": seed}
    made |= {"noise": NOISE, "trials": trials, "prompt_weight": PROMPT_WEIGHT}
    made |= {"copy_weight": COPY_WEIGHT, "train": asdict(config), "copy_accuracy": accuracy}
    (out / RECORD).write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--epochs", type=int, default=TRAINING.epochs)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    config = replace(TRAINING, seed=given.seed, epochs=given.epochs)
    make(given.out, given.seed, config, given.trials)


if __name__ == "__main__":
    main()
