"""An index of video files: the timeline of each, in one file that is read through a memory map.

    index.safetensors
        files          JSON, as bytes: path → size, mtime, and the timeline without its arrays,
                       but for the range of each in those below; or why it has none
        presented_pts  (N,) int64, all files' arrays end to end; packet_pts as well
        keyframes      (K, 4) int64: packet, pts, dts (or NO_DTS), whether it is a fresh one

Only what is asked for is read.
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
from .frames import Outcome
from .pool import DecodingChildren
from .protocol import Answer, Survey
from .timeline import Timeline

NO_DTS = np.iinfo(np.int64).min
ARRAYS = ("presented_pts", "packet_pts", "keyframes")


class Unreadable(NamedTuple):
    """A file without a timeline, and why."""

    reason: str
    message: str


def survey(paths: Sequence[str], num_children: int) -> Iterator[tuple[str, Timeline | Unreadable]]:
    """Reads the packets of files, several at a time; yields each file's timeline, or why it has
    none.
    """
    with DecodingChildren(max(1, min(num_children, len(paths)))) as children:
        for number, event in children.run([Survey(path) for path in paths]):
            path = paths[number]
            if isinstance(event, Answer):
                yield path, event.value
            elif isinstance(event, Outcome) and event.status == "failed":
                yield path, Unreadable(event.reason, event.message)


def write_index(
    path: Path,
    states: Mapping[str, FileState],
    surveyed: Iterable[tuple[str, Timeline | Unreadable]],
) -> None:
    """Writes the index of files, atomically.

    Args:
        path: of the index.
        states: of the files before they were read.
        surveyed: what was found in each.
    """
    files: dict[str, Any] = {}
    arrays: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in ARRAYS}
    counts = dict.fromkeys(ARRAYS, 0)
    for name, found in surveyed:
        if isinstance(found, Unreadable):
            files[name] = {"state": states[name], "fault": found}
            continue
        values = found.to_json()
        fresh = set(values.pop("fresh_keyframes"))
        keyframes = [
            (key.packet, key.pts, NO_DTS if key.dts is None else key.dts, key.packet in fresh)
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
    """An index on disk; only what is asked for is read.

    Attributes:
        path: of the index.
    """

    path: Path

    def covers(self, states: Mapping[str, FileState]) -> bool:
        """Whether it is there, and holds these files as they are now."""
        if not self.path.exists():
            return False
        return {name: FileState(*one["state"]) for name, one in self._files.items()} == dict(states)

    def state(self, name: str) -> FileState:
        """A file as it was when it was read."""
        return FileState(*self._files[name]["state"])

    def fault(self, name: str) -> Unreadable | None:
        """Why a file has no timeline."""
        fault = self._files[name].get("fault")
        return None if fault is None else Unreadable(*fault)

    def num_presented(self, name: str) -> int:
        """How many frames a file presents; reads no arrays."""
        return int(self._files[name]["timeline"]["num_presented"])

    def num_beyond_end(self, name: str) -> int:
        """How many samples of its index a file does not hold."""
        return int(self._files[name]["timeline"]["num_beyond_end"])

    def timeline(self, name: str) -> Timeline:
        """The timeline of a file that has one."""
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
                "fresh_keyframes": [packet for packet, _, _, is_fresh in keyframes if is_fresh],
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
            if isinstance(error, FeaturesError):
                raise
            raise FeaturesError(
                f"{self.path}: cannot be read ({error}); remove it, and it is made again"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}
