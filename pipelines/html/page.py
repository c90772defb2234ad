"""HTML pages that need nothing but themselves: no network, no other file."""

import math
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...manifests.atomic import atomic_text


class Cell(NamedTuple):
    """Of a table: its text, and what it is sorted by, where that is a number; NaN comes last."""

    text: str
    value: float | None = None

    @property
    def sort_key(self) -> str:
        """For the page's script; empty for NaN."""
        return "" if self.value is None or math.isnan(self.value) else repr(float(self.value))


class Table(NamedTuple):
    """Columns' names, rows of cells, and what it shows."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


def cell(value: object, pattern: str = "{:,}") -> Cell:
    """A cell of a text or of a number, which a pattern writes; None is a dash.

    >>> cell(1234), cell(0.5, "{:.1%}"), cell("a"), cell(None)
    (Cell(text='1,234', value=1234), Cell(text='50.0%', value=0.5), Cell(text='a', value=None), \
Cell(text='–', value=nan))
    """
    if value is None:
        return Cell("–", math.nan)
    if isinstance(value, int | float):
        return Cell(pattern.format(value), value)
    return Cell(str(value))


def table(heads: str, rows: Iterable[Iterable[object]], caption: str = "") -> Table:
    """A table of values, under names with a comma between them.

    >>> table("a, b", [[1, "x"]]).rows
    [[Cell(text='1', value=1), Cell(text='x', value=None)]]
    """
    cells = [[one if isinstance(one, Cell) else cell(one) for one in row] for row in rows]
    return Table(heads.split(", "), cells, caption)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Writes a page, atomically.

    Args:
        path: of the file.
        template: of `templates/`.
        values: that it shows; everything is escaped.
    """
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(version=version("vtnpipe"), **values)
    with atomic_text(path) as file:
        file.write(page)
