"""Set up two induction circuits, which copy, in the random weights of a tiny Qwen3.

An induction head finds an earlier occurrence of the current token and predicts the token that
followed it. A model of this size does not learn that in an hour of training; initialised with it,
it copies every kind of id within minutes. The circuit takes two layers. In the first, one head
attends one token back and another two tokens back, both by position alone, and they note what they
see. In the second, one head attends to a token whose first note is the current token (`gift-`: `17`
followed it before), and another to a token whose second note is the current token's first note
(`"first":"ada","last":"`: `abe` stood two after `ada`). Both predict the token they attend to.

Sources: Elhage et al., A Mathematical Framework for Transformer Circuits (2021), and Olsson et al.,
In-context Learning and Induction Heads (2022), for the circuit; Trockman and Kolter, Mimetic
Initialization of Self-Attention Layers (2023), for starting with one.
"""

from __future__ import annotations

from math import cos, sin
from typing import Any, TypeAlias

import torch

NEAR = 3  # fastest-rotating pairs of a head's dimensions, which tell neighbouring positions apart
SLOW = 0.02  # radians per token; slower pairs identify tokens whatever their position
SHARPNESS = 2.0  # of both layers' attention: the weights of the query and key norms
NOTE, SAID = 0.04, 0.06  # scale of notes and of predictions, next to embeddings with COMMON
COMMON = 0.16  # length of a component shared by all embeddings; positional queries read it

Weights: TypeAlias = torch.Tensor


@torch.no_grad()
def add_induction(model: Any, seed: int) -> None:
    """Write the circuits into the first two layers' attention and into the embeddings.

    Args:
        model: Qwen3 with random weights, 4 query heads over 2 key-value heads, and a width of 4
            times a head's.
        seed: seed of the directions for tokens and notes.

    Raises:
        ValueError: the model has another shape.
    """
    config = model.config
    width, dim = config.hidden_size, config.head_dim
    if (config.num_attention_heads, config.num_key_value_heads, width) != (4, 2, 4 * dim):
        raise ValueError("add_induction needs 4 heads over 2 key-value heads")
    directions, _ = torch.linalg.qr(
        torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    )
    token, one_back, two_back, rest = directions.T.split(dim)
    common = rest[0]
    embeddings = model.get_input_embeddings().weight
    kept = torch.cat([token, rest[1:]])
    embeddings.copy_(embeddings @ kept.T @ kept + COMMON * common)
    along = (embeddings @ common / embeddings.norm(dim=1)).mean().item() * width**0.5
    ask = common / along  # gives 1 on a normalised embedding
    turns = [config.rope_parameters["rope_theta"] ** (-2 * pair / dim) for pair in range(dim // 2)]

    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for head, distance in enumerate((1, 2)):
        _rows(first.q_proj, head, dim).copy_(_looks_back(distance, turns, ask))
    _rows(first.k_proj, 0, dim).copy_(_looks_back(0, turns, ask))
    _rows(first.v_proj, 0, dim).copy_(token)
    for head, note in enumerate((one_back, two_back)):
        _columns(first.o_proj, head, dim).copy_(NOTE * note.T)

    for group, (query, key) in enumerate(((token, one_back), (one_back, two_back))):
        head = 2 * group
        _rows(second.q_proj, head, dim).copy_(_matches(query, turns))
        _rows(second.k_proj, group, dim).copy_(_matches(key, turns))
        _rows(second.v_proj, group, dim).copy_(token)
        _columns(second.o_proj, head, dim).copy_(SAID * token.T)
    for layer in (first, second):
        layer.q_norm.weight.fill_(SHARPNESS)
        layer.k_norm.weight.fill_(SHARPNESS)


def _rows(projection: Any, head: int, dim: int) -> Weights:
    weights: Weights = projection.weight[head * dim : (head + 1) * dim]
    return weights


def _columns(projection: Any, head: int, dim: int) -> Weights:
    weights: Weights = projection.weight[:, head * dim : (head + 1) * dim]
    return weights


def _looks_back(distance: int, turns: list[float], ask: Weights) -> Weights:
    """Return weights of a query that best matches the distance-0 key `distance` tokens back.

    Rotary embedding rotates a pair (d, d + dim/2) of a query at position i by i times its angle,
    and that of a key at j by j times. A query rotated back beforehand by `distance` times the angle
    aligns with the key at j = i - distance.
    """
    half = len(turns)
    made = torch.zeros(2 * half, len(ask))
    for pair, turn in enumerate(turns[:NEAR]):
        made[pair] = 6 * cos(distance * turn) * ask  # 6: dominates the random components
        made[pair + half] = -6 * sin(distance * turn) * ask
    return made


def _matches(read: Weights, turns: list[float]) -> Weights:
    """Return weights that map the directions read to slow pairs, where position hardly matters."""
    half = len(turns)
    slow = [pair for pair, turn in enumerate(turns) if turn < SLOW]
    made = torch.zeros_like(read)
    places = [*slow, *(pair + half for pair in slow)]
    made[places] = read[: len(places)]
    return made
