"""The wheel: built from the tree, it works elsewhere, with its data files and nothing of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import orjson
import pytest

from examples.trace.generate import TRACE
from irc_cli import __version__
from stages.tiers import domains
from stages.tiers import file as tiersfile

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("README.md", "LICENSE", "pyproject.toml")  # by the build, beside the packages


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the unpacked wheel, as pip would install it but for the script."""
    if missing := [name for name in NEEDED if not (ROOT / name).exists()]:
        pytest.skip(f"no {missing[0]} to build a wheel from")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(  # in this environment, so without network
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    [wheel] = (folder / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def distribution(installed: Path) -> Distribution:
    [found] = distributions(path=[str(installed)])
    return found


def python(installed: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel in the place of this tree."""
    env = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


def test_metadata(distribution: Distribution) -> None:
    assert (distribution.metadata["Name"], distribution.version) == ("irc-cli", __version__)
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    [script] = distribution.entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("irc-cli", "irc_cli.app:main")


def test_the_core_needs_no_training_library(distribution: Distribution) -> None:
    core = {
        re.split(r"[^\w.-]", requirement)[0].lower()
        for requirement in distribution.requires or ()
        if "extra ==" not in requirement
    }
    assert core >= {"typer", "polars"}
    assert not core & {"torch", "transformers", "vllm", "pandas", "tau2"}


def test_only_the_packages_are_inside(installed: Path, distribution: Distribution) -> None:
    top = {path.name for path in installed.iterdir()}
    assert top == {"irc_cli", "stages", "data", f"irc_cli-{__version__}.dist-info"}
    paths = distribution.files or []
    assert not [path for path in paths if {"tests", "shared", "bench"} & {*path.parts}]
    assert not [path for path in paths if path.match("test_*") or path.suffix == ".pyc"]


def test_every_file_of_the_packages_is_inside(installed: Path) -> None:
    for package in ("irc_cli", "stages", "data"):
        files = [
            path
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        assert files
        assert not [path for path in files if not (installed / path.relative_to(ROOT)).exists()]


def test_the_installed_command_finds_its_data(installed: Path, tmp_path: Path) -> None:
    example = installed / "data/examples" / TRACE.name
    score = ("-m", "irc_cli", "score", str(example), "-o", "turns.parquet", "--json")
    ended = python(installed, tmp_path, *score)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert orjson.loads(ended.stdout)["domains"] == {str(example): {"airline": 195}}
    assert (tmp_path / "turns.parquet").exists()


def test_everything_shipped_loads_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import irc_cli, stages, data\n"
        "from stages.tiers import domains, file as tiersfile\n"
        "print(*(module.__file__ for module in (irc_cli, stages, data)))\n"
        "print(*(tiersfile.load_tiers(name).name for name in tiersfile.SHIPPED))\n"
        "print(*(domains.load_domain(name).name for name in domains.SHIPPED))\n"
    )
    ended = python(installed, tmp_path, "-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
    modules, tiers, names = (line.split() for line in ended.stdout.splitlines())
    assert all(Path(module).is_relative_to(installed) for module in modules)
    assert tiers == list(tiersfile.SHIPPED)
    assert names == list(domains.SHIPPED)
