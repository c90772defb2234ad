"""One task → one shard: rows are decoded by child processes, batched across videos, run, and
written at once.

This process holds the backbone and only ever sees arrays. The same task gives the same bytes on
every run: the order of frames, their place in a batch and the batch sizes follow from the task
alone.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..manifests.feature_folder import FeatureFolder, read_extraction
from ..manifests.plan import Speed, Task
from ..manifests.shards import write_shard
from .backbone import Backbone, evaluation_transform, load_backbone
from .batching import Batch, Clock, Progress
from .choices import Decoder
from .decode.limits import Limits
from .decode.pool import DecodingChildren
from .decode.protocol import Decode
from .decode.sampling import Sampling
from .gather import gather
from .preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs beside its tasks; small, as it travels with each of them."""

    folder: str
    device: str
    num_threads: int  # of the backbone, on a CPU
    num_children: int
    limits: Limits  # of each child
    batch_size: int | None  # None: as the task's plan says
    compile: bool
    decoder: Decoder
    settings: dict[str, Any]  # in force, recorded with each shard


@dataclass(kw_only=True)
class TaskReport:
    """What a finished task says: counts, and the seconds that were spent on what.

    Attributes:
        task: its name.
        num_frames: stored.
        num_videos: by status; a long video counts with its first part.
        num_failed: of them, by reason.
        example: what one of those says.
        seconds: by stage: `decode` in the children; `copy`, `preprocess`, `forward` and `wait`
            (for frames) in this process, one after the other; `write`, while the next task runs.
        begin: when its turn at the backbone began, in seconds of the machine's clock.
        end: when that ended.
    """

    task: str
    num_frames: int = 0
    num_videos: dict[str, int] = field(default_factory=dict)
    num_failed: dict[str, int] = field(default_factory=dict)
    example: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    begin: float = 0.0
    end: float = 0.0


# A worker is given two tasks at a time. One has its turn at the backbone; meanwhile the other's
# first frames are decoded, or its shard is written.
_turn = threading.Lock()


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
    sampling = Sampling.from_identity(identity)
    report = TaskReport(task=task.name)
    requests = [
        Decode(row.path, row.start, row.end, sampling, row.cut, job.decoder) for row in task.rows
    ]
    with (
        _children(job.num_children, job.limits) as children,
        closing(children.run(requests)) as events,
        _turn,
    ):
        report.begin = time.time()
        set_up(job.device, job.num_threads)
        speed = task.speed._replace(batch_size=job.batch_size or task.speed.batch_size)
        backbone = worker_backbone(
            job.folder, job.device, speed, is_compiled=job.compile, is_chosen=True
        )
        store, clock = np.dtype(identity["store"]), Clock(report.seconds)
        batch = Batch(backbone, speed.batch_size, store, clock, on_progress)
        expected = [row.num_frames for row in task.rows]

        def expect(number: int, num_frames: int) -> None:
            on_progress(Progress(num_unplanned_frames=num_frames - expected[number]))
            expected[number] = num_frames

        videos = list(gather(task.rows, events, batch, expect))
        report.end = time.time()
        report.seconds["decode"] = children.busy_seconds
    row_shape = tuple(extraction["row_shape"])
    parts = [video.part(row_shape, identity["store"]) for video in videos]
    with Clock(report.seconds)("write"):
        write_shard(
            task.shard(folder),
            parts,
            row_shape=row_shape,
            dtype=identity["store"],
            fingerprint=extraction["fingerprint"],
            views=identity["views"],
            settings=job.settings,
        )
    report.num_frames = sum(len(part.features) for part in parts)
    firsts = [part for part in parts if part.part == 0]
    report.num_videos = dict(Counter(part.status for part in firsts))
    failed = [part for part in firsts if part.status == "failed"]
    report.num_failed = dict(Counter(part.reason for part in failed))
    report.example = failed[0].message if failed else ""
    return report


def set_up(device: str, num_threads: int) -> None:
    """Makes this thread compute on a CPU with so many threads."""
    if device == "cpu":
        torch.set_num_threads(num_threads)


_loaded: dict[tuple[str, str, Speed, bool], Backbone] = {}


def worker_backbone(
    folder: str, device: str, speed: Speed, *, is_compiled: bool, is_chosen: bool = False
) -> Backbone:
    """The backbone of a feature folder in this process; kept between tasks.

    Args:
        folder: the feature folder.
        device: where to run.
        speed: how.
        is_compiled: whether it is; that takes half a minute, so none is made twice while speeds are
            compared.
        is_chosen: the comparison is over, and other backbones are dropped.
    """
    # Where it is not compiled for it, the size of batches makes no other backbone.
    key = (folder, device, speed if is_compiled else speed._replace(batch_size=0), is_compiled)
    if is_chosen:
        for other in _loaded.keys() - {key}:
            del _loaded[other]
    if key not in _loaded:
        _loaded[key] = _load(*key)
    return _loaded[key]


def _load(folder: str, device: str, speed: Speed, is_compiled: bool) -> Backbone:
    paths = FeatureFolder(Path(folder))
    identity = read_extraction(paths)["identity"]
    preprocessing = Preprocessing.from_json(identity["preprocessing"])
    return load_backbone(
        identity["backbone"],
        paths.backbone,
        digest=identity["weights_digest"],
        pool=identity["pool"],
        dtype=identity["precision"],
        transform=evaluation_transform(preprocessing, device, identity["views"]),
        channels_last=speed.channels_last,
        fused_attention=speed.fused_attention,
        compiled_size=speed.batch_size if is_compiled else None,
    )


_idle: defaultdict[tuple[int, Limits], list[DecodingChildren]] = defaultdict(list)


@contextmanager
def _children(num_children: int, limits: Limits) -> Iterator[DecodingChildren]:
    """Decoding children that no other task uses; kept between tasks, they end with this process."""
    idle = _idle[num_children, limits]
    try:
        children = idle.pop()
    except IndexError:
        children = DecodingChildren(num_children, limits)
    children.busy_seconds = 0.0
    try:
        yield children
    except BaseException:
        children.close()  # what they still send belongs to nobody
        raise
    idle.append(children)
