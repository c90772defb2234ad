"""What a file may take of the process that decodes it: memory, time without progress, pixels."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...manifests.errors import VideoError

# An index has up to about 100 bytes in memory for a frame of at least 8 bytes in the file. A header
# of 2 kB that claims 50 million frames would have 2 GB made ready for them.
OPENING_BYTES = 256 * 2**20
OPENING_BYTES_PER_BYTE = 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a decoding process.

    Attributes:
        memory_bytes: of its own memory, the frames that it hands over not counted.
        stall_seconds: without progress, after which it is ended.
        max_pixels: of a frame; 8K is 33 million.
    """

    memory_bytes: int = 4 * 2**30
    stall_seconds: float = 120.0
    max_pixels: int = 40_000_000


_in_force = Limits()


def limits() -> Limits:
    """Those that this process keeps."""
    return _in_force


def check_pixels(path: str, width: int, height: int) -> None:
    """Refuses frames that are too large.

    Raises:
        VideoError: they are.
    """
    if width * height > _in_force.max_pixels:
        raise VideoError(
            "too-large",
            f"{path}: frames of {width}x{height} are over the limit of "
            f"{_in_force.max_pixels / 1e6:g} megapixels; leave it out, or raise extract's "
            "--max-megapixels if you trust the file",
        )


def keep(given: Limits) -> None:
    """Makes this process keep limits; it can't go back."""
    global _in_force
    _in_force = given
    resource.setrlimit(resource.RLIMIT_DATA, (given.memory_bytes, given.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def opening(path: str) -> Iterator[None]:
    """A context in which a process that keeps a memory limit takes no more than a file of that size
    can need for its index: what claims more fails there, at no cost.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY:
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    needed = OPENING_BYTES + OPENING_BYTES_PER_BYTE * Path(path).stat().st_size
    resource.setrlimit(
        resource.RLIMIT_DATA, (min(most, pages * resource.getpagesize() + needed), most)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
