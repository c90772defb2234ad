"""How fast an extraction was, and what kept it from being faster."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...extract.task import TaskReport
    from .tuning import Tuning
    from .workers import Workers

MAX_SPANS = 40  # of the time, whose speeds are noted


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run of tasks leaves to report on.

    Attributes:
        reports: of the tasks.
        seconds: from the first task to the last.
        workers: who ran them.
        tuning: what was measured before.
    """

    reports: list["TaskReport"]
    seconds: float
    workers: "Workers"
    tuning: "Tuning"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a run was, and what kept it from being faster.

    Attributes:
        seconds: from the first task to the last.
        frames_per_second: that were stored.
        possible_frames_per_second: of all workers' backbones alone, as measured on made-up frames
            before the run.
        seconds_by_stage: added up over workers: `decode` in the children; `copy`, `preprocess`,
            `forward` and `wait` (for frames) one after the other; `write` beside the next task;
            `idle` without any task.
        busy_at_end: share of the last tenth of the time in which workers had a task.
        limit: which stage it was, and what would help.
        seconds_of_tasks: from the beginning of the first task's work to the end of the last one's.
        frames_per_second_over_time: in equal spans of that.
    """

    seconds: float
    frames_per_second: float
    possible_frames_per_second: float
    seconds_by_stage: dict[str, float]
    busy_at_end: float
    limit: str
    seconds_of_tasks: float
    frames_per_second_over_time: list[float]


def pace_of(finished: Finished) -> Pace:
    """How fast a run was, and why not faster."""
    reports, workers, tuning = finished.reports, finished.workers, finished.tuning
    stages: defaultdict[str, float] = defaultdict(float)
    for one in reports:
        for stage, spent in one.seconds.items():
            stages[stage] += spent
    num_workers = _most_at_once(reports) if workers.is_elastic else workers.num_workers
    in_turn = sum(one.end - one.begin for one in reports)
    stages["idle"] = max(0.0, num_workers * finished.seconds - in_turn)
    return Pace(
        seconds=round(finished.seconds, 3),
        frames_per_second=round(
            sum(one.num_frames for one in reports) / max(finished.seconds, 1e-9), 2
        ),
        possible_frames_per_second=round(num_workers * tuning.forward_fps, 2),
        seconds_by_stage={stage: round(spent, 3) for stage, spent in sorted(stages.items())},
        busy_at_end=round(_busy_at_end(reports, num_workers), 3),
        limit=limit_of(stages),
        seconds_of_tasks=round(max(o.end for o in reports) - min(o.begin for o in reports), 3),
        frames_per_second_over_time=_over_time(reports),
    )


def _most_at_once(reports: Sequence["TaskReport"]) -> int:
    """How many tasks had a turn at the same time, at most."""
    changes = sorted(change for one in reports for change in ((one.begin, 1), (one.end, -1)))
    return max(accumulate(change for _, change in changes))


def _over_time(reports: Sequence["TaskReport"]) -> list[float]:
    """Frames a second in equal spans of the time, a task's frames being spread over its turn."""
    begin, end = min(one.begin for one in reports), max(one.end for one in reports)
    step = max(1e-9, (end - begin) / MAX_SPANS)
    rates = []
    for number in range(MAX_SPANS):
        start = begin + number * step
        shares = (
            (min(one.end, start + step) - max(one.begin, start)) / max(1e-9, one.end - one.begin)
            for one in reports
        )
        frames = sum(
            max(0.0, share) * one.num_frames for share, one in zip(shares, reports, strict=True)
        )
        rates.append(round(frames / step, 2))
    return rates


def _busy_at_end(reports: Sequence["TaskReport"], num_workers: int) -> float:
    """The share of the last tenth of the time in which workers had a task."""
    begin, end = min(one.begin for one in reports), max(one.end for one in reports)
    last = end - (end - begin) / 10
    busy = sum(max(0.0, one.end - max(one.begin, last)) for one in reports)
    return busy / max(1e-9, num_workers * (end - last))


LIMITS = {
    "forward": "the backbone: --precision bfloat16 or --compile where they pay, a smaller one, "
    "or more cores or GPUs",
    "wait": "decoding: more --decoding-children or cores, or videos of fewer pixels",
    "preprocess": "resizing frames: more cores, or videos of fewer pixels",
    "copy": "copying frames to the GPU: videos of fewer pixels",
    "idle": "too few tasks for the workers: fewer --workers, or smaller --shard-frames",
}


def limit_of(seconds: Mapping[str, float]) -> str:
    """The stage that took most of the workers' time, and what would help.

    >>> limit_of({"forward": 5.0, "wait": 20.0, "decode": 25.0})
    '80% of the time went to decoding: more --decoding-children or cores, or videos of fewer pixels'
    """
    of_workers = {stage: spent for stage, spent in seconds.items() if stage in LIMITS}
    stage = max(of_workers, key=lambda one: of_workers[one])
    share = of_workers[stage] / max(1e-9, sum(of_workers.values()))
    return f"{share:.0%} of the time went to {LIMITS[stage]}"
