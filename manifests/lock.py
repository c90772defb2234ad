"""Locks of feature folders and run folders: one writer, or several that share the work.

`flock` where the file system has it: the lock ends with the process, however that ends. Elsewhere,
as on some mounts of Lustre, each holder keeps a claim: a file beside the lock file, which it
touches while it lives. A claim ends when its process is known to be dead, or when it is not touched
for `STALE_SECONDS`.
"""

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from .errors import FeaturesError
from .feature_folder import FeatureFolder

NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)
BEAT_SECONDS, STALE_SECONDS = 10.0, 120.0
GUARD_STALE_SECONDS, POLL_SECONDS = 10.0, 0.05


class _NoFlockError(Exception):
    """The file system has no flock."""


class WritableFolder(Protocol):
    """A feature folder or a run folder."""

    @property
    def root(self) -> Path:
        """The folder."""

    @property
    def lock(self) -> Path:
        """Lock file that the writer holds."""


@contextlib.contextmanager
def locked(folder: WritableFolder, *, is_shared: bool = False) -> Iterator[None]:
    """Create the folder and hold its lock, which ends with the process.

    Args:
        folder: the folder to write to.
        is_shared: allow other processes that also set this, but nobody else.

    Raises:
        FeaturesError: another run writes there, or the folder is not writable.
    """
    if folder.root.is_file():
        raise FeaturesError(f"{folder.root}: is a file, not a feature folder or run; give a folder")
    is_new = not folder.root.exists()
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder.root, error) from None
    mode = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        with _held(folder.lock, mode | fcntl.LOCK_NB):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # fails, as it should, unless the folder is empty
                folder.root.rmdir()


@contextlib.contextmanager
def planning_lock(folder: FeatureFolder) -> Iterator[None]:
    """Wait for and hold the lock under which runs that share a folder plan or report."""
    with _held(folder.planning, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _held(path: Path, mode: int) -> Iterator[None]:
    """Hold a lock file, which the last holder removes.

    Raises:
        FeaturesError: `mode` is non-blocking and another process holds it, or it is not writable.
    """
    try:
        descriptor = _open_locked(path, mode)
    except _NoFlockError:
        with _claimed(path, mode):
            yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # others hold it too: one of them removes it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path, mode: int) -> int:
    """Return the descriptor of a lock file on which `flock` succeeded."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _not_writable(path.parent, error) from None
        try:
            fcntl.flock(descriptor, mode)
            if _is_at(path, descriptor):  # otherwise its last holder removed it just now
                with contextlib.suppress(OSError):  # the lock holds even on a full disk
                    os.truncate(descriptor, 0)
                    os.write(descriptor, _this_process().encode())
                return descriptor
        except BlockingIOError:
            found = os.read(descriptor, 1000).decode(errors="replace")
            os.close(descriptor)
            raise _busy(path, found) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_FLOCK:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                raise _NoFlockError from None
            raise FeaturesError(
                f"cannot lock {path} ({error.strerror}); two runs must not write to one folder at "
                "once: give a folder on another file system"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one at `path`; NFS renames unlinked files."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def has_flock(folder: Path) -> bool:
    """Return whether the file system of an existing, writable folder has flock."""
    path = folder / f".flock-{uuid.uuid4().hex[:8]}.tmp"
    try:
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise
    finally:
        path.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _claimed(path: Path, mode: int) -> Iterator[None]:
    """Hold a claim on a lock file, as `_held` does by flock."""
    kind = "shared" if mode & fcntl.LOCK_SH else "alone"
    claim = path.with_name(f"{path.name}.{kind}-{uuid.uuid4().hex[:8]}")
    while holder := _try_to_claim(path, claim):
        if mode & fcntl.LOCK_NB:
            raise _busy(path, holder)
        time.sleep(POLL_SECONDS)
    is_over = threading.Event()
    beat = threading.Thread(target=_keep_fresh, args=(claim, is_over), daemon=True)
    beat.start()
    try:
        yield
    finally:
        is_over.set()
        beat.join()
        with contextlib.suppress(OSError):  # the disk may be gone
            claim.unlink(missing_ok=True)


def _try_to_claim(path: Path, claim: Path) -> str:
    """Write a claim unless one excludes it; return the holder of that one, or ""."""
    with _guard(path.with_name(f"{path.name}.guard")) as now:
        for other in path.parent.glob(f"{path.name}.*-*"):
            with contextlib.suppress(FileNotFoundError):  # its holder has just ended
                if _is_stale(other, now):
                    other.unlink()
                elif not all(".shared-" in one.name for one in (claim, other)):
                    return other.read_text(errors="replace").partition("\n")[0] or "just started"
        try:
            claim.write_text(f"{_this_process()}\n{_processes()}")
        except OSError as error:
            with contextlib.suppress(OSError):
                claim.unlink(missing_ok=True)
            raise _not_writable(path.parent, error) from None
    return ""


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[float]:
    """Hold a file that only one process can create, for a moment; yield the file system's time."""
    seen, since = 0, time.monotonic()  # inode of another's guard, and when it was seen first
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if (found := path.stat().st_ino) != seen:
                    seen, since = found, time.monotonic()
                elif time.monotonic() - since > GUARD_STALE_SECONDS:
                    _remove(path, seen)  # of a process that was killed at this point
            time.sleep(POLL_SECONDS)
        except OSError as error:
            raise _not_writable(path.parent, error) from None
    try:
        own = os.fstat(descriptor)
        yield own.st_mtime
    finally:
        os.close(descriptor)
        _remove(path, own.st_ino)


def _remove(path: Path, inode: int) -> None:
    """Remove a file unless another one has taken its place."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # not the name of a claim
    with contextlib.suppress(OSError):
        path.rename(aside)  # only one process succeeds
        if aside.stat().st_ino != inode:
            aside.rename(path)
        else:
            aside.unlink()


def _is_stale(claim: Path, now: float) -> bool:
    """Return whether the holder of a claim is dead, or has not touched it for long."""
    holder, _, processes = claim.read_text(errors="replace").partition("\n")
    words = holder.split()
    if processes and processes == _processes() and len(words) > 1 and words[1].isdecimal():
        try:
            os.kill(int(words[1]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    return now - claim.stat().st_mtime > STALE_SECONDS


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _processes() -> str:
    """Return a name of the processes that this one can see: the host's, or its container's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # not Linux: only the time of a claim tells


def _keep_fresh(claim: Path, is_over: threading.Event) -> None:
    while not is_over.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(claim)


def _busy(path: Path, holder: str) -> FeaturesError:
    return FeaturesError(
        f"{path.parent}: another run is writing there ({holder or 'just started'}); wait for it, "
        "or give another folder"
    )


def _not_writable(root: Path, error: OSError) -> FeaturesError:
    return FeaturesError(f"cannot write to {root} ({error.strerror}); give a writable folder")
