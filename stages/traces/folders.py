"""Which traces a folder means."""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

from stages.tables.files import reachable
from stages.tables.inputs import SIDECARS
from stages.traces.detect import FORMATS

TRACE = re.compile(r"\.jsonl?(\.gz)?$")
BESIDE = (*SIDECARS, ".bad.jsonl")  # what is written beside traces


def trace_files(path: str) -> list[str]:
    """Return the traces that a path means: itself, or the several traces of a folder.

    Logs of inspect may lie at any depth. Another folder is one trace where a format lays it out so;
    else it means the JSON and JSON lines in it, but for what commands here wrote beside a trace.

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
    """Whether the name of a file may be that of a trace."""
    name = file.name
    return file.is_file() and bool(TRACE.search(name)) and not name.endswith(BESIDE)


def _is_laid_out(folder: Path) -> bool:
    """Whether a folder as a whole is one trace of some format."""
    return any(
        bool(format.files and format.files(folder, sha256(), Counter())) for format in FORMATS
    )
