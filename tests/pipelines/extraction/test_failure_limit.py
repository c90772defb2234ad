"""The limit of failed videos, as a number or as a share."""

import pytest
from vtnpipe.manifests.errors import StoppedError
from vtnpipe.pipelines.extraction.failure_limit import (
    MIN_FAILURES,
    FailureLimit,
    check_failure_limit,
)


def test_a_limit_counts_videos() -> None:
    FailureLimit("3", 100).count({"missing": 2, "empty": 1}, "a.mp4: 0 bytes")
    limit = FailureLimit("3", 100)
    limit.count({"missing": 3})
    with pytest.raises(StoppedError, match=r"4 of 100 videos failed \(3 missing, 1 empty\)"):
        limit.count({"empty": 1})


def test_a_share_counts_from_ten_failures_on() -> None:
    FailureLimit("5%", 20).count({"missing": MIN_FAILURES - 1})
    with pytest.raises(StoppedError):
        FailureLimit("5%", 20).count({"missing": MIN_FAILURES})
    limit = FailureLimit("5%", 1000)
    limit.count({"missing": 50})
    with pytest.raises(StoppedError, match=r"--max-failures 5% allows; a\.mp4: no such file"):
        limit.count({"missing": 1}, "a.mp4: no such file")
    FailureLimit("100%", 30).count({"missing": 30})


def test_a_limit_is_a_number_or_a_share() -> None:
    for text in ("0", "100", "0%", "5%", "100%"):
        assert check_failure_limit(text) == ""
    for text in ("-1", "101%", "some", "5 %", "", "1.5"):
        assert "must be a number, as 100, or a share" in check_failure_limit(text)
