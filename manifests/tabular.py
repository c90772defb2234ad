"""Results that a notebook shows as a table, and that become a pandas data frame."""

import html
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

NUM_SHOWN = 20  # rows that a notebook shows


class Tabular:
    """Base of results with rows of equal columns."""

    def table(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows: column → value."""
        raise NotImplementedError

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the rows as a pandas data frame; pandas must be installed."""
        import pandas  # optional

        return pandas.DataFrame(list(self.table()))

    def _repr_html_(self) -> str:
        """Return the first rows as an HTML table, for notebooks."""
        rows = list(islice(self.table(), NUM_SHOWN + 1))
        if not rows:
            return f"<p>{html.escape(repr(self))}</p>"
        head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(_text(value))}</td>' for value in row.values())}</tr>"
            for row in rows[:NUM_SHOWN]
        )
        more = "<p>…</p>" if len(rows) > NUM_SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _text(value: Any) -> str:
    """Return a value as a table shows it.

    >>> _text(0.123456), _text(None), _text(12000)
    ('0.1235', '', '12,000')
    """
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
