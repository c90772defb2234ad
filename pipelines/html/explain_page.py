"""The page of `vtnpipe explain`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...extract.decode.frames import Outcome
from ...manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ...manifests.times import seconds_edges
from ...temporal.config import TaskType
from ..models.model_folder import NetworkConfig
from .attention import Attention, Strip, Track
from .page import cell, table, write_page
from .plots import line_chart
from .thumbnails import Thumbnail

ATTENTION_WORDS = "how much [CLS], from which the class is read, attends to each, and "
STRIP_WORDS = (
    "Frames; under them, {}how much less sure of the first class the model is when a part is "
    "hidden."
)
PREFIX_WORDS = "What the model says when it has seen the video only up to that second."


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Of a model's answer about one video of T frames.

    Attributes:
        task: of the model.
        class_names: [C], or the name of what a regression gives.
        first: the class of the highest logit.
        scores: [C] probabilities; of regression the number.
        outcome: of decoding.
        timestamps: [T] seconds.
        frame_index: [T].
        attention: of [CLS]; None where the model has none.
        prefixes: [(seconds seen, scores [C])], the whole video last.
        spans: [S] of frames that were hidden, half open.
        drops: [S], by how much the first class's log-odds fall without them; of regression, the
            value.
    """

    task: TaskType
    class_names: Sequence[str]
    first: int
    scores: Tensor
    outcome: Outcome
    timestamps: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    attention: Attention | None
    prefixes: list[tuple[float, Tensor]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    drops: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def agreement(self) -> float | None:
        """Rank correlation (Spearman) of attention and drops, over the spans; None where there is
        no attention, or one of the two is the same everywhere, or for fewer than three spans.
        """
        if self.attention is None or len(self.spans) < 3:
            return None
        starts = [begin for begin, _ in self.spans]
        weights = np.add.reduceat(self.attention.frames[-1].mean(0), starts)
        if np.ptp(weights) == 0 or np.ptp(self.drops) == 0:
            return None
        return float(np.corrcoef(_ranks(weights), _ranks(self.drops))[0, 1])

    @property
    def drop_unit(self) -> str:
        """Of what hiding frames changes."""
        return "value" if self.task == "regression" else "log-odds"

    @property
    def exit_code(self) -> int:
        """1 where the video is partial."""
        return EXIT_OK if self.outcome.status == "ok" else EXIT_WITH_FAILURES

    def most_attended(self, count: int) -> list[tuple[int, float]]:
        """Places and attention of the frames that the last layer attends to most, in order of
        time: the mean over its heads.
        """
        if self.attention is None:
            return []
        weights = self.attention.frames[-1].mean(0)
        places = sorted((-weights).argsort(kind="stable")[:count].tolist())
        return [(place, float(weights[place])) for place in places]


def check_lines(found: Explanation) -> list[str]:
    """What hiding frames tells."""
    name = found.class_names[found.first]
    most = int(found.drops.argmax())
    begin, stop = found.spans[most]
    frames = f"frame {found.frame_index[begin]}"
    if stop - begin > 1:
        frames = f"frames {found.frame_index[begin]} to {found.frame_index[stop - 1]}"
    line = (
        f"{name} falls most without {frames}, from {found.timestamps[begin]:.2f} s on: by "
        f"{found.drops[most]:.3g} in {found.drop_unit}"
    )
    if found.drops[most] <= 0:
        line = f"hiding any one of {len(found.spans):,} parts never makes {name} fall"
    if found.attention is None:
        return [line, "this model has no [CLS] that attends"]
    agreement = found.agreement
    if agreement is None:
        return [line, "too few parts, or too much alike, to compare with attention"]
    return [line, f"rank correlation of that with attention: {agreement:.2f}"]


def write_explanation(
    path: Path,
    config: NetworkConfig,
    name: str,
    found: Explanation,
    along: Sequence[Thumbnail],
    attended: Sequence[Thumbnail],
    note: str,
    *,
    top: int,
    most: int,
) -> None:
    """Writes the page.

    Args:
        path: of the page.
        config: of the model.
        name: of the video.
        found: what there is to show.
        along: pictures evenly along the video.
        attended: of the most attended frames.
        note: why pictures are missing.
        top: number of classes to follow.
        most: number of most attended frames.
    """
    task = config.temporal.task
    is_share = task != "regression"
    order = found.scores.argsort(descending=True)[:top].tolist()
    edges = seconds_edges(found.timestamps)
    starts = [begin for begin, _ in found.spans]
    ends = np.append(edges[starts], edges[-1])
    drops = Track(edges=ends, values=found.drops, pattern="{:+.3g}")
    series = {
        found.class_names[index]: [
            (seconds, float(scores[index])) for seconds, scores in found.prefixes
        ]
        for index in order
    }
    pattern = "{:.2%}" if is_share else "{:.6g}"
    outcome = found.outcome
    write_page(
        path,
        "explain.html",
        title=name,
        subtitle=f"{config.spec.backbone}, {config.temporal.encoder}",
        notes=[] if outcome.status == "ok" else [f"partial: {outcome.reason}: {outcome.message}"],
        top=table(
            "Class, Probability" if is_share else "Output, Value",
            [(found.class_names[n], cell(float(found.scores[n]), pattern)) for n in order],
        ),
        facts=[
            ("frames", f"{len(found.timestamps):,}, {edges[0]:.2f} to {edges[-1]:.2f} s"),
            *(("hiding parts", line) for line in check_lines(found)),
        ],
        strip_words=STRIP_WORDS.format(ATTENTION_WORDS if found.attention else ""),
        strip=Strip(
            name=name,
            lines=[],
            thumbnails=along,
            edges=edges,
            note=note,
            attention=found.attention,
            tracks=[
                (f"Fall of its {found.drop_unit} without each of {len(found.spans):,} parts", drops)
            ],
        ),
        most=[
            (frame, share)
            for frame, (_, share) in zip(attended, found.most_attended(most), strict=True)
        ],
        prefix_words=PREFIX_WORDS,
        prefixes=[
            line_chart(
                "Prediction as it goes on", series, x_label="seconds seen", is_share=is_share
            )
        ],
    )


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ranks of values [N]; equal values share their mean rank.

    >>> _ranks(np.array([0.5, 0.1, 0.5])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse])
