"""Start a tiny Qwen3 with two circuits in its random weights that copy.

An induction head finds where a token stood before and says what followed it. A model of this size
does not find that in an hour of training; started with it, it copies every kind of id within
minutes. It takes two layers. In the first, a head looks one token back, by position alone, and
another two, and they note what they see. In the second, heads look for a token whose note is the
token that they stand on (`gift-`: `17` followed it before), or whose second note is their own first
(`"first":"ada","last":"`: `abe` stood two after `ada`), and say that token.

Sources: Elhage et al., A Mathematical Framework for Transformer Circuits (2021), and Olsson et al.,
In-context Learning and Induction Heads (2022), for the circuit; Trockman and Kolter, Mimetic
Initialization of Self-Attention Layers (2023), for starting with one.
"""

from __future__ import annotations

from math import cos, sin
from typing import Any, TypeAlias

import torch

NEAR = 3  # pairs of a head's dimensions that turn fastest with position: they tell neighbours
SLOW = 0.02  # radians per token: what turns slower than this tells tokens, wherever they stand
SHARPNESS = 2.0  # of the attention of both layers: weight of queries' and keys' norms
NOTE, SAID = 0.04, 0.06  # sizes of what is noted and said, beside embeddings of COMMON
COMMON = 0.16  # length of what all embeddings have in common, by which position is asked for

Weights: TypeAlias = torch.Tensor


@torch.no_grad()
def add_induction(model: Any, seed: int) -> None:
    """Set the first two layers' heads of even number in their group, and what they read.

    Args:
        model: Qwen3 of random weights, its width four times that of a head, with four heads that
            share two pairs of keys and values.
        seed: of the directions that tokens and notes take.
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
    """Return what makes a query that fits best the key of distance 0 at that many tokens back.

    Rotary embedding turns a pair (d, d + dim/2) of a query at position i by i times its turn, and
    of a key at j by j times: they align where the query was turned back by the distance before.
    """
    half = len(turns)
    made = torch.zeros(2 * half, len(ask))
    for pair, turn in enumerate(turns[:NEAR]):
        made[pair] = 6 * cos(distance * turn) * ask  # 6: drowns what the random weights ask
        made[pair + half] = -6 * sin(distance * turn) * ask
    return made


def _matches(read: Weights, turns: list[float]) -> Weights:
    """Return what puts the directions read where position hardly matters."""
    half = len(turns)
    slow = [pair for pair, turn in enumerate(turns) if turn < SLOW]
    made = torch.zeros_like(read)
    places = [*slow, *(pair + half for pair in slow)]
    made[places] = read[: len(places)]
    return made
