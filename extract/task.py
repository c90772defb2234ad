"""One task → one shard: decode rows, run the backbone over their frames, write once.

This process holds the backbone and only sees arrays; decoder processes open the files. The same
task gives the same bytes on every run.
"""

import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..manifests.failures import NOTE_SEPARATOR, TRANSIENT_REASONS, message_of_parts, notes_in
from ..manifests.feature_folder import FeatureFolder, read_extraction
from ..manifests.plan import PlannedRow, Task
from ..manifests.shards import VideoPart, write_shard
from .backbone import Backbone, load_backbone
from .batching import Batcher, ExtractedVideo, StageTimer, TaskProgress
from .decode.frames import Decoder, Outcome
from .decode.limits import Limits
from .decode.nvdec import NvdecFaultError
from .decode.pool import DecoderPool
from .decode.protocol import DecodeRequest
from .decode.sampling import Sampling
from .device import pinning_of
from .lanes import RowRequest, extract_rows
from .nvdec_process import NvdecLauncher


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
        is_compiled: whether to compile the backbone; None for the plan's decision.
        decoder: decoder option.
        engines: device whose video engines decode, too; "" for none. `cpu` stands for them in
            tests.
        record: settings stored with each shard.
    """

    folder: str
    device: str
    num_threads: int
    num_decoder_processes: int
    limits: Limits = Limits()
    batch_size: int | None = None
    is_compiled: bool | None = None
    decoder: Decoder | Literal["nvdec"] = "auto"
    engines: str = ""
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
        seconds: by stage: `decode` in the decoder processes, `nvdec` in the threads of a GPU's
            video engines, `forward` in the backbone, measured on its device; in this process `copy`
            to the device, `preprocess`, `wait` (for the backbone) and `write`.
        begin: time at which the task had a backbone; seconds since the epoch.
        end: time at which all its features were there.
    """

    task: str
    num_frames: int = 0
    num_videos: dict[str, int] = field(default_factory=dict)
    num_failed: dict[str, int] = field(default_factory=dict)
    example: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    begin: float = 0.0
    end: float = 0.0


def run_task(
    task: Task,
    settings: WorkerSettings,
    on_progress: Callable[[TaskProgress], None] = lambda progress: None,
) -> TaskReport:
    """Extract a task's rows and write its shard.

    A worker runs two tasks at a time, so that decoder processes which the first one needs no more
    work for the second.

    Raises:
        FeaturesError: a feature is not finite, or exceeds the range of the stored dtype.
        BackboneError: the folder's weights are not those that extraction.json names.
    """
    folder = FeatureFolder(Path(settings.folder))
    extraction = read_extraction(folder)
    spec, how = extraction.spec, task.computation
    batch_size = settings.batch_size or how.batch_size
    is_compiled = how.is_compiled if settings.is_compiled is None else settings.is_compiled
    sampling = Sampling.from_spec(spec)
    requests = [
        RowRequest(
            name=row.video_id,
            request=DecodeRequest(
                row.path,
                row.start,
                row.end,
                sampling,
                row.cut,
                "decord" if settings.decoder == "decord" else "pyav",
                as_planes=spec.as_planes,
            ),
            num_frames=row.num_frames,
            may_use_nvdec=row.may_use_nvdec and spec.as_planes,
        )
        for row in task.rows
    ]
    pool = _decoder_pool(settings)
    pool.start()  # while the backbone is loaded
    set_num_threads(settings.device, settings.num_threads)
    backbone = _backbone(settings, extraction.fingerprint, batch_size if is_compiled else None)
    report = TaskReport(task=task.name, begin=time.time())
    timer = StageTimer()
    batcher = Batcher(
        backbone, batch_size, spec.feature_dtype, timer=timer, on_progress=on_progress
    )
    rows = extract_rows(
        requests,
        task.lanes,
        pool,
        batcher,
        part_frames=None if settings.decoder == "decord" else how.lane_frames,
        nvdec_share={"auto": how.nvdec_share, "nvdec": 1.0}.get(settings.decoder, 0.0),
        on_progress=on_progress,
    )
    parts = [
        _stored_part(row, videos, extraction.row_shape, spec.feature_dtype)
        for row, videos in zip(task.rows, rows, strict=True)
    ]
    report.end = time.time()
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


def _stored_part(
    row: PlannedRow, videos: Sequence[ExtractedVideo], row_shape: tuple[int, ...], dtype: str
) -> VideoPart:
    """Return a complete row, from the parts that it was decoded in, as the shard stores it."""
    outcome = joined_outcome(videos)
    if outcome.status == "failed":
        videos = [ExtractedVideo(row.video_id)]
    arrays = [video.arrays(row_shape, dtype) for video in videos]
    features, frame_index, timestamps = map(np.concatenate, zip(*arrays, strict=True))
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


def joined_outcome(videos: Sequence[ExtractedVideo]) -> Outcome:
    """Return the outcome of a row that was decoded in parts.

    It has failed if no part has frames, or if one could not be read for a transient reason; else it
    is partial if a part is not complete.
    """
    outcomes = [video.outcome for video in videos if video.outcome is not None]
    failed = [one for one in outcomes if one.status == "failed"]
    faults = [one for one in outcomes if one.status != "ok"]
    transient = next((one for one in failed if one.reason in TRANSIENT_REASONS), None)
    if transient is not None or len(failed) == len(outcomes) or len(outcomes) == 1:
        return transient or outcomes[0]
    retried = (one.decoder_reason for one in outcomes if one.decoder_reason)
    sound = (one for one in outcomes if one.status == "ok")
    notes = dict.fromkeys(note for one in sound for note in notes_in(one.message))
    ok = Outcome(
        status="ok",
        message=NOTE_SEPARATOR.join(notes),
        decoder=", ".join(sorted({one.decoder for one in outcomes if one.decoder})),
        decoder_reason=next(retried, ""),
    )
    if not faults:
        return ok
    num_lost = sum(video.num_lost_frames for video in videos)
    return replace(
        ok,
        status="partial",
        reason=faults[0].reason,
        message=message_of_parts(
            [one.message for one in faults],
            num_parts=len(outcomes),
            num_lost=num_lost,
            num_frames=num_lost + sum(video.num_features for video in videos),
        ),
        num_lost_frames=num_lost,
    )


# A worker's two tasks share its backbone and its decoder pool, which are kept between tasks.
_loading = threading.Lock()
_pools: dict[tuple[int, Limits, str, str], DecoderPool] = {}


def _decoder_pool(settings: WorkerSettings) -> DecoderPool:
    """Return this worker's decoder pool."""
    key = (settings.num_decoder_processes, settings.limits, settings.device, settings.engines)
    with _loading:
        if key not in _pools:
            _pools[key] = DecoderPool(
                *key[:2], pin=pinning_of(settings.device), engines=_engines(settings.engines)
            )
        return _pools[key]


def _engines(device: str) -> NvdecLauncher | None:
    """Return the video engines of a device; None, with a warning, if they cannot be used here."""
    if not device:
        return None
    try:
        return NvdecLauncher(device)
    except NvdecFaultError as fault:
        warnings.warn(f"NVDEC: {fault}; the CPU decodes everything", stacklevel=2)
        return None


def start_decoders(settings: WorkerSettings) -> None:
    """Start the decoder processes of a worker that will run in this process."""
    _decoder_pool(settings).start()


def release_worker() -> None:
    """Stop the tasks of this process, end its decoder processes and free its backbone."""
    with _loading:
        for pool in _pools.values():
            pool.stop()
        _pools.clear()
        _load_backbone.cache_clear()


def _backbone(
    settings: WorkerSettings, fingerprint: str, compiled_batch_size: int | None
) -> Backbone:
    """Return the backbone of the feature folder, kept between tasks."""
    with _loading:
        return _load_backbone(
            settings.folder,
            fingerprint,
            settings.device,
            settings.num_threads,
            compiled_batch_size,
        )


@lru_cache(maxsize=1)
def _load_backbone(
    folder: str,
    fingerprint: str,
    device: str,
    num_threads: int,
    compiled_batch_size: int | None,
) -> Backbone:
    paths = FeatureFolder(Path(folder))
    extraction = read_extraction(paths)
    assert extraction.fingerprint == fingerprint  # it is the key of the cache
    return load_backbone(
        paths.backbone,
        extraction.spec,
        device,
        num_threads=num_threads,
        compiled_batch_size=compiled_batch_size,
    )


def set_num_threads(device: str, num_threads: int) -> None:
    """Set the number of threads that this process computes with on a CPU."""
    if device == "cpu":
        torch.set_num_threads(num_threads)
