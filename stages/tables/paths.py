"""Resolve the paths of tables that users give: files, folders, patterns, object stores."""

from __future__ import annotations

from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

import polars as pl

from stages.errors import InputError
from stages.tables.files import reachable
from stages.tables.inputs import SIDECARS, matching

_TABLES = "**/*.parquet"  # in a folder and its subfolders
_NO_ACCESS = "check the address, and the credentials in the environment"


def remote(path: str) -> bool:
    """Return whether a path is an address in an object store, such as `s3://bucket/turns.parquet`."""
    return "://" in path


def files_of(paths: list[str]) -> list[str]:
    """Return the files of these paths, in the order of the paths, then of the names.

    Args:
        paths: files, `-`, folders of Parquet files, or patterns with `*`, `?`, `[...]` and `**`;
            all but `-` may also be addresses in an object store, where a folder ends with `/`.
            polars takes the credentials from the environment.

    Raises:
        InputError: a folder has no Parquet file, no file matches a pattern, or a store can't be
            listed.
    """
    return [file for path in paths for file in _files(path)]


def _files(path: str) -> list[str]:
    with reachable(path):
        is_folder = path.endswith("/") if remote(path) else Path(path).is_dir()
        if not is_folder and (not has_magic(path) or Path(path).exists()):
            return [path]
    pattern = f"{path.rstrip('/')}/{_TABLES}" if is_folder else path
    paths = sorted(_listed(pattern) if remote(path) else matching(pattern))
    if not paths:
        what = "a folder without Parquet files" if is_folder else "a pattern that no file fits"
        raise InputError(path, what, "check the path")
    return paths


def _listed(pattern: str) -> list[str]:
    """List an object store with polars, which reads the files' row counts and no column."""
    try:
        rows = pl.scan_parquet(pattern, include_file_paths="path").select("path")
        return rows.unique().collect()["path"].to_list()
    except (OSError, pl.exceptions.ComputeError) as error:
        if "expanded paths were empty" in str(error):
            return []
        raise unreadable(pattern, error) from None


def unreadable(path: str, error: Exception) -> InputError:
    """Return the error of a Parquet file that polars could not read."""
    what = f"not readable as Parquet: {str(error).splitlines()[0].lower()}"
    return InputError(path, what, _NO_ACCESS if remote(path) else "write the file again")


@dataclass(frozen=True)
class RunFiles:
    """The paths of a run's files, by the path of its rollouts."""

    out: str

    def beside(self, ending: str) -> str:
        """Return the path of a file that belongs to the rollouts."""
        return self.out.removesuffix(".jsonl") + ending

    @property
    def partial(self) -> Path:
        """Path of the journal."""
        return Path(f"{self.out}.partial")

    @property
    def sidecars(self) -> tuple[str, str, str]:
        """Paths of tokens, timing and lineage."""
        tokens, timing, meta = SIDECARS
        return self.beside(tokens), self.beside(timing), self.beside(meta)
