"""Export of stored features for other programs.

npy         FOLDER/ID.npy, [T, D] float32, or [T, V, D] with --view all; and FOLDER/ID.json with
            fps, and each row's time and frame index
webdataset  FOLDER/features-00000.tar, ..., with the same two files for each video
parquet     FOLDER/features-00000.parquet, ..., with a row for each frame, and a row group for each
            video; features are a list of fixed size, V * D with --view all

Characters of an id that a file name cannot contain, such as `/`, are percent-encoded as in URLs:
`run%2Fa.mp4.npy`; in archives the dot, too, at which WebDataset would cut the key.
"""

import contextlib
import hashlib
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ...manifests.atomic import atomic_path, write_json
from ...manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, FeaturesError, SettingsError, counted
from ...manifests.feature_store import FeatureStore, VideoFeatures, open_features
from ...manifests.manifest import VideoRow, read_manifest
from ...manifests.times import nearest_each
from ..console import CountProgress, say
from ..settings import above, check_settings, make_folder, setting

MAX_NAME_BYTES = 200  # file systems allow 255, with an extension
FILE_BYTES = 256 * 2**20  # of an archive or a Parquet file, from which on another one begins


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of `vtnpipe features export`."""

    format: Literal["npy", "webdataset", "parquet"] = setting(
        "npy",
        help="npy: ID.npy and ID.json with fps and times, a slash in an id becomes %2F; "
        "webdataset: tar archives of such files; parquet: a row for each frame (needs pyarrow).",
    )
    fps: float | None = setting(
        None,
        help="Rows per second, evenly spaced, each the frame nearest to its time; by default every "
        "stored frame once.",
        check=above(0),
    )
    dtype: Literal["float32", "float16"] = setting("float32", help="Dtype of the arrays.")
    view: str = setting("first", help="View, if several are stored: first, all, or its name.")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Result of `vtnpipe features export`.

    Attributes:
        num_videos: number of exported videos.
        num_missing: number of wanted videos without features.
    """

    num_videos: int
    num_missing: int

    @property
    def exit_code(self) -> int:
        """1 if a wanted video has no features."""
        return EXIT_WITH_FAILURES if self.num_missing else EXIT_OK


class _Exported(NamedTuple):
    """One video to write.

    Attributes:
        row: its row of the manifest.
        features: [T, D] or [T, V, D].
        times: [T] seconds.
        frame_index: [T].
        record: fps, times and counts as JSON values.
    """

    row: VideoRow
    features: npt.NDArray[np.floating[Any]]
    times: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    record: dict[str, Any]


Writer = Callable[[_Exported], None]


def export_features(
    features: str | Path,
    folder: str | Path,
    video_ids: Sequence[str] = (),
    settings: ExportSettings | None = None,
    *,
    console: Console | None = None,
) -> ExportReport:
    """Write the features of videos in a format of other programs.

    Args:
        features: feature folder.
        folder: folder to write to; created if missing. Files of the same names are replaced.
        video_ids: ids of the videos; none means all of the folder's manifest.
        settings: by default `ExportSettings()`.
        console: for progress; by default nothing is printed.

    Raises:
        FeaturesError: it is not a feature folder, or has no such video.
        SettingsError: it has no such view, or pyarrow is missing.
    """
    settings = settings or ExportSettings()
    console = console or Console(quiet=True)
    store = open_features(features)
    known = {row.video_id: row for row in read_manifest(store.folder.manifest)}
    for video_id in set(video_ids).difference(known):
        raise FeaturesError(f"{features}: has no video_id {video_id!r}; see its manifest.csv")
    view = _view_index(store, settings.view)
    wanted = list(video_ids) or list(known)
    present = [video_id for video_id in wanted if video_id in store]
    root = Path(folder)
    open_writer = _WRITERS[settings.format]
    with (
        open_writer(root) as write,
        CountProgress("export", "videos", len(present), console) as progress,
    ):
        make_folder(root)
        for video_id in present:
            write(_exported(known[video_id], store[video_id], view, settings))
            progress.count()
    num_missing = len(wanted) - len(present)
    missing = f"; {num_missing:,} have no features, see {store.folder.failures}"
    say(console, f"{root}: {counted(len(present), 'video')}{missing if num_missing else ''}")
    return ExportReport(num_videos=len(present), num_missing=num_missing)


def file_name(video_id: str) -> str:
    """Return the name of a video's files, without extension.

    A name that file systems would refuse as too long is cut, and ends in a hash of the id.

    >>> file_name("run/a b.mp4"), file_name("走る.mp4")
    ('run%2Fa%20b.mp4', '走る.mp4')
    """
    name = "".join(one if ord(one) > 127 else quote(one, safe="") for one in video_id)
    data = name.encode()
    if len(data) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(video_id.encode()).hexdigest()[:16]
    return f"{data[: MAX_NAME_BYTES - 17].decode(errors='ignore')}-{digest}"


def _view_index(store: FeatureStore, view: str) -> int | None:
    """Return the index of a stored view; None for all views.

    Raises:
        SettingsError: the folder has no such view.
    """
    names = store.spec.views
    if view == "all":
        return None
    if view == "first":
        return 0
    if view not in names:
        raise SettingsError(
            f"--view {view}: {store.folder.root} has {', '.join(names)}; give one of them, or "
            "first or all"
        )
    return names.index(view)


def _exported(
    row: VideoRow, video: VideoFeatures, view: int | None, settings: ExportSettings
) -> _Exported:
    """Return what is written of a video."""
    features, times = video.features, video.timestamps
    if features.ndim == 3 and view is not None:
        features = features[:, view]
    rows = np.arange(len(times))
    fps = video.fps
    step = 1 / fps if math.isfinite(fps) else 0.0
    if settings.fps is not None:
        fps = settings.fps
        count = max(1, math.ceil((times[-1] - times[0] + step) * fps - 1e-6))
        rows = nearest_each(times, times[0] + np.arange(count) / fps)
    record = {
        "video_id": video.video_id,
        "label": row.label,
        "split": row.split,
        "fps": fps if math.isfinite(fps) else None,
        "num_frames": len(rows),
        "duration": float(times[-1] - times[0] + step),
        "times": times[rows].tolist(),
        "frame_index": video.frame_index[rows].tolist(),
        "largest_offset_seconds": _largest_offset(times[rows], fps),
        "status": video.status,
        "num_lost_frames": video.num_lost_frames,
    }
    array = np.ascontiguousarray(features[rows], dtype=settings.dtype)
    return _Exported(row, array, times[rows], video.frame_index[rows], record)


def _largest_offset(times: npt.NDArray[np.float64], fps: float) -> float | None:
    """Return the largest deviation of a row from even spacing, in seconds; None without a rate."""
    if not math.isfinite(fps):
        return None
    return float(np.abs(times - times[0] - np.arange(len(times)) / fps).max())


@contextlib.contextmanager
def _npy(root: Path) -> Iterator[Writer]:
    """Write two files for each video."""

    def write(video: _Exported) -> None:
        name = file_name(video.row.video_id)
        with atomic_path(root / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, video.features)
        write_json(video.record, root / f"{name}.json", indent=None)

    yield write


@contextlib.contextmanager
def _webdataset(root: Path) -> Iterator[Writer]:
    """Write tar archives with two members for each video."""
    with _Parts(root, "tar", partial(tarfile.open, mode="w", format=tarfile.PAX_FORMAT)) as parts:

        def write(video: _Exported) -> None:
            archive = parts.file_for(video.features.nbytes)
            array = io.BytesIO()
            np.save(array, video.features)
            key = file_name(video.row.video_id).replace(".", "%2E")
            for extension, data in (
                ("npy", array.getvalue()),
                ("json", json.dumps(video.record, ensure_ascii=False).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

        yield write


@contextlib.contextmanager
def _parquet(root: Path) -> Iterator[Writer]:
    """Write Parquet files with a row for each frame.

    Raises:
        SettingsError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # optional, and slow to import
        import pyarrow.parquet as pq
    except ImportError:
        raise SettingsError("--format parquet: needs pyarrow; install vtnpipe[parquet]") from None
    with _Parts(root, "parquet", pq.ParquetWriter) as parts:

        def write(video: _Exported) -> None:
            num_frames, size = len(video.features), int(np.prod(video.features.shape[1:]))
            flat = pa.array(video.features.reshape(-1))
            columns = {
                name: pa.array([value] * num_frames).dictionary_encode()
                for name, value in (
                    ("video_id", video.row.video_id),
                    ("label", video.row.label),
                    ("split", video.row.split),
                )
            }
            table = pa.table(
                {
                    **columns,
                    "frame_index": pa.array(video.frame_index),
                    "timestamp": pa.array(video.times),
                    "features": pa.FixedSizeListArray.from_arrays(flat, size),
                }
            )
            file = parts.file_for(video.features.nbytes, table.schema)
            file.write_table(table, row_group_size=num_frames)

        yield write


class _Parts:
    """Numbered files of limited size, each complete or absent.

    Args:
        root: folder of the files.
        extension: their extension.
        open_file: path and further arguments → open file, a context manager.
    """

    def __init__(self, root: Path, extension: str, open_file: Callable[..., Any]) -> None:
        self._root = root
        self._extension = extension
        self._open_file = open_file
        self._file: Any = None
        self._number = 0
        self._num_bytes = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def file_for(self, num_bytes: int, *arguments: Any) -> Any:
        """Return the file for so many bytes more; `arguments` open it if it is a new one."""
        if self._file is None or self._num_bytes + num_bytes > FILE_BYTES:
            self._stack.close()
            path = self._root / f"features-{self._number:05d}.{self._extension}"
            temporary = self._stack.enter_context(atomic_path(path))
            self._file = self._stack.enter_context(self._open_file(temporary, *arguments))
            self._number += 1
            self._num_bytes = 0
        self._num_bytes += num_bytes
        return self._file


_WRITERS = {"npy": _npy, "webdataset": _webdataset, "parquet": _parquet}
