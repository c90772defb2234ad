"""One task → one shard: decode rows, batch frames across videos, run the backbone, write once.

This process holds the backbone and only sees arrays; decoder processes open the files. The same
task gives the same bytes on every run.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..manifests.feature_folder import FeatureFolder, read_extraction
from ..manifests.plan import PlannedRow, Task
from ..manifests.shards import VideoPart, write_shard
from .backbone import Backbone, load_backbone
from .batching import Batcher, ExtractedVideo, StageTimer, TaskProgress, extract_videos
from .decode.frames import Decoder, Outcome
from .decode.limits import Limits
from .decode.pool import DecodeAgain, DecoderPool
from .decode.protocol import DecodeRequest
from .decode.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings of a worker; small, since they are sent with each task.

    Attributes:
        folder: path of the feature folder.
        device: device of the backbone.
        num_threads: threads of the backbone on a CPU.
        num_decoder_processes: size of the decoder pool.
        limits: limits of each decoder process.
        batch_size: images per backbone call; None for the plan's.
        compile: compile the backbone.
        decoder: decoder option.
        record: settings stored with each shard.
    """

    folder: str
    device: str
    num_threads: int
    num_decoder_processes: int
    limits: Limits = Limits()
    batch_size: int | None = None
    compile: bool = False
    decoder: Decoder = "auto"
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class TaskReport:
    """Counts and times of a finished task.

    Attributes:
        task: name of the task.
        num_frames: number of stored frames.
        num_videos: number of videos by status; a long video counts with its first part.
        num_failed: number of failed videos by reason.
        example: message of a failed video.
        seconds: by stage: `decode` in the decoder processes; `copy`, `preprocess`, `forward` and
            `wait` (for frames) in this process, one after the other; `write`, beside the next task.
        begin: time at which the task got the backbone; seconds since the epoch.
        end: time at which it released the backbone.
    """

    task: str
    num_frames: int = 0
    num_videos: dict[str, int] = field(default_factory=dict)
    num_failed: dict[str, int] = field(default_factory=dict)
    example: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    begin: float = 0.0
    end: float = 0.0


# A worker runs two tasks at a time. One has the backbone; meanwhile the other's first frames are
# decoded, or its shard is written.
_backbone_lock = threading.Lock()


def run_task(
    task: Task,
    settings: WorkerSettings,
    on_progress: Callable[[TaskProgress], None] = lambda progress: None,
) -> TaskReport:
    """Extract a task's rows and write its shard.

    Raises:
        FeaturesError: a feature is not finite, or exceeds the range of the stored dtype.
        BackboneError: the folder's weights are not those that extraction.json names.
    """
    folder = FeatureFolder(Path(settings.folder))
    extraction = read_extraction(folder)
    spec = extraction.spec
    batch_size = settings.batch_size or task.batch_size
    sampling = Sampling.from_spec(spec)
    requests: list[DecodeRequest | Outcome] = [
        DecodeRequest(row.path, row.start, row.end, sampling, row.cut, settings.decoder)
        for row in task.rows
    ]
    names = [row.video_id for row in task.rows]
    num_expected = [row.num_frames for row in task.rows]

    def on_selected(number: int, num_frames: int) -> None:
        on_progress(TaskProgress(num_unplanned_frames=num_frames - num_expected[number]))
        num_expected[number] = num_frames

    report = TaskReport(task=task.name)
    timer = StageTimer()
    videos: list[ExtractedVideo] | None = None
    with _decoder_pool(settings.num_decoder_processes, settings.limits) as pool:
        while videos is None:
            events = pool.decode(requests)  # decoding begins before this task has the backbone
            with closing(events), _backbone_lock:
                report.begin = report.begin or time.time()
                set_num_threads(settings.device, settings.num_threads)
                backbone = _cached_backbone(
                    settings.folder,
                    extraction.fingerprint,
                    settings.device,
                    batch_size if settings.compile else None,
                )
                batcher = Batcher(
                    backbone, batch_size, spec.feature_dtype, timer=timer, on_progress=on_progress
                )
                try:
                    videos = list(extract_videos(names, events, batcher, on_selected))
                except DecodeAgain as again:
                    requests[again.number] = again.request
                    on_progress(TaskProgress(num_frames=-batcher.num_computed))
                report.end = time.time()
        timer.seconds["decode"] = pool.busy_seconds
    parts = [
        _part(row, video, extraction.row_shape, spec.feature_dtype)
        for row, video in zip(task.rows, videos, strict=True)
    ]
    with timer("write"):
        write_shard(
            task.shard(folder),
            parts,
            row_shape=extraction.row_shape,
            dtype=spec.feature_dtype,
            fingerprint=extraction.fingerprint,
            views=spec.views,
            settings=settings.record,
        )
    report.seconds = timer.seconds
    report.num_frames = sum(len(part.features) for part in parts)
    firsts = [part for part in parts if part.part == 0]
    report.num_videos = dict(Counter(part.status for part in firsts))
    failed = [part for part in firsts if part.status == "failed"]
    report.num_failed = dict(Counter(part.reason for part in failed))
    report.example = failed[0].message if failed else ""
    return report


def _part(
    row: PlannedRow, video: ExtractedVideo, row_shape: tuple[int, ...], dtype: str
) -> VideoPart:
    """Return a complete video as the shard stores it."""
    outcome = video.outcome
    assert outcome is not None
    features, frame_index, timestamps = video.arrays(row_shape, dtype)
    is_lost_part = outcome.status == "failed" and row.num_parts > 1
    return VideoPart(
        video_id=row.video_id,
        features=features,
        frame_index=frame_index,
        timestamps=timestamps,
        status=outcome.status,
        num_lost_frames=row.num_frames if is_lost_part else outcome.num_lost_frames,
        reason=outcome.reason,
        message=outcome.message,
        decoder=outcome.decoder,
        decoder_reason=outcome.decoder_reason,
        part=row.part,
        num_parts=row.num_parts,
    )


def set_num_threads(device: str, num_threads: int) -> None:
    """Set the number of threads that this thread computes with on a CPU."""
    if device == "cpu":
        torch.set_num_threads(num_threads)


@lru_cache(maxsize=1)
def _cached_backbone(
    folder: str, fingerprint: str, device: str, compiled_batch_size: int | None
) -> Backbone:
    """Return the backbone of a feature folder, kept between tasks."""
    paths = FeatureFolder(Path(folder))
    extraction = read_extraction(paths)
    assert extraction.fingerprint == fingerprint  # it is the key of the cache
    return load_backbone(
        paths.backbone, extraction.spec, device, compiled_batch_size=compiled_batch_size
    )


_idle_pools: defaultdict[tuple[int, Limits], list[DecoderPool]] = defaultdict(list)


@contextmanager
def _decoder_pool(num_processes: int, limits: Limits) -> Iterator[DecoderPool]:
    """Yield a decoder pool that no other task uses; kept between tasks."""
    idle = _idle_pools[num_processes, limits]
    try:
        pool = idle.pop()
    except IndexError:
        pool = DecoderPool(num_processes, limits)
    pool.busy_seconds = 0.0
    try:
        yield pool
    except BaseException:
        pool.close()  # discards what its processes still send
        raise
    idle.append(pool)
