"""Atomic file writes: write to a temporary name, fsync, rename, fsync the folder.

Temporary names begin with a dot and end in `.tmp`, so leftovers of killed processes can be
recognized.
"""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import FeaturesError, StorageError
from .image_sequences import split_rate

BLOCK_BYTES = 2**24
CANNOT_FSYNC_FOLDERS = (
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF),
    *(errno.EACCES, errno.EISDIR),  # the folder cannot even be opened
)


class FileState(NamedTuple):
    """Size and modification time of a file; None for a file that is missing or unreachable."""

    size: int | None
    mtime_ns: int | None


def file_state(path: str) -> FileState:
    """Return the size and modification time of a file."""
    try:
        found = os.stat(split_rate(path)[0])  # noqa: PTH116  # called for millions of files
    except (OSError, ValueError):
        return FileState(None, None)
    return FileState(found.st_size, found.st_mtime_ns)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` at the end, remove it on an error.

    Raises:
        StorageError: the disk is full, lost or read-only.
    """
    # The name may be as long as the file system allows, so that only its beginning fits.
    temporary = path.with_name(f".{path.name[:32]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}); fix the problem and rerun the "
            "command"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the disk may be gone
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_text(path: Path) -> Iterator[IO[str]]:
    """Yield an open UTF-8 text file that is written atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_bytes(data: bytes | memoryview, path: Path) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(value: Any, path: Path, *, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_text(path) as file:
        file.write(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """Parse a JSON file.

    Args:
        path: an existing file.
        remedy: what to do if the file is damaged, for the error message.

    Raises:
        FeaturesError: the file cannot be read or parsed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FeaturesError(f"cannot read {path} ({error}); {remedy}") from None


def write_lines(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a JSON Lines file atomically."""
    with atomic_text(path) as file:
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def read_through(path: Path) -> None:
    """Read a file to its end, so that a failing disk raises its OSError here."""
    with path.open("rb") as file:
        while file.read(BLOCK_BYTES):
            pass


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def remove_temporaries(folder: Path) -> list[Path]:
    """Remove and return temporary files that killed writers left in `folder`."""
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


def fsync_folder(folder: Path) -> bool:
    """Flush a rename; return False where the file system cannot: CIFS, vboxsf, some FUSE.

    Raises:
        OSError: the disk failed.
    """
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno not in CANNOT_FSYNC_FOLDERS:
            raise
        return False
    return True
