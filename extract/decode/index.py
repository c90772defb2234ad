"""Index of video files: the timeline of each, in one file that is read through a memory map.

Arrays of index.safetensors:

    files          (bytes,) uint8, JSON: path → size, mtime, and either the timeline, whose arrays
                   are ranges of those below, or the reason why it cannot be read
    presented_pts  (N,) int64, of all files end to end
    packet_pts     (M,) int64, of all files end to end
    keyframes      (K, 4) int64: packet, pts, dts (or NO_DTS), whether it is clean
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ...manifests.atomic import FileState, write_bytes
from ...manifests.errors import FeaturesError
from ...manifests.failures import VideoError
from .pool import DecoderPool
from .probe import Timeline
from .protocol import TimelineRequest

NO_DTS = np.iinfo(np.int64).min
ARRAYS = ("presented_pts", "packet_pts", "keyframes")


class Unreadable(NamedTuple):
    """Cause of a missing timeline."""

    reason: str
    message: str


def read_timelines(
    paths: Sequence[str], num_processes: int
) -> Iterator[tuple[str, Timeline | Unreadable]]:
    """Read the packets of files, several at a time; yield each timeline, or why there is none."""
    with DecoderPool(max(1, min(num_processes, len(paths)))) as pool:
        for number, answer in pool.ask([TimelineRequest(path) for path in paths]):
            if isinstance(answer, VideoError):
                answer = Unreadable(answer.reason, str(answer))
            yield paths[number], answer


def write_index(
    path: Path,
    states: Mapping[str, FileState],
    timelines: Iterable[tuple[str, Timeline | Unreadable]],
) -> None:
    """Write the index of files atomically.

    Args:
        path: path of the index.
        states: size and time of each file before it was read.
        timelines: path and timeline of each file, or why it has none.
    """
    files: dict[str, Any] = {}
    arrays: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in ARRAYS}
    counts = dict.fromkeys(ARRAYS, 0)
    for name, found in timelines:
        if isinstance(found, Unreadable):
            files[name] = {"state": states[name], "fault": found}
            continue
        values = found.to_json()
        clean = set(values.pop("clean_keyframes"))
        keyframes = [
            (key.packet, key.pts, NO_DTS if key.dts is None else key.dts, key.packet in clean)
            for key in values.pop("keyframes")
        ]
        ranges = {}
        for key, array in (
            ("presented_pts", values.pop("presented_pts")),
            ("packet_pts", values.pop("packet_pts")),
            ("keyframes", keyframes),
        ):
            shape = (-1, 4) if key == "keyframes" else (-1,)
            arrays[key].append(np.asarray(array, dtype=np.int64).reshape(shape))
            ranges[key] = (counts[key], counts[key] + len(array))
            counts[key] += len(array)
        files[name] = {"state": states[name], "timeline": values, "ranges": ranges}
    text = np.frombuffer(json.dumps(files).encode(), np.uint8)
    tensors: dict[str, npt.NDArray[Any]] = {"files": text}
    for key, parts in arrays.items():
        empty = np.empty((0, 4) if key == "keyframes" else 0, np.int64)
        tensors[key] = np.concatenate([empty, *parts])
    write_bytes(safetensors.numpy.save(tensors), path)


@dataclass(frozen=True)
class VideoIndex:
    """Index on disk; only what is asked for is read.

    Attributes:
        path: path of the index.
    """

    path: Path

    def covers(self, states: Mapping[str, FileState]) -> bool:
        """Return whether the index exists and contains these files in their present states."""
        if not self.path.exists():
            return False
        return {name: FileState(*one["state"]) for name, one in self._files.items()} == dict(states)

    def state(self, name: str) -> FileState:
        """Return the size and time of a file when it was read."""
        return FileState(*self._files[name]["state"])

    def fault(self, name: str) -> Unreadable | None:
        """Return why a file has no timeline; None if it has one."""
        fault = self._files[name].get("fault")
        return None if fault is None else Unreadable(*fault)

    def num_presented(self, name: str) -> int:
        """Return the number of presented frames of a file, without reading arrays."""
        return int(self._files[name]["timeline"]["num_presented"])

    def num_beyond_end(self, name: str) -> int:
        """Return the number of frames of a file beyond its end."""
        return int(self._files[name]["timeline"]["num_beyond_end"])

    def timeline(self, name: str) -> Timeline:
        """Return the timeline of a readable file."""
        entry = self._files[name]
        arrays = {key: self._slice(key, *ends) for key, ends in entry["ranges"].items()}
        keyframes = arrays.pop("keyframes").tolist()
        return Timeline.from_json(
            {
                **entry["timeline"],
                **arrays,
                "keyframes": [
                    (n, pts, None if dts == NO_DTS else dts) for n, pts, dts, _ in keyframes
                ],
                "clean_keyframes": [packet for packet, _, _, is_clean in keyframes if is_clean],
            }
        )

    def _slice(self, key: str, begin: int, end: int) -> npt.NDArray[np.int64]:
        if begin == end:
            return np.empty(0, np.int64)
        found: npt.NDArray[np.int64] = self._arrays.get_slice(key)[begin:end]
        return found

    @cached_property
    def _arrays(self) -> Any:
        with self._readable():
            return safetensors.safe_open(self.path, framework="numpy")

    @cached_property
    def _files(self) -> dict[str, Any]:
        with self._readable():
            found: dict[str, Any] = json.loads(bytes(self._arrays.get_tensor("files")))
        return found

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise FeaturesError(
                f"cannot read {self.path} ({error}); remove it, and it is written again"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}
