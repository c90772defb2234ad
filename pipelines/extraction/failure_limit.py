"""Failure limit: stop a run in which so many videos fail that something else must be wrong."""

import re
from collections import Counter
from collections.abc import Mapping

from ...manifests.errors import StoppedError

MIN_FAILURES = 10  # from which on a share of all videos counts

_LIMIT = re.compile(r"[0-9]+|(?:[0-9]|[1-9][0-9]|100)%")


def check_failure_limit(text: str) -> str:
    """Return the rule that a value of --max-failures breaks, or ""."""
    return "" if _LIMIT.fullmatch(text) else "must be a number, as 100, or a share, as 5%"


class FailureLimit:
    """Counts failed videos, so that an unmounted disk does not mark all videos as failed.

    Args:
        text: value of `--max-failures`: a number, or a share of the run's videos, which counts from
            `MIN_FAILURES` failures on.
        num_videos: number of videos of the run.
    """

    def __init__(self, text: str, num_videos: int) -> None:
        self._text = text
        self._num_videos = num_videos
        self._most = int(text.rstrip("%"))
        if text.endswith("%"):
            self._most = max(MIN_FAILURES - 1, self._most * num_videos // 100)
        self._reasons: Counter[str] = Counter()

    def count(self, num_failed: Mapping[str, int], example: str = "") -> None:
        """Count failed videos.

        Args:
            num_failed: reason → number of videos.
            example: message of one of them.

        Raises:
            StoppedError: the limit is exceeded.
        """
        self._reasons.update(num_failed)
        if self._reasons.total() > self._most:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in self._reasons.most_common())
            raise StoppedError(
                f"{self._reasons.total():,} of {self._num_videos:,} videos failed ({reasons}), "
                f"more than --max-failures {self._text} allows{f'; {example}' if example else ''}; "
                "fix the problem, and the same command resumes (with --retry REASON for those that "
                "have failed), or raise the limit"
            )
