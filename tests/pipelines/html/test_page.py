"""Pages: everything is escaped, tables sort by numbers, and nothing comes from a network."""

import re
from pathlib import Path

import jinja2
import pytest
from vtnpipe.pipelines.html.page import cell, table, write_page

HOSTILE = "<script>alert('x')</script>"


def _write(path: Path, **changes: object) -> str:
    values = {
        "title": HOSTILE,
        "subtitle": HOSTILE,
        "run": None,
        "extraction": None,
        "notes": [HOSTILE],
    }
    write_page(path, "report.html", **{**values, **changes})
    return path.read_text()


def test_values_are_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = _write(tmp_path / "p.html")
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 3
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "@import" not in page


def test_a_missing_value_is_an_error_and_leaves_no_page(tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    with pytest.raises(jinja2.UndefinedError):
        write_page(path, "report.html", title="t")
    assert list(tmp_path.iterdir()) == []


def test_cells_sort_by_their_numbers() -> None:
    found = table("a, b", [["x", 1234], ["y", None], [cell(0.5, "{:.1%}"), 0.25]], "caption")
    assert found.columns == ["a", "b"]
    assert found.caption == "caption"
    assert [[one.text for one in row] for row in found.rows] == [
        ["x", "1,234"],
        ["y", "–"],
        ["50.0%", "0.25"],
    ]
    assert [row[1].sort_key for row in found.rows] == ["1234.0", "", "0.25"]
    assert found.rows[0][0].value is None
