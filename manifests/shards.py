"""Feature shards: one HDF5 file per task, with several videos packed end to end.

Datasets are contiguous, so that a video is one slice of a memory map: /features (N, D) or
(N, V, D), /frame_index (N,), /timestamps (N,), and under /videos one column per field of `Entry`.
Files are named `PPP-TTTTT.h5` (plan, task). No other module uses HDF5.
"""

import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from .atomic import write_bytes
from .errors import DamagedShardError, FeaturesError
from .times import frame_rate

FORMAT, VERSION = "vtnpipe.features", 1
ROW_DTYPES = {"frame_index": np.dtype("<i8"), "timestamps": np.dtype("<f8")}
NAME = re.compile(r"(\d{3,})-(\d{5,})\.h5")

Status = Literal["ok", "partial", "failed"]


class Entry(NamedTuple):
    """Row of a shard's /videos table: one video, or one part of a video."""

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
    decoder_reason: str  # why the decoder is not the preferred one
    crc32: int  # over the rows of /features, then /frame_index, then /timestamps
    message: str  # of a sound video, notes: see failures.notes_in


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoPart:
    """One video, or one part of a video, as `write_shard` takes it.

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
    decoder_reason: str = ""
    part: int = 0
    num_parts: int = 1

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.frame_index) == len(self.timestamps)
        assert (self.status == "failed") == (len(self.features) == 0)


def checksum(
    features: npt.NDArray[Any], frame_index: npt.NDArray[Any], timestamps: npt.NDArray[Any]
) -> int:
    """Return the CRC-32 of an entry's rows of the three arrays, in this order."""
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
    """Write one shard atomically.

    Args:
        path: `PPP-TTTTT.h5` in an existing folder.
        parts: videos in the order in which they are packed; failed ones have no rows.
        row_shape: (D,), or (V, D).
        dtype: float16 or float32.
        fingerprint: fingerprint of the feature folder.
        views: name of each view of a frame.
        settings: a record for people.

    Raises:
        StorageError: the disk is full, lost or read-only.
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
            decoder_reason=part.decoder_reason,
            crc32=checksum(part.features, part.frame_index, part.timestamps),
            message=part.message,
        )
        for part, offset, length in zip(parts, offsets, lengths, strict=False)
    ]
    num_rows = int(offsets[-1])
    # Built in memory, where its rows are anyway: HDF5 then locks no file, which some network file
    # systems refuse, and cannot close a file silently that the disk had no room for.
    image = io.BytesIO()
    with h5py.File(image, "w", libver="v110") as file:
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
    write_bytes(image.getbuffer(), path)


def _column(values: list[Any]) -> npt.NDArray[Any]:
    """Return a table column: text as fixed-length UTF-8, numbers as int64 or float64."""
    if not isinstance(values[0], str):
        return np.array(values)
    encoded = [value.encode() for value in values]
    length = max(1, *map(len, encoded))
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


class Shard(NamedTuple):
    """Table and array layout of a finished shard."""

    path: Path
    plan: int
    entries: list[Entry]
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]  # of the features
    starts: dict[str, int]  # name of each array → its offset in the file, in bytes


def read_shard(path: Path, fingerprint: str) -> Shard:
    """Read a shard's attributes, table and layout, but none of its rows.

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
                name: int(array.id.get_offset()) if len(array) else 0
                for name, array in arrays.items()
            }
            features = arrays["features"]
            shard = Shard(
                path,
                int(match[1]),
                [Entry(*row) for row in zip(*map(_values, columns), strict=True)],
                features.shape[1:],
                features.dtype,
                starts,
            )
            dtypes_fit = all(arrays[name].dtype == dtype for name, dtype in ROW_DTYPES.items())
            num_rows = {len(array) for array in arrays.values()}
            num_bytes = {name: array.nbytes for name, array in arrays.items()}
            size = path.stat().st_size
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, f"not a readable shard ({error})") from None
    ends = np.cumsum([0] + [entry.length for entry in shard.entries])
    packed = [entry.offset for entry in shard.entries] == ends[:-1].tolist()
    lie_in_file = all(starts[name] + one <= size for name, one in num_bytes.items())
    fits = dtypes_fit and _features_fit(shard) and lie_in_file and not (np.diff(ends) < 0).any()
    if not (packed and num_rows == {int(ends[-1])} and fits):
        raise _damaged(path, "table and arrays do not match")
    return shard


def _damaged(path: str | Path, fault: str) -> DamagedShardError:
    return DamagedShardError(
        f"{path}: {fault}; `vtnpipe features verify FEATURES --drop` removes it, and "
        "extract writes it again"
    )


def _features_fit(shard: Shard) -> bool:
    """Return whether the features are float16 or float32, [N, D] or [N, V, D]."""
    return shard.dtype in (np.float16, np.float32) and len(shard.row_shape) in (1, 2)


def _plain_dataset(file: Any, name: str) -> Any:
    """Return a dataset whose bytes lie in this file, contiguous, and hold no objects.

    Raises:
        DamagedShardError: there is no such dataset.
    """
    for depth in range(1, name.count("/") + 2):
        link = file.get("/".join(name.split("/")[:depth]), getlink=True)
        if link is None:
            raise _damaged(file.filename, f"has no {name!r}")
        if not isinstance(link, h5py.HardLink):
            raise _damaged(file.filename, f"{name!r} is not stored in the file itself")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise _damaged(file.filename, f"{name!r} is not stored in the file itself")
    if dataset.chunks is not None or dataset.dtype.hasobject:
        raise _damaged(file.filename, f"{name!r} is not a contiguous array of plain values")
    if dataset.nbytes > Path(file.filename).stat().st_size:
        raise _damaged(file.filename, f"{name!r} claims more bytes than the file has")
    return dataset


@contextmanager
def read_dataset(path: str, key: str | None) -> Iterator[h5py.Dataset]:
    """Open a data set of any HDF5 file, to be sliced.

    Args:
        path: path of the file.
        key: path of the data set inside; None for the only one at the top.

    Raises:
        KeyError: there is no such data set in the file itself.
        OSError: the file cannot be read.
    """
    with h5py.File(path, "r", locking=False) as file:
        names = list(file)
        if key is None and len(names) != 1:
            raise KeyError(f"has {len(names)} entries ({', '.join(names[:5])}); give --key")
        name = names[0] if key is None else key
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise KeyError(f"has no data set {name!r}; give --key with the name of one")
        is_inside = dataset.file.filename == file.filename
        if not is_inside or dataset.external or dataset.is_virtual:
            raise KeyError(f"{name!r} is not stored in the file itself")
        yield dataset


def _values(column: npt.NDArray[Any]) -> list[Any]:
    """Return a table column as Python values."""
    if column.ndim != 1:
        raise ValueError("a column of its table is not a list")
    values: list[Any] = column.tolist()
    return [value.decode() for value in values] if column.dtype.kind == "S" else values


def rows_of(shard: Shard, data: mmap, entry: Entry, name: str) -> npt.NDArray[Any]:
    """Return one entry's rows [length, ...] of one array, as a view.

    Args:
        shard: layout of the file.
        data: memory map of the whole file.
        entry: entry of the shard.
        name: `features`, `frame_index` or `timestamps`.
    """
    row_shape = shard.row_shape if name == "features" else ()
    dtype = shard.dtype if name == "features" else ROW_DTYPES[name]
    width = int(np.prod(row_shape))
    return np.frombuffer(
        data,
        dtype,
        count=entry.length * width,
        offset=shard.starts[name] + entry.offset * width * dtype.itemsize,
    ).reshape(entry.length, *row_shape)
