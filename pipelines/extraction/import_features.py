"""Import of features that other programs extracted: arrays in files become the folder's shards.

The manifest's paths are the arrays, [T, D] each: .npy, .npz, .pt or .h5. The folder then trains and
evaluates like any other, but has no backbone, so its models cannot decode videos.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ...extract.cores import num_cpus
from ...manifests.errors import (
    EXIT_OK,
    EXIT_WITH_FAILURES,
    FeaturesError,
    ManifestError,
    SettingsError,
    first_line,
)
from ...manifests.failures import VideoError, write_failures
from ...manifests.feature_folder import (
    Extraction,
    FeatureFolder,
    FeatureSpec,
    check_spec,
    is_new_folder,
    read_extraction,
    write_extraction,
)
from ...manifests.feature_store import FeatureStore, failures_of
from ...manifests.lock import locked
from ...manifests.manifest import VideoRow, read_manifest, update_manifest
from ...manifests.plan import (
    Computation,
    PlannedRow,
    Task,
    TaskSize,
    pack,
    pending_tasks,
    read_plans,
    rows_to_plan,
    write_plan,
)
from ...manifests.shards import VideoPart, read_dataset, write_shard
from ..console import CountProgress, say, say_failures
from ..settings import above, at_least, check_settings, setting

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5")
UNREADABLE = (
    *(OSError, ValueError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
RETRIED = ("not-an-array", "no-frames")  # reasons for which a failed row is imported again
ID = "{video_id}"  # in --key


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Settings of `vtnpipe features import`."""

    fps: float = setting(
        25.0,
        help="Rows per second of the arrays; with --stride, frames per second of the videos.",
        check=above(0),
    )
    stride: int = setting(
        1, help="Distance between two rows, in frames of the video.", check=at_least(1)
    )
    key: str | None = setting(
        None,
        help=f"Entry of .npz, .pt and .h5 files; {ID} stands for the row's id. By default their "
        "only entry.",
        metavar="NAME",
    )
    name: str = setting("imported", help="Name of the features' source, such as i3d or videomae.")
    feature_dtype: Literal["float16", "float32"] = setting(
        "float16", help="Dtype of the stored features."
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.name.strip() or ":" in self.name:
            raise SettingsError(
                f"--name {self.name!r}: it must be a name without colons, such as i3d"
            )

    @property
    def spec(self) -> FeatureSpec:
        """Specification of the folder."""
        return FeatureSpec(
            backbone=self.name,
            feature_dtype=self.feature_dtype,
            fps=None if self.stride > 1 else self.fps,
            frame_stride=self.stride,
        )


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Result of an import.

    Attributes:
        num_videos: number of the folder's videos with features.
        num_failed: number of its videos without.
        num_frames: number of its rows.
    """

    num_videos: int
    num_failed: int
    num_frames: int

    @property
    def exit_code(self) -> int:
        """1 if a row of the manifest has no features."""
        return EXIT_WITH_FAILURES if self.num_failed else EXIT_OK


def import_features(
    manifest: str | Path,
    features: str | Path,
    settings: ImportSettings | None = None,
    *,
    console: Console | None = None,
) -> ImportReport:
    """Write the arrays of a manifest's rows into a feature folder; resume what is there.

    Args:
        manifest: CSV file whose paths are arrays, [T, D] each.
        features: feature folder; created if missing.
        settings: by default `ImportSettings()`.
        console: for progress and results; by default nothing is printed.

    Raises:
        VtnpipeError: the manifest or the folder is invalid, no array can be read, or a value is
            beyond the range of the dtype.
    """
    settings = settings or ImportSettings()
    console = console or Console(quiet=True)
    rows = read_manifest(manifest)
    folder = FeatureFolder(Path(features))
    with locked(folder):
        if folder.extraction.exists():
            extraction = read_extraction(folder)
            check_spec(folder, settings.spec)
            _check_imported(folder, extraction, settings)
        elif folder.root.exists() and not is_new_folder(folder):
            raise FeaturesError(
                f"{folder.root}: is not a feature folder and not empty; give a new or an empty "
                "folder"
            )
        else:
            extraction = _new_extraction(rows, settings)
            write_extraction(folder, extraction)
        for path in (folder.plans, folder.shards):
            path.mkdir(exist_ok=True)
        store = FeatureStore(folder.root)
        tasks = read_plans(folder, store.fingerprint)
        unplanned = rows_to_plan(
            rows,
            tasks,
            store.outcomes,
            pending={row.video_id for task in pending_tasks(tasks, folder) for row in task.rows},
            current_plans=store.plans,
            retry=RETRIED,
            redo_changed=True,
        )
        rows = update_manifest(rows, folder.manifest)
        if unplanned:
            size = TaskSize(extraction.max_shard_frames)
            counted = _count_rows(unplanned, settings)
            computation = Computation(batch_size=1)
            tasks += write_plan(
                folder,
                pack(counted, size),
                fingerprint=store.fingerprint,
                computation=computation,
            )
        pending = pending_tasks(tasks, folder)
        with CountProgress(
            "import", "videos", sum(len(task.rows) for task in pending), console
        ) as progress:
            for task in pending:
                _import_task(task, folder, extraction, settings, progress.count)
        store = FeatureStore(folder.root, earlier=store)
        failures = failures_of(store, rows)
        write_failures(failures, folder.failures)
    report = ImportReport(
        num_videos=len(store),
        num_failed=len(failures),
        num_frames=sum(store.num_frames(video_id) for video_id in store),
    )
    say_failures(console, failures, folder.failures)
    say(
        console,
        f"{folder.root}: {report.num_videos:,} videos, {report.num_frames:,} rows of "
        f"{extraction.row_shape[0]} dimensions from {settings.name}; {report.num_failed:,} failed",
    )
    return report


def _check_imported(
    folder: FeatureFolder, extraction: Extraction, settings: ImportSettings
) -> None:
    """Refuse to import into a folder of extracted features, or of another rate.

    Raises:
        FeaturesError: its features were extracted, or imported with another `--fps`.
    """
    if not extraction.spec.is_imported:
        raise FeaturesError(
            f"{folder.root}: contains features that `vtnpipe extract` computed; import into "
            "another folder"
        )
    if (fps := extraction.records["settings"]["fps"]) != settings.fps:
        raise FeaturesError(
            f"{folder.root}: was imported with --fps {fps:g}, not {settings.fps:g}; give the same"
        )


def _new_extraction(rows: Sequence[VideoRow], settings: ImportSettings) -> Extraction:
    """Return the contents of extraction.json, with D of the first array that can be read.

    Raises:
        ManifestError: no array can be read.
    """
    first: VideoError | None = None
    for row in rows:
        try:
            with _opened(row.path, row.video_id, settings) as array:
                dim = array.shape[1]
                break
        except VideoError as error:
            first = first or error
    else:
        raise ManifestError(f"none of {len(rows):,} rows has an array; the first: {first}")
    spec = settings.spec
    return Extraction(
        spec=spec,
        fingerprint=spec.fingerprint,
        row_shape=(dim,),
        weights="imported",
        records={"settings": {"fps": settings.fps, "key": settings.key}},
    )


def _count_rows(rows: Sequence[PlannedRow], settings: ImportSettings) -> list[PlannedRow]:
    """Return rows with the lengths of their arrays; 0 where an array cannot be read."""

    def counted(row: PlannedRow) -> PlannedRow:
        try:
            with _opened(row.path, row.video_id, settings) as array:
                return row._replace(num_frames=len(array))
        except VideoError:
            return row

    with ThreadPoolExecutor(num_cpus()) as pool:
        return list(pool.map(counted, rows))


def _import_task(
    task: Task,
    folder: FeatureFolder,
    extraction: Extraction,
    settings: ImportSettings,
    on_video: Callable[[], None],
) -> None:
    """Write the shard of one task."""
    parts = []
    for row in task.rows:
        parts.append(_import_row(row, extraction, settings))
        on_video()
    write_shard(
        task.shard(folder),
        parts,
        row_shape=extraction.row_shape,
        dtype=extraction.spec.feature_dtype,
        fingerprint=extraction.fingerprint,
        views=extraction.spec.views,
        settings=extraction.records["settings"],
    )


def _import_row(row: PlannedRow, extraction: Extraction, settings: ImportSettings) -> VideoPart:
    """Return the rows of one array as they are to be stored; a failed video if it is invalid."""
    dtype = np.dtype(extraction.spec.feature_dtype)
    empty = VideoPart(
        video_id=row.video_id,
        features=np.empty((0, *extraction.row_shape), dtype),
        frame_index=np.empty(0, np.int64),
        timestamps=np.empty(0),
        status="failed",
    )
    try:
        with _opened(row.path, row.video_id, settings) as array:
            index = np.arange(len(array)) * settings.stride
            times = index / settings.fps
            is_inside = (times >= (row.start or 0.0)) & (times < (row.end or np.inf))
            values = np.asarray(array[:])[is_inside]
        if values.shape[1:] != extraction.row_shape:
            raise _invalid(
                row.path,
                f"has {values.shape[1]} dimensions, but the folder's features have "
                f"{extraction.row_shape[0]}; give each source of features a folder of its own",
            )
        if not len(values):
            raise VideoError("no-frames", f"{row.path}: no row lies in its span; correct the span")
        if not np.isfinite(values).all():
            raise _invalid(row.path, "has values that are not finite; compute it again")
        with np.errstate(over="ignore"):
            stored = values.astype(dtype)
        if not np.isfinite(stored).all():
            raise FeaturesError(
                f"video_id {row.video_id!r}: {row.path} has values beyond the range of {dtype}; "
                "import into a new folder with --feature-dtype float32"
            )
    except VideoError as error:
        return replace(empty, reason=error.reason, message=str(error))
    return replace(
        empty,
        features=stored,
        frame_index=index[is_inside],
        timestamps=times[is_inside],
        status="ok",
    )


@contextmanager
def _opened(path: str, video_id: str, settings: ImportSettings) -> Iterator[Any]:
    """Open an array [T, D], T >= 1, whose values are read when it is sliced.

    Raises:
        VideoError: there is no such array.
    """
    suffix = Path(path).suffix.lower()
    key = settings.key and settings.key.replace(ID, video_id)
    if not Path(path).is_file():
        raise VideoError("missing", f"{path}: not found or not reachable; correct its path")
    if suffix not in SUFFIXES:
        raise _invalid(path, f"is not an array file; supported are {', '.join(SUFFIXES)}")
    try:
        if suffix == ".npy":
            yield _checked(np.load(path, mmap_mode="r", allow_pickle=False), path)
        elif suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                yield _checked(arrays[_entry(path, key, list(arrays))], path)
        elif suffix in (".pt", ".pth"):
            yield _checked(_read_torch(path, key), path)
        else:
            with read_dataset(path, key) as dataset:
                yield _checked(dataset, path)
    except KeyError as error:
        raise _invalid(path, str(error.args[0])) from None
    except UNREADABLE as error:
        raise _invalid(path, f"cannot be read ({first_line(error)}); write it again") from None


def _read_torch(path: str, key: str | None) -> npt.NDArray[Any]:
    """Return the tensor of a PyTorch file, or one of its entries, as an array."""
    import torch  # takes seconds to import, for this format only

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # a damaged file may raise any error
        raise _invalid(path, f"cannot be read ({first_line(error)}); write it again") from None
    if isinstance(found, dict):
        found = found[_entry(path, key, list(found))]
    if not isinstance(found, torch.Tensor):
        raise _invalid(path, f"has a {type(found).__name__}, not a tensor; save the tensor alone")
    return found.float().numpy()


def _entry(path: str, key: str | None, names: Sequence[str]) -> str:
    """Return the entry to read: the key, or else the only one.

    Raises:
        VideoError: there is no such entry, or there are several and no key.
    """
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key not in names:
        given = f"{len(names)} entries" if key is None else f"no entry {key!r}"
        some = ", ".join(map(str, names[:5])) + (", …" if len(names) > 5 else "")
        raise _invalid(path, f"has {given}; give --key with one of {some}")
    return key


def _checked(array: Any, path: str) -> Any:
    """Return the array if it is [T, D], T >= 1, of numbers.

    Raises:
        VideoError: it is anything else.
    """
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise _invalid(
            path,
            f"is {list(array.shape)} {array.dtype}; it must be [T, D] of numbers, one row per "
            "frame or clip",
        )
    return array


def _invalid(path: str, fault: str) -> VideoError:
    return VideoError("not-an-array", f"{path}: {fault}")
