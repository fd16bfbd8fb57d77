from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.calibration.shards import sum_file
from stages.errors import InputError
from stages.tables.artifacts import SUMS, TURNS
from stages.tables.paths import files_of, remote
from stages.tables.table_file import made_by, read_table, scan_table
from tests.builders import Tiered, line_of, turn_frame
from tests.conftest import Cli
from tests.object_store import ObjectStore

NAMES = ("turns/a.parquet", "turns/b.parquet", "turns/deep/c.parquet")
SHARDS = [
    turn_frame([Tiered(f"t{i % 3}", float(i % 2), "ab"[i % 2] * (1 + i % 4))], first=i)
    for i in range(3)
]
TODO = "check the address, and the credentials in the environment"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in objects().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def objects() -> dict[str, bytes]:
    found = {"turns/_SUCCESS": b"", "turns/notes.txt": b"no Parquet", "else/x.parquet": b"PAR1"}
    for name, turns in zip(NAMES, SHARDS, strict=True):
        content = io.BytesIO()
        turns.write_parquet(
            content, metadata={"irc-cli": '{"summary": {"excluded_without_turns": 2}}'}
        )
        found[name] = content.getvalue()
    return found


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with ObjectStore(objects(), user="anne") as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "nowhere-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "anne")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield store


PATTERNS = [
    ("turns/a.parquet", NAMES[:1]),
    ("turns/*.parquet", NAMES[:2]),
    ("turns/[bc].parquet", NAMES[1:2]),
    ("turns/**/*.parquet", NAMES),
]


@pytest.mark.parametrize(("path", "files"), [*PATTERNS, ("turns", NAMES), ("turns/", NAMES)])
def test_files_folders_and_patterns(folder: Path, path: str, files: tuple[str, ...]) -> None:
    assert files_of([path]) == list(files)
    assert files_of([f"{folder}/{path}"]) == [f"{folder}/{file}" for file in files]


@pytest.mark.parametrize(("path", "files"), [*PATTERNS, ("turns/", NAMES)])
def test_object_stores(s3: ObjectStore, path: str, files: tuple[str, ...]) -> None:
    assert files_of([f"s3://bucket/{path}"]) == [f"s3://bucket/{file}" for file in files]


def test_google_speaks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with ObjectStore(objects()) as store:
        account = {"gcs_base_url": store.url, "disable_oauth": True, "client_email": ""}
        account |= {"private_key": "", "private_key_id": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
        found = files_of(["gs://bucket/turns/"])
        assert found == [f"gs://bucket/{name}" for name in NAMES]
        assert read_table(TURNS, found[1]).equals(SHARDS[1])


def test_what_is_named_stays_in_its_order(folder: Path) -> None:
    (folder / "turns/[b].parquet").touch()
    paths = ["-", "turns/[b].parquet", "missing.parquet", "turns/b.parquet", "turns/a.parquet"]
    assert files_of(paths) == paths


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("none/*.parquet", "none/*.parquet: a pattern that no file fits; check the path"),
        ("else/deep", "else/deep: a folder without Parquet files; check the path"),
    ],
)
def test_nothing_there(folder: Path, path: str, line: str) -> None:
    (folder / "else/deep").mkdir()
    with pytest.raises(InputError) as caught:
        files_of([path])
    assert line_of(caught) == line


def test_nothing_in_the_store(s3: ObjectStore) -> None:
    for path, what in [
        ("s3://bucket/none/", "a folder without Parquet files"),
        ("s3://bucket/none/*.parquet", "a pattern that no file fits"),
    ]:
        with pytest.raises(InputError) as caught:
            files_of([path])
        assert line_of(caught) == f"{path}: {what}; check the path"


def test_tables_in_a_store(s3: ObjectStore) -> None:
    address = "s3://bucket/turns/a.parquet"
    assert read_table(TURNS, address).equals(SHARDS[0])
    lazy = scan_table(TURNS, address)
    assert lazy is not None and lazy.collect().equals(SHARDS[0])
    assert made_by(address) == {"summary": {"excluded_without_turns": 2}}
    summed = sum_file(address, "presence")
    assert (summed.excluded, summed.sums.schema) == (2, SUMS.columns)


@pytest.mark.parametrize("path", ["turns/zzz.parquet", "turns/notes.txt"])
def test_unreadable_objects_are_one_line(s3: ObjectStore, path: str) -> None:
    address = f"s3://bucket/{path}"
    with pytest.raises(InputError) as caught:
        scan_table(TURNS, address)
    assert line_of(caught).startswith(f"{address}: not readable as Parquet: ")
    assert line_of(caught).endswith(TODO)


def test_strangers_are_refused(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "user", "eve")
    with pytest.raises(InputError) as caught:
        files_of(["s3://bucket/turns/"])
    assert line_of(caught).startswith("s3://bucket/turns/**/*.parquet: not readable as Parquet: ")
    assert "403" in line_of(caught)


def test_calibrating_from_a_store_equals_files(run: Cli, s3: ObjectStore, folder: Path) -> None:
    assert run("calibrate", "s3://bucket/turns/", "--partial", "-o", "far").code == 0
    assert run("calibrate", "turns", "--partial", "-o", "near").code == 0
    assert read_table(SUMS, "far").equals(read_table(SUMS, "near"))
    assert made_by("far")["summary"] == made_by("near")["summary"]
    assert made_by("far")["summary"]["excluded"] == 6
    assert made_by("far")["inputs"] == [
        {"path": f"s3://bucket/{name}", "sha256": None} for name in NAMES
    ]
    assert not any(request.startswith("PUT") for request in s3.requests)
    assert remote("gs://bucket/x") and not remote("turns/x")


def test_a_store_has_no_digest_to_follow_online(run: Cli) -> None:
    result = run("calibrate", "s3://bucket/turns.parquet", "--online", "state")
    assert (result.code, result.err) == (
        2,
        "error: --online: recognises turns by their sha256, which needs a local file; "
        "copy them from the object store first\n",
    )
