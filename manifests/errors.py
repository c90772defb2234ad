"""Errors caused by input, settings or the environment, and the exit codes of the command line.

A message names the thing, the value, the rule and the remedy. Every error derives from
`VtnpipeError`; any other exception that reaches the command line is a bug and exits with its
traceback. The error of a single video is in `manifests/failures.py`.
"""

EXIT_OK = 0
EXIT_WITH_FAILURES = 1  # finished, but some videos failed or are partial
EXIT_USAGE = 2  # wrong usage or settings
EXIT_STOPPED = 3  # stopped early; the same command resumes
EXIT_BUG = 70


class VtnpipeError(Exception):
    """Base class of all errors that are not bugs."""

    exit_code = EXIT_USAGE


class ManifestError(VtnpipeError):
    """Invalid video manifest or annotation file; the message begins with file and line."""


class SettingsError(VtnpipeError):
    """Invalid option value, or options that exclude each other."""


class FeaturesError(VtnpipeError):
    """Invalid or mismatching feature folder, shard, plan or model folder."""


class DamagedShardError(FeaturesError):
    """Incomplete or corrupted shard, which `extract` can write again."""


class BackboneError(VtnpipeError):
    """A backbone cannot be created: invalid name, weights, device or output shape."""


class CheckpointError(VtnpipeError):
    """A checkpoint of another program cannot be imported."""


class StoppedError(VtnpipeError):
    """A run stopped early; the same command resumes it."""

    exit_code = EXIT_STOPPED


class StorageError(StoppedError):
    """A file cannot be written: the disk is full, lost or read-only."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type name if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number and what it counts.

    >>> counted(1, "video"), counted(2000, "class", "classes")
    ('1 video', '2,000 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
