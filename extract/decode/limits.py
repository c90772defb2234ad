"""Resources of a decoder process: memory, time without progress, pixels per frame."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ...manifests.failures import VideoError
from .remote import Remote

MAX_PIXELS = 40_000_000  # per frame; 8K has 33 million
# An index takes up to about 100 bytes in memory per frame, which has at least 8 bytes in the file.
# A header of 2 kB that claims 50 million frames would allocate 2 GB.
OPENING_BYTES = 256 * 2**20
OPENING_BYTES_PER_BYTE = 16


# For processes that allocate a frame or a batch again and again. The kernel would otherwise get the
# memory back each time: a tenth of the time of decoding, and a third of a backbone's on a CPU where
# Dask makes its workers return freed memory at once.
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a decoder process.

    Attributes:
        memory_bytes: private memory, without the shared memory for frames.
        stall_seconds: time without progress after which the process is killed.
        max_pixels: pixels per frame.
        remote: what may be fetched.
    """

    memory_bytes: int = 4 * 2**30
    stall_seconds: float = 120.0
    max_pixels: int = MAX_PIXELS
    remote: Remote = Remote()

    @property
    def arguments(self) -> tuple[str, str]:
        """Pixel limit and `remote`, as arguments of a decoder process."""
        return str(self.max_pixels), json.dumps(asdict(self.remote))


def apply_memory_limit(memory_bytes: int) -> None:
    """Limit the memory of this process (irreversible), and write no core dumps.

    A limit that the system sets and that is lower stays.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        memory_bytes = min(memory_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def check_pixels(path: str, width: int, height: int, max_pixels: int) -> None:
    """Refuse frames that are too large.

    Raises:
        VideoError: `too-large`.
    """
    if width * height > max_pixels:
        raise VideoError(
            "too-large",
            f"{path}: frames of {width}x{height} exceed the limit of {max_pixels / 1e6:g} "
            "megapixels; leave it out, or raise extract's --max-megapixels if you trust the file",
        )


@contextmanager
def limited_for_opening(path: str) -> Iterator[None]:
    """Lower the memory limit to what a file of that size can need for its index.

    It does nothing in a process without a memory limit.
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
