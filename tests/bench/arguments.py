"""Speed of the `deep` comparison of two argument texts, against orjson's parsing and deepdiff."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
from deepdiff import DeepDiff

from stages.core.arguments import equal_texts
from tests.bench.timing import Row, row

PAIRS = 2_000
PEER_PAIRS = 100  # deepdiff takes milliseconds per pair
ITEMS = ("item_ids", "new_item_ids")


def _call(draw: random.Random) -> dict[str, Any]:
    """Return the arguments of a call, in the shapes and sizes of airline and retail agents."""
    user = f"{draw.choice(['mia_li', 'noah_khan', 'yara_garcia'])}_{draw.randrange(9999)}"
    order = f"#W{draw.randrange(10**6, 10**7)}"
    items = [str(draw.randrange(10**9, 10**10)) for _ in range(draw.choice([1, 1, 2, 3]))]
    payment = f"credit_card_{draw.randrange(10**6, 10**7)}"
    name = {"first_name": draw.choice(["Chen", "Sofia", "Ivan"]), "last_name": "Johnson"}
    flight = {"flight_number": f"HAT{draw.randrange(300):03}", "date": "2024-05-20"}
    address = {"address1": "123 Elm Street", "city": "Denver", "state": "CO", "country": "USA"}
    return draw.choice(
        [
            {"user_id": user, "include_history": False},
            {**name, "zip": str(draw.randrange(10**4, 10**5))},
            {"origin": "JFK", "destination": "SEA", "date": "2024-05-20"},
            {"order_id": order, "item_ids": items, "payment_method_id": payment},
            {"order_id": order, **address, "zip": str(draw.randrange(10**4, 10**5))},
            {
                "order_id": order,
                "item_ids": items,
                "new_item_ids": [str(int(item) + 7) for item in items],
                "payment_method_id": payment,
            },
            {
                "user_id": user,
                "origin": "JFK",
                "destination": "SEA",
                "flight_type": "one_way",
                "cabin": "economy",
                "flights": [flight, {**flight, "date": "2024-05-21"}],
                "passengers": [{**name, "dob": "1990-04-05"}],
                "payment_methods": [{"payment_id": payment, "amount": draw.randrange(500)}],
                "total_baggages": draw.randrange(5),
                "nonfree_baggages": 0,
                "insurance": "no",
            },
        ]
    )


def _reworded(value: Any, draw: random.Random) -> Any:
    """Return the same arguments as another model would write them.

    Keys are always shuffled. Words are often in capitals, and 5 is often "5". Items are sometimes
    in reverse order.
    """
    if isinstance(value, dict):
        keys = list(value)
        draw.shuffle(keys)
        turned = draw.random() < 0.2
        return {
            key: _reworded(value[key][::-1] if turned and key in ITEMS else value[key], draw)
            for key in keys
        }
    if isinstance(value, list):
        return [_reworded(item, draw) for item in value]
    if isinstance(value, str) and value.isalpha() and draw.random() < 0.3:
        return value.upper()
    if type(value) is int and draw.random() < 0.5:
        return str(value)
    return value


def _altered(value: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return arguments that differ in one text, anywhere."""
    altered: dict[str, Any] = _reworded(value, draw)
    key = draw.choice([key for key, item in altered.items() if isinstance(item, str)])
    return {**altered, key: f"{altered[key]}x"}


def pairs(count: int, seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return pairs of argument texts: equal but written differently, and unequal."""
    draw = random.Random(seed)
    calls = [_call(draw) for _ in range(count)]
    equal = [(json.dumps(call), json.dumps(_reworded(call, draw))) for call in calls]
    unequal = [(json.dumps(call), json.dumps(_altered(call, draw))) for call in calls]
    return [pair for pair in equal if pair[0] != pair[1]], unequal


def _compare(texts: list[tuple[str, str]]) -> None:
    for one, two in texts:
        equal_texts(one, two)


def _only_read(texts: list[tuple[str, str]]) -> None:
    loads = orjson.loads
    for one, two in texts:
        loads(one)
        loads(two)


def _deepdiff(texts: list[tuple[str, str]]) -> None:
    for one, two in texts:
        DeepDiff(
            orjson.loads(one),
            orjson.loads(two),
            ignore_order=True,
            ignore_numeric_type_changes=True,
            ignore_string_case=True,
        )


def bench() -> list[Row]:
    """Compare every pair once per run: nothing is cached between pairs."""
    equal, unequal = pairs(PAIRS)
    return [*_rows("equal", equal), *_rows("unequal", unequal)]


def _rows(name: str, texts: list[tuple[str, str]]) -> list[Row]:
    what, some = f"deep comparison, {name} pairs", texts[:PEER_PAIRS]
    return [
        row(what, "orjson.loads", lambda: _compare(texts), lambda: _only_read(texts), 3),
        row(what, "DeepDiff", lambda: _compare(some), lambda: _deepdiff(some), 1 / 60),
    ]
