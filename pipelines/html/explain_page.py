"""Page of `vtnpipe explain`: attention, occlusion and the prediction over time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...extract.decode.frames import Outcome
from ...manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ...manifests.segments import Segment
from ...manifests.times import seconds_edges
from ...temporal.config import TaskType
from ..models.model_folder import NetworkConfig
from .attention import Attention, Track, VideoStrip
from .page import cell, table, write_page
from .plots import line_chart
from .thumbnails import Thumbnail
from .timeline import TIMELINE_CAPTION, Timeline

ATTENTION_CAPTION = "the attention of [CLS], from which the class is predicted, to each frame, and "
STRIP_CAPTION = (
    "Frames along the video's time. Below them: {}how much the score of the most probable class "
    "drops if a part of the video is hidden."
)
PREFIX_CAPTION = "Prediction of the model if it sees the video only up to that second."


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Prediction of a model for one video of T frames, and what it depends on.

    Attributes:
        task: task of the model.
        class_names: names of the C classes; a single name for the output of a regression.
        top_class: index of the largest logit.
        scores: [C] probabilities, or [1], the value of a regression.
        outcome: outcome of decoding.
        timestamps: [T] seconds.
        frame_index: [T] frame indices.
        attention: attention of [CLS]; None if the model has no [CLS].
        prefixes: (seconds seen, scores [C]) of the beginnings of the video; the whole video last.
        spans: S half-open ranges of frames, each hidden once.
        segments: segments of a task on frames.
        timeline: the same, drawn; None for other tasks.
        drops: [S], drop of the top class's log-odds, or of a regression's value, if that span is
            hidden.
    """

    task: TaskType
    class_names: Sequence[str]
    top_class: int
    scores: Tensor
    outcome: Outcome
    timestamps: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    attention: Attention | None
    segments: Sequence[Segment] = ()
    timeline: Timeline | None = None
    prefixes: list[tuple[float, Tensor]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    drops: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def span_edges(self) -> npt.NDArray[np.float64]:
        """Boundaries of the spans in seconds, shape [S + 1]."""
        edges = seconds_edges(self.timestamps)
        return np.append(edges[[begin for begin, _ in self.spans]], edges[-1])

    @property
    def agreement(self) -> float | None:
        """Spearman's rank correlation of attention and drops over the spans.

        None if there is no attention, if one of the two is constant, or if there are fewer than
        three spans.
        """
        if self.attention is None or len(self.spans) < 3:
            return None
        starts = [begin for begin, _ in self.spans]
        weights = np.add.reduceat(self.attention.frame_weights[-1].mean(0), starts)
        if np.ptp(weights) == 0 or np.ptp(self.drops) == 0:
            return None
        return float(np.corrcoef(_ranks(weights), _ranks(self.drops))[0, 1])

    @property
    def drop_unit(self) -> str:
        """Unit of the drops."""
        return "value" if self.task == "regression" else "log-odds"

    @property
    def drop_quantity(self) -> str:
        """Quantity whose drops are measured, in words."""
        if self.task == "regression":
            return "the value"
        return f"the log-odds of {self.class_names[self.top_class]}"

    @property
    def exit_code(self) -> int:
        """1 if the video is partial."""
        return EXIT_OK if self.outcome.status == "ok" else EXIT_WITH_FAILURES

    def most_attended(self, count: int) -> list[tuple[int, float]]:
        """Return the frames to which [CLS] attends most in the last layer, in order of time.

        Args:
            count: number of frames; all if there are fewer.

        Returns:
            (position among the T frames, attention as the mean over heads) of each frame; empty if
            the model has no [CLS].
        """
        if self.attention is None:
            return []
        weights = self.attention.frame_weights[-1].mean(0)
        positions = sorted((-weights).argsort(kind="stable")[:count].tolist())
        return [(position, float(weights[position])) for position in positions]


def occlusion_lines(explanation: Explanation) -> list[str]:
    """Return lines about the largest drop, and about how well attention predicts the drops."""
    quantity = explanation.drop_quantity
    largest = int(explanation.drops.argmax())
    drop, (begin, stop) = explanation.drops[largest], explanation.spans[largest]
    first, last = explanation.frame_index[[begin, stop - 1]]
    frames = f"frame {first}" if first == last else f"frames {first} to {last}"
    seconds = explanation.timestamps[begin]
    line = f"hiding {frames}, from {seconds:.2f} s, lowers {quantity} most: by {drop:.3g}"
    if drop <= 0:
        line = f"hiding any one of {len(explanation.spans):,} parts never lowers {quantity}"
    if explanation.attention is None:
        return [line, "this model has no [CLS] whose attention could be compared with the drops"]
    agreement = explanation.agreement
    if agreement is None:
        return [line, "too few parts, or too similar ones, to compare with attention"]
    return [line, f"rank correlation of the drops with attention: {agreement:.2f}"]


def write_explanation(
    path: Path,
    config: NetworkConfig,
    name: str,
    explanation: Explanation,
    thumbnails: Sequence[Thumbnail],
    attended: Sequence[Thumbnail],
    note: str,
    *,
    top: int,
    most: int,
) -> None:
    """Write the page.

    Args:
        path: path of the page.
        config: configuration of the model.
        name: name of the video.
        explanation: explanation of the model's prediction.
        thumbnails: thumbnails, evenly spaced in time.
        attended: thumbnails of the most attended frames.
        note: why thumbnails are missing, or "".
        top: number of most probable classes to show.
        most: number of most attended frames to show.
    """
    if explanation.timeline is not None:
        _write_segments(path, config, name, explanation, thumbnails, attended, note, most=most)
        return
    task = config.temporal.task
    is_share = task != "regression"
    class_names = explanation.class_names
    order = explanation.scores.argsort(descending=True)[:top].tolist()
    edges = seconds_edges(explanation.timestamps)
    drops = Track(edges=explanation.span_edges, values=explanation.drops, pattern="{:+.3g}")
    series = {
        class_names[index]: [
            (seconds, float(scores[index])) for seconds, scores in explanation.prefixes
        ]
        for index in order
    }
    pattern = "{:.2%}" if is_share else "{:.6g}"
    outcome = explanation.outcome
    write_page(
        path,
        "explain.html",
        **_heading(config, name, outcome),
        top=table(
            "Class, Probability" if is_share else "Output, Value",
            [(class_names[n], cell(float(explanation.scores[n]), pattern)) for n in order],
            "Most probable classes",
        ),
        facts=[
            ("frames", f"{len(explanation.timestamps):,}, {edges[0]:.2f} to {edges[-1]:.2f} s"),
            *(("hiding parts", line) for line in occlusion_lines(explanation)),
        ],
        strip_caption=STRIP_CAPTION.format(ATTENTION_CAPTION if explanation.attention else ""),
        strip=VideoStrip(
            name=name,
            lines=[],
            thumbnails=thumbnails,
            edges=edges,
            note=note,
            attention=explanation.attention,
            tracks=[
                (
                    f"Drop of {explanation.drop_quantity} if one of {len(explanation.spans):,} "
                    "parts is hidden",
                    drops,
                )
            ],
        ),
        most=[
            (frame, share)
            for frame, (_, share) in zip(attended, explanation.most_attended(most), strict=True)
        ],
        prefix_caption=PREFIX_CAPTION,
        prefixes=[
            line_chart("Prediction over time", series, x_label="seconds seen", is_share=is_share)
        ],
    )


def _heading(config: NetworkConfig, name: str, outcome: Outcome) -> dict[str, Any]:
    """Return title, subtitle and notes of a page."""
    fault = [] if outcome.status == "ok" else [f"partial: {outcome.reason}: {outcome.message}"]
    subtitle = f"{config.spec.backbone}, {config.temporal.encoder}"
    return {"title": name, "subtitle": subtitle, "notes": fault}


def _write_segments(
    path: Path,
    config: NetworkConfig,
    name: str,
    explanation: Explanation,
    thumbnails: Sequence[Thumbnail],
    attended: Sequence[Thumbnail],
    note: str,
    *,
    most: int,
) -> None:
    """Write the page of a task on frames: its segments, and the attention of [CLS]."""
    edges = seconds_edges(explanation.timestamps)
    segments = [
        (one.label, cell(one.start, "{:.2f}"), cell(one.end, "{:.2f}"), cell(one.score, "{:.1%}"))
        for one in explanation.segments
    ]
    write_page(
        path,
        "explain.html",
        **_heading(config, name, explanation.outcome),
        top=table("Class, From, To, Probability", segments, "Segments, in seconds"),
        facts=[("frames", f"{len(explanation.timestamps):,}, {edges[0]:.2f} to {edges[-1]:.2f} s")],
        strip_caption=TIMELINE_CAPTION,
        strip=VideoStrip(
            name=name,
            lines=[],
            thumbnails=thumbnails,
            edges=edges,
            note=note,
            attention=explanation.attention,
            timelines=[explanation.timeline],
        ),
        most=[
            (frame, share)
            for frame, (_, share) in zip(attended, explanation.most_attended(most), strict=True)
        ],
        prefix_caption="",
        prefixes=[],
    )


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ranks of values [N]; equal values share their mean rank.

    >>> _ranks(np.array([0.5, 0.1, 0.5])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse])
