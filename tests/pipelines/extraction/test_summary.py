"""Throughput of a run, and what limited it."""

import re

import pytest
from vtnpipe.extract.task import TaskReport
from vtnpipe.pipelines.extraction.summary import FinishedRun, Throughput, throughput_of
from vtnpipe.pipelines.extraction.workers import Workers


def _report(begin: float, end: float, **seconds: float) -> TaskReport:
    return TaskReport(task="t", num_frames=100, seconds=seconds, begin=begin, end=end)


def _throughput(reports: list[TaskReport], num_workers: int) -> Throughput:
    """Return the throughput of a run of ten seconds."""
    workers = Workers(
        device="cpu",
        num_workers=num_workers,
        num_threads=1,
        num_decoder_processes=1,
        description="",
    )
    return throughput_of(FinishedRun(reports=reports, seconds=10.0, workers=workers))


def test_throughput_adds_up_the_seconds_of_workers() -> None:
    reports = [
        _report(0.0, 6.0, forward=5.0, wait=1.0, decode=2.0),
        _report(0.0, 9.5, forward=9.0, wait=0.5),
        _report(6.0, 10.0, forward=3.5, copy=0.25, preprocess=0.75),
    ]
    found = _throughput(reports, 2)
    assert found.frames_per_second == 30.0
    # 300 frames in 17.5 seconds of a backbone, of which there are two.
    assert found.possible_frames_per_second == pytest.approx(600 / 17.5, abs=0.01)
    assert found.seconds_by_stage == {
        **{"copy": 0.25, "decode": 2.0, "forward": 17.5, "preprocess": 0.75, "wait": 1.5}
    }
    assert found.busy == {"backbone": 0.875, "decoding": 0.1, "preparing frames": 0.05}
    assert found.seconds_of_tasks == 10.0
    rates = found.frames_per_second_over_time
    assert sum(rates) * 10 / len(rates) == pytest.approx(300, abs=0.1)  # each frame counts once
    assert rates[0] == pytest.approx(100 / 6 + 100 / 9.5, abs=0.01)
    assert rates[-1] == pytest.approx(100 / 4, abs=0.01)
    assert found.limit.startswith("backbone was busy for 88% of the time, decoding for 10%: ")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("decode", "decoding was busy for 80% .*: more --decoder-processes"),
        ("preprocess", "preparing frames was busy for 80% .*: more --workers"),
        ("wait", "most of it went to starting"),
    ],
)
def test_what_is_busy_longest_is_the_limit(stage: str, words: str) -> None:
    report = _report(0.0, 10.0, **{stage: 8.0, "forward": 2.0})
    assert re.search(words, _throughput([report], 1).limit)


def test_workers_that_arrive_later_count() -> None:
    """Each runs two tasks at a time."""
    reports = [_report(n / 10, 9.0, forward=4.5) for n in range(9)]
    found = _throughput(reports, 1)
    assert found.busy["backbone"] == pytest.approx(0.9)
    assert found.possible_frames_per_second == pytest.approx(5 * 900 / 40.5, abs=0.01)
