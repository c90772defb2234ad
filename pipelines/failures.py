"""Videos that failed or are partial: failures.csv."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..manifests.files import atomic_text


class Failure(NamedTuple):
    """A line of failures.csv."""

    video_id: str
    path: str
    status: str
    reason: str
    message: str
    num_lost_frames: int


def write_failures(failures: Iterable[Failure], path: Path) -> None:
    """Writes failures.csv, atomically."""
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Failure._fields)
        writer.writerows(failures)
