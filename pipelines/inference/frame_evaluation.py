"""Evaluation of tasks on frames: logits and labels of the frames of a split's videos."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...extract.cores import num_cpus_per_process
from ...extract.decode.sampling import Sampling
from ...manifests.feature_store import open_features
from ...manifests.manifest import VideoRow, read_manifest
from ...manifests.segments import BACKGROUND, Segment
from ...temporal.checkpoint import RunFolder
from ...temporal.distributed import Accelerator
from ...temporal.frame_labels import (
    FrameLabels,
    check_segments,
    label_frames,
    unknown_segments,
)
from ...temporal.inference import check_logits
from ...temporal.metrics import Counts
from ...temporal.splits import UsableRows, remedy_for_features, rows_of_split, usable_rows
from ...temporal.time_table import Times
from ..models.model_folder import NetworkConfig, check_features
from ..models.network import VideoTransformerNetwork, load_temporal
from .evaluation import EvaluateSettings, weights_file
from .segmentation import SegmentedVideo, frame_logits_of_features
from .video_classifier import VideoClassifier, classify_all, whole_videos


class ScoredFrames(NamedTuple):
    """Logits of the frames of a split's videos.

    Attributes:
        usable: rows of the split.
        videos: logits of their frames.
        targets: labels of their frames.
        source: fingerprint of the features, or mode of inference of the videos.
        faults: videos that could not be decoded completely, and why.
        notes: what a user should know about the labels.
    """

    usable: UsableRows
    videos: list[SegmentedVideo]
    targets: FrameLabels
    source: str
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> Counts:
        """Numbers of videos behind the metrics."""
        return self.usable.counts


def background_of(config: NetworkConfig, run_settings: dict[str, Any]) -> str:
    """Return the name of the background of a model, given the settings of its run."""
    if config.temporal.background_class is not None:
        return config.class_names[config.temporal.background_class]
    name: str = run_settings.get("background", BACKGROUND)
    return name


def score_feature_frames(
    files: RunFolder,
    config: NetworkConfig,
    source: str | Path,
    settings: EvaluateSettings,
    accelerator: Accelerator,
    segments: Sequence[Segment],
    background: str,
) -> ScoredFrames:
    """Compute the logits and labels of the frames of a split's videos from stored features."""
    store = open_features(source)
    check_features(config, store.spec, store.folder.root)
    rows = read_manifest(settings.manifest or store.folder.manifest)
    usable = usable_rows(
        store.statuses,
        rows,
        settings.split,
        what="features",
        remedy=remedy_for_features(store.folder),
        drop_partial=settings.drop_partial,
    )
    times = {video_id: store.times(video_id)[1] for video_id in usable.video_ids}
    partial = {name for name, status in store.statuses.items() if status == "partial"}
    targets, notes = _labels(
        rows, usable.video_ids, times, settings.split, segments, config, background, partial
    )
    temporal = load_temporal(files, config, weights_file(files, settings))
    found = frame_logits_of_features(
        accelerator.prepare_model(temporal, evaluation_mode=True),
        store,
        usable.video_ids,
        config=config.temporal,
        accelerator=accelerator,
    )
    by_id = {video.video_id: video for video in found}
    videos = [by_id[video_id] for video_id in usable.video_ids]
    for video in videos:
        check_logits(video.logits, [video.video_id] * len(video.logits))
    return ScoredFrames(usable, videos, targets, f"features {store.fingerprint}", notes=notes)


def score_video_frames(
    files: RunFolder,
    config: NetworkConfig,
    source: str | Path,
    settings: EvaluateSettings,
    accelerator: Accelerator,
    segments: Sequence[Segment],
    background: str,
) -> ScoredFrames:
    """Compute the logits and labels of the frames of a split's videos from a manifest."""
    rows = read_manifest(source)
    chosen = rows_of_split(rows, settings.split)
    check_segments(  # before anything is decoded
        segments,
        [row.video_id for row in chosen],
        config.class_names,
        config.temporal.task,
        background,
    )
    path = weights_file(files, settings)
    network = VideoTransformerNetwork.from_pretrained(files.root, weights=path.name)
    classify = VideoClassifier(
        network=network.to(accelerator.device),
        mode="end-to-end" if settings.mode == "end-to-end" else "chunked",
        chunk_frames=settings.chunk_frames,
        num_decoder_processes=num_cpus_per_process(),
    )
    to_score = whole_videos(chosen, Sampling.from_spec(config.spec), settings.decoder)
    found = {one.name: one for one in classify_all(classify, to_score, accelerator)}
    faults = tuple(f"{name}: {one.fault}" for name, one in found.items() if one.fault)
    usable = usable_rows(
        {
            name: "partial" if one.fault else "ok"
            for name, one in found.items()
            if one.logits is not None
        },
        rows,
        settings.split,
        what="frames",
        remedy="leave out --drop-partial, or fix the files",
        drop_partial=settings.drop_partial,
    )
    videos = []
    for video_id in usable.video_ids:
        one = found[video_id]
        assert one.logits is not None
        assert one.times is not None
        assert one.frame_index is not None
        check_logits(one.logits, [video_id] * len(one.logits))
        videos.append(SegmentedVideo(video_id, one.logits, one.times, one.frame_index))
    times = {video.video_id: video.times for video in videos}
    partial = {name for name, one in found.items() if one.fault}
    targets, notes = _labels(
        rows, usable.video_ids, times, settings.split, segments, config, background, partial
    )
    return ScoredFrames(usable, videos, targets, f"videos, {classify.mode}", faults, notes)


def _labels(
    rows: Sequence[VideoRow],
    video_ids: Sequence[str],
    times: dict[str, Times],
    split: str,
    segments: Sequence[Segment],
    config: NetworkConfig,
    background: str,
    partial: Collection[str],
) -> tuple[FrameLabels, tuple[str, ...]]:
    """Return the labels of the frames of videos, and notes on their segments."""
    notes = unknown_segments(segments, (row.video_id for row in rows))
    labels = label_frames(
        segments,
        video_ids,
        times.__getitem__,
        config.class_names,
        config.temporal.task,
        background,
        is_partial=partial.__contains__,
    )
    return labels, (*notes, *labels.notes(split))
