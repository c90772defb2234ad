"""Feature folders made in this process: no Dask, no command line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vtnpipe.extract.create_backbone import build_backbone
from vtnpipe.extract.task import TaskReport, WorkerSettings, run_task
from vtnpipe.manifests.feature_folder import (
    BEFORE_RESIZE,
    Extraction,
    FeatureFolder,
    FeatureSpec,
    write_extraction,
)
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.plan import Computation, PlannedRow, Task, with_file_state
from vtnpipe.manifests.shards import VideoPart, write_shard


def make_folder(
    root: Path,
    backbone: str,
    *,
    feature_dtype: str = "float32",
    views: Sequence[str] = ("center",),
    frame_stride: int = 1,
    pool: str | None = None,
    color_conversion: str = BEFORE_RESIZE,
) -> FeatureFolder:
    """A feature folder without features."""
    folder = FeatureFolder(root)
    folder.shards.mkdir(parents=True)
    folder.plans.mkdir()
    built = build_backbone(backbone, "none", pool)
    folder.backbone.write_bytes(built.weights)
    spec = FeatureSpec(
        backbone=backbone,
        weights_digest=built.digest,
        preprocessing=built.preprocessing.to_json(),
        precision="float32",
        feature_dtype=feature_dtype,
        views=tuple(views),
        frame_stride=frame_stride,
        pool=pool,
        color_conversion=color_conversion,
    )
    row_shape = (built.dim,) if len(views) == 1 else (len(views), built.dim)
    write_extraction(
        folder,
        Extraction(spec=spec, fingerprint=spec.fingerprint, row_shape=row_shape, weights="none"),
    )
    return folder


def write_backbone(folder: Path, name: str, **fields: Any) -> tuple[Path, FeatureSpec]:
    """The weights file and the specification of a backbone of random weights."""
    built = build_backbone(name, "none", fields.get("pool"), fields.get("image_size"))
    path = folder / "backbone.safetensors"
    path.write_bytes(built.weights)
    spec = FeatureSpec(
        backbone=name,
        weights_digest=built.digest,
        preprocessing=built.preprocessing.to_json(),
        **{"precision": "float32", **fields},
    )
    return path, spec


def extract_rows(
    folder: FeatureFolder,
    rows: Iterable[VideoRow | PlannedRow],
    name: str = "000-00000",
    *,
    lane_frames: int | None = None,
    nvdec_share: float = 0.0,
    device: str = "cpu",
    **settings: Any,
) -> TaskReport:
    """Runs one task over rows; `settings` change the worker's."""
    rows = list(rows)
    manifest = [row for row in rows if isinstance(row, VideoRow)]
    if manifest:
        write_manifest(manifest, folder.manifest)
    planned = [with_file_state(row) if isinstance(row, VideoRow) else row for row in rows]
    task = Task(
        name=name,
        rows=tuple(planned),
        computation=Computation(16, lane_frames, nvdec_share=nvdec_share),
    )
    on_progress = settings.pop("on_progress", lambda progress: None)
    defaults: dict[str, Any] = {"num_threads": 1, "num_decoder_processes": 1}
    worker = WorkerSettings(folder=str(folder.root), device=device, **{**defaults, **settings})
    return run_task(task, worker, on_progress)


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
        fingerprint=store.fingerprint,
        views=views,
        settings={},
    )
    return root
