"""Feature shards: how they are written, and the read-only mapping over a folder of them.

A shard is one HDF5 file with several videos packed end to end, in contiguous datasets, so that a video is one
slice of a memory map: /features (N, D) or (N, V, D), /frame_index (N,), /timestamps (N,), and under /videos one
column per field of `Entry`. Names are `PPP-TTTTT.h5` (plan, task); of an id that several plans made, the newest
complete entry counts. This is the only file that knows HDF5.
"""

import json
import mmap
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from .errors import FeaturesError
from .files import atomic_path
from .folder import FeatureFolder, read_extraction

FORMAT, VERSION = "vtnpipe.features", 1
ROW_DTYPES = {"frame_index": np.dtype("<i8"), "timestamps": np.dtype("<f8")}
NAME = re.compile(r"(\d{3,})-(\d{5,})\.h5")
MAX_OPEN_MAPS = 256  # each open map holds a file descriptor

Status = Literal["ok", "partial", "failed"]


class Entry(NamedTuple):
    """One video, or one part of one, in a shard: a row of its /videos table."""

    id: str
    part: int
    num_parts: int
    offset: int  # first row in the shard's arrays
    length: int  # rows; 0 for a failed video
    first_frame: int  # frame_index of the first row; -1 without rows
    num_lost_frames: int
    fps: float  # NaN for fewer than two rows
    status: Status
    reason: str
    decoder: str
    crc32: int  # over the rows of /features, then /frame_index, then /timestamps
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoPart:
    """What a task hands to `write_shard` for one video.

    Attributes:
        features: [T, D] or [T, V, D], in the dtype to store.
        frame_index: [T] int64, strictly increasing.
        timestamps: [T] float64, seconds.
    """

    video_id: str
    features: npt.NDArray[np.floating[Any]]
    frame_index: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.float64]
    status: Status
    num_lost_frames: int = 0
    reason: str = ""
    message: str = ""
    decoder: str = ""
    part: int = 0
    num_parts: int = 1

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.frame_index) == len(self.timestamps)
        assert (self.status == "failed") == (len(self.features) == 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFeatures:
    """The stored features of one video, as read-only arrays.

    Attributes:
        features: [T, D], or [T, V, D] with several views per frame; float16 or float32.
        frame_index: [T] int64, rank among the presented frames of the file, from 0.
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

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.features.shape))
        return f"VideoFeatures({self.video_id!r}, {shape} {self.features.dtype}, {self.status})"


def frame_rate(timestamps: npt.NDArray[np.float64]) -> float:
    """(T - 1) / (last - first), for timestamps [T] in seconds.

    >>> float(frame_rate(np.array([0.0, 0.5, 1.0])))
    2.0
    """
    span = float(timestamps[-1] - timestamps[0]) if len(timestamps) > 1 else 0.0
    return (len(timestamps) - 1) / span if span > 0 else float("nan")


def checksum(
    features: npt.NDArray[Any], frame_index: npt.NDArray[Any], timestamps: npt.NDArray[Any]
) -> int:
    """CRC-32 over the rows of a shard's three arrays, in this order."""
    crc = 0
    for array in (features, frame_index, timestamps):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc)
    return crc


def write_shard(
    path: Path,
    parts: Sequence[VideoPart],
    *,
    row_shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    fingerprint: str,
    views: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Writes one shard, whole or not at all.

    Args:
        path: `PPP-TTTTT.h5` in a folder that exists.
        parts: the videos, in the order in which they are packed; failed ones have no rows.
        row_shape: (D,), or (V, D).
        dtype: float16 or float32.
        fingerprint: of the folder that the shard belongs to.
        views: a name for each view of a frame.
        settings: recorded with the shard.
    """
    lengths = [len(part.features) for part in parts]
    offsets = np.cumsum([0, *lengths])
    entries = [
        Entry(
            id=part.video_id,
            part=part.part,
            num_parts=part.num_parts,
            offset=int(offset),
            length=length,
            first_frame=int(part.frame_index[0]) if length else -1,
            num_lost_frames=part.num_lost_frames,
            fps=frame_rate(part.timestamps),
            status=part.status,
            reason=part.reason,
            decoder=part.decoder,
            crc32=checksum(part.features, part.frame_index, part.timestamps),
            message=part.message,
        )
        for part, offset, length in zip(parts, offsets, lengths, strict=False)
    ]
    num_rows = int(offsets[-1])
    with atomic_path(path) as temporary, h5py.File(temporary, "x", libver="v110") as file:
        file.attrs.update(
            format=FORMAT,
            version=VERSION,
            fingerprint=fingerprint,
            views=json.dumps(list(views)),
            settings=json.dumps(dict(settings), sort_keys=True),
        )
        arrays = {
            "features": file.create_dataset("features", (num_rows, *row_shape), dtype),
            "frame_index": file.create_dataset(
                "frame_index", (num_rows,), ROW_DTYPES["frame_index"]
            ),
            "timestamps": file.create_dataset("timestamps", (num_rows,), ROW_DTYPES["timestamps"]),
        }
        for part, entry in zip(parts, entries, strict=True):
            if entry.length:
                for name, array in arrays.items():
                    array[entry.offset : entry.offset + entry.length] = getattr(part, name)
        table = file.create_group("videos")
        for name in Entry._fields:
            table[name] = _column([getattr(entry, name) for entry in entries])


def _column(values: list[Any]) -> npt.NDArray[Any]:
    """A table column: text as fixed-length UTF-8 (never as objects), numbers as int64 or float64."""
    if not isinstance(values[0], str):
        return np.array(values)
    encoded = [value.encode() for value in values]
    length = max(1, *map(len, encoded))
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


class Shard(NamedTuple):
    """Where a finished shard's arrays lie in its file, and what they hold."""

    path: Path
    plan: int
    entries: list[Entry]
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]  # of the features
    starts: dict[str, int]  # byte in the file where each array begins


def read_shard(path: Path, fingerprint: str) -> Shard:
    """Reads a shard's attributes, table and layout, but none of its rows.

    Raises:
        FeaturesError: the file is not a complete shard of this format, version and fingerprint.
    """
    match = NAME.fullmatch(path.name)
    if match is None:
        raise FeaturesError(f"{path}: not named PPP-TTTTT.h5 (plan, task); move it elsewhere")
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {name: file.attrs.get(name) for name in ("format", "version", "fingerprint")}
            expected = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint}
            for name, value in expected.items():
                if found[name] != value:
                    raise FeaturesError(
                        f"{path}: its {name} is {found[name]!r}, but {value!r} is expected; "
                        "it does not belong here: move it elsewhere"
                    )
            arrays = {name: _plain_dataset(file, name) for name in ("features", *ROW_DTYPES)}
            columns = [_plain_dataset(file, f"videos/{name}")[()] for name in Entry._fields]
            starts = {
                name: array.id.get_offset() if len(array) else 0 for name, array in arrays.items()
            }
            features = arrays["features"]
            shard = Shard(
                path,
                int(match[1]),
                [Entry(*map(_python_value, row)) for row in zip(*columns, strict=True)],
                features.shape[1:],
                features.dtype,
                starts,
            )
            dtypes_fit = all(arrays[name].dtype == dtype for name, dtype in ROW_DTYPES.items())
            num_rows = {len(array) for array in arrays.values()}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, FeaturesError):
            raise
        raise FeaturesError(
            f"{path}: not a readable shard ({error}); remove it, and extract makes it again"
        ) from None
    ends = np.cumsum([0] + [entry.length for entry in shard.entries])
    packed = [entry.offset for entry in shard.entries] == ends[:-1].tolist()
    if not (packed and num_rows == {int(ends[-1])} and dtypes_fit and features_dtype_fits(shard)):
        raise FeaturesError(
            f"{path}: its table and its arrays disagree; remove it, and extract makes it again"
        )
    return shard


def features_dtype_fits(shard: Shard) -> bool:
    """Whether the features are float16 or float32, [N, D] or [N, V, D]."""
    return shard.dtype in (np.float16, np.float32) and len(shard.row_shape) in (1, 2)


def _plain_dataset(file: Any, name: str) -> Any:
    """The dataset of that name, if its bytes lie in this file, contiguous, and are no objects."""
    for depth in range(1, name.count("/") + 2):
        link = file.get("/".join(name.split("/")[:depth]), getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise FeaturesError(f"{file.filename}: {name!r} is not stored in the file itself")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise FeaturesError(f"{file.filename}: {name!r} is not stored in the file itself")
    if dataset.chunks is not None or dataset.dtype.hasobject:
        raise FeaturesError(f"{file.filename}: {name!r} is not a contiguous array of plain values")
    if dataset.nbytes > Path(file.filename).stat().st_size:
        raise FeaturesError(f"{file.filename}: {name!r} claims more bytes than the file has")
    return dataset


def _python_value(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()


def open_features(folder: str | Path) -> "FeatureStore":
    """Opens a feature folder as a read-only mapping from video id to `VideoFeatures`.

    Raises:
        FeaturesError: it is not a feature folder, or one of its shards can't be read.
    """
    return FeatureStore(folder)


class FeatureStore(Mapping[str, VideoFeatures]):
    """A folder's videos that have rows, by id; memory-mapped, picklable, safe after a fork and in workers.

    Attributes:
        entries: id → its entries, one a part, of every video that is finished, failed ones included.
        row_shape: (D,), or (V, D).
        extraction: what `extraction.json` says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = FeatureFolder(Path(folder))
        self.extraction = read_extraction(self.folder)
        self._shards = [
            read_shard(path, self.extraction["fingerprint"])
            for path in sorted(self.folder.shards.glob("*.h5"))
        ]
        self.row_shape = tuple(self.extraction["row_shape"])
        self._homes = _newest_complete(self._shards)
        self.entries: dict[str, list[Entry]] = {
            video_id: [entry for _, entry in home] for video_id, home in self._homes.items()
        }
        self._ids = [
            video_id for video_id, parts in self.entries.items() if any(e.length for e in parts)
        ]
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    @property
    def statuses(self) -> dict[str, Status]:
        """Id → `ok`, `partial` or `failed`, of every video that is finished."""
        return {video_id: overall_status(parts)[0] for video_id, parts in self.entries.items()}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __contains__(self, video_id: object) -> bool:
        return any(entry.length for entry in self.entries.get(video_id, ()))  # type: ignore[call-overload]

    def __getitem__(self, video_id: str) -> VideoFeatures:
        if video_id not in self:
            raise KeyError(video_id)
        home = self._homes[video_id]
        features, frame_index, timestamps = (
            _join([self._rows(shard, entry, name) for shard, entry in home if entry.length])
            for name in ("features", *ROW_DTYPES)
        )
        status, reason = overall_status(self.entries[video_id])
        return VideoFeatures(
            video_id=video_id,
            features=features,
            frame_index=frame_index,
            timestamps=timestamps,
            fps=frame_rate(timestamps),
            status=status,
            reason=reason,
            num_lost_frames=sum(entry.num_lost_frames for _, entry in home),
            decoder=home[0][1].decoder,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.folder.root)!r}, {len(self)} videos)"

    def _rows(self, index: int, entry: Entry, name: str) -> npt.NDArray[Any]:
        """A view [length, ...] of one entry's rows of one array."""
        shard = self._shards[index]
        row_shape = shard.row_shape if name == "features" else ()
        dtype = shard.dtype if name == "features" else ROW_DTYPES[name]
        width = int(np.prod(row_shape))
        return np.frombuffer(
            self._map(index),
            dtype,
            count=entry.length * width,
            offset=shard.starts[name] + entry.offset * width * dtype.itemsize,
        ).reshape(entry.length, *row_shape)

    def _map(self, index: int) -> mmap.mmap:
        if index not in self._maps:
            with self._shards[index].path.open("rb") as file:
                self._maps[index] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            while len(self._maps) > MAX_OPEN_MAPS:
                self._maps.popitem(last=False)  # arrays that still use it keep it alive
        self._maps.move_to_end(index)
        return self._maps[index]


def _newest_complete(shards: Sequence[Shard]) -> dict[str, list[tuple[int, Entry]]]:
    """id → (shard, entry) of each of its parts in order, for the newest plan that holds all of them."""
    found: dict[str, dict[int, list[tuple[int, Entry]]]] = {}
    for index, shard in enumerate(shards):
        for entry in shard.entries:
            found.setdefault(entry.id, {}).setdefault(shard.plan, []).append((index, entry))
    homes = {}
    for video_id, plans in found.items():
        for _, home in sorted(plans.items(), reverse=True):
            home.sort(key=lambda pair: pair[1].part)
            if [entry.part for _, entry in home] == list(range(home[0][1].num_parts)):
                homes[video_id] = home
                break
    return homes


def _join(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array of all parts, read-only; a view where there is one part only."""
    if len(arrays) == 1:
        return arrays[0]
    joined = np.concatenate(arrays)
    joined.flags.writeable = False
    return joined


def overall_status(parts: Iterable[Entry]) -> tuple[Status, str]:
    """The status and reason of a whole video from those of its parts."""
    parts = list(parts)
    reason = next((part.reason for part in parts if part.reason), "")
    if not any(part.length for part in parts):
        return "failed", reason
    return ("ok" if all(part.status == "ok" for part in parts) else "partial"), reason
