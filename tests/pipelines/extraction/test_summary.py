"""Throughput of a run, and what limited it."""

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
        _report(6.0, 10.0, forward=3.5, wait=0.5, write=0.25),
    ]
    found = _throughput(reports, 2)
    assert found.frames_per_second == 30.0
    # 300 frames in 17.5 seconds of a backbone, of which there are two.
    assert found.possible_frames_per_second == pytest.approx(600 / 17.5, abs=0.01)
    assert found.seconds_by_stage == {
        **{"decode": 2.0, "forward": 17.5, "idle": 0.5, "wait": 2.0, "write": 0.25}
    }
    assert found.busy_at_end == pytest.approx(0.75)
    assert found.seconds_of_tasks == 10.0
    rates = found.frames_per_second_over_time
    assert sum(rates) * 10 / len(rates) == pytest.approx(300, abs=0.1)  # each frame counts once
    assert rates[0] == pytest.approx(100 / 6 + 100 / 9.5, abs=0.01)
    assert rates[-1] == pytest.approx(100 / 4, abs=0.01)
    assert found.limit.startswith("88% of the time went to the backbone")


@pytest.mark.parametrize(
    ("stage", "words"),
    [("wait", "decoding"), ("preprocess", "resizing"), ("copy", "copying")],
)
def test_the_largest_stage_is_the_limit(stage: str, words: str) -> None:
    report = _report(0.0, 10.0, **{stage: 8.0, "forward": 2.0, "decode": 50.0})
    assert _throughput([report], 1).limit.startswith(f"80% of the time went to {words}")


def test_workers_that_arrive_later_count() -> None:
    reports = [_report(n / 10, 9.0, forward=9.0 - n / 10) for n in range(5)]
    found = _throughput(reports, 1)
    assert found.busy_at_end == pytest.approx(1.0)
    assert found.possible_frames_per_second == pytest.approx(5 * 500 / 44, abs=0.01)


def test_idle_workers_are_a_limit() -> None:
    report = _report(0.0, 10.0, forward=9.0)
    assert "waiting for tasks: fewer --workers" in _throughput([report], 4).limit
