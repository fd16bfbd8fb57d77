from __future__ import annotations

import gzip
import itertools
import json
import math
import random
import re
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.arguments import (
    MODES,
    NO_RULES,
    Difference,
    Mode,
    ToolRules,
    bfcl_answer,
    canonical,
    differences,
    equal,
    equal_texts,
    matched_arguments,
    parse_arguments,
    prepare,
    share,
)
from stages.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / "shared"
many = settings(max_examples=150, deadline=None, derandomize=True)

SCALARS: list[Any] = [
    *(None, "", "  ", True, False, "true", "False", 0, -0.0, "-0", 1, 1.0, "1", "1.0", "1.50", 1.5),
    *("01", "007", "1e5", 1e5, 100000, "6634E6", "429815", 429815, "nan", math.nan, "Infinity"),
    *(math.inf, -math.inf, 0.1, "0.1", "a", "A ", " a", "a  B", "a\nb", "ß", "SS", "é", "\ud800"),
    *(2**53 - 1, 2**53, 2**53 + 1, float(2**53), "9007199254740993", "9007199254740993.0", 10**30),
    *(
        1e30,
        str(10**30),
        "1" + "0" * 22,
        1e22,
        Decimal("1E400"),
        "\uff15",
        "-",
        "'",
        '"',
        "|",
        "[]",
    ),
    *('{"a": [1, "x"]}', ' ["2", 1]', '{"a": null}', "[1, 2", "{a}", "[x]"),
]
KEYS = ["a", "b", "item_ids", "new_item_ids", "A"]
values = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
some_rules = st.sampled_from(
    [
        NO_RULES,
        ToolRules(ignore=frozenset("a"), text=frozenset(["b", "item_ids"])),
        ToolRules(ordered=frozenset(["item_ids"]), booleans=frozenset(["b"])),
        ToolRules(paired=(("a", "b"),), text=frozenset(["new_item_ids"])),
    ]
)


def rewritten(value: Any, draw: random.Random) -> Any:
    """The same arguments, written differently by every rule of `deep`."""
    if isinstance(value, dict):
        keys = draw.sample(list(value), len(value))
        paired = {"item_ids", "new_item_ids"} <= set(keys) and all(
            isinstance(value[key], list) for key in ("item_ids", "new_item_ids")
        )
        together = paired and len(value["item_ids"]) == len(value["new_item_ids"])
        order = draw.sample(range(len(value["item_ids"])), len(value["item_ids"])) if paired else []
        written = {}
        for key in keys:
            item = value[key]
            if together and key in ("item_ids", "new_item_ids"):
                written[key] = [rewritten(item[i], random.Random(0)) for i in order]
            else:
                written[key] = rewritten(item, draw)
        return written | draw.choice([{}, {"unset": None}, {"unset": {"deeper": [], "": " "}}])
    if isinstance(value, list):
        return [rewritten(item, draw) for item in draw.sample(value, len(value))]
    if isinstance(value, str) and value.strip()[:1] in tuple("{["):
        return draw.choice([value, f" {value}\n"])  # keys have a case
    if isinstance(value, str):
        return draw.choice([value, f" {value}\n", value.swapcase() if value.isascii() else value])
    if type(value) is int:
        return draw.choice([value, str(value), f"{value}.00", Decimal(value)])
    return value


def means(value: Any) -> object:
    """A scalar's meaning by docs/method.md, "Comparison of arguments", written apart."""
    if value is None or isinstance(value, bool):
        return value, type(value)
    if isinstance(value, float):
        return Fraction(repr(value)) if math.isfinite(value) else ("float", repr(value))
    if isinstance(value, (int, Decimal)):
        return Fraction(value)
    folded = re.sub(r"\s+", " ", value.strip()).casefold()
    return Fraction(folded) if re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", folded) else folded


def unnested(value: Any) -> Any:
    """The object or list that a text is, with all that it holds; written independently."""
    if isinstance(value, dict):
        return {key: unnested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unnested(item) for item in value]
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            return value
        return unnested(inner) if isinstance(inner, (dict, list)) else value
    return value


def part_as_text(value: Any, draw: random.Random) -> Any:
    """The same value, some of its objects and lists written as JSON text."""
    if isinstance(value, dict):
        value = {key: part_as_text(item, draw) for key, item in value.items()}
    elif isinstance(value, list):
        value = [part_as_text(item, draw) for item in value]
    if isinstance(value, (dict, list)) and draw.random() < 0.5:
        try:
            return json.dumps(value, indent=draw.choice([None, 1]))
        except TypeError:  # a Decimal
            pass
    return value


def reference_equal(one: Any, two: Any) -> bool:
    """`deep` without rules, by trying every order of every list."""
    one, two = unnested(one), unnested(two)
    if isinstance(one, dict) and isinstance(two, dict):
        one, two = ({k: v for k, v in side.items() if not blank(v)} for side in (one, two))
        if one.keys() != two.keys() or not all(reference_equal(one[k], two[k]) for k in one):
            return False
        keys = ("item_ids", "new_item_ids")
        if not all(isinstance(side.get(k), list) for side in (one, two) for k in keys):
            return True
        if len(one[keys[0]]) != len(one[keys[1]]):
            return True
        left, right = (list(zip(*(side[k] for k in keys), strict=True)) for side in (one, two))
        return any(
            all(
                reference_equal(x, y)
                for a, b in zip(left, order, strict=True)
                for x, y in zip(a, b, strict=True)
            )
            for order in itertools.permutations(right)
        )
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and any(
            all(map(reference_equal, one, order)) for order in itertools.permutations(two)
        )
    if isinstance(one, (dict, list)) or isinstance(two, (dict, list)):
        return False
    return means(one) == means(two)


def blank(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(blank, value.values()))
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


# --- the traps of `deep` --------------------------------------------------------------------------

ALIKE: list[tuple[Any, Any]] = [
    (5, 5.0),
    (5, "5"),
    ("5", "5.0"),
    (" 5 ", 5),
    ("-0", 0),
    ("1.50", 1.5),
    ("0.1", 0.1),
    ("New  York", "new york\n"),
    ("STRASSE", "straße"),
    (math.nan, math.nan),
    ("9007199254740993", 9007199254740993),
    ("9007199254740993.0", 9007199254740993),
    (10**30, str(10**30)),
    (10**30, Decimal("1E30")),
    ([1, 2, 2], ["2", 1.0, 2]),
    ({"a": 1, "b": 2}, {"b": "2", "a": 1}),
    ({"a": None, "b": "", "c": [], "d": {}, "e": {"f": {"g": " "}}}, {}),
    ([{"a": None}], [{}]),
    ({"item_ids": [1, 2], "new_item_ids": [3, 4]}, {"item_ids": [2, 1], "new_item_ids": [4, 3]}),
    # Of different lengths, so nothing pairs them.
    (
        {"item_ids": [1, 2, 3], "new_item_ids": [4, 5]},
        {"item_ids": [3, 1, 2], "new_item_ids": [5, 4]},
    ),
]
ALIKE += [
    ({"arguments": '{"id": "a", "n": 1}'}, {"arguments": '{ "n":1.0,\n"id":"A" }'}),
    ({"arguments": '{"id": "a"}'}, {"arguments": {"id": "a"}}),
    ({"arguments": "{}"}, {}),
    ({"arguments": '{"id": null}'}, {"arguments": ""}),
    ({"a": "[1, 2]"}, {"a": ["2", 1]}),
    ({"a": '{"b": "{\\"c\\": [1]}"}'}, {"a": {"b": {"c": "[1]"}}}),
    ({"a": '{"n": 9007199254740993.0}'}, {"a": '{"n": "9007199254740993"}'}),
    ({"a": '{"n": 1e400}'}, {"a": f'{{"n": 1{"0" * 400}}}'}),
    # Lists that are reordered together, one of them or both as text.
    (
        {"item_ids": "[1, 2]", "new_item_ids": [3, 4]},
        {"item_ids": [2, 1], "new_item_ids": "[4, 3]"},
    ),
]
UNLIKE: list[tuple[Any, Any]] = [
    ({"arguments": '{"id": "1e5"}'}, {"arguments": '{"id": 100000}'}),
    ({"arguments": '{"id": "007"}'}, {"arguments": '{"id": 7}'}),
    ({"arguments": '{"id": 1}'}, {"arguments": '{"ID": 1}'}),
    ({"arguments": '{"id": true}'}, {"arguments": '{"id": 1}'}),
    ({"arguments": '{"id": 1'}, {"arguments": {"id": 1}}),
    ({"arguments": "{'id': 1}"}, {"arguments": {"id": 1}}),
    ({"a": '{"n": 9007199254740993}'}, {"a": '{"n": 9007199254740992}'}),
    (
        {"item_ids": "[1, 2]", "new_item_ids": [3, 4]},
        {"item_ids": [1, 2], "new_item_ids": "[4, 3]"},
    ),
    (
        {"item_ids": "[1, 2]", "new_item_ids": [3, 4]},
        {"item_ids": "[1, 2]", "new_item_ids": [4, 3]},
    ),
    ("6634E6", 6634e6),
    ("6634E6", "6634000000"),
    ("429815", "429816"),
    ("007", 7),
    ("007", "7"),
    ("1e5", 100000),
    ("nan", math.nan),
    ("Infinity", math.inf),
    (math.inf, -math.inf),
    ("+5", 5),
    ("5.", 5),
    ("1_000", 1000),
    ("\uff15", 5),
    (True, 1),
    (False, 0),
    ("true", True),
    (None, False),
    (None, {}),
    ("", None),
    ([None], [""]),
    ([None], []),
    ({"a": [None]}, {}),
    ({"a": 0}, {}),
    ({"a": False}, {}),
    ({"a": 1}, {"A": 1}),
    ([1, 1, 2], [1, 2, 2]),
    ([1], 1),
    (9007199254740993, 9007199254740992),
    ("9007199254740993", 9007199254740992),
    (10**30, 10**30 + 1),
    ({"item_ids": [1, 2], "new_item_ids": [3, 4]}, {"item_ids": [1, 2], "new_item_ids": [4, 3]}),
    (
        {"item_ids": ["1", "2"], "new_item_ids": ["3", "4"]},
        {"item_ids": ["2", "1"], "new_item_ids": ["3", "4"]},
    ),
    # Three lists: each pair of them agrees, all three together do not.
    (
        {"x": [1, 1], "new_x": [2, 3], "new_new_x": [4, 5]},
        {"x": [1, 1], "new_x": [2, 3], "new_new_x": [5, 4]},
    ),
]


@pytest.mark.parametrize(
    ("one", "two", "verdict"),
    [(*pair, True) for pair in ALIKE] + [(*pair, False) for pair in UNLIKE],
    ids=repr,
)
def test_deep_survives_every_trap(one: Any, two: Any, verdict: bool) -> None:
    for left, right in ((one, two), (two, one), ({"k": [one, 8]}, {"k": [8, two]})):
        assert equal(left, right) is verdict
        assert (canonical(left) == canonical(right)) is verdict
        assert (differences(left, right) == []) is verdict


@pytest.mark.parametrize(
    ("one", "two", "verdict"),
    [
        ('{"a": 9007199254740993.0}', '{"a": 9007199254740992}', False),
        ('{"a": 9007199254740993.0}', '{"a": "9007199254740993"}', True),
        ('{"a": [1, 9007199254740993.0]}', '{"a": [9007199254740993, 1]}', True),
        ('{"a": 123456789012345678901234567890}', '{"a": 123456789012345678901234567891}', False),
        ('{"a": 123456789012345678901234567890}', '{"a": "123456789012345678901234567890"}', True),
        ('{"a": 1e400}', '{"a": 1e401}', False),
        ('{"a": 1e400}', f'{{"a": 1{"0" * 400}}}', True),
        ('{"a": 1e22}', '{"a": "10000000000000000000000"}', True),
        ('{"a": NaN}', '{"a": NaN}', True),
        ('{"a": NaN}', '{ "a":NaN}', True),
        ('{"a": 1, "a": 2}', '{"a": 2}', True),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": "\\u00e9\\n"}', '{"a": "É"}', True),
        ("{'a': True}", '{"a": true}', True),
        ('"{\\"a\\": 1}"', '{"a": "1"}', True),
        ("", "{}", True),
        ("null", "{}", True),
        ("[]", "{}", False),
        ("nonsense", "nonsense", False),
        ("{", '{"a": 1}', False),
        ("9" * 5000, f'"{"9" * 5000}"', True),
        (f'{{"a": {"9" * 5000}}}', f'{{"a": {"9" * 4999}8}}', False),
    ],
)
def test_texts_are_compared_by_what_they_say(one: str, two: str, verdict: bool) -> None:
    assert equal_texts(one, two) is verdict
    assert equal_texts(two, one) is verdict


@many
@given(objects, some_rules, st.randoms(use_true_random=False))
def test_arguments_as_json_text_are_what_they_hold(
    value: dict[str, Any], rules: ToolRules, draw: random.Random
) -> None:
    inside = {key: part_as_text(item, draw) for key, item in value.items()}
    assert canonical(value, rules) == canonical(inside, rules)
    assert equal(value, inside, rules=rules) and equal(inside, value, rules=rules)
    assert differences(inside, value, rules=rules) == []
    assert prepare(inside, rules).key == prepare(value, rules).key
    assert prepare(inside, rules).items == prepare(value, rules).items


@pytest.mark.parametrize("mode", ["exact", "tau2", "bfcl"])
def test_other_modes_take_nested_arguments_as_text(mode: Mode) -> None:
    one, two = {"arguments": '{"a": 1, "b": 2}'}, {"arguments": '{"b":2,"a":1}'}
    expected = bfcl_answer(one) if mode == "bfcl" else one
    assert not equal(expected, two, mode)
    assert equal(one, two)


def test_differences_within_nested_arguments_have_their_path() -> None:
    one = {"name": "close", "arguments": '{"account_id": "a1", "lines": [1, 2]}'}
    two = {"name": "close", "arguments": '{"lines": [2, 3], "account_id": "a2"}'}
    assert differences(one, two) == [
        Difference("$.arguments.account_id", "a1", "a2", "string folded"),
        Difference("$.arguments.lines[0]", 1, 3, "list without order"),
    ]


def test_nested_arguments_may_be_deep() -> None:
    deep = "[" * 1000 + "{}" + "]" * 1000
    assert equal({"a": deep}, {"a": f" {deep}"})
    assert canonical({"a": deep}) == canonical({"a": parse_arguments(deep).value})
    assert not equal({"a": deep}, {"a": deep.replace("{}", "1")})


def test_white_space_and_case_fold_independently() -> None:
    # The direct comparison folds case first, the canonical text white space first.
    for code in range(sys.maxunicode + 1):
        folded = chr(code).casefold()
        assert any(map(str.isspace, folded)) == chr(code).isspace()


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "value", "problem"),
    [
        ('{"a": 1}', {"a": 1}, None),
        ({"a": 1}, {"a": 1}, None),
        (b'{"a": 1}', {"a": 1}, None),
        (None, {}, None),
        ("", {}, None),
        (" \n", {}, None),
        ("null", {}, None),
        ("[1]", [1], None),
        ('"text"', "text", None),
        ('"{\\"a\\": 1}"', {"a": 1}, None),
        ("\"{'a': 1}\"", {"a": 1}, "python repr"),
        ('{"a": 1, "a": 2}', {"a": 2}, None),
        ('{"a": Infinity}', {"a": math.inf}, None),
        ('{"a": "\\ud800"}', {"a": "\ud800"}, None),
        ('{"a": 18446744073709551616}', {"a": 2**64}, None),
        ('{"a": 1e99999999999999999999}', {"a": math.inf}, None),
        (
            "{'a': True, None: (1, {2}), 1: b'x', True: 1j}",
            {"a": True, "null": [1, [2]], "1": "1j"},
            "python repr",
        ),
        ("{'a': '\\d'}", {"a": "\\d"}, "python repr"),
    ],
)
def test_reads_arguments_as_recorded(raw: Any, value: Any, problem: str | None) -> None:
    parsed = parse_arguments(raw)
    assert parsed == (value, problem)
    assert parsed.readable


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("nonsense", "unparseable: Expecting value: line 1 column 1 (char 0)"),
        ('{"a": 1', "unparseable: Expecting ',' delimiter: line 1 column 8 (char 7)"),
        ("{[]: 1}", "unparseable: Expecting property name enclosed in double quotes"),
        ("\x00", "unparseable: Expecting value"),
        ("-" * 100_000 + "1", "unparseable: Expecting value"),
        ("(" * 100_000, "unparseable: Expecting value"),
        ("[" * 100_000 + "]" * 100_000, "unparseable: nested too deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "unparseable: nested too deep"),
        (b"\xff", "unparseable: not UTF-8"),
    ],
    ids=range(9),
)
def test_reports_what_it_cannot_read(raw: Any, problem: str) -> None:
    parsed = parse_arguments(raw)
    assert parsed.value is None
    assert parsed.problem is not None
    assert parsed.problem.startswith(problem)
    assert not parsed.readable


@given(st.one_of(st.text(), st.binary(), st.text("{}[]:,'\"\\ue019-.aNn \n", max_size=30)))
@many
def test_reading_never_raises(raw: str | bytes) -> None:
    parsed = parse_arguments(raw)
    assert parsed.readable or parsed.value is None


@given(objects, st.randoms(use_true_random=False))
@many
def test_writing_again_changes_nothing(value: dict[str, Any], draw: random.Random) -> None:
    value = json.loads(json.dumps(value, default=str))  # no Decimal
    texts = [
        json.dumps(value),
        json.dumps(value, separators=(",", ":"), ensure_ascii=False),
        json.dumps(value, indent=2, sort_keys=True),
        json.dumps(json.dumps(value)),
    ]
    if "Infinity" not in json.dumps(value).replace('"Infinity"', "") and "NaN" not in texts[0]:
        texts.append(repr(value))
        if "\\ud800" not in texts[0] and not re.search(r"\d{20}", texts[0]):
            texts.append(orjson.dumps(value).decode())
    for text in texts:
        assert canonical(parse_arguments(text).value) == canonical(value)
        assert equal_texts(texts[0], text)
        assert equal_texts(text, draw.choice(texts))


# --- deep is an equivalence relation, and all its forms agree -------------------------------------


@given(values, values, st.randoms(use_true_random=False))
@many
def test_deep_equals_trying_every_order(one: Any, two: Any, draw: random.Random) -> None:
    for other in (two, rewritten(one, draw)):
        verdict = reference_equal(one, other)
        assert equal(one, other) is verdict
        assert (canonical(one) == canonical(other)) is verdict


@given(values, st.randoms(use_true_random=False))
@many
def test_rewriting_keeps_the_meaning(value: Any, draw: random.Random) -> None:
    again = rewritten(value, draw)
    assert equal(value, value)
    assert equal(value, again)
    assert equal(again, value)
    assert canonical(value) == canonical(again)


@given(st.lists(values, min_size=3, max_size=3), st.randoms(use_true_random=False), some_rules)
@many
def test_deep_is_symmetric_and_transitive(
    three: list[Any], draw: random.Random, rules: ToolRules
) -> None:
    three += [rewritten(draw.choice(three), draw) for _ in range(2)]
    verdict = [[equal(a, b, rules=rules) for b in three] for a in three]
    for i, j, k in itertools.product(range(5), repeat=3):
        assert verdict[i][j] is verdict[j][i]
        assert verdict[i][k] or not (verdict[i][j] and verdict[j][k])


@given(objects, objects, st.randoms(use_true_random=False))
@many
def test_texts_and_values_agree(
    one: dict[str, Any], two: dict[str, Any], draw: random.Random
) -> None:
    left = json.dumps(one, default=str)
    for other in (two, rewritten(one, draw)):
        right = json.dumps(other, default=str)
        verdict = canonical(parse_arguments(left).value) == canonical(parse_arguments(right).value)
        assert equal_texts(left, right) is verdict


@given(values, values, st.sampled_from(MODES), some_rules, st.sampled_from([None, (), ("a",)]))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_differences_are_none_exactly_when_equal(
    one: Any, two: Any, mode: Mode, rules: ToolRules, compare_args: tuple[str, ...] | None
) -> None:
    for other in (two, one, rewritten(one, random.Random(0))):
        found = differences(one, other, mode, rules=rules, compare_args=compare_args)
        assert (not found) is equal(one, other, mode, rules=rules, compare_args=compare_args)


@given(objects, objects, some_rules, st.randoms(use_true_random=False))
@many
def test_share_counts_equal_arguments(
    gold: dict[str, Any], call: dict[str, Any], rules: ToolRules, draw: random.Random
) -> None:
    call = {**call, **dict(draw.sample(list(gold.items()), len(gold) // 2))}
    prepared = prepare(gold, rules), prepare(call, rules)
    assert (prepared[0].key == prepared[1].key) is equal(gold, call, rules=rules)
    assert prepared[0].key == canonical(gold, rules)
    if prepared[0].key != prepared[1].key:
        matched = matched_arguments(gold, call, rules=rules)
        assert share(*prepared) == matched / max(len(prepared[0].items), 1)


def test_share_by_hand() -> None:
    gold = prepare({"a": 1, "b": "X", "note": "", "c": [1, 2]})
    assert share(gold, prepare({"a": "1", "b": "y", "c": [2, 1], "d": 4})) == pytest.approx(2 / 3)
    assert share(gold, prepare({"note": ""})) == 0
    assert share(prepare({}), prepare({"a": None})) == 1
    assert share(prepare({}), prepare({"a": 1})) == 0
    assert share(prepare(None), prepare({})) == 0  # arguments that could not be read


def test_200_000_random_values_without_crash_or_hang() -> None:
    draw = random.Random(20260402)
    pick = draw.random

    def value(depth: int) -> Any:
        if depth == 0 or pick() < 0.4:
            return SCALARS[int(pick() * len(SCALARS))]
        size = int(pick() * 3)
        if pick() < 0.5:
            return [value(depth - 1) for _ in range(size)]
        return {KEYS[int(pick() * len(KEYS))]: value(depth - 1) for _ in range(size)}

    last, last_form, equals = None, canonical(None), 0
    for _ in range(200_000):
        item = value(4)
        form = canonical(item)
        verdict = equal(last, item)
        assert verdict is (last_form == form)
        equals += verdict
        last, last_form = item, form
    assert 1_000 < equals < 100_000  # both verdicts were met


# --- depth ----------------------------------------------------------------------------------------


def nested(depth: int, leaf: object, *, in_objects: bool) -> Any:
    value = leaf
    for _ in range(depth):
        value = {"a": value} if in_objects else [value]
    return value


@pytest.mark.parametrize("in_objects", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_1000_levels_work(mode: Mode, in_objects: bool) -> None:
    one, same, other = ({"k": nested(1_000, x, in_objects=in_objects)} for x in (1, 1.0, 2))
    expected = bfcl_answer(one) if mode == "bfcl" else one
    assert equal(expected, same, mode)
    assert not equal(expected, other, mode)
    assert differences(expected, same, mode) == []
    assert len(differences(expected, other, mode)) == 1
    assert share(prepare(one), prepare(same)) == 1
    assert matched_arguments(expected, same, mode) == 1


@pytest.mark.parametrize(("head", "tail"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [1_000, 1_100])  # orjson reads 1,024 levels
@pytest.mark.parametrize("leaf", ["1", "NaN"])
def test_texts_of_1000_levels_work(head: str, tail: str, depth: int, leaf: str) -> None:
    text = head * depth + leaf + tail * depth
    assert parse_arguments(text).problem is None
    limit = sys.getrecursionlimit()
    assert equal_texts(text, f" {text}")
    assert not equal_texts(text, head * depth + "8" + tail * depth)
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize("in_objects", [False, True])
def test_100_000_levels_are_reported(in_objects: bool) -> None:
    one, two = (nested(100_000, x, in_objects=in_objects) for x in (1, 2))
    line = "arguments: nested too deep to compare; flatten them to 1,000 levels"
    for compare in (equal, differences, lambda one, two: share(prepare(one), prepare(two))):
        with pytest.raises(InputError) as error:
            compare(one, two)
        assert str(error.value) == line


# --- rules of a tool ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "one", "two", "verdict"),
    [
        (ToolRules(ignore=frozenset(["summary"])), {"summary": "x"}, {}, True),
        (ToolRules(ignore=frozenset(["summary"])), {"a": {"summary": "x"}}, {}, True),
        (ToolRules(ordered=frozenset("a")), {"a": [1, 2]}, {"a": [2, 1]}, False),
        (ToolRules(ordered=frozenset("a")), {"a": [1, 2]}, {"a": ["1", 2.0]}, True),
        (ToolRules(ordered=frozenset("a")), {"b": [1, 2]}, {"b": [2, 1]}, True),
        (ToolRules(booleans=frozenset("a")), {"a": "True"}, {"a": True}, True),
        (ToolRules(booleans=frozenset("a")), {"a": 1}, {"a": True}, False),
        (ToolRules(booleans=frozenset("a")), {"b": "true"}, {"b": True}, False),
        (ToolRules(text=frozenset("a")), {"a": "429815"}, {"a": "429815.0"}, False),
        (ToolRules(text=frozenset("a")), {"a": "429815"}, {"a": 429815}, True),
        (ToolRules(text=frozenset("a")), {"a": ["5"]}, {"a": [5.0]}, False),
        (ToolRules(text=frozenset("a")), {"a": "1" + "0" * 5000}, {"a": 10**5000}, True),
        (ToolRules(text=frozenset("a")), {"a": "AB c"}, {"a": "ab  C"}, True),
        (
            ToolRules(paired=(("a", "b"),)),
            {"a": [1, 2], "b": [3, 4]},
            {"a": [1, 2], "b": [4, 3]},
            False,
        ),
        (
            ToolRules(paired=(("a", "b"),)),
            {"a": [1, 2], "b": [3, 4]},
            {"a": [2, 1], "b": [4, 3]},
            True,
        ),
        (  # what is ignored pairs nothing
            ToolRules(paired=(("x", "y"),), ignore=frozenset("x")),
            {"x": [0, 0], "new_x": [1, 2], "y": [3, 4]},
            {"x": [], "new_x": [1, 2], "y": [4, 3]},
            True,
        ),
        (
            ToolRules(paired=(("a", "b"),), ordered=frozenset("b")),
            {"a": [1, 2], "b": [3, 4]},
            {"a": [2, 1], "b": [4, 3]},
            False,
        ),
    ],
)
def test_rules(rules: ToolRules, one: Any, two: Any, verdict: bool) -> None:
    assert equal(one, two, rules=rules) is verdict
    assert equal(two, one, rules=rules) is verdict
    assert (differences(one, two, rules=rules) == []) is verdict


# --- the other modes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "verdict"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1.0}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": [False]}, {"a": [0]}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": "5"}, {"a": 5}, False),
        ({"a": "x"}, {"a": "X"}, False),
        ({"a": None}, {}, False),
        ({"a": math.nan}, {"a": float("nan")}, True),
    ],
)
def test_exact(one: Any, two: Any, verdict: bool) -> None:
    assert equal(one, two, "exact") is verdict
    assert equal(two, one, "exact") is verdict


# The rule of `Action.compare_with_tool_call` in sierra-research/tau2-bench, data_model/tasks.py.
@pytest.mark.parametrize(
    ("expected", "actual", "compare_args", "verdict"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, None, True),  # the keys of the call
        ({"a": 1}, {"a": 1, "b": 2}, None, False),
        ({"a": 1}, {}, None, True),  # no keys to compare
        ({"a": 1}, {"a": 2}, [], True),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ["a"], True),
        ({"a": 1, "b": 2}, {"b": 2}, ["a"], False),
        ({"b": 2}, {"b": 3}, ["a"], True),
        ({"a": True}, {"a": 1.0}, None, True),  # plain Python equality
        ({"a": [1, 2]}, {"a": [2, 1]}, None, False),
        ({"a": "x"}, {"a": "X"}, None, False),
    ],
)
def test_tau2(expected: Any, actual: Any, compare_args: list[str] | None, verdict: bool) -> None:
    assert equal(expected, actual, "tau2", compare_args=compare_args) is verdict


# "April 1, 2024 vs April 1,2024, vs April 1 2024" is the example of the checker's own docstring.
@pytest.mark.parametrize(
    ("expected", "actual", "verdict"),
    [
        ({"date": ["April 1, 2024"]}, {"date": "april 1,2024"}, True),
        ({"date": ["April 1, 2024"]}, {"date": "April 1 2024"}, True),
        ({"q": ["it's"]}, {"q": 'IT"S'}, True),
        ({"a": [1, 2]}, {"a": 2}, True),
        ({"a": 2}, {"a": 2}, True),
        ({"a": [1, 2]}, {"a": 3}, False),
        ({"a": [5.0]}, {"a": 5}, True),
        ({"a": [5]}, {"a": 5.0}, False),
        ({"a": [1]}, {"a": True}, False),
        ({"a": [1]}, {"a": "1"}, False),
        ({"a": [1, ""]}, {}, True),
        ({"a": [1, ""]}, {"a": ""}, False),
        ({"a": ["x", ""]}, {"a": ""}, True),
        ({"a": [""]}, {"a": ""}, True),
        ({"a": [1]}, {}, False),
        ({}, {"a": 1}, False),
        ({"a": [["x", "Y"]]}, {"a": ["X", "y"]}, True),
        ({"a": [["x", "y"]]}, {"a": ["y", "x"]}, False),
        ({"a": [["x"], ["y"]]}, {"a": ["y"]}, True),
        ({"a": [[1]]}, {"a": [True]}, False),
        ({"a": [{"b": [1, 2], "c": ["z", ""]}]}, {"a": {"b": 2}}, True),
        ({"a": [{"b": [1, 2]}]}, {"a": {"b": 2, "c": 1}}, False),
        ({"a": [{"b": [1, 2]}]}, {"a": {}}, False),
        ({"a": [[{"b": ["X"]}, {"b": ["Y"]}]]}, {"a": [{"b": "x"}, {"b": "y"}]}, True),
        ({"a": [[{"b": ["X"]}, {"b": ["Y"]}]]}, {"a": [{"b": "y"}, {"b": "x"}]}, False),
    ],
)
def test_bfcl(expected: Any, actual: Any, verdict: bool) -> None:
    assert equal(expected, actual, "bfcl") is verdict


def test_plain_arguments_as_a_bfcl_answer() -> None:
    plain = {"a": 1, "f": [{"n": "HAT1"}], "p": {"zip": "1", "geo": {"x": 1}}, "i": [1, 2], "e": []}
    answer = bfcl_answer(plain)
    assert answer == {
        "a": [1],
        "f": [[{"n": ["HAT1"]}]],
        "p": [{"zip": ["1"], "geo": [{"x": 1}]}],
        "i": [[1, 2]],
        "e": [[]],
    }
    assert equal(answer, plain, "bfcl")


def test_an_unknown_mode_is_refused() -> None:
    for function in (equal, differences):
        with pytest.raises(ValueError, match="unknown mode 'near'; one of exact, deep, tau2, bfcl"):
            function({}, {}, "near")  # type: ignore[arg-type]  # the mode is wrong on purpose


# --- explanations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "found"),
    [
        ({"a": "x"}, {"a": "y"}, [("$.a", "x", "y", "string folded")]),
        ({"a": 1}, {"a": "2.0"}, [("$.a", 1, "2.0", "number")]),
        ({"a": 6634e6}, {"a": "6634E6"}, [("$.a", 6634e6, "6634E6", "text is no number")]),
        ({"a": True}, {"a": 1}, [("$.a", True, 1, "boolean only equals boolean")]),
        ({"a": [1]}, {"a": 1}, [("$.a", [1], 1, "different types")]),
        ([None], [0], [("$[0]", None, 0, "null is no value")]),
        ({"a b": 1}, {}, [("$['a b']", 1, None, "missing key")]),
        ({"a": None}, {"a": 1}, [("$.a", None, 1, "extra key")]),
        ({"a": [1, 2]}, {"a": [2]}, [("$.a[0]", 1, None, "missing element")]),
        (
            {"a": [1]},
            {"a": [3, 1, 4]},
            [("$.a[0]", None, 3, "extra element"), ("$.a[2]", None, 4, "extra element")],
        ),
        ({"a": [1, 2, 3]}, {"a": [4, 3, 1]}, [("$.a[1]", 2, 4, "list without order")]),
        (
            # Each flight is shown against the one most like it, wherever that stands.
            {"flights": [{"n": "HAT1", "d": "05-20", "c": 1}, {"n": "HAT2", "d": "05-21", "c": 1}]},
            {"flights": [{"n": "HAT2", "d": "05-22", "c": 1}, {"n": "HAT1", "d": "05-23", "c": 1}]},
            [
                ("$.flights[0].d", "05-20", "05-23", "string folded"),
                ("$.flights[1].d", "05-21", "05-22", "string folded"),
            ],
        ),
        (
            {"item_ids": [1, 2], "new_item_ids": [3, 4]},
            {"item_ids": [2, 1], "new_item_ids": [3, 4]},
            [
                ("$.new_item_ids[0]", 3, 4, "paired lists"),
                ("$.new_item_ids[1]", 4, 3, "paired lists"),
            ],
        ),
    ],
)
def test_explains_the_smallest_differences(one: Any, two: Any, found: list[Any]) -> None:
    assert differences(one, two) == [Difference(*each) for each in found]


def test_explains_the_other_modes() -> None:
    one, two = {"a": [1, True], "b": 1}, {"a": [1, 1], "c": 1}
    assert differences(one, two, "exact") == [
        Difference("$.a[1]", True, 1, "exact value"),
        Difference("$.b", 1, None, "missing key"),
        Difference("$.c", None, 1, "extra key"),
    ]
    assert differences(one, two, "tau2") == [Difference("$.c", None, 1, "extra key")]
    assert differences({"a": ["x", "y"], "b": [1]}, {"a": "z", "c": 1}, "bfcl") == [
        Difference("$.a", ["x", "y"], "z", "allowed values"),
        Difference("$.b", [1], None, "missing key"),
        Difference("$.c", None, 1, "extra key"),
    ]
    rules = ToolRules(text=frozenset("a"))
    assert differences({"a": "5"}, {"a": "5.0"}, rules=rules)[0].rule == "text, not a number"


def test_long_lists_are_explained_quickly() -> None:
    one, two = ({"a": [{"i": i + shift, "k": 0} for i in range(3_000)]} for shift in (0, 5_000))
    assert len(differences(one, two)) == 3_000


# --- real traces ----------------------------------------------------------------------------------


def shared(name: str) -> Any:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared")
    data = path.read_bytes()
    return orjson.loads(gzip.decompress(data) if name.endswith(".gz") else data)


@pytest.mark.parametrize("name", ["airline-grok-4", "retail-gpt-4.1", "telecom-grok-3"])
def test_tau2_agrees_with_every_recorded_verdict(name: str) -> None:
    checked = 0
    for simulation in shared(f"tau2-traces/{name}.json.gz")["simulations"]:
        calls = [c for m in simulation["messages"] for c in m.get("tool_calls") or []]
        for check in simulation["reward_info"].get("action_checks") or []:
            action = check["action"]
            matched = any(
                call["name"] == action["name"]
                and equal(
                    action["arguments"],
                    call["arguments"],
                    "tau2",
                    compare_args=action.get("compare_args"),
                )
                for call in calls
            )
            assert matched is check["action_match"]
            checked += 1
    assert checked >= 10


def test_finds_the_gold_calls_of_tau_bench() -> None:
    # docs/method.md, "Reference figures": 397 of the 1,164 calls are gold, as many by `exact` as by
    # `deep`.
    calls = found = 0
    for episode in shared("tau-bench/gpt-4o-airline.json"):
        gold = [(a["name"], a["kwargs"]) for a in episode["info"]["task"]["actions"]]
        for message, result in itertools.pairwise(episode["traj"]):
            for call in message.get("tool_calls") or []:
                calls += 1
                name, raw = call["function"]["name"], call["function"]["arguments"]
                matches = [
                    equal(arguments, parse_arguments(raw).value, mode)
                    for mode in ("exact", "deep")
                    for tool, arguments in gold
                    if tool == name
                ]
                half = len(matches) // 2
                assert any(matches[:half]) == any(matches[half:])
                found += any(matches) and not result["content"].startswith("Error")
    assert (calls, found) == (1164, 397)
