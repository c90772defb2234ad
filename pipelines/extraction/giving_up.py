"""When a run stops before its end by itself: so many videos fail that something else must be wrong,
or its time is over.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping
from math import inf

from ...manifests.errors import StoppedError
from ..dask_cluster.jobqueue import duration_seconds

MIN_FAILURES = 10  # of which a share of all videos tells something

_LIMIT = re.compile(r"[0-9]+|(?:[0-9]|[1-9][0-9]|100)%")


def is_failure_limit(text: str) -> str:
    """The rule that a value of --max-failures breaks."""
    return "" if _LIMIT.fullmatch(text) else "it must be a number, as 100, or a share, as 5%"


def is_time_budget(text: str) -> str:
    """The rule that a value of --time-budget breaks."""
    return "" if duration_seconds(text) else "it must be [[DAYS-]HOURS:]MINUTES:SECONDS"


class TimeBudget:
    """Counts the time from when it is made.

    Args:
        text: as `--time-budget` has it; None for all the time in the world.
    """

    def __init__(self, text: str | None) -> None:
        self._end = inf if text is None else time.monotonic() + (duration_seconds(text) or 0)

    @property
    def seconds_left(self) -> float:
        """Infinite without a budget; never negative."""
        return max(0.0, self._end - time.monotonic())


class FailureLimit:
    """Counts failed videos, and stops the run when they are too many: a disk that is not mounted
    must not mark all videos as failed.

    Args:
        text: as `--max-failures` has it: a number, or a share of the run's videos (which counts
            from `MIN_FAILURES` failures on).
        num_videos: of the run.
    """

    def __init__(self, text: str, num_videos: int) -> None:
        self._text = text
        self._num_videos = num_videos
        self._most = int(text.rstrip("%"))
        if text.endswith("%"):
            self._most = max(MIN_FAILURES - 1, self._most * num_videos // 100)
        self._reasons: Counter[str] = Counter()

    def count(self, num_failed: Mapping[str, int], example: str = "") -> None:
        """Counts failures.

        Args:
            num_failed: reason → how many videos failed for it.
            example: the message of one of them.

        Raises:
            StoppedError: they are too many now.
        """
        self._reasons.update(num_failed)
        if self._reasons.total() > self._most:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in self._reasons.most_common())
            raise StoppedError(
                f"{self._reasons.total():,} of {self._num_videos:,} videos failed ({reasons}), "
                f"more than --max-failures {self._text} allows{f'; {example}' if example else ''}; "
                "mend what is wrong, and the same command goes on (with --retry REASON for those "
                "that have failed), or allow more"
            )
