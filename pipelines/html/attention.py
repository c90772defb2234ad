"""Video strips: thumbnails along a video's time, and under them the attention of [CLS]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...manifests.times import seconds_edges
from ...temporal.model import TemporalClassifier
from ..inference.video_classifier import VideoFeatures
from .plots import Axis, Tick
from .thumbnails import Thumbnail

MAX_BARS = 400  # per track; a longer video has several frames per bar
MAX_WEIGHTS = 60_000  # per strip, so that a page of many layers and heads stays small
WIDTH, HEIGHT = 1000, 100  # of a track's SVG view box, which is stretched to the strip's width


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """Bar chart along a video's time.

    Attributes:
        edges: [N + 1] seconds, the bars' boundaries.
        values: [N], one per bar.
        level: value at which a dashed line is drawn.
        pattern: format of a value in a bar's tooltip.
    """

    edges: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    level: float = 0.0
    pattern: str = "{:.2%}"

    @property
    def level_y(self) -> float:
        """Vertical position of the dashed line."""
        return self._y_axis(self.level)

    @property
    def bars(self) -> list[dict[str, Any]]:
        """Position, size, value and tooltip of each bar; bars of negative values hang below 0."""
        x_axis, y_axis = self._x_axis(WIDTH), self._y_axis
        bars = []
        for value, begin, end in zip(self.values, self.edges[:-1], self.edges[1:], strict=True):
            top, bottom = y_axis(max(value, 0.0)), y_axis(min(value, 0.0))
            bars.append(
                {
                    "x": x_axis(begin),
                    "y": top,
                    "width": round(max(0.2, x_axis(end) - x_axis(begin)), 2),
                    "height": round(bottom - top, 2),
                    "value": round(float(value), 7),
                    "text": f"{begin:.2f} s: {self.pattern.format(value)}",
                }
            )
        return bars

    @property
    def ticks(self) -> list[Tick]:
        """Ticks in seconds; their positions are percentages of the width."""
        return self._x_axis(100).ticks()

    def _x_axis(self, width: float) -> Axis:
        return Axis(float(self.edges[0]), float(self.edges[-1]), 0, width)

    @property
    def _y_axis(self) -> Axis:
        values = [0.0, self.level, *self.values.tolist()]
        return Axis(min(values), max(values), HEIGHT, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Attention of [CLS] in one video of T frames.

    Attributes:
        edges: [N + 1] seconds, the bars' boundaries.
        weights: [L, H, N], attention to each bar, a frame or several consecutive ones.
        cls_to_cls: [L, H], attention of [CLS] to itself; it and a head's weights add up to 1.
        frame_weights: [L, H, T], attention to each frame.
    """

    edges: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    cls_to_cls: npt.NDArray[np.float64]
    frame_weights: npt.NDArray[np.float64]

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.weights)

    @property
    def num_heads(self) -> int:
        """Number of heads per layer."""
        return len(self.weights[0])

    def layer(self, number: int) -> Track:
        """Return the track of one layer, the mean over its heads."""
        values = self.weights[number].mean(0)
        return Track(edges=self.edges, values=values, level=float(values.mean()))

    @property
    def last_layer(self) -> Track:
        """Track of the last layer, which a page shows first."""
        return self.layer(-1)

    @property
    def summary(self) -> str:
        """Summary of the last layer; `page.js` writes the same for other layers and heads."""
        track, cls_to_cls = self.last_layer, float(self.cls_to_cls[-1].mean())
        most = int(track.values.argmax())
        return (
            f"maximum {track.values[most]:.2%} at {track.edges[most]:.2f} s; dashed: uniform, "
            f"{track.level:.2%} per bar; [CLS] to itself {cls_to_cls:.1%}"
        )

    @property
    def data(self) -> dict[str, Any]:
        """JSON values from which the page's script draws any layer and head."""
        return {
            "begin": np.round(self.edges[:-1], 3).tolist(),
            "weights": np.round(self.weights, 7).tolist(),
            "cls_to_cls": np.round(self.cls_to_cls, 7).tolist(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoStrip:
    """Video on a page: thumbnails, attention and further tracks.

    Attributes:
        name: name or id of the video.
        lines: text lines below the name.
        thumbnails: thumbnails, evenly spaced in time.
        edges: [T + 1] seconds, the frames' boundaries.
        note: why thumbnails are missing, or "".
        attention: attention of [CLS]; None if the model has no [CLS], or no model is involved.
        tracks: further tracks, each with its title.
        timelines: segments along the time, see `html/timeline.py`.
    """

    name: str
    lines: Sequence[str]
    thumbnails: Sequence[Thumbnail]
    edges: npt.NDArray[np.float64]
    note: str = ""
    attention: Attention | None = None
    tracks: Sequence[tuple[str, Track]] = ()
    timelines: Sequence[Any] = ()

    @property
    def ticks(self) -> list[Tick]:
        """Ticks in seconds; their positions are percentages of the width."""
        return Track(edges=self.edges, values=np.zeros(len(self.edges) - 1)).ticks


def bar_starts(num_frames: int, max_bars: int = MAX_BARS) -> npt.NDArray[np.int64]:
    """Return the first frame of each bar."""
    count = min(num_frames, max_bars)
    return np.arange(count) * num_frames // count


def video_attention(model: TemporalClassifier, video: VideoFeatures) -> Attention | None:
    """Return the attention of [CLS] in one video, the mean over its views.

    Args:
        model: temporal model in evaluation mode.
        video: features of the video, on the model's device.

    Returns:
        the attention; None if the model has no [CLS].
    """
    positions = video.positions(model.config.position_fps)
    with torch.inference_mode():
        by_view = model.cls_attention(video.features, positions.expand(len(video.features), -1))
    if by_view is None:
        return None
    attention = by_view.double().mean(0).cpu().numpy()  # [L, H, 1 + T]
    L, H, _ = attention.shape
    starts = bar_starts(len(video.timestamps), max(50, min(MAX_BARS, MAX_WEIGHTS // (L * H))))
    edges = seconds_edges(video.timestamps)
    return Attention(
        edges=np.append(edges[starts], edges[-1]),
        weights=np.add.reduceat(attention[..., 1:], starts, axis=-1),
        cls_to_cls=attention[..., 0],
        frame_weights=attention[..., 1:],
    )
