from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.tables.yamlfile import read_yaml
from stages.tiers.domains import load_domain
from stages.tiers.file import SHIPPED, load_tiers, use_rewards
from stages.tiers.rules import CallFacts, Reward, all_facts
from tests.builders import (
    airline_episodes,
    airline_scored,
    line_of,
    needs_shared,
    scored,
)

ROOT = Path(__file__).resolve().parents[1]

GOOD = """\
match: any
rules:
  - {tier: failed, when: {result: error}}
  - {tier: gold, when: {match: full}}
  - {tier: again, when: {repeat: true}}
  - {tier: other}
  - {tier: talk, when: {call: none}}
rank: [gold, other, again, failed, talk]
rewards: {gold: 1, other: {base: 0.5, share: 0.5, cap: 0.9}, again: 0, failed: -1e-1, talk: 0}
"""


def load(folder: Path, text: str) -> str:
    """The error that tiers of this text raise."""
    path = folder / "t.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_tiers(str(path))
    return line_of(caught).removeprefix(f"{folder}/")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD, encoding="utf-8")
    tiers = load_tiers(str(path))
    assert (tiers.name, tiers.match, tiers.arguments, tiers.tool_rules) == (
        str(path),
        "any",
        "deep",
        False,
    )
    assert tiers.message == "talk"
    assert tiers.rank == ("gold", "other", "again", "failed", "talk")
    assert tiers.rewards["other"] == Reward(0.5, 0.5, 0.9)
    assert tiers.rewards["failed"] == Reward(-0.1)
    assert tiers.table()[CallFacts("partial", "read", "ok", repeat=True)] == "again"


def test_the_shipped_files() -> None:
    # docs/method.md, "Tiers": the tiers in the order of their listing, and the paper's naive
    # rewards.
    listed = {
        "paper": "gold soft read_only state_change error duplicate message",
        # Beside those of the paper, two for tools whose kind nobody states.
        "extended": "gold_write gold_read soft read_only state_change handoff error duplicate "
        "unknown_tool message gold_other other",
        "flat": "gold soft state_change handoff read_only unknown_tool error message",
        "goldless": "write handoff read other unknown_tool error duplicate message",
    }
    assert tuple(listed) == SHIPPED
    for name, tiers in listed.items():
        assert set(load_tiers(name).rank) == set(tiers.split())
        assert load_tiers(name).table().keys() == set(all_facts())
    paper = load_tiers("paper").rewards
    assert [str(paper[tier]) for tier in listed["paper"].split()] == [
        "1",
        "0.5 + 0.5 x share, at most 0.99",
        "0.3",
        "0.1",
        "-0.1",
        "-0.2",
        "0",
    ]


def test_the_default_tiers_in_hard_cases() -> None:
    table = load_tiers("extended").table()
    assert table[CallFacts("full", "write", "error", repeat=False)] == "error"
    assert table[CallFacts("full", "terminal", "ok", repeat=False)] == "handoff"
    assert table[CallFacts("full", "write", "ok", repeat=True)] == "gold_write"
    assert table[CallFacts("full", "read", "ok", repeat=False)] == "gold_read"
    assert (
        table[CallFacts("none", "unknown", "error", repeat=False, exists=False)] == "unknown_tool"
    )
    assert (
        table[CallFacts("partial", "unknown", "ok", repeat=False, exists=False)] == "unknown_tool"
    )
    assert table[CallFacts("full", "unknown", "ok", repeat=False, exists=False)] == "gold_other"
    # A tool that exists is not punished because nobody says what it does.
    assert table[CallFacts("full", "unknown", "ok", repeat=False)] == "gold_other"
    assert table[CallFacts("none", "unknown", "ok", repeat=False)] == "other"
    assert table[CallFacts("none", "unknown", "error", repeat=False)] == "error"
    paper = load_tiers("paper").table()
    assert paper[CallFacts("none", "unknown", "ok", repeat=False)] == "state_change"
    assert paper[CallFacts("none", "unknown", "ok", repeat=False, exists=False)] == "error"
    assert table[CallFacts("partial", "read", "ok", repeat=True)] == "duplicate"


@needs_shared
def test_the_flat_tiers_printed_in_the_docs_give_the_same_turns(tmp_path: Path) -> None:
    """docs/method.md, "Tiers", prints flat.yaml; a user's copy gives the shipped file's turns."""
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    printed = page.partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "flat.yaml"
    path.write_text(printed, encoding="utf-8")
    own, shipped = load_tiers(str(path)), load_tiers("flat")
    assert replace(own, name="flat") == shipped
    frame = scored(*airline_episodes(), tiers=own, domain=load_domain("airline")).frame()
    assert frame.equals(airline_scored("flat").frame())


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "match: any",
            "matches: any",
            "t.yaml:1:1: unknown key 'matches'; did you mean 'match'?",
        ),
        (
            "match: any",
            "match: some",
            "t.yaml:1:8: unknown value 'some'; use 'any' or 'one-to-one'",
        ),
        (
            "match: any",
            "arguments: bfcl",
            "t.yaml:1:12: unknown value 'bfcl'; use 'exact' or 'deep' or 'tau2'",
        ),
        (
            "match: any",
            "tool_rules: often",
            "t.yaml:1:13: expected true or false, found 'often'; correct the file",
        ),
        (
            "gold: 1, ",
            "",
            "t.yaml:9:10: tier 'gold' has no reward; add it to 'rewards'",
        ),
        (
            "gold: 1, ",
            "gold: 1, golf: 1, ",
            "t.yaml:9:20: unknown key 'golf'; did you mean 'gold'?",
        ),
        (
            "gold: 1, ",
            "gold: much, ",
            "t.yaml:9:17: expected a number, found 'much'; correct the file",
        ),
        (
            "gold: 1, ",
            "gold: .nan, ",
            "t.yaml:9:17: expected a finite number, found nan; correct the file",
        ),
        (
            "{base: 0.5, share",
            "{share",
            "t.yaml:9:27: reward without a 'base'; give 'base', and 'share' and 'cap' if needed",
        ),
        (
            "base: 0.5, share",
            "base: 0.5, shares",
            "t.yaml:9:39: unknown key 'shares'; did you mean 'share'?",
        ),
        (
            "again, failed, talk]",
            "again, failed]",
            "t.yaml:8:7: tier 'talk' has no rank; add it to 'rank'",
        ),
        (
            "failed, talk]",
            "failed, gold, talk]",
            "t.yaml:8:36: tier 'gold' occurs twice; remove one of them",
        ),
        (
            "again, failed",
            "agian, failed",
            "t.yaml:8:21: unknown value 'agian'; did you mean 'again'?",
        ),
        (
            "  - {tier: other}\n",
            "  - {tier: other}\n  - {tier: gold, when: {kind: read}}\n",
            "t.yaml:7:5: rule for 'gold' can never apply: earlier rules take all of its calls; "
            "move it up or remove it",
        ),
        (
            "  - {tier: other}\n",
            "  - {tier: other, when: {kind: [read, write, terminal, generic]}}\n",
            "t.yaml:3:3: no rule applies to a call with match: partial, kind: unknown, "
            "result: ok, repeat: false, exists: true; add one",
        ),
        (
            "  - {tier: talk, when: {call: none}}\n",
            "",
            "t.yaml:3:3: no rule for a turn without a call; add 'when: {call: none}'",
        ),
        (
            "{call: none}",
            "{call: none, kind: read}",
            "t.yaml:7:5: 'call: none' must stand alone, in one rule; remove the other condition "
            "or rule",
        ),
        (
            "  - {tier: other}\n",
            "  - {tier: other}\n  - {tier: gold, when: {call: none}}\n",
            "t.yaml:8:5: 'call: none' must stand alone, in one rule; remove the other condition "
            "or rule",
        ),
        (
            "{call: none}",
            "{call: some}",
            "t.yaml:7:31: unknown value 'some'; use 'none'",
        ),
        (
            "{match: full}",
            "{match: fully}",
            "t.yaml:4:32: unknown value 'fully'; did you mean 'full'?",
        ),
        (
            "{match: full}",
            "{mach: full}",
            "t.yaml:4:25: unknown key 'mach'; did you mean 'match'?",
        ),
        (
            "{repeat: true}",
            "{repeat: yes please}",
            "t.yaml:5:34: expected true or false, found 'yes please'; correct the file",
        ),
        (
            "  - {tier: other}\n",
            "  - {when: {kind: read}}\n",
            "t.yaml:6:5: rule without a 'tier'; name the tier",
        ),
        (
            "rank: [gold, other, again, failed, talk]\n",
            "",
            "t.yaml:1:1: no key 'rank'; give 'rules', 'rank' and 'rewards'",
        ),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    assert GOOD.count(old) == 1
    assert load(tmp_path, GOOD.replace(old, new)) == line


def test_an_unknown_name_is_a_missing_file() -> None:
    with pytest.raises(InputError) as caught:
        load_tiers("extented")
    assert line_of(caught) == "extented: no such file; check the path"


def test_rewards_of_a_calibration(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rewards: {gold: 0.7, soft: -0.2}\ntiers: []\n", encoding="utf-8")
    tiers, missing = use_rewards(load_tiers("flat"), read_yaml(str(path)), str(path))
    assert tiers.rewards["gold"] == Reward(0.7)
    assert tiers.rewards["soft"] == Reward(-0.2)
    assert missing == [tier for tier in tiers.rank if tier not in ("gold", "soft")]
    assert {tiers.rewards[tier] for tier in missing} == {Reward(0.0)}
    assert tiers.rules == load_tiers("flat").rules
    assert tiers.pay == "turn"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "rewards:\n  gold: 1\n  golden: 2\n",
            "c.yaml:3:3: reward for unknown tier 'golden'; use a tier of 'flat'",
        ),
        (
            "rewards: {gold: 1}\npay: often\n",
            "c.yaml:2:6: unknown value 'often'; use 'turn' or 'once'",
        ),
        (
            "tiers: []\n",
            "c.yaml: has no 'rewards'; give a calibration.yaml of irc-cli calibrate",
        ),
        ("rewards: {gold: x}\n", "c.yaml:1:17: expected a number, found 'x'; correct the file"),
        ("- 1\n", "c.yaml:1:1: expected keys and values, found a list; correct the file"),
    ],
)
def test_bad_rewards_are_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        use_rewards(load_tiers("flat"), read_yaml(str(path)), str(path))
    assert line_of(caught).removeprefix(f"{tmp_path}/") == line


def test_goldless_is_extended_without_its_tiers_of_gold() -> None:
    """Turns that were scored under the one have tier and reward of the other, once renamed."""
    extended, goldless = load_tiers("extended"), load_tiers("goldless")
    names = extended.as_without_gold(goldless)
    table, theirs = extended.table(), goldless.table()
    for facts, tier in table.items():
        if facts.match == "none":
            assert names[tier] == theirs[facts]
            assert extended.rewards[tier] == goldless.rewards[names[tier]]
    assert names[extended.message] == goldless.message
    assert {*names.values()} == {*goldless.rank}
    assert extended.need_gold() == ["gold_write", "gold_read", "gold_other", "soft"]
    assert goldless.need_gold() == []


def test_tiers_that_another_set_splits_have_no_other_name() -> None:
    with pytest.raises(ValueError, match="a tier of 'paper' is several of 'goldless'"):
        load_tiers("paper").as_without_gold(load_tiers("goldless"))
