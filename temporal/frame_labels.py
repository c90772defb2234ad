"""Labels of frames: the class of each frame of a split, from segments; ignored where unlabeled.

The task `frames` gives each frame one class, the background where no segment covers it;
`frames-multi-label` gives it any number of classes, none in the background.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..manifests.errors import ManifestError
from ..manifests.segments import Segment, by_video, check_overlaps, time_fault
from ..manifests.times import frame_rate, nearest_each
from .config import TaskType
from .time_table import Times

UNLABELED = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameLabels:
    """Labels of the frames of N videos, end to end: F frames in all.

    Attributes:
        values: [F] int64 class of each frame; or [F, C] float32, 1 for each of its classes, else 0.
            `UNLABELED` for frames that are not labeled.
        lengths: number of frames of each video.
        times: timestamps [T] of each video's frames, in seconds.
    """

    values: Tensor
    lengths: list[int]
    times: list[Times]

    def __len__(self) -> int:
        return len(self.lengths)

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


def check_segments(segments: Sequence[Segment], video_ids: Iterable[str]) -> None:
    """Refuse segments of videos that a manifest does not list.

    Raises:
        ManifestError: names the first such segment.
    """
    known = set(video_ids)
    unknown = [one for one in segments if one.video_id not in known]
    if unknown:
        raise ManifestError(
            f"{unknown[0].where}: video_id {unknown[0].video_id!r} is not in the manifest "
            f"({len(unknown):,} such segments); correct or remove it"
        )


def label_frames(
    segments: Sequence[Segment],
    video_ids: Sequence[str],
    times: Callable[[str], Times],
    class_names: Sequence[str],
    task: TaskType,
    background: str,
) -> FrameLabels:
    """Return the labels of the frames of videos.

    Args:
        segments: segments of these and other videos.
        video_ids: ids of the videos.
        times: returns the timestamps [T] of a video's frames.
        class_names: [C], in the order of the logits.
        task: `frames` or `frames-multi-label`.
        background: name of the background.

    Raises:
        ManifestError: segments overlap, though the task is `frames`; one ends after its video; or
            its label is not one of the classes.
    """
    classes = {name: number for number, name in enumerate(class_names)}
    if task == "frames" and background not in classes:
        raise ManifestError(
            f"--background {background}: it is not one of the model's classes "
            f"({', '.join(class_names[:5])}{', …' if len(class_names) > 5 else ''}); give its name"
        )
    of_videos = by_video(segments)
    found, timestamps = [], []
    for video_id in video_ids:
        seconds = times(video_id)
        of_video = of_videos.get(video_id, [])
        _check_times(of_video, seconds)
        if task == "frames":
            check_overlaps(of_video)
            found.append(_single(of_video, seconds, classes, background))
        else:
            found.append(_multiple(of_video, seconds, classes, background))
        timestamps.append(seconds)
    return FrameLabels(
        values=torch.cat(found), lengths=[len(one) for one in timestamps], times=timestamps
    )


def _check_times(segments: Sequence[Segment], seconds: Times) -> None:
    """Refuse segments that end more than a frame after the last one."""
    duration = float(seconds[-1]) + 2 / frame_rate(seconds)
    for one in segments:
        if fault := time_fault(one.start, one.end, duration):
            raise ManifestError(f"{one.where}: {fault}; correct or remove the segment")


def _single(
    segments: Sequence[Segment], seconds: Times, classes: Mapping[str, int], background: str
) -> Tensor:
    labels = np.full(len(seconds), classes[background], dtype=np.int64)
    for one in segments:
        begin, end = np.searchsorted(seconds, (one.start, one.end))
        labels[begin:end] = UNLABELED if not one.label else _class_of(one, classes)
    return torch.from_numpy(labels)


def _multiple(
    segments: Sequence[Segment], seconds: Times, classes: Mapping[str, int], background: str
) -> Tensor:
    labels = np.zeros((len(seconds), len(classes)), dtype=np.float32)
    for one in segments:
        begin, end = np.searchsorted(seconds, (one.start, one.end))
        if one.label and one.label != background:
            labels[begin:end, _class_of(one, classes)] = 1.0
    for one in segments:
        if not one.label:
            begin, end = np.searchsorted(seconds, (one.start, one.end))
            labels[begin:end] = UNLABELED
    return torch.from_numpy(labels)


def _class_of(segment: Segment, classes: Mapping[str, int]) -> int:
    if segment.label not in classes:
        raise ManifestError(
            f"{segment.where}: label {segment.label!r} is not one of the model's {len(classes)} "
            "classes, those of its training split; correct it, or add training videos of that "
            "class"
        )
    return classes[segment.label]
