"""Feature folders made in this process: no Dask, no command line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vtnpipe.extract.backbone import build_backbone
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.task import Job, TaskReport, run_task
from vtnpipe.manifests.feature_folder import FeatureFolder, write_extraction
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.plan import PlannedRow, Speed, Task, look_at
from vtnpipe.manifests.shards import VideoPart, write_shard


def make_folder(
    root: Path,
    backbone: str,
    *,
    store: str = "float32",
    views: Sequence[str] = ("center",),
    frame_stride: int = 1,
    pool: str | None = None,
) -> FeatureFolder:
    """A feature folder without features."""
    folder = FeatureFolder(root)
    folder.shards.mkdir(parents=True)
    folder.plans.mkdir()
    built = build_backbone(backbone, "none", pool)
    folder.backbone.write_bytes(built.weights)
    identity = {
        "backbone": backbone,
        "weights_digest": built.digest,
        "preprocessing": built.preprocessing.to_json(),
        "precision": "float32",
        "feature_dtype": store,
        "views": list(views),
        "fps": None,
        "frame_stride": every,
        "pool": pool,
    }
    row_shape = [built.dim] if len(views) == 1 else [len(views), built.dim]
    write_extraction(folder, identity, row_shape=row_shape, settings={}, weights="none")
    return folder


def extract_rows(
    folder: FeatureFolder,
    rows: Iterable[VideoRow | PlannedRow],
    name: str = "000-00000",
    **job: Any,
) -> TaskReport:
    """Runs one task over rows; `job` are changes to what a worker is told."""
    rows = list(rows)
    manifest = [row for row in rows if isinstance(row, VideoRow)]
    if manifest:
        write_manifest(manifest, folder.manifest)
    planned = [look_at(row) if isinstance(row, VideoRow) else row for row in rows]
    task = Task(name=name, rows=tuple(planned), speed=job.pop("speed", Speed(16)))
    on_progress = job.pop("on_progress", lambda progress: None)
    defaults: dict[str, Any] = {
        "folder": str(folder.root),
        "device": "cpu",
        "num_threads": 1,
        "num_children": 1,
        "limits": Limits(),
        "batch_size": None,
        "compile": False,
        "decoder": "auto",
        "settings": {},
    }
    return run_task(task, Job(**{**defaults, **job}), on_progress)


def made_up_features(
    root: Path,
    labels: dict[str, dict[str, str]],
    *,
    views: Sequence[str] = ("center",),
    paths: Sequence[Path] = (Path("/none"),),
) -> Path:
    """A feature folder of random features, not of the videos at `paths`: split → video_id → label.

    A video has 20 to 35 frames at 10 a second, and its first half tells its label.
    """
    folder = make_folder(root, "toy_backbones:block_means", views=views)
    store = FeatureStore(root)
    names = sorted({label for split in labels.values() for label in split.values()})
    rows, parts = [], []
    for split, videos in labels.items():
        for video_id, label in videos.items():
            generator = np.random.default_rng(len(parts))
            length = int(generator.integers(20, 36))
            features = generator.standard_normal((length, *store.row_shape)).astype(np.float32)
            features[: length // 2, ..., names.index(label) % store.row_shape[-1]] += 3
            path = str(paths[len(parts) % len(paths)])
            rows.append(VideoRow(video_id=video_id, path=path, label=label, split=split))
            parts.append(
                VideoPart(
                    video_id=video_id,
                    features=features,
                    frame_index=np.arange(length),
                    timestamps=np.arange(length) / 10,
                    status="ok",
                )
            )
    write_manifest(rows, folder.manifest)
    write_shard(
        folder.shards / "000-00000.h5",
        parts,
        row_shape=store.row_shape,
        dtype="float32",
        fingerprint=store.extraction["fingerprint"],
        views=views,
        settings={},
    )
    return root
