"""The circuits that the seed policy starts with: what its heads look at, before any training."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the extra [transformers] is not installed")

import torch

from examples.seed_policy.induction import add_induction
from stages.training.tiny_model import Size, tiny_model

LENGTH = 60


@pytest.fixture(scope="module")
def attention() -> tuple[torch.Tensor, ...]:
    """What each layer's heads look at, [heads, 2 LENGTH, 2 LENGTH], in a text said twice."""
    model = tiny_model(1000, 0, Size())
    add_induction(model, 0)
    model.set_attn_implementation("eager")
    text = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:LENGTH]
    with torch.no_grad():
        seen = model(torch.cat([text, text])[None], output_attentions=True).attentions
    return tuple(one[0] for one in seen)


@pytest.mark.parametrize(("head", "distance"), [(0, 1), (1, 2)])
def test_heads_of_the_first_layer_look_back(
    attention: tuple[torch.Tensor, ...], head: int, distance: int
) -> None:
    seen = attention[0][head].diagonal(-distance)
    assert seen.min() > 0.8


@pytest.mark.parametrize("head", [0, 2])
def test_heads_of_the_second_layer_find_what_followed(
    attention: tuple[torch.Tensor, ...], head: int
) -> None:
    """The token that comes next stood LENGTH - 1 before; to look anywhere alike finds 1 %."""
    found = attention[1][head].diagonal(1 - LENGTH)[5:]  # once the text is said again
    assert found.mean() > 0.3


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads over 2"):
        add_induction(tiny_model(100, 0, Size(heads=2, kv_heads=1)), 0)
