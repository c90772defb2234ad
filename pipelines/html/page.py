"""Self-contained HTML pages, which need neither a network nor other files; their tables."""

import math
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...manifests.atomic import atomic_text


class Cell(NamedTuple):
    """Cell of a table.

    Attributes:
        text: text of the cell.
        value: number to sort by, NaN last; None to sort by the text.
    """

    text: str
    value: float | None = None

    @property
    def sort_key(self) -> str:
        """Value for the page's script, which sorts by it; empty for NaN."""
        return "" if self.value is None or math.isnan(self.value) else repr(float(self.value))


class Table(NamedTuple):
    """Table of a page.

    Attributes:
        columns: names of the columns.
        rows: rows of cells.
        caption: caption of the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


def cell(value: object, pattern: str = "{:,}") -> Cell:
    """Return a cell of a text, or of a number in the given format; None becomes a dash.

    >>> cell(1234), cell(0.5, "{:.1%}"), cell("a"), cell(None)
    (Cell(text='1,234', value=1234), Cell(text='50.0%', value=0.5), Cell(text='a', value=None), \
Cell(text='–', value=nan))
    """
    if value is None:
        return Cell("–", math.nan)
    if isinstance(value, int | float):
        return Cell(pattern.format(value), value)
    return Cell(str(value))


def table(columns: str, rows: Iterable[Iterable[object]], caption: str = "") -> Table:
    """Return a table of values; the names of the columns are separated by commas.

    >>> table("a, b", [[1, "x"]]).rows
    [[Cell(text='1', value=1), Cell(text='x', value=None)]]
    """
    cells = [[one if isinstance(one, Cell) else cell(one) for one in row] for row in rows]
    return Table(columns.split(", "), cells, caption)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page atomically.

    Args:
        path: path of the page.
        template: file name of a template in `templates/`.
        values: variables of the template; all values are escaped.
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
