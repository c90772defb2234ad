"""Feature folders made in this process: no Dask, no command line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vtnpipe.extract.backbone import build_backbone
from vtnpipe.extract.worker import Job, TaskReport, run_task
from vtnpipe.manifests.folder import FeatureFolder, write_extraction
from vtnpipe.manifests.plan import PlannedRow, Speed, Task, look_at
from vtnpipe.manifests.videos import VideoRow, write_manifest


def make_folder(
    root: Path,
    backbone: str,
    *,
    store: str = "float32",
    views: Sequence[str] = ("centre",),
    every: int = 1,
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
        "store": store,
        "views": list(views),
        "fps": None,
        "every": every,
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
        "batch_size": None,
        "compile": False,
        "decoder": "auto",
        "settings": {},
    }
    return run_task(task, Job(**{**defaults, **job}), on_progress)
