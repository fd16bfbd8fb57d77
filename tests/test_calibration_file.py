from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stages.calibration.estimate import Calibration, TierStatistics
from stages.calibration.file import Previous, read_previous, write_calibration
from stages.core.payment import Values
from stages.errors import InputError
from stages.tables.yamlfile import read_yaml
from stages.tiers.file import load_tiers, use_rewards
from stages.tiers.rules import Reward
from tests.builders import line_of

GOLD = TierStatistics(
    tier="gold",
    turns=30,
    episodes=25,
    r_pooled=0.25,
    r_within=1e-05,
    r_turn=None,
    explained=-0.25,
    excess=0.5,
    ci_low=-0.5,
    ci_high=1.0,
    p=1e-20,
    q=0.1,
    r_cv=0.25,
    r_landmark=None,
    value=1.0,
    status="discriminative",
    more_episodes=None,
    more_low=None,
    more_high=None,
    sign_reversed=False,
    held_back=False,
    necessary=False,
)
SOFT = GOLD._replace(tier="soft", value=-0.1 - 0.2, status="undecided", more_episodes=12)
ODD = GOLD._replace(tier="no", value=0.0, status="neutral")  # a word that YAML 1.1 reads as false
RESULT = Calibration(40, 3, 5, 4, 0.375, "within", "length", [GOLD, SOFT, ODD])
ORIGIN = {"version": "1", "seed": 7, "inputs": {"é.parquet": "00ff"}}


def saved(folder: Path, calibration: Calibration = RESULT) -> str:
    path = str(folder / "calibration.yaml")
    write_calibration(calibration, path, ORIGIN, force=False)
    return path


def test_the_file_says_all_that_was_found(tmp_path: Path) -> None:
    path = saved(tmp_path)
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    assert document == ORIGIN | {
        "episodes": 40,
        "excluded": 3,
        "tasks": 5,
        "pass_rate": 0.375,
        "correlation": "within",
        "adjust": "length",
        "pay": "turn",
        "rewards": {"gold": 1.0, "soft": -0.1 - 0.2, "no": 0.0},  # every digit
        "landmark": None,
        "tiers": [tier._asdict() for tier in RESULT.tiers],
        "strata": [],
    }
    assert list(document)[:3] == ["version", "seed", "inputs"]
    assert Path(path).read_text(encoding="utf-8").startswith("# The rewards are what each tier's")


def test_it_is_read_as_the_previous_one(tmp_path: Path) -> None:
    assert read_previous(saved(tmp_path)) == Previous(
        Values({"gold": 1.0, "soft": -0.1 - 0.2, "no": 0.0}),
        {"gold": "discriminative", "soft": "undecided", "no": "neutral"},
    )


def test_it_sets_the_rewards_of_tiers(tmp_path: Path) -> None:
    path = saved(tmp_path, RESULT._replace(tiers=[GOLD, SOFT]))
    tiers, missing = use_rewards(load_tiers("flat"), read_yaml(path), path)
    assert tiers.rewards["soft"] == Reward(-0.1 - 0.2)
    assert "gold" not in missing and "message" in missing


def test_how_values_are_paid_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path, RESULT._replace(tiers=[GOLD, SOFT], pay="once"))
    assert read_previous(path).values.pay == "once"
    assert use_rewards(load_tiers("flat"), read_yaml(path), path)[0].pay == "once"


def test_a_file_without_a_payment_pays_every_turn(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rewards: {gold: 1}\ntiers: []\n")
    assert read_previous(str(path)).values.pay == "turn"
    assert use_rewards(load_tiers("flat"), read_yaml(str(path)), str(path))[0].pay == "turn"


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(InputError) as caught:
        saved(tmp_path, RESULT._replace(episodes=1))
    assert line_of(caught) == f"{path}: exists already; pass --force to replace it"
    assert "episodes: 40\n" in Path(path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "match: any\n",
            "c.yaml: has no 'rewards' and 'tiers'; give a calibration.yaml of irc-cli calibrate",
        ),
        (
            "- 1\n",
            "c.yaml:1:1: expected keys and values, found a list; correct the file",
        ),
        (
            "rewards: {gold: x}\ntiers: []\n",
            "c.yaml:1:17: expected a number, found 'x'; correct the file",
        ),
        (
            "rewards: {gold: 1}\ntiers:\n  - {tier: gold, value: 1}\n",
            "c.yaml:3:5: has no 'tier' and 'status'; give a calibration.yaml of irc-cli calibrate",
        ),
        (
            "pay: ones\nrewards: {gold: 1}\ntiers: []\n",
            "c.yaml:1:6: unknown value 'ones'; did you mean 'once'?",
        ),
        (
            "rewards: {gold: 1}\ntiers:\n  - {tier: gold, status: 1}\n",
            "c.yaml:3:26: expected text, found 1; put it in quotes",
        ),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_previous(str(path))
    assert line_of(caught).removeprefix(f"{tmp_path}/") == line
