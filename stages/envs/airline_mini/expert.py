"""The expert: plays airline-mini by policy.md, from the messages alone.

Each turn, it runs the plan for the customer's request from the start. It skips the steps that the
messages already contain, and the first missing step is the next message. So it keeps no state, and
recovers from a slip.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.envs.airline_mini.mistakes import slip
from stages.envs.airline_mini.plans import next_step
from stages.envs.airline_mini.transcript import Transcript, written
from stages.envs.users import Rng
from stages.messages.message import Message


class Expert:
    """Plays any task of airline-mini; call it with the messages so far for the next one.

    Args:
        noise: chance of a slip per turn, in [0, 1]; with 0, every task succeeds.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def __call__(self, messages: Sequence[Message], rng: Rng) -> Message:
        """Return the next assistant message; without noise, nothing is drawn from `rng`.

        Args:
            messages: messages in OpenAI's format; the last is the customer's or a tool's. Those of
                the assistant are this expert's own.
            rng: random generator of the episode, `random.Random` or `numpy.random.Generator`.
        """
        transcript = Transcript(messages)
        step = next_step(transcript.want, transcript)
        if self.noise and rng.random() < self.noise:
            return slip(step, messages, rng)
        return written(step, len(messages))
