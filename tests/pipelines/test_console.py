"""Console: lists, details, and progress without a terminal."""

import io
from itertools import pairwise

import pytest
from vtnpipe.pipelines import console as module
from vtnpipe.pipelines.console import CommandConsole, CountProgress, LineClock, say, say_some


def _console(**options: bool) -> tuple[CommandConsole, io.StringIO]:
    file = io.StringIO()
    return CommandConsole(file=file, width=40, **options), file


def test_lines_are_printed_unchanged() -> None:
    console, file = _console()
    say(console, "a name [bold]with[/bold] brackets, " + 60 * "x")
    assert file.getvalue() == "a name [bold]with[/bold] brackets, " + 60 * "x" + "\n"


@pytest.mark.parametrize(("is_verbose", "num_lines"), [(False, 3), (True, 5)])
def test_long_lists_are_cut_unless_verbose(is_verbose: bool, num_lines: int) -> None:
    console, file = _console(is_verbose=is_verbose)
    say_some(console, list("abcde"), " in x.csv", most=2)
    lines = file.getvalue().splitlines()
    assert len(lines) == num_lines
    assert ("… and 3 more in x.csv; --verbose prints them all" in lines) is not is_verbose


def test_progress_lines_have_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    console, file = _console()
    with CountProgress("extract", "frames", 100, console) as progress:
        now = 30.0
        progress.count(0)
        progress.note("2 workers")
        now = 60.0
        progress.count(20, num_unexpected=100)
    first, second = file.getvalue().splitlines()
    assert first == "extract: 0/100 frames, 0.0/s"
    assert second == "extract: 20/200 frames, 0.3/s, 9.0 min left; 2 workers"


def test_progress_lines_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    clock = LineClock()
    due = []
    for now in range(1, 1800):
        if clock.is_due():
            due.append(now)
    gaps = [after - before for before, after in pairwise(due)]
    assert gaps == sorted(gaps)
    assert gaps[0] < 15
    assert gaps[-1] == 60
