"""Writing so that a file is there whole or not at all: temporary name, flush, fsync, rename, fsync
the folder.

The temporary name begins with a dot and ends in `.tmp`, so that what a killed process left is
recognised.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import FeaturesError, StorageError

BLOCK_BYTES = 2**24


class FileState(NamedTuple):
    """A file as it is on disk; None where there is none, or it can't be reached."""

    size: int | None
    mtime_ns: int | None


def file_state(path: str) -> FileState:
    """A file as it is on disk."""
    try:
        found = os.stat(path)  # noqa: PTH116  # a million times
    except (OSError, ValueError):
        return FileState(None, None)
    return FileState(found.st_size, found.st_mtime_ns)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` at the end, or removes it on an
    exception.

    Raises:
        StorageError: the disk is full, lost, or may not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); mend that, and give the "
            "same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # of a disk that is gone
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_text(path: Path) -> Iterator[IO[str]]:
    """Like `atomic_path`, as an open UTF-8 text file."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_bytes(data: bytes | memoryview, path: Path) -> None:
    """Writes a file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(value: Any, path: Path, *, indent: int | None = 2) -> None:
    """Writes `value` as JSON, atomically."""
    with atomic_text(path) as file:
        file.write(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file says.

    Args:
        path: of a file that exists.
        remedy: what to do where it is damaged.

    Raises:
        FeaturesError: it can't be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FeaturesError(f"{path}: cannot be read ({error}); {remedy}") from None


def write_lines(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Writes a file of one JSON object a line, atomically."""
    with atomic_text(path) as file:
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def read_through(path: Path) -> None:
    """Reads a file to its end, for the OSError that a disk at fault raises."""
    with path.open("rb") as file:
        while file.read(BLOCK_BYTES):
            pass


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def remove_temporaries(folder: Path) -> list[Path]:
    """Removes what writers that were killed left in `folder`; returns what it removed."""
    stale = sorted(folder.glob(".*.tmp"))
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
