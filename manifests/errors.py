"""Every error that is a user's or the data's fault, and the exit codes that they lead to.

A message says thing, value, rule, remedy. Each error is also a ValueError, so that Python users
need not know these names. Anything else that reaches the command line is a bug, and exits with its
traceback.
"""

from typing import Literal

EXIT_OK = 0
EXIT_WITH_FAILURES = 1  # finished, and the folder lists failed or partial videos
EXIT_USAGE = 2  # wrong usage or settings
EXIT_STOPPED = 3  # stopped; the same command resumes
EXIT_BUG = 70

Reason = Literal[
    "missing",  # nothing is at the path
    "permission",  # the file may not be read
    "refused",  # not a regular local file: a URL, a playlist, a fifo, a device
    "empty",  # 0 bytes
    "not-a-video",  # the first bytes are no known video container's
    "no-video-stream",
    "no-frames",
    "unsupported-codec",
    "encrypted",
    "truncated",  # the file ends before its frames do
    "damaged",  # packets in the middle could not be decoded
    "too-large",  # passes the pixel or the memory limit
    "crashed",  # the decoding process died
    "stalled",  # no progress within the deadline
]


class VtnpipeError(ValueError):
    """A fault of the input or of the settings."""

    exit_code = EXIT_USAGE


class ManifestError(VtnpipeError):
    """A video manifest breaks a rule; the message begins with file and line."""


class SettingsError(VtnpipeError):
    """An option's value breaks a rule, or two options exclude each other."""


class FeaturesError(VtnpipeError):
    """A feature folder, shard or plan is not what it must be, or holds something else."""


class DamagedShardError(FeaturesError):
    """A shard of this folder that is not whole or not sound; extract can make it again."""


class BackboneError(VtnpipeError):
    """A backbone can't be made: its name, weights, device or output don't fit."""


class CheckpointError(VtnpipeError):
    """A checkpoint of another program can't be imported."""


class StoppedError(VtnpipeError):
    """The run was stopped before its end; the same command resumes."""

    exit_code = EXIT_STOPPED


class StorageError(StoppedError):
    """A file can't be written: a full or lost disk, or one that may not be written."""


class VideoError(VtnpipeError):
    """One video can't be decoded. It costs that video, never the run.

    Attributes:
        reason: why, as one of `Reason`.
    """

    exit_code = EXIT_WITH_FAILURES

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
