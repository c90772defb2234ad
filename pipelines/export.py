"""`vtnpipe features export`: features as plain files, for action-localisation tools and one's own.

    FOLDER/ID.npy          [T, D] float32, or [T, V, D] with --view all
    FOLDER/ID.json         fps, and each row's second and frame
    FOLDER/database.json   every video's duration, fps and label, laid out as ActivityNet's

An id's `/` and whatever else a file name can't hold is written as in URLs, `run%2Fa.mp4.npy`; these
names are the database's, too, as tools look for files by them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ..manifests.atomic import atomic_path, write_json
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, FeaturesError, SettingsError
from ..manifests.manifest import VideoRow, read_manifest
from ..manifests.times import nearest_each
from .console import CountProgress, say
from .settings import above, check_settings, make_folder, setting

if TYPE_CHECKING:
    from ..manifests.feature_store import FeatureStore, VideoFeatures

DATABASE = "database.json"
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}  # ActivityNet's words


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The settings of `vtnpipe features export`."""

    fps: float | None = setting(
        None,
        help="Rows a second, exactly that far apart: of each moment the nearest frame's; by "
        "default each stored frame once, whatever its time.",
        check=above(0),
    )
    dtype: Literal["float32", "float16"] = setting("float32", help="Of the arrays.")
    view: str = setting("first", help="Of several stored ones: first, all, or its name.")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """How many videos were exported, and how many there was nothing of."""

    num_videos: int
    num_missing: int

    @property
    def exit_code(self) -> int:
        """1 where videos that were asked for have no features."""
        return EXIT_WITH_FAILURES if self.num_missing else EXIT_OK


def export_features(
    features: str | Path,
    folder: str | Path,
    video_ids: Sequence[str] = (),
    settings: ExportSettings | None = None,
    *,
    console: Console | None = None,
) -> ExportReport:
    """Writes videos' features as .npy with a JSON of fps and times each.

    Args:
        features: a feature folder.
        folder: to write to; made if it is not there. Files of the same names are replaced.
        video_ids: of those wanted; none are all of the folder's manifest.
        settings: by default, `ExportSettings()`.
        console: for progress; by default, nothing is printed.

    Raises:
        FeaturesError: it is not a feature folder, or has no such video.
        SettingsError: it has no such view.
    """
    from ..manifests.shards import open_features

    settings = settings or ExportSettings()
    console = console or Console(quiet=True)
    store = open_features(features)
    rows = {row.video_id: row for row in read_manifest(store.folder.manifest)}
    for video_id in video_ids:
        if video_id not in rows:
            raise FeaturesError(f"{features}: has no video_id {video_id!r}; see its manifest.csv")
    view = _view_index(store, settings.view)
    wanted = list(video_ids) or list(rows)
    present = [video_id for video_id in wanted if video_id in store]
    root = Path(folder)
    make_folder(root)
    database = {}
    with CountProgress("export", "videos", len(present), console) as progress:
        for video_id in present:
            record = _export(store[video_id], root, view, settings)
            database[file_name(video_id)] = _entry(rows[video_id], record)
            progress.count()
    write_json({"version": "vtnpipe", "taxonomy": [], "database": database}, root / DATABASE)
    missing = len(wanted) - len(present)
    gone = f"; {missing:,} have no features, see {store.folder.failures}" if missing else ""
    say(console, f"{root}: {len(present):,} videos{gone}")
    return ExportReport(num_videos=len(present), num_missing=missing)


def file_name(video_id: str) -> str:
    """Of a video's files, without their endings.

    >>> file_name("run/a b.mp4"), file_name("走る.mp4"), file_name("database")
    ('run%2Fa%20b.mp4', '走る.mp4', '%64atabase')
    """
    if f"{video_id}.json" == DATABASE:
        return f"%{ord(video_id[0]):02X}{video_id[1:]}"
    return "".join(one if ord(one) > 127 else quote(one, safe="") for one in video_id)


def _view_index(store: "FeatureStore", view: str) -> int | None:
    """Which of the stored views; None for all."""
    names: list[str] = store.extraction["identity"]["views"]
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


def _export(
    video: "VideoFeatures", root: Path, view: int | None, settings: ExportSettings
) -> dict[str, Any]:
    """Writes one video; what its JSON says."""
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
    name = file_name(video.video_id)
    with atomic_path(root / f"{name}.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.ascontiguousarray(features[rows], dtype=settings.dtype))
    record = {
        "video_id": video.video_id,
        "fps": fps if math.isfinite(fps) else None,
        "num_frames": len(rows),
        "duration": float(times[-1] - times[0] + step),
        "times": times[rows].tolist(),
        "frame_index": video.frame_index[rows].tolist(),
        "largest_offset_seconds": _largest_offset(times[rows], fps),
        "status": video.status,
        "num_lost_frames": video.num_lost_frames,
    }
    write_json(record, root / f"{name}.json", indent=None)
    return record


def _largest_offset(times: npt.NDArray[np.float64], fps: float) -> float | None:
    """How far a row is, at most, from where a steady rate puts it; None without a rate."""
    if not math.isfinite(fps):
        return None
    return float(np.abs(times - times[0] - np.arange(len(times)) / fps).max())


def _entry(row: VideoRow, record: dict[str, Any]) -> dict[str, Any]:
    """Of the database: a clip's label holds from its beginning to its end."""
    whole = [0.0, record["duration"]]
    return {
        "subset": SUBSETS.get(row.split, row.split),
        "duration": record["duration"],
        "fps": record["fps"],
        "frame": record["num_frames"],
        "annotations": [{"segment": whole, "label": row.label}] if row.label else [],
    }
