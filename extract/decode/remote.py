"""Files of object stores and web servers: fetched by a decoder process into a bounded cache.

All processes of a host share the cache. A file of it is named by URL, size and version (ETag) of
the object, so that a changed object is another file. A file in use is locked; what has not been
used for longest is removed first.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...manifests.atomic import FileState
from ...manifests.errors import first_line
from ...manifests.failures import VideoError

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "http", "https")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
BLOCK_BYTES = 4 * 2**20
NUM_TRIES = 2
WAIT_SECONDS = 0.5  # until room in the cache is looked for again


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Settings of fetching: what is allowed, and the cache.

    Attributes:
        allowed: URLs below which objects may be fetched.
        cache: folder of the cache; "" for `default_cache`.
        max_bytes: size of the cache.
    """

    allowed: tuple[str, ...] = ()
    cache: str = ""
    max_bytes: int = 0

    @classmethod
    def from_json(cls, text: str) -> "Remote":
        """Create it from JSON, in which tuples are lists."""
        values = json.loads(text)
        return cls(**{**values, "allowed": tuple(values["allowed"])})


class _Object(NamedTuple):
    """State of an object: size in bytes, and version."""

    size: int
    version: str


def is_url(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def check_allowed(url: str, remote: Remote) -> None:
    """Refuse a URL that no allowed one contains.

    >>> check_allowed("s3://videos/a.mp4", Remote(allowed=("s3://videos",)))

    Raises:
        VideoError: `refused`.
    """
    parts = urlsplit(url)
    is_plain = parts.scheme in SCHEMES and "::" not in url and ".." not in parts.path.split("/")
    if not is_plain or not any(
        url.startswith(f"{prefix.rstrip('/')}/") for prefix in remote.allowed
    ):
        raise VideoError(
            "refused",
            f"{url}: a URL; only local files are read, and what is below the URLs of "
            "--allow-remote: download it first, or allow it",
        )


def remote_state(url: str, remote: Remote) -> FileState:
    """Return size and version of an object, the version as a number.

    It stands for the size and time of a local file; both are None if there is no such object, or it
    is not allowed.
    """
    try:
        check_allowed(url, remote)
        found = _state(*_open_store(url))
    except Exception:  # noqa: BLE001  # stores raise errors of their own; the task tells them
        return FileState(None, None)
    digest = hashlib.sha256(found.version.encode()).hexdigest()
    return FileState(found.size, int(digest[:15], 16))


@contextlib.contextmanager
def fetched(url: str, remote: Remote, on_progress: Callable[[], None]) -> Iterator[str]:
    """Fetch an object, unless the cache has it; yield the path of the file, which stays locked.

    Args:
        url: URL of the object.
        remote: what is allowed, and the cache.
        on_progress: called often.

    Raises:
        VideoError: `refused`, `missing`, `permission` or `too-large`.
    """
    check_allowed(url, remote)
    file, lock = _acquire(url, remote, on_progress)
    try:
        yield str(file)
    finally:
        os.close(lock)


def _acquire(url: str, remote: Remote, on_progress: Callable[[], None]) -> tuple[Path, int]:
    """Return the path of a fetched object, and the descriptor of its lock."""
    cache = Path(remote.cache or default_cache())
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not remote.cache and cache.stat().st_uid != os.getuid():
        raise VideoError(
            "permission", f"{url}: {cache} belongs to another user; give --cache FOLDER"
        )
    for number in itertools.count(1):
        try:
            store, path = _open_store(url)
            found = _state(store, path)
            name = hashlib.sha256(f"{url}\0{found.size}\0{found.version}".encode()).hexdigest()[:32]
            file = cache / (name + PurePosixPath(urlsplit(url).path).suffix.lower())
            with contextlib.ExitStack() as stack:
                lock = _lock(file, on_progress)
                stack.callback(os.close, lock)
                if not file.exists():
                    _fetch(url, store, path, found, file, remote, on_progress)
                os.utime(file)
                fcntl.flock(lock, fcntl.LOCK_SH)  # others may read it, too
                stack.pop_all()
                return file, lock
        except (FileNotFoundError, IsADirectoryError):
            raise VideoError("missing", f"{url}: no such object; correct the URL") from None
        except PermissionError as error:
            raise VideoError(
                "permission", f"{url}: not permitted ({first_line(error)}); check the credentials"
            ) from None
        except VideoError:
            raise
        except Exception as error:  # noqa: BLE001  # stores raise errors of their own
            if number == NUM_TRIES:
                raise VideoError(
                    "missing",
                    f"{url}: cannot be fetched ({first_line(error) or type(error).__name__}); "
                    "check the network, then rerun the command",
                ) from None
    raise AssertionError


def default_cache() -> Path:
    """Return the folder of the cache on this host, unless one is given."""
    return Path(tempfile.gettempdir()) / f"vtnpipe-cache-{os.getuid()}"


def _open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it.

    Raises:
        VideoError: its package is not installed.
    """
    import fsspec  # slow to import, and needed only for URLs

    try:
        store, path = fsspec.core.url_to_fs(url)
    except ImportError:
        scheme = urlsplit(url).scheme
        raise VideoError(
            "refused", f"{url}: needs the package {PACKAGES.get(scheme, 'aiohttp')}; install it"
        ) from None
    return store, path


def _state(store: Any, path: str) -> _Object:
    """Return the state of an object, as it is now."""
    store.invalidate_cache()
    info = store.info(path)
    if info.get("type") == "directory" or info.get("size") is None:
        raise FileNotFoundError(path)
    keys = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime")
    return _Object(int(info["size"]), next((str(info[key]) for key in keys if info.get(key)), ""))


def _fetch(
    url: str,
    store: Any,
    path: str,
    expected: _Object,
    file: Path,
    remote: Remote,
    on_progress: Callable[[], None],
) -> None:
    """Fetch an object into the cache.

    Raises:
        VideoError: the cache is too small.
        OSError: it cannot be fetched, or has changed meanwhile.
    """
    if expected.size > remote.max_bytes:
        raise VideoError(
            "too-large",
            f"{url}: {expected.size / 2**30:.2f} GiB exceed the cache of "
            f"{remote.max_bytes / 2**30:.2f} GiB; raise --cache-gib",
        )
    while not _make_room(file.parent, expected.size, remote.max_bytes):
        on_progress()
        time.sleep(WAIT_SECONDS)  # for files that others use
    handle, name = tempfile.mkstemp(suffix=".part", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as target, store.open(path, "rb", cache_type="none") as source:
            fcntl.flock(target, fcntl.LOCK_EX)
            while block := source.read(BLOCK_BYTES):
                target.write(block)
                on_progress()
            num_bytes = target.tell()
            if num_bytes != expected.size or _state(store, path) != expected:
                raise OSError(f"{num_bytes:,} of {expected.size:,} bytes, or it has changed")
            target.flush()
            Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)


def _lock(file: Path, on_progress: Callable[[], None]) -> int:
    """Lock a file of the cache, by another one beside it; return its descriptor.

    The lock is exclusive, so that a file that does not exist can be fetched, or shared.
    """
    descriptor = os.open(file.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    while True:
        kind = fcntl.LOCK_SH if file.exists() else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:  # another process fetches it
            on_progress()
            time.sleep(WAIT_SECONDS)
        else:
            if kind == fcntl.LOCK_EX or file.exists():
                return descriptor
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # it has just been removed


def _make_room(cache: Path, num_bytes: int, max_bytes: int) -> bool:
    """Remove files that are not in use until so many bytes fit; return whether they do."""
    with contextlib.ExitStack() as stack:
        gate = os.open(cache / "room.lock", os.O_CREAT | os.O_RDWR, 0o600)
        stack.callback(os.close, gate)
        fcntl.flock(gate, fcntl.LOCK_EX)
        found = []
        for one in cache.iterdir():
            if one.suffix == ".lock":
                continue
            with contextlib.suppress(FileNotFoundError):
                state = one.stat()
                found.append((state.st_mtime, state.st_size, one))
        used = sum(size for _, size, _ in found)
        for _, size, one in sorted(found):
            if used + num_bytes <= max_bytes:
                break
            if _remove_unused(one):
                used -= size
    return used + num_bytes <= max_bytes


def _remove_unused(file: Path) -> bool:
    """Remove a file of the cache unless a process uses it; return whether it is gone."""
    lock = file if file.suffix == ".part" else file.with_suffix(".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
