"""Log-probabilities in chunks are those of all logits, which never exist."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs irc-cli[train]")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.training.batches import Pack
from stages.training.logprobs import TokenLogprobs
from stages.training.model import learner
from stages.training.tiny_model import Size, tiny_model
from tests.learning import small_model, some_examples

PACK = Pack.of(some_examples(), torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_chunks_make_no_difference(rows: int) -> None:
    model = small_model()
    learner(model)
    whole = TokenLogprobs(model)(*PACK, entropy_gradient=True)
    (whole.logprobs.sum() + whole.entropy.sum()).backward()
    wanted = [one.grad.clone() for one in model.parameters()]
    model.zero_grad()
    chunked = TokenLogprobs(model, chunk=rows * model.config.vocab_size)
    parts = chunked(*PACK, entropy_gradient=True)
    assert torch.allclose(parts.logprobs, whole.logprobs, rtol=0, atol=1e-6)
    assert torch.allclose(parts.entropy, whole.entropy, rtol=0, atol=1e-6)
    (parts.logprobs.sum() + parts.entropy.sum()).backward()
    for found, one in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(found.grad, one, rtol=0, atol=1e-5)


def test_values_are_those_of_the_logits_at_the_temperature() -> None:
    model = small_model()
    made = learner(model)
    with torch.no_grad():
        values = made(*PACK)
        hidden = model.get_decoder()(
            input_ids=PACK.token_ids[None], position_ids=PACK.positions[None], lengths=PACK.lengths
        ).last_hidden_state[0]
        logits = model.lm_head(hidden)[PACK.at - 1] / PACK.temperature[:, None]
    logps = torch.log_softmax(logits, -1)
    wanted = logps[range(len(PACK.at)), PACK.token_ids[PACK.at]]
    assert torch.allclose(values.logprobs, wanted, rtol=0, atol=1e-5)
    assert torch.allclose(values.entropy, -(logps.exp() * logps).sum(-1), rtol=0, atol=1e-5)
    assert set(PACK.temperature.tolist()) > {1.0}


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numel = max(self.numel, made.numel())
        return made


@pytest.mark.parametrize("bonus", [False, True], ids=["plain", "entropy bonus"])
def test_no_tensor_is_larger_than_a_chunk(bonus: bool) -> None:
    """Forth and back, with 20,000 words by 200 tokens, of which 25 rows fit a chunk."""
    vocabulary, tokens, rows = 20_000, 200, 25
    model = tiny_model(vocabulary, 0, Size(layers=1, width=16, feed_forward=16, heads=2))
    learner(model)
    made = TokenLogprobs(model, chunk=rows * vocabulary)
    ids = torch.arange(tokens + 1)
    one = (ids, ids, [tokens + 1], ids[1:], torch.ones(tokens))
    with Largest() as largest:
        values = made(*one, entropy_gradient=bonus)
        (values.logprobs.sum() + bonus * values.entropy.sum()).backward()
    assert largest.numel == rows * vocabulary
