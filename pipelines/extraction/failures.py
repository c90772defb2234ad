"""Videos that failed or are partial: failures.csv."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ...manifests.atomic import atomic_text
from ..console import say_some


class Failure(NamedTuple):
    """A line of failures.csv."""

    video_id: str
    path: str
    status: str
    reason: str
    message: str
    num_lost_frames: int

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.status} {self.video_id}: {self.reason}: {self.message}"


def write_failures(failures: Iterable[Failure], path: Path) -> None:
    """Writes failures.csv, atomically."""
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Failure._fields)
        writer.writerows(failures)


def say_failures(console: Console, failures: Sequence[Failure], path: Path) -> None:
    """Prints the first ones.

    Args:
        console: where.
        failures: all of them.
        path: of failures.csv.
    """
    say_some(console, [one.text for one in failures], f" in {path}")
