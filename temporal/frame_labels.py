"""Labels of frames: the class of each frame of a split, from segments; ignored where unlabeled.

The task `frames` gives each frame one class, the background where no segment covers it;
`frames-multi-label` gives it any number of classes, none in the background.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..manifests.errors import ManifestError, counted
from ..manifests.segments import Segment, by_video, check_overlaps, time_fault
from ..manifests.times import frame_rate, nearest_each
from .config import TaskType
from .time_table import Times

UNLABELED = -1
ROUNDING_SECONDS = 1e-5  # times in files have six decimals, or fewer digits than a float


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameLabels:
    """Labels of the frames of N videos, end to end: F frames in all.

    Attributes:
        values: [F] int64 class of each frame; or [F, C] int8, 1 for each of its classes, else 0.
            `UNLABELED` for frames that are not labeled.
        lengths: number of frames of each video.
        times: timestamps [T] of each video's frames, in seconds.
        num_without_segment: number of videos without any segment.
        num_without_frame: number of segments between two frames, which have none.
    """

    values: Tensor
    lengths: list[int]
    times: list[Times]
    num_without_segment: int = 0
    num_without_frame: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def notes(self, split: str) -> list[str]:
        """Return what a user should know about the labels of a split, in words."""
        found = []
        if self.num_without_segment:
            videos = counted(self.num_without_segment, "video")
            found.append(
                f"split {split}: {videos} of {len(self)} without a segment, all background; give a "
                "segment with an empty label to what is not annotated"
            )
        if self.num_without_frame:
            segments = counted(self.num_without_frame, "segment")
            found.append(f"split {split}: {segments} shorter than the time between two frames")
        return found

    @property
    def of_videos(self) -> list[Tensor]:
        """Labels of each video, [T] or [T, C]."""
        return list(self.values.split(self.lengths))

    def at(self, times: Sequence[Times | None]) -> "FrameLabels":
        """Return the labels of the frames at some of the times of each video.

        Args:
            times: [N] timestamps of the frames that could be decoded; None leaves a video out.
        """
        values, decoded = [self.values[:0]], []
        for labels, known, found in zip(self.of_videos, self.times, times, strict=True):
            if found is not None:
                values.append(labels[torch.from_numpy(nearest_each(known, found))])
                decoded.append(found)
        return FrameLabels(
            values=torch.cat(values), lengths=[len(one) for one in decoded], times=decoded
        )

    @property
    def is_labeled(self) -> Tensor:
        """Whether a frame is labeled, [F]."""
        labels = self.values if self.values.ndim == 1 else self.values[:, 0]
        return labels != UNLABELED


def segment_classes(
    segments: Iterable[Segment], video_ids: Iterable[str], task: TaskType, background: str
) -> list[str]:
    """Return the classes of the training split's segments, in the order of the logits.

    Args:
        segments: segments of all splits.
        video_ids: ids of the training videos.
        task: `frames` or `frames-multi-label`.
        background: name of the background, which is a class of `frames` only.

    Raises:
        ManifestError: no training video has a segment with a label.
    """
    chosen = set(video_ids)
    names = {one.label for one in segments if one.video_id in chosen} - {"", background}
    if not names:
        raise ManifestError(
            "--segments: no training video has a segment with a label; check that the ids are "
            "those of the manifest"
        )
    return sorted(names | {background} if task == "frames" else names)


def unknown_segments(segments: Sequence[Segment], video_ids: Iterable[str]) -> list[str]:
    """Return a note on segments of videos that a manifest does not list; none if there are none.

    Raises:
        ManifestError: no segment is of a video of the manifest.
    """
    known = set(video_ids)
    unknown = [one for one in segments if one.video_id not in known]
    if not unknown:
        return []
    first = f"{unknown[0].where}: video_id {unknown[0].video_id!r}"
    if len(unknown) == len(segments):
        raise ManifestError(f"{first} is not in the manifest, as no other one; correct the ids")
    count = counted(len(unknown), "segment")
    return [f"{count} of videos that are not in the manifest are ignored, the first at {first}"]


def check_segments(
    segments: Iterable[Segment],
    video_ids: Iterable[str],
    class_names: Sequence[str],
    task: TaskType,
    background: str,
) -> None:
    """Check the segments of videos, without their frames.

    Args:
        segments: segments of these and other videos.
        video_ids: ids of the videos.
        class_names: [C], in the order of the logits.
        task: `frames` or `frames-multi-label`.
        background: name of the background.

    Raises:
        ManifestError: segments overlap, though the task is `frames`; or a label, or the background,
            is not one of the classes.
    """
    classes = {name: number for number, name in enumerate(class_names)}
    if task == "frames" and background not in classes:
        raise ManifestError(
            f"--background {background}: it is not one of the model's classes "
            f"({', '.join(class_names[:5])}{', …' if len(class_names) > 5 else ''}); give its name"
        )
    chosen = set(video_ids)
    for video_id, of_video in by_video(segments).items():
        if video_id not in chosen:
            continue
        if task == "frames":
            check_overlaps(of_video)
        for one in of_video:
            if one.label and one.label != background and one.label not in classes:
                raise ManifestError(
                    f"{one.where}: label {one.label!r} is not one of the model's {len(classes)} "
                    "classes, those of its training split; correct it, or add training videos of "
                    "that class"
                )


def label_frames(
    segments: Sequence[Segment],
    video_ids: Sequence[str],
    times: Callable[[str], Times],
    class_names: Sequence[str],
    task: TaskType,
    background: str,
    *,
    is_partial: Callable[[str], bool] = lambda video_id: False,
) -> FrameLabels:
    """Return the labels of the frames of videos; for the other arguments see `check_segments`.

    Args:
        segments: segments of these and other videos.
        video_ids: ids of the videos.
        times: returns the timestamps [T] of a video's frames.
        class_names: [C], in the order of the logits.
        task: `frames` or `frames-multi-label`.
        background: name of the background.
        is_partial: returns whether frames of a video are missing, perhaps its last ones.

    Raises:
        ManifestError: as `check_segments`; or a segment ends after its video.
    """
    check_segments(segments, video_ids, class_names, task, background)
    classes = {name: number for number, name in enumerate(class_names)}
    of_videos = by_video(segments)
    found, timestamps = [], []
    num_without_segment = num_without_frame = 0
    for video_id in video_ids:
        seconds, of_video = times(video_id), of_videos.get(video_id, [])
        if not is_partial(video_id):
            _check_times(of_video, seconds)
        spans = [_frames_of(one, seconds) for one in of_video]
        num_without_segment += not of_video
        num_without_frame += sum(begin == end for begin, end in spans)
        if task == "frames":
            labels = np.full(len(seconds), classes[background], dtype=np.int64)
            for one, (begin, end) in zip(of_video, spans, strict=True):
                labels[begin:end] = classes[one.label] if one.label else UNLABELED
        else:
            labels = np.zeros((len(seconds), len(classes)), dtype=np.int8)
            # Unlabeled ones last: they hide what overlaps with them.
            pairs = sorted(zip(of_video, spans, strict=True), key=lambda pair: not pair[0].label)
            for one, (begin, end) in pairs:
                if not one.label:
                    labels[begin:end] = UNLABELED
                elif one.label != background:
                    labels[begin:end, classes[one.label]] = 1
        found.append(torch.from_numpy(labels))
        timestamps.append(seconds)
    return FrameLabels(
        values=torch.cat(found),
        lengths=[len(one) for one in timestamps],
        times=timestamps,
        num_without_segment=num_without_segment,
        num_without_frame=num_without_frame,
    )


def _frames_of(segment: Segment, seconds: Times) -> tuple[int, int]:
    """Return the frames [begin, end) of a segment; its times may have been rounded."""
    bounds = np.array([segment.start, segment.end]) - ROUNDING_SECONDS
    begin, end = np.searchsorted(seconds, bounds).tolist()
    return begin, end


def _check_times(segments: Sequence[Segment], seconds: Times) -> None:
    """Refuse segments that end more than a frame after the last one."""
    duration = float(seconds[-1]) + 2 / frame_rate(seconds)
    for one in segments:
        if fault := time_fault(one.start, one.end, duration):
            raise ManifestError(f"{one.where}: {fault}; correct or remove the segment")
