"""Failures of videos: the reasons why a video fails or is partial, and failures.csv."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from .atomic import atomic_text
from .errors import EXIT_WITH_FAILURES, VtnpipeError

Reason = Literal[
    "missing",  # no file at the path, or the disk cannot read it
    "permission",  # no permission to read the file
    "refused",  # not a regular local file: a URL, a playlist, a FIFO, a device
    "empty",  # 0 bytes
    "not-a-video",  # the first bytes match no known video container
    "no-video-stream",
    "no-frames",
    "unsupported-codec",
    "encrypted",
    "truncated",  # the file ends before its frames do
    "damaged",  # some packets could not be decoded, or the file changed while it was read
    "too-large",  # exceeds the pixel limit or the memory limit
    "not-an-array",  # a file of imported features is not an array of their shape
    "crashed",  # the decoder process died, or a bug in vtnpipe
    "stalled",  # no progress within the deadline
]
NOTE_SEPARATOR = "; "  # between the notes in the message of a sound video
# Transient reasons; such a failure never replaces features of an earlier plan.
TRANSIENT_REASONS = ("missing", "permission", "crashed", "stalled")


class VideoError(VtnpipeError):
    """One video cannot be decoded; the run goes on without it.

    Attributes:
        reason: machine-readable cause.
    """

    exit_code = EXIT_WITH_FAILURES

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


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


def notes_in(message: str) -> list[str]:
    """Return the notes in the message of a sound video."""
    return message.split(NOTE_SEPARATOR) if message else []


def message_of_parts(
    messages: Sequence[str], *, num_parts: int, num_lost: int, num_frames: int
) -> str:
    """Return the message of a video that was decoded in parts, from those of its damaged parts."""
    if num_parts == 1:
        return messages[0]
    first = f"{'the first: ' if len(messages) > 1 else ''}{messages[0]}"
    return (
        f"{num_lost:,} of {num_frames:,} frames are lost, in {len(messages):,} of "
        f"{num_parts:,} parts; {first}"
    )


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
