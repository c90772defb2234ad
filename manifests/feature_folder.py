"""The feature folder: where each of its files lies, what `extraction.json` says, and the
fingerprint.

    extraction.json  backbone.safetensors  manifest.csv  plan/000.json ...  shards/*.h5
    failures.csv  report.json  report.html  jobs/ (logs of batch jobs)

A folder holds the features of one fingerprint. What the fingerprint covers is `identity` in
extraction.json; everything else there is a record.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .atomic import read_json, write_json
from .errors import FeaturesError

FORMAT, VERSION = "vtnpipe.extraction", 1
REMEDY = "put back a copy of it, or extract into a new folder"


@dataclass(frozen=True)
class FeatureFolder:
    """The paths of a feature folder; making one touches nothing."""

    root: Path

    @property
    def extraction(self) -> Path:
        """What was extracted and how; its presence makes a folder a feature folder."""
        return self.root / "extraction.json"

    @property
    def backbone(self) -> Path:
        """The weights that made the features."""
        return self.root / "backbone.safetensors"

    @property
    def manifest(self) -> Path:
        """The rows extracted, labels as last given."""
        return self.root / "manifest.csv"

    @property
    def plans(self) -> Path:
        """Folder of the plan files."""
        return self.root / "plan"

    @property
    def shards(self) -> Path:
        """Folder of the shards."""
        return self.root / "shards"

    @property
    def failures(self) -> Path:
        """Failed and partial videos, with their reasons."""
        return self.root / "failures.csv"

    @property
    def jobs(self) -> Path:
        """Folder of the logs of batch jobs."""
        return self.root / "jobs"

    @property
    def lock(self) -> Path:
        """Held by the run that writes; gone afterwards."""
        return self.root / ".lock"

    @property
    def planning(self) -> Path:
        """Held by the one of several runs that plans or reports; gone afterwards."""
        return self.root / ".planning"

    @property
    def report(self) -> Path:
        """Counts and times of the last run."""
        return self.root / "report.json"


def fingerprint(identity: Mapping[str, Any]) -> str:
    """The digest of everything that decides a stored value: 16 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_extraction(folder: FeatureFolder) -> dict[str, Any]:
    """What `extraction.json` says.

    Raises:
        FeaturesError: the file is missing, damaged, or of another format or version.
    """
    try:
        is_there = folder.extraction.exists()
    except OSError as error:
        raise FeaturesError(f"{folder.extraction}: cannot be read ({error}); {REMEDY}") from None
    if not is_there:
        raise FeaturesError(
            f"{folder.root}: not a feature folder (no {folder.extraction.name}); "
            "make one with `vtnpipe extract MANIFEST FEATURES`"
        )
    found: dict[str, Any] = read_json(folder.extraction, REMEDY)
    for name, value in {"format": FORMAT, "version": VERSION}.items():
        if not isinstance(found, dict) or found.get(name) != value:
            raise FeaturesError(
                f"{folder.extraction}: its {name} is not {value!r}: it was made by another version "
                "of vtnpipe, or by another program; use that one, or extract into a new folder"
            )
    for name in ("fingerprint", "identity", "row_shape"):
        if name not in found:
            raise FeaturesError(f"{folder.extraction}: has no {name!r}; {REMEDY}")
    if found["fingerprint"] != fingerprint(found["identity"]):
        raise FeaturesError(
            f"{folder.extraction}: its fingerprint is not that of its identity: one of them has "
            f"been changed; {REMEDY}"
        )
    return found


def write_extraction(folder: FeatureFolder, identity: Mapping[str, Any], **records: Any) -> None:
    """Writes `extraction.json`, atomically: format, version, fingerprint, identity, then the
    records.
    """
    value = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint(identity)}
    write_json({**value, "identity": dict(identity), **records}, folder.extraction)


def check_identity(folder: FeatureFolder, identity: Mapping[str, Any]) -> None:
    """Refuses to mix features of two fingerprints in one folder; `identity` may be a part of one.

    Raises:
        FeaturesError: names each setting that differs, with both values.
    """
    stored = read_extraction(folder)["identity"]
    differences = [
        "the weights (--weights) are others"
        if key == "weights_digest"
        else f"{key} is {value!r} here and {stored.get(key)!r} in the folder"
        for key, value in sorted(identity.items())
        if value != stored.get(key)
    ]
    if differences:
        raise FeaturesError(
            f"{folder.root}: holds features made otherwise: {'; '.join(differences)}; "
            "use the folder's settings, or another folder"
        )


class WritableFolder(Protocol):
    """A feature folder or a run folder."""

    @property
    def root(self) -> Path:
        """The folder."""

    @property
    def lock(self) -> Path:
        """The file in it that its writer holds."""


@contextlib.contextmanager
def locked(folder: WritableFolder, *, is_shared: bool = False) -> Iterator[None]:
    """Makes the folder and holds it for writing; the lock ends with the process, however that ends.

    Args:
        folder: which.
        is_shared: with others that say so, too, but with nobody else.

    Raises:
        FeaturesError: another run writes there, or nothing can be written there.
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
            with contextlib.suppress(OSError):  # it stays, unless nothing was written
                folder.root.rmdir()


@contextlib.contextmanager
def planning(folder: FeatureFolder) -> Iterator[None]:
    """Waits for its turn among those who hold a feature folder together: to plan, or to report."""
    with _held(folder.planning, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _held(path: Path, mode: int) -> Iterator[None]:
    """Holds a lock file, which the last holder removes.

    Raises:
        FeaturesError: `mode` is not to wait, and another process holds it; or it can't be written.
    """
    descriptor = _opened(path, mode)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # held by others, too: one of them removes it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _opened(path: Path, mode: int) -> int:
    """The descriptor of a lock file that is held."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _not_writable(path.parent, error) from None
        try:
            fcntl.flock(descriptor, mode)
            if _is_at(path, descriptor):  # else its last holder removed it just now
                with contextlib.suppress(OSError):  # it is held, though the disk be full
                    os.truncate(descriptor, 0)
                    holder = f"process {os.getpid()} on {socket.gethostname()}"
                    os.write(descriptor, holder.encode())
                return descriptor
        except BlockingIOError:
            found = os.read(descriptor, 1000).decode(errors="replace")
            os.close(descriptor)
            raise FeaturesError(
                f"{path.parent}: another run is writing there ({found or 'just begun'}); wait for "
                "it, or give another folder"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise FeaturesError(
                f"{path}: cannot be locked ({error.strerror}); two runs must not write there at "
                "once: give a folder on a file system that supports flock"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at a path; NFS keeps an unlinked one under another name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _not_writable(root: Path, error: OSError) -> FeaturesError:
    return FeaturesError(
        f"{root}: cannot be written ({error.strerror}); give one that can be written"
    )
