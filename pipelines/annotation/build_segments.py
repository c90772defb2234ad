"""Segment files from other programs' annotations, checked against the videos.

The videos are opened, to know their frames' times: labels of frames become segments, and segments
that do not fit their video are listed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...extract.cores import num_cpus
from ...extract.decode.index import Unreadable, read_timelines
from ...manifests.annotations import AnnotatedClip, VideoFinder
from ...manifests.manifest import VideoRow
from ...manifests.segment_formats import READERS, AnnotatedVideo, read_frame_labels
from ...manifests.segments import Segment, time_fault
from ...manifests.times import seconds_edges
from ...temporal.segmentation import runs
from ...temporal.time_table import Times

MAX_MISSING_SHARE = 0.02  # of a video's frames that may have no label, or labels no frame


@dataclass(kw_only=True)
class SegmentedVideos:
    """Videos with their segments.

    Attributes:
        rows: rows of the manifest.
        segments: segments of these videos.
        faults: video_id, label, split and what is wrong, of each video or segment that does not fit
            or had to be cut.
        num_unlabeled: number of videos without a segment.
    """

    rows: list[VideoRow] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    faults: list[tuple[str, str, str, str]] = field(default_factory=list)
    num_unlabeled: int = 0


def read_annotated(
    source: Path, kind: str, *, fold: int, classes: str | None
) -> Iterator[AnnotatedVideo]:
    """Yield the videos of an annotation file or folder of a kind, see `segment_formats`."""
    if kind == "frame-labels":
        return read_frame_labels(source, fold, None if classes is None else Path(classes))
    return READERS[kind](source)


def fit_to_videos(
    videos: Sequence[AnnotatedVideo], finder: VideoFinder, split: str | None
) -> SegmentedVideos:
    """Find and open the videos, and return those with segments that fit them.

    A segment that ends after its video is cut; one that begins there, or has no length, is left
    out. Both are listed, as are the videos that are left out: those that are missing, cannot be
    opened, or have other frames than their labels.

    Args:
        videos: annotated videos, of different ids.
        finder: finds their files.
        split: split of all rows; None for that of the files.
    """
    found = SegmentedVideos()
    rows: dict[str, VideoRow] = {}
    for video in videos:
        clip = AnnotatedClip(video_id=video.video_id, names=video.names, split=video.split)
        row = finder.row(clip)
        if row is None:
            why = f"no file named {' or '.join(video.names)}"
            found.faults.append((video.video_id, "", video.split, why))
            continue
        rows[video.video_id] = row
    paths = list(dict.fromkeys(row.path for row in rows.values()))
    timelines = dict(read_timelines(paths, num_cpus()))
    for video in videos:
        row = rows.get(video.video_id)
        if row is None:
            continue
        timeline = timelines[row.path]
        if isinstance(timeline, Unreadable):
            why = f"{timeline.reason}: {timeline.message}"
            found.faults.append((video.video_id, "", video.split, why))
            continue
        segments, faults = _fitting(video, row.video_id, timeline.times)
        found.faults += [(row.video_id, label, video.split, why) for label, why in faults]
        if video.frame_labels is not None and faults:
            continue  # it would be all background
        found.segments += segments
        found.num_unlabeled += not segments
        found.rows.append(
            VideoRow(video_id=row.video_id, path=row.path, split=split or video.split)
        )
    return found


def _fitting(
    video: AnnotatedVideo, video_id: str, times: Times
) -> tuple[list[Segment], list[tuple[str, str]]]:
    """Return the segments that fit a video, and label and fault of those that do not."""
    if video.frame_labels is not None:
        return _of_frames(video, video_id, video.frame_labels, times)
    edges = seconds_edges(times)
    duration, last_frame = float(edges[-1]), float(edges[-1] - edges[-2])
    segments, faults = [], []
    for one in video.segments:
        fault = time_fault(one.start, one.end)
        if not fault and one.start >= duration:
            fault = f"start {one.start:.6g} is beyond the end of the video, {duration:.6g} s"
        if fault:
            faults.append((one.label, f"{one.where}: {fault}"))
            continue
        beyond = time_fault(one.start, one.end, duration)
        if beyond and one.end > duration + last_frame:
            faults.append((one.label, f"{one.where}: {beyond}; cut"))
        segments.append(one._replace(video_id=video_id, end=min(one.end, duration)))
    return sorted(segments, key=lambda one: one.start), faults


def _of_frames(
    video: AnnotatedVideo, video_id: str, labels: list[str], times: Times
) -> tuple[list[Segment], list[tuple[str, str]]]:
    """Return the runs of equal labels as segments; frames behind the last label are not labeled."""
    missing = len(times) - len(labels)
    if abs(missing) > max(2, MAX_MISSING_SHARE * len(times)):
        why = f"{video.source}: {len(labels):,} labels, but the video has {len(times):,} frames"
        return [], [("", why)]
    names = sorted(set(labels))
    numbers = np.array([names.index(label) for label in labels[: len(times)]])
    edges = seconds_edges(times).tolist()
    segments = [
        Segment(video_id, edges[begin], edges[end], names[label])
        for begin, end, label in runs(numbers)
    ]
    if missing > 0:
        segments.append(Segment(video_id, edges[len(labels)], edges[-1], ""))
    return segments, []
