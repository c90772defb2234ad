"""Feature store: a read-only mapping over a folder of shards; a video is one slice of a memory map.

Of an id that several plans extracted, the newest complete entry counts. A video with a part missing
is absent, never short.
"""

import resource
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import FeaturesError, counted
from .failures import TRANSIENT_REASONS, Failure, message_of_parts, notes_in
from .feature_folder import FeatureFolder, read_extraction
from .manifest import VideoRow, read_manifest
from .shards import ROW_DTYPES, Entry, Shard, Status, read_shard, rows_of
from .tabular import Tabular
from .times import frame_rate

MAX_NAMED_IDS = 5  # in an error
MAX_OPEN_MAPS = 256  # each open map holds a file descriptor
MAPS_OF_OPEN_FILES = 0.25  # most, as a share of the process's limit of open files


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFeatures:
    """The stored features of one video, as read-only arrays.

    Attributes:
        features: [T, D], or [T, V, D] with several views per frame; float16 or float32.
        frame_index: [T] int64, index among the presented frames of the file, from 0.
        timestamps: [T] float64, seconds since the file's first presented frame.
        fps: (T - 1) / (last - first timestamp), or NaN where that is undefined.
        status: `ok`, or `partial` where presented frames are missing.
    """

    video_id: str
    features: npt.NDArray[np.floating[Any]]
    frame_index: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.float64]
    fps: float
    status: Status
    num_lost_frames: int = 0
    reason: str = ""
    decoder: str = ""

    def __len__(self) -> int:
        """Return the number of frames, T."""
        return len(self.timestamps)

    def __getitem__(self, frames: slice) -> "VideoFeatures":
        """Return some of the frames, as views.

        >>> store["a"][10:20]  # doctest: +SKIP
        VideoFeatures('a', 10×768 float16, ok)
        """
        timestamps = self.timestamps[frames]
        return replace(
            self,
            features=self.features[frames],
            frame_index=self.frame_index[frames],
            timestamps=timestamps,
            fps=frame_rate(timestamps),
        )

    def between(self, start: float, end: float) -> "VideoFeatures":
        """Return the frames with start <= time < end, in seconds, as views."""
        first, stop = np.searchsorted(self.timestamps, (start, end)).tolist()
        return self[first:stop]

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.features.shape))
        return f"VideoFeatures({self.video_id!r}, {shape} {self.features.dtype}, {self.status})"


class FeatureBatch(NamedTuple):
    """Features of B videos, padded to the longest one.

    Attributes:
        video_ids: ids of the videos.
        features: [B, T, D], or [B, T, V, D]; zeros where there is no frame.
        timestamps: [B, T] float64, seconds.
        mask: [B, T] bool, where there is a frame.
    """

    video_ids: list[str]
    features: npt.NDArray[np.floating[Any]]
    timestamps: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_]


class FeatureStore(Mapping[str, VideoFeatures], Tabular):
    """The videos of a folder that have rows, by id; memory-mapped, picklable, safe after a fork.

    Its table has a row for each video of the folder's manifest, failed ones included.

    Args:
        folder: a feature folder.
        earlier: an earlier store of the same folder; only shards new since are read.

    Attributes:
        entries: id → entries of its parts, of every finished video, failed ones included.
        extraction: contents of extraction.json.
        spec: feature specification.
        fingerprint: fingerprint of the folder.
        row_shape: (D,), or (V, D).
        num_views: V; 1 if a frame has one view.
    """

    def __init__(self, folder: str | Path, *, earlier: "FeatureStore | None" = None) -> None:
        self.folder = FeatureFolder(Path(folder))
        self.extraction = read_extraction(self.folder)
        self.spec, self.fingerprint = self.extraction.spec, self.extraction.fingerprint
        known = {} if earlier is None else {shard.path: shard for shard in earlier._shards}
        self._shards: list[Shard] = [
            known.get(path) or read_shard(path, self.fingerprint)
            for path in sorted(self.folder.shards.glob("*.h5"))
        ]
        self.row_shape = self.extraction.row_shape
        for shard in self._shards:
            if shard.row_shape != self.row_shape:
                raise FeaturesError(
                    f"{shard.path}: has features of shape {list(shard.row_shape)} per frame, but "
                    f"extraction.json says {list(self.row_shape)}; it does not belong here: "
                    "`vtnpipe features verify FEATURES --drop` removes it"
                )
        self.num_views = 1 if len(self.row_shape) == 1 else self.row_shape[0]
        self._locations = _newest_complete(self._shards)
        self.entries: dict[str, list[Entry]] = {
            video_id: [entry for _, entry in parts] for video_id, parts in self._locations.items()
        }
        self._ids = [
            video_id for video_id, parts in self.entries.items() if any(e.length for e in parts)
        ]
        self._maps: OrderedDict[int, mmap] = OrderedDict()
        self._maps_lock = Lock()  # threads may load batches

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the features."""
        return self._shards[0].dtype if self._shards else np.dtype(np.float16)

    @property
    def outcomes(self) -> dict[str, tuple[Status, str]]:
        """Id → (status, reason) of every finished video."""
        return {video_id: overall_status(parts) for video_id, parts in self.entries.items()}

    @property
    def plans(self) -> dict[str, int]:
        """Id → number of the plan whose entries count, of every finished video."""
        return {
            video_id: self._shards[parts[0][0]].plan for video_id, parts in self._locations.items()
        }

    @property
    def statuses(self) -> dict[str, Status]:
        """Id → status of every finished video."""
        return {video_id: status for video_id, (status, _) in self.outcomes.items()}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __contains__(self, video_id: object) -> bool:
        return any(entry.length for entry in self.entries.get(video_id, ()))  # type: ignore[call-overload]

    def __getitem__(self, video_id: str) -> VideoFeatures:
        if video_id not in self:
            some = ", ".join(map(repr, self._ids[:MAX_NAMED_IDS]))
            more = ", …" if len(self._ids) > MAX_NAMED_IDS else ""
            raise KeyError(
                f"{self.folder.root} has no features of {video_id!r}; it has those of "
                f"{counted(len(self), 'video')}: {some}{more}"
            )
        parts = self._locations[video_id]
        frame_index, timestamps = self.times(video_id)
        status, reason = overall_status(self.entries[video_id])
        return VideoFeatures(
            video_id=video_id,
            features=_join(self._parts(video_id, "features")),
            frame_index=frame_index,
            timestamps=timestamps,
            fps=frame_rate(timestamps),
            status=status,
            reason=reason,
            num_lost_frames=sum(entry.num_lost_frames for _, entry in parts),
            decoder=parts[0][1].decoder,
        )

    def times(self, video_id: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return a video's frame_index and timestamps, [T] each, without reading its features."""
        frame_index, timestamps = (_join(self._parts(video_id, name)) for name in ROW_DTYPES)
        return frame_index, timestamps

    def take(self, video_id: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.floating[Any]]:
        """Return some of a video's features, [t, D] or [t, V, D]; no others are read.

        Args:
            video_id: id of a video in the store.
            rows: [t] row numbers below T.
        """
        parts = self._parts(video_id, "features")
        if len(parts) == 1:
            return parts[0][rows]
        ends = np.cumsum([len(part) for part in parts])
        part_of_row = np.searchsorted(ends, rows, side="right")
        taken = np.empty((len(rows), *self.row_shape), parts[0].dtype)
        for number in np.unique(part_of_row):
            is_here = part_of_row == number
            begin = ends[number] - len(parts[number])
            taken[is_here] = parts[number][rows[is_here] - begin]
        return taken

    def num_frames(self, video_id: str) -> int:
        """Return the number of stored frames of a video, T."""
        return sum(entry.length for entry in self.entries[video_id])

    def batches(
        self, batch_size: int, video_ids: Iterable[str] | None = None
    ) -> Iterator[FeatureBatch]:
        """Yield the features of videos in batches, padded with zeros.

        Args:
            batch_size: number of videos in a batch; the last one may have fewer.
            video_ids: ids of the videos; by default all.
        """
        ids = iter(self if video_ids is None else video_ids)
        while chosen := list(islice(ids, batch_size)):
            videos = [self[video_id] for video_id in chosen]
            shape = (len(videos), max(map(len, videos)))
            features = np.zeros((*shape, *self.row_shape), self.dtype)
            timestamps, mask = np.zeros(shape), np.zeros(shape, dtype=bool)
            for row, video in enumerate(videos):
                features[row, : len(video)] = video.features
                timestamps[row, : len(video)] = video.timestamps
                mask[row, : len(video)] = True
            yield FeatureBatch(chosen, features, timestamps, mask)

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each video of the manifest: frames, seconds, status and its reason."""
        rows = read_manifest(self.folder.manifest) if self.folder.manifest.exists() else []
        known = {row.video_id: (row.label, row.split) for row in rows}
        for video_id in known or self.entries:
            label, split = known.get(video_id, ("", ""))
            parts = self.entries.get(video_id)
            status, reason = ("missing", "") if parts is None else overall_status(parts)
            num_frames = self.num_frames(video_id) if parts else 0
            seconds = float(self.times(video_id)[1][-1]) if num_frames else None
            yield {
                "video_id": video_id,
                "label": label,
                "split": split,
                "frames": num_frames,
                "last_second": seconds,
                "status": status,
                "reason": reason,
            }

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_maps", "_maps_lock")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_maps": OrderedDict(), "_maps_lock": Lock()}

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.folder.root)!r}, {len(self)} videos)"

    def _parts(self, video_id: str, name: str) -> list[npt.NDArray[Any]]:
        """Return one array of each of a video's parts that have rows, as views."""
        parts = self._locations[video_id]
        return [self._rows(shard, entry, name) for shard, entry in parts if entry.length]

    def _rows(self, index: int, entry: Entry, name: str) -> npt.NDArray[Any]:
        """Return one entry's rows [length, ...] of one array, as a view."""
        return rows_of(self._shards[index], self._map(index), entry, name)

    def _map(self, index: int) -> mmap:
        with self._maps_lock:
            if index in self._maps:
                self._maps.move_to_end(index)
                return self._maps[index]
            with self._shards[index].path.open("rb") as file:
                found = self._maps[index] = mmap(file.fileno(), 0, access=ACCESS_READ)
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = MAX_OPEN_MAPS
            if limit != resource.RLIM_INFINITY:
                most = min(most, int(MAPS_OF_OPEN_FILES * limit))
            while len(self._maps) > most:
                self._maps.popitem(last=False)  # arrays that still use it keep it alive
            return found


def _newest_complete(shards: Sequence[Shard]) -> dict[str, list[tuple[int, Entry]]]:
    """Return id → (shard, entry) of each part in order, from the newest plan that has all parts.

    A plan in which a part failed for a transient reason counts only if no older one has rows.
    """
    found: dict[str, dict[int, list[tuple[int, Entry]]]] = {}
    for index, shard in enumerate(shards):
        for entry in shard.entries:
            found.setdefault(entry.id, {}).setdefault(shard.plan, []).append((index, entry))
    locations: dict[str, list[tuple[int, Entry]]] = {}
    for video_id, plans in found.items():
        for _, parts in sorted(plans.items(), reverse=True):
            parts.sort(key=lambda pair: pair[1].part)
            num_parts = parts[0][1].num_parts
            if len(parts) != num_parts or [one.part for _, one in parts] != [*range(num_parts)]:
                continue
            newest = locations.setdefault(video_id, parts)
            if all(entry.length or entry.reason not in TRANSIENT_REASONS for _, entry in parts):
                if _has_rows(parts) or not _has_rows(newest):
                    locations[video_id] = parts
                break
    return locations


def _has_rows(parts: list[tuple[int, Entry]]) -> bool:
    return any(entry.length for _, entry in parts)


def _join(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return one read-only array of all parts; a view if there is only one part."""
    if len(arrays) == 1:
        return arrays[0]
    joined = np.concatenate(arrays)
    joined.flags.writeable = False
    return joined


def overall_status(parts: Iterable[Entry]) -> tuple[Status, str]:
    """Return the (status, reason) of a video from those of its parts."""
    parts = list(parts)
    reason = next((part.reason for part in parts if part.reason), "")
    if not any(part.length for part in parts):
        return "failed", reason
    return ("ok" if all(part.status == "ok" for part in parts) else "partial"), reason


def failures_of(store: FeatureStore, rows: Iterable[VideoRow]) -> list[Failure]:
    """Return the failed and partial videos of a folder, in the order of its manifest's rows."""
    failures = []
    for row in rows:
        parts = store.entries.get(row.video_id, [])
        status, _ = overall_status(parts) if parts else ("ok", "")
        if status == "ok":
            continue
        faults = [part for part in parts if part.status != "ok"] or parts[:1]
        num_lost = sum(part.num_lost_frames for part in parts)
        message = message_of_parts(
            [part.message for part in faults],
            num_parts=len(parts),
            num_lost=num_lost,
            num_frames=num_lost + sum(part.length for part in parts),
        )
        failures.append(
            Failure(row.video_id, row.path, status, faults[0].reason, message, num_lost)
        )
    return failures


def num_noted(entries: Mapping[str, Sequence[Entry]]) -> Counter[str]:
    """Return the number of videos with each note on a sound video, such as a clock that jumps."""
    return Counter(
        note
        for parts in entries.values()
        for note in {
            note for part in parts if part.status == "ok" for note in notes_in(part.message)
        }
    )


def open_features(folder: str | Path) -> FeatureStore:
    """Open a feature folder as a read-only mapping from video id to `VideoFeatures`.

    Raises:
        FeaturesError: it is not a feature folder, or one of its shards cannot be read.
    """
    return FeatureStore(folder)
