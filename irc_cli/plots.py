"""`--plots DIR`: figures, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import InputError
from stages.tables.files import refuse_existing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_figures(folder: str, names: Iterable[str], *, force: bool) -> None:
    """Make the folder; raise InputError before any work if the figures could not be written."""
    try:
        from stages.plots import FORMATS
    except ModuleNotFoundError as error:
        what = f"needs the package '{error.name}'"
        raise InputError("--plots", what, "pip install 'irc-cli[plot]'") from None
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(folder, f"can't be a directory: {reason}", "name another one") from None
    for name in names:
        for ending in FORMATS:
            refuse_existing(str(Path(folder, f"{name}.{ending}")), force=force)


def write_figures(folder: str, figures: Mapping[str, Figure], *, force: bool) -> None:
    """Write the figures, by their names."""
    from stages.plots import write_figure

    for name, figure in figures.items():
        write_figure(figure, str(Path(folder, name)), force=force)
