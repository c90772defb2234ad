"""failures.csv: failed and partial videos, with their reasons."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .atomic import atomic_text


class Failure(NamedTuple):
    """One row of failures.csv."""

    video_id: str
    path: str
    status: str  # failed or partial
    reason: str
    message: str
    num_lost_frames: int

    def __str__(self) -> str:
        return f"{self.status} {self.video_id}: {self.reason}: {self.message}"


def write_failures(failures: Iterable[Failure], path: Path) -> None:
    """Write failures.csv atomically."""
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Failure._fields)
        writer.writerows(failures)


def read_failures(path: Path) -> list[Failure]:
    """Return the rows of failures.csv; an empty list if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [
        Failure(video_id, path, status, reason, message, int(num_lost))
        for video_id, path, status, reason, message, num_lost in rows
    ]
