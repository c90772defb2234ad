"""Timelines: segments of a video as colored bars along its time, and the strips that show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from ...manifests.manifest import VideoRow
from ...manifests.times import seconds_edges
from ...temporal.config import TemporalConfig
from ...temporal.frame_labels import UNLABELED
from ...temporal.segment_metrics import edit_score
from ...temporal.segmentation import Decoding, class_runs, decode_labels
from ...temporal.time_table import Times
from ..inference.segmentation import FramePredictions
from .attention import VideoStrip
from .thumbnails import (
    ThumbnailRequest,
    VideoThumbnails,
    decode_thumbnails,
    even_positions,
)

GOLDEN_ANGLE = 137.508  # degrees between the hues of two classes, so that neighbors differ
LIGHTNESS = 32  # percent: white text is readable on every hue
TIMELINE_CAPTION = (
    "Frames along each video's time. Below them, segments. In a strip, the keys + and - zoom, 0 "
    "shows the whole video, and the arrow keys scroll."
)


class Block(NamedTuple):
    """Segment on a timeline.

    Attributes:
        left: start in percent of the width.
        width: length in percent of the width.
        color: CSS color of the class.
        label: class.
        text: tooltip.
    """

    left: float
    width: float
    color: str
    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Segments in one or more rows, as several classes may overlap.

    Attributes:
        title: title of the timeline.
        rows: blocks of each row.
    """

    title: str
    rows: list[list[Block]]

    @property
    def summary(self) -> str:
        """Description for screen readers."""
        texts = [block.text for row in self.rows for block in row]
        return f"{self.title}: {'; '.join(texts) or 'no segment'}"


def class_color(number: int) -> str:
    """Return the CSS color of a class.

    >>> class_color(0), class_color(3)
    ('hsl(210 60% 32%)', 'hsl(263 60% 32%)')
    """
    return f"hsl({round(210 + number * GOLDEN_ANGLE) % 360} 60% {LIGHTNESS}%)"


def timeline(
    title: str,
    labels: npt.NDArray[Any],
    seconds: Times,
    class_names: Sequence[str],
    background: int | None,
) -> Timeline:
    """Return the timeline of a video's labels, each segment in the first row with room for it.

    Args:
        title: title of the timeline.
        labels: [T] or [T, C], see `class_runs`.
        seconds: [T] timestamps of the frames.
        class_names: [C].
        background: number of the background; None if it is no class.
    """
    edges = seconds_edges(seconds)
    first, duration = float(edges[0]), float(edges[-1] - edges[0])
    rows: list[list[Block]] = []
    ends: list[int] = []
    for begin, end, label in sorted(class_runs(labels, background)):
        start, stop = float(edges[begin]), float(edges[end])
        block = Block(
            left=round(100 * (start - first) / duration, 4),
            width=round(100 * (stop - start) / duration, 4),
            color=class_color(label),
            label=class_names[label],
            text=f"{class_names[label]}, {start:.2f} to {stop:.2f} s",
        )
        at = next((number for number, last in enumerate(ends) if last <= begin), len(ends))
        if at == len(ends):
            rows.append([])
            ends.append(0)
        rows[at].append(block)
        ends[at] = end
    return Timeline(title=title, rows=rows or [[]])


def choose_segmented_videos(
    predictions: FramePredictions, config: TemporalConfig, decoding: Decoding, count: int
) -> tuple[list[int], list[int]]:
    """Return the numbers of the worst and of the best videos, by their share of right frames.

    Args:
        predictions: predictions of N videos.
        config: configuration of the model.
        decoding: how logits became segments.
        count: number of videos to choose of each kind; fewer if there are too few.

    Returns:
        two disjoint lists of numbers below N: the worst first, and the best first.
    """
    logits = [video.logits for video in predictions.videos]
    labels = decode_labels(logits, predictions.targets.times, config, decoding)
    truths = [one.numpy() for one in predictions.targets.of_videos]
    keys = []
    for found, truth in zip(labels, truths, strict=True):
        of_runs = (
            [run.label for run in class_runs(one, config.background_class)]
            for one in (found, truth)
        )
        keys.append((_share_right(found, truth), edit_score(*of_runs)))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    worst = order[: min(count, (len(order) + 1) // 2)]
    return worst, [number for number in reversed(order) if number not in worst][:count]


def segment_strips(
    predictions: FramePredictions,
    numbers: Sequence[int],
    rows: dict[str, VideoRow],
    sizes: dict[str, int | None],
    config: TemporalConfig,
    class_names: Sequence[str],
    decoding: Decoding,
    *,
    num_frames: int,
) -> list[VideoStrip]:
    """Return strips of some of the predicted videos, with truth and prediction.

    Args:
        predictions: predictions of a split.
        numbers: numbers of the videos among the predictions.
        rows: video_id → row of the manifest.
        sizes: video_id → size of the file in bytes when its features were stored.
        config: configuration of the model.
        class_names: [C].
        decoding: how logits became segments.
        num_frames: thumbnails per video.
    """
    videos = [predictions.videos[number] for number in numbers]
    labels = decode_labels(
        [one.logits for one in videos], [one.times for one in videos], config, decoding
    )
    truths = predictions.targets.of_videos
    decoded = decode_thumbnails(
        {
            video.video_id: ThumbnailRequest.of(
                rows[video.video_id],
                even_positions(video.times, num_frames),
                video.frame_index,
                video.times,
                sizes.get(video.video_id),
            )
            for video in videos
            if video.video_id in rows
        }
    )
    strips = []
    for number, video, found in zip(numbers, videos, labels, strict=True):
        truth = truths[number].numpy()
        unknown = VideoThumbnails([], "no thumbnails: its file is not known")
        thumbnails, note = decoded.get(video.video_id, unknown)
        named = (("Truth", truth), ("Prediction", found))
        strips.append(
            VideoStrip(
                name=video.video_id,
                lines=[f"{_share_right(found, truth):.1%} of the frames are correct"],
                thumbnails=thumbnails,
                note=note,
                edges=seconds_edges(video.times),
                timelines=[
                    timeline(title, one, video.times, class_names, config.background_class)
                    for title, one in named
                ],
            )
        )
    return strips


def _share_right(labels: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Return the share of labeled frames, and classes, that are predicted rightly."""
    right = labels == (truth if truth.ndim == 1 else truth > 0)
    is_labeled = truth != UNLABELED
    return float(right[is_labeled].mean()) if is_labeled.any() else 1.0
