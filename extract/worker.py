"""One task → one shard: rows are decoded by child processes, batched across videos, run, and
written at once.

This process holds the backbone and only ever sees arrays. The same task gives the same bytes on
every run: the order of frames, their place in a batch and the batch sizes follow from the task
alone.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..manifests.folder import FeatureFolder, read_extraction
from ..manifests.plan import Task
from ..manifests.shards import write_shard
from .backbone import Backbone, load_backbone
from .batches import Batch, Clock, GrowingVideo, Progress
from .children import Chunk, DecodingChildren, Probed, Request, Restarted
from .choices import Decoder
from .preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs beside its tasks; small, as it travels with each of them."""

    folder: str
    device: str
    num_threads: int  # of the backbone, on a CPU
    num_children: int
    batch_size: int
    decoder: Decoder
    settings: dict[str, Any]  # in force, recorded with each shard


@dataclass(kw_only=True)
class TaskReport:
    """What a finished task says: counts, and the seconds that this process spent on what."""

    task: str
    num_frames: int = 0
    num_videos: dict[str, int] = field(default_factory=dict)  # by status
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


def run_task(
    task: Task, job: Job, on_progress: Callable[[Progress], None] = lambda progress: None
) -> TaskReport:
    """Extracts a task's rows and writes its shard.

    Raises:
        FeaturesError: a feature is not finite, or beyond what the store's dtype holds.
        BackboneError: the folder's weights are not the ones that extraction.json names.
    """
    folder = FeatureFolder(Path(job.folder))
    extraction = read_extraction(folder)
    identity = extraction["identity"]
    if job.device == "cpu":
        torch.set_num_threads(job.num_threads)
    backbone = _backbone(job.folder, identity["weights_digest"], job.device)
    children = _children(job.num_children)
    report = TaskReport(task=task.name)
    clock = Clock(report.seconds)
    batch = Batch(backbone, job.batch_size, np.dtype(identity["store"]), clock, on_progress)
    videos: list[GrowingVideo] = []
    requests = [Request(row.path, row.start, row.end, job.decoder) for row in task.rows]
    with contextlib.closing(children.decode(requests)) as events:
        for number, event in clock.while_iterating("wait for frames", events):
            if number == len(videos):
                videos.append(GrowingVideo(task.rows[number], batch.place))
            video = videos[number]
            if isinstance(event, Chunk):
                batch.add(video, event)
            elif isinstance(event, Restarted):
                videos[number] = GrowingVideo(video.row, batch.rewind(video.place))
            elif isinstance(event, Probed):
                on_progress(Progress(num_probed_videos=1, num_probed_frames=event.num_frames))
            else:
                video.outcome = event
                if event.status == "failed":
                    batch.rewind(video.place)
    batch.run()
    parts = [video.part(backbone.dim, identity["store"]) for video in videos]
    with clock("write"):
        write_shard(
            task.shard(folder),
            parts,
            row_shape=tuple(extraction["row_shape"]),
            dtype=identity["store"],
            fingerprint=extraction["fingerprint"],
            views=identity["views"],
            settings=job.settings,
        )
    report.num_frames = sum(len(part.features) for part in parts)
    for part in parts:
        report.num_videos[part.status] = report.num_videos.get(part.status, 0) + 1
    return report


@lru_cache(maxsize=1)
def _backbone(folder: str, digest: str, device: str) -> Backbone:
    """This process's backbone; kept between tasks."""
    paths = FeatureFolder(Path(folder))
    extraction = read_extraction(paths)
    identity = extraction["identity"]
    return load_backbone(
        identity["backbone"],
        paths.backbone,
        digest=digest,
        preprocessing=Preprocessing.from_json(identity["preprocessing"]),
        dim=extraction["row_shape"][-1],
        device=device,
        dtype=identity["precision"],
    )


@lru_cache(maxsize=1)
def _children(num_children: int) -> DecodingChildren:
    """This process's decoding children; kept between tasks, they end with it."""
    return DecodingChildren(num_children)
