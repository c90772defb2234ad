"""failures.csv: failed and partial videos."""

from pathlib import Path

from vtnpipe.manifests.failures import Failure, read_failures, write_failures

OLD_FOLDER = Path(__file__).parents[1] / "fixtures/v0.1/features"


def test_failures_come_back_as_they_were(tmp_path: Path) -> None:
    failures = [
        Failure("a,1", "/ü/a.mp4", "failed", "missing", 'not "found";\nrestore it', 0),
        Failure("b", "/b.mp4", "partial", "damaged", "2 of 9 frames", 2),
    ]
    write_failures(failures, tmp_path / "failures.csv")
    assert read_failures(tmp_path / "failures.csv") == failures
    assert str(failures[1]) == "partial b: damaged: 2 of 9 frames"


def test_no_file_is_no_failure(tmp_path: Path) -> None:
    assert read_failures(tmp_path / "failures.csv") == []
    write_failures([], tmp_path / "failures.csv")
    assert read_failures(tmp_path / "failures.csv") == []


def test_failures_of_version_0_1_are_read() -> None:
    (failure,) = read_failures(OLD_FOLDER / "failures.csv")
    assert (failure.video_id, failure.status, failure.reason) == ("lost", "failed", "missing")
