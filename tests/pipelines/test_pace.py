"""What a run says of its own speed."""

import pytest
from vtnpipe.extract.task import TaskReport
from vtnpipe.manifests.plan import Speed
from vtnpipe.pipelines.extraction.pace import Finished, pace_of
from vtnpipe.pipelines.extraction.tuning import Tuning
from vtnpipe.pipelines.extraction.workers import Workers

WORKERS = Workers(device="cpu", num_workers=2, num_threads=1, reason="")
TUNING = Tuning(speed=Speed(8), forward_fps=12.0, decode_fps=100.0, num_children=1, reasons=["why"])


def _report(begin: float, end: float, **seconds: float) -> TaskReport:
    return TaskReport(task="t", num_frames=100, seconds=seconds, begin=begin, end=end)


def test_pace_adds_up_what_workers_did() -> None:
    reports = [
        _report(0.0, 6.0, forward=5.0, wait=1.0, decode=2.0),
        _report(0.0, 9.5, forward=9.0, wait=0.5),
        _report(6.0, 10.0, forward=3.5, wait=0.5, write=0.25),
    ]
    pace = pace_of(Finished(reports=reports, seconds=10.0, workers=WORKERS, tuning=TUNING))
    assert pace.frames_per_second == 30.0
    assert pace.possible_frames_per_second == 24.0
    assert pace.seconds_by_stage == {
        **{"decode": 2.0, "forward": 17.5, "idle": 0.5, "wait": 2.0, "write": 0.25}
    }
    assert pace.busy_at_end == pytest.approx(0.75)
    rates = pace.frames_per_second_over_time
    assert sum(rates) * 10 / len(rates) == pytest.approx(300, abs=0.1)  # no frame twice, none lost
    assert rates[0] == pytest.approx(100 / 6 + 100 / 9.5, abs=0.01)
    assert rates[-1] == pytest.approx(100 / 4, abs=0.01)
    assert pace.limit.startswith("88% of the time went to the backbone")


@pytest.mark.parametrize(
    ("stage", "words"),
    [("wait", "decoding"), ("preprocess", "resizing"), ("copy", "copying")],
)
def test_the_largest_stage_is_the_limit(stage: str, words: str) -> None:
    report = _report(0.0, 10.0, **{stage: 8.0, "forward": 2.0, "decode": 50.0})
    workers = Workers(device="cpu", num_workers=1, num_threads=1, reason="")
    pace = pace_of(Finished(reports=[report], seconds=10.0, workers=workers, tuning=TUNING))
    assert pace.limit.startswith(f"80% of the time went to {words}")


def test_idle_workers_are_a_limit() -> None:
    report = _report(0.0, 10.0, forward=9.0)
    workers = Workers(device="cpu", num_workers=4, num_threads=1, reason="")
    pace = pace_of(Finished(reports=[report], seconds=10.0, workers=workers, tuning=TUNING))
    assert "too few tasks for the workers" in pace.limit
