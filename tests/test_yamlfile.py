from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.tables.yamlfile import Node, nearest, parse_yaml, read_yaml, unknown_key

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text("abc -:#'\"", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def error_of(text: str, *, where: str = "f.yaml") -> str:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, where)
    return str(caught.value)


def test_every_value_and_key_knows_its_place() -> None:
    root = parse_yaml("name: x\nrules:\n  - {tier: gold, when: {match: full}}\n", "f.yaml")
    rule = root.value["rules"].value[0]
    assert root.where == "f.yaml:1:1"
    assert root.keys == {"name": "f.yaml:1:1", "rules": "f.yaml:2:1"}
    assert rule.value["when"].where == "f.yaml:3:24"
    assert rule.value["when"].value["match"].where == "f.yaml:3:32"
    assert rule.value["when"].keys["match"] == "f.yaml:3:25"


@given(PLAIN)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plain_gives_what_yaml_itself_loads(value: Any) -> None:
    import yaml

    assert parse_yaml(yaml.safe_dump(value), "f.yaml").plain() == value


def test_keys_are_text_as_written() -> None:
    assert parse_yaml("no: 1\n1: 2\n1e3: 3\n", "f").plain() == {"no": 1, "1": 2, "1e3": 3}


def test_an_empty_file_is_null() -> None:
    assert parse_yaml("# nothing\n", "f.yaml") == Node(None, "f.yaml:1:1", {})


def test_an_alias_is_the_value_it_names() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: *x\n", "f").plain() == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: key 'a' occurs twice; remove one of them"),
        ("a: [1\nb: 2\n", "f.yaml:2:2: not good YAML (did not find expected ',' or ']'); correct"),
        ("a: \tb: c\n", "f.yaml:1:6: not good YAML (mapping values are not allowed in this conte"),
        ("? [1, 2]\n: x\n", "f.yaml:1:3: a key that is not text; use a plain key"),
        ("&x a: *x\nb: &y [*y]\n", "f.yaml:2:4: a value that holds itself; remove the alias"),
        ("a: *x\n", "f.yaml:1:4: not good YAML (found undefined alias); correct it"),
        ("a: !!python/object:os.x 1\n", "f.yaml:1:4: not good YAML (could not determine a constr"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: not good YAML (but found another document); correct it"),
        (
            "a: 2024-13-45\n",
            "f.yaml:1:4: not good YAML (month must be in 1..12); put the value in quo",
        ),
        ("a: \x00\n", "f.yaml: not good YAML (unacceptable character"),
        ("[" * 900 + "]" * 900, "f.yaml:1:99: nested too deep; flatten it"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(text: str, line: str) -> None:
    assert error_of(text).startswith(line)
    assert "\n" not in error_of(text)


def test_accessors_say_what_they_expected() -> None:
    root = parse_yaml("a: 1\nb: text\nc: [1, x]\nd: {k: v}\ne:\nf: 1e-4\n", "f.yaml")
    fields = root.fields()
    assert fields["a"].number() == 1 and fields["f"].number() == 1e-4
    assert fields["b"].text() == "text"
    assert [item.plain() for item in fields["c"].items()] == [1, "x"]
    assert fields["b"].items() == [fields["b"]]
    assert fields["b"].one_of(["text", "number"]) == "text"
    calls = [
        (lambda: fields["a"].text(), "f.yaml:1:4: expected text, found 1; put it in quotes"),
        (lambda: fields["b"].number(), "f.yaml:2:4: expected a number, found 'text'; correct the"),
        (lambda: fields["c"].fields(), "f.yaml:3:4: expected keys and values, found a list; cor"),
        (lambda: fields["d"].items(), "f.yaml:4:4: expected a list, found keys and values; corr"),
        (lambda: fields["e"].items(), "f.yaml:5:3: expected a list, found nothing; correct the f"),
        (lambda: fields["b"].one_of(["texts"]), "f.yaml:2:4: unknown value 'text'; did you mean"),
        (lambda: fields["a"].one_of(["x", "y"]), "f.yaml:1:4: unknown value '1'; use 'x' or 'y'"),
    ]
    for call, line in calls:
        with pytest.raises(InputError) as caught:
            call()  # type: ignore[no-untyped-call]  # a lambda in a list has no type
        assert str(caught.value).startswith(line)


def test_an_unknown_key_names_the_nearest() -> None:
    root = parse_yaml("name: x\nrequird: 1\n", "data/tools.yaml")
    with pytest.raises(InputError) as caught:
        root.fields(("name", "required"))
    assert str(caught.value) == (
        "data/tools.yaml:2:1: unknown key 'requird'; did you mean 'required'?"
    )
    assert str(unknown_key("f", "zzz", ["name"])) == "f: unknown key 'zzz'; use 'name'"
    assert nearest("alfa", ["alpha", "beta"]) == "did you mean 'alpha'?"


def test_reading_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: é\n", encoding="utf-8")
    assert read_yaml(str(tmp_path / "a.yaml")).plain() == {"a": "é"}
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\n")
    for name, what in [
        ("none.yaml", "no such file; check the path"),
        ("b.yaml", "not UTF-8 text; give a YAML file"),
        ("", "can't be read (is a directory); check the path"),
    ]:
        path = str(tmp_path / name)
        with pytest.raises(InputError) as caught:
            read_yaml(path)
        assert str(caught.value) == f"{path}: {what}"


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
TOO_MANY = "aliases that stand for more than 1,000,000 values; write out what is needed"
BAD = "put the value in quotes"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, f"f.yaml:6:5: {TOO_MANY}"),
        (BOMB.replace("&a0 [", "&a0 [{<<: 1}, "), f"f.yaml:6:5: {TOO_MANY}"),
        ("a: !!bool maybe\n", f"f.yaml:1:4: not good YAML ('maybe' is no bool); {BAD}"),
        ("a: !!timestamp x\n", f"f.yaml:1:4: not good YAML ('x' is no timestamp); {BAD}"),
        ("a: !!int ''\n", f"f.yaml:1:4: not good YAML ('' is no int); {BAD}"),
        ("a: !!binary aGk=\n", f"f.yaml:1:4: not good YAML (a value that is no text); {BAD}"),
        ("9" * 5000, f"f.yaml:1:1: not good YAML (a number of 5,000 characters); {BAD}"),
        ("0x" + "f" * 5000, f"f.yaml:1:1: not good YAML (a number of 5,002 characters); {BAD}"),
        (":".join("1" * 5000), f"f.yaml:1:1: not good YAML (a number of 9,999 characters); {BAD}"),
        ("{a: " * 100_000, "f.yaml:1:393: nested too deep; flatten it"),
        ("- " * 100_000, "f.yaml:1:197: nested too deep; flatten it"),
        ("a: \ud800", "f.yaml: not UTF-8 text; give a YAML file"),
        ("? !!binary x\n: 1\n? x\n: 1\n", "f.yaml:3:3: key 'x' occurs twice; remove one of"),
    ],
)
def test_yaml_that_would_hang_or_crash_is_one_line(text: str, line: str) -> None:
    assert error_of(text).startswith(line)


def test_aliases_of_a_usual_size_are_read() -> None:
    shared = "a: &a [" + "1, " * 1000 + "1]\n" + "".join(f"b{n}: *a\n" for n in range(900))
    assert len(parse_yaml(shared, "f").plain()) == 901


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e999", "9" * 400, "true", "x"])
def test_a_number_is_finite(number: str) -> None:
    node = parse_yaml(f"a: {number}", "f.yaml").fields()["a"]
    with pytest.raises(InputError, match=r"^f.yaml:1:4: expected a (finite )?number, found"):
        node.number()


def test_nothing_else_reads_yaml() -> None:
    """What PyYAML hangs or crashes on is told in one place."""
    root = Path(__file__).resolve().parents[1]
    sources = [path for part in ("stages", "irc_cli") for path in (root / part).rglob("*.py")]
    reads = re.compile(r"yaml\.\w*(load|parse|compose)")
    assert {path.name for path in sources if reads.search(path.read_text())} == {"yamlfile.py"}
