"""Find the traces in a folder."""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

from stages.tables.files import reachable
from stages.tables.inputs import SIDECARS
from stages.traces.detect import FORMATS

TRACE = re.compile(r"\.jsonl?(\.gz)?$")
BESIDE = (*SIDECARS, ".bad.jsonl")  # suffixes of files that our commands write next to traces


def trace_files(path: str) -> list[str]:
    """Return the traces at a path: the path itself, or the traces in a folder.

    Logs of inspect are found at any depth. Any other folder is one trace if a format has such a
    layout. Otherwise its traces are the JSON and JSON lines files directly in it, except for files
    that our commands write next to a trace.

    Args:
        path: a file, a folder, or "-" for standard input.

    Raises:
        InputError: the folder can't be read.
    """
    with reachable(path):
        folder = Path(path)
        if path == "-" or not folder.is_dir():
            return [path]
        if logs := sorted(folder.rglob("*.eval")):
            return [str(log) for log in logs]
        several = [str(file) for file in sorted(folder.iterdir()) if _is_trace(file)]
        return [path] if not several or _is_laid_out(folder) else several


def _is_trace(file: Path) -> bool:
    """Return whether a file may be a trace, by its name."""
    name = file.name
    return file.is_file() and bool(TRACE.search(name)) and not name.endswith(BESIDE)


def _is_laid_out(folder: Path) -> bool:
    """Return whether a whole folder is one trace of some format."""
    return any(
        bool(format.files and format.files(folder, sha256(), Counter())) for format in FORMATS
    )
