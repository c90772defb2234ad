"""A video as a strip: frames along its time and, under them, where [CLS] attends to."""

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

MAX_BARS = 400  # of an attention strip; frames share them where they are more
MAX_WEIGHTS = 60_000  # of a strip, so that a page of many layers and heads stays small
WIDTH, HEIGHT = 1000, 100  # of its drawing, which is stretched


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """Values along a video's time, one a bar.

    Attributes:
        edges: [N + 1] seconds, where bars begin and end.
        values: [N].
        level: of the dashed line.
        pattern: in which values are written.
    """

    edges: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    level: float = 0.0
    pattern: str = "{:.2%}"

    @property
    def level_at(self) -> float:
        """Where the dashed line is drawn."""
        return self._up(self.level)

    @property
    def bars(self) -> list[dict[str, Any]]:
        """Where each is drawn, and what it says; those below zero hang down from it."""
        across, up = self._across(WIDTH), self._up
        drawn = []
        for value, begin, end in zip(self.values, self.edges[:-1], self.edges[1:], strict=True):
            high, low = up(max(value, 0.0)), up(min(value, 0.0))
            drawn.append(
                {
                    "x": across(begin),
                    "y": high,
                    "width": round(max(0.2, across(end) - across(begin)), 2),
                    "height": round(low - high, 2),
                    "value": round(float(value), 7),
                    "text": f"{begin:.2f} s: {self.pattern.format(value)}",
                }
            )
        return drawn

    @property
    def ticks(self) -> list[Tick]:
        """Seconds along it, at per cent of its width."""
        return self._across(100).ticks()

    def _across(self, width: float) -> Axis:
        return Axis(float(self.edges[0]), float(self.edges[-1]), 0, width)

    @property
    def _up(self) -> Axis:
        values = [0.0, self.level, *self.values.tolist()]
        return Axis(min(values), max(values), HEIGHT, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """What [CLS] attends to in one video.

    Attributes:
        edges: [N + 1] seconds of the bars; a bar is a frame, or the sum over some.
        weights: [L, H, N].
        own: [L, H], what it attends to itself; with the weights, it adds up to 1.
        frames: [L, H, T], the weights of single frames.
    """

    edges: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    own: npt.NDArray[np.float64]
    frames: npt.NDArray[np.float64]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.weights)

    @property
    def num_heads(self) -> int:
        """H."""
        return len(self.weights[0])

    def layer(self, number: int) -> Track:
        """A layer's, the mean over its heads."""
        values = self.weights[number].mean(0)
        return Track(edges=self.edges, values=values, level=float(values.mean()))

    @property
    def last(self) -> Track:
        """The last layer's: what a page shows first."""
        return self.layer(-1)

    @property
    def words(self) -> str:
        """What the last layer's shows."""
        track, own = self.last, float(self.own[-1].mean())
        most = int(track.values.argmax())
        return (
            f"most {track.values[most]:.2%} at {track.edges[most]:.2f} s; dashed: spread evenly, "
            f"{track.level:.2%} a bar; [CLS] to itself {own:.1%}"
        )

    @property
    def data(self) -> dict[str, Any]:
        """For the page's script."""
        return {
            "begin": np.round(self.edges[:-1], 3).tolist(),
            "weights": np.round(self.weights, 7).tolist(),
            "own": np.round(self.own, 7).tolist(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Strip:
    """A video as a page shows it.

    Attributes:
        name: of the video.
        lines: what there is to say of it.
        thumbnails: evenly along its time.
        edges: [T + 1] seconds of its frames.
        note: what is wrong with it.
        attention: None where the model has no [CLS].
        tracks: more of what goes along its time, by name.
    """

    name: str
    lines: Sequence[str]
    thumbnails: Sequence[Thumbnail]
    edges: npt.NDArray[np.float64]
    note: str = ""
    attention: Attention | None = None
    tracks: Sequence[tuple[str, Track]] = ()

    @property
    def ticks(self) -> list[Tick]:
        """Seconds along it, at per cent of its width."""
        return Track(edges=self.edges, values=np.zeros(len(self.edges) - 1)).ticks


def bar_starts(num_frames: int, most: int = MAX_BARS) -> npt.NDArray[np.int64]:
    """The first frame of each bar."""
    count = min(num_frames, most)
    return np.arange(count) * num_frames // count


def attention_of(model: TemporalClassifier, seen: VideoFeatures) -> Attention | None:
    """[CLS]'s attention in one video, the mean over its views; None where the model has no [CLS].

    Args:
        model: in evaluation mode.
        seen: the video's features, on the model's device.
    """
    positions = seen.positions(model.config.position_fps)
    with torch.inference_mode():
        found = model.cls_attention(seen.features, positions.expand(len(seen.features), -1))
    if found is None:
        return None
    every = found.double().mean(0).cpu().numpy()  # [L, H, 1 + T]
    L, H, _ = every.shape
    starts = bar_starts(len(seen.timestamps), max(50, min(MAX_BARS, MAX_WEIGHTS // (L * H))))
    edges = seconds_edges(seen.timestamps)
    return Attention(
        edges=np.append(edges[starts], edges[-1]),
        weights=np.add.reduceat(every[..., 1:], starts, axis=-1),
        own=every[..., 0],
        frames=every[..., 1:],
    )
