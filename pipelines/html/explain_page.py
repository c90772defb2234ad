"""The page of `vtnpipe explain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...manifests.times import seconds_edges
from ..explain import ExplainSettings, Explanation, check_lines
from .attention import Strip, Track
from .page import cell, table, write_page
from .plots import line_chart
from .thumbnails import Thumbnail

if TYPE_CHECKING:
    from ..models.model_folder import NetworkConfig

ATTENTION_WORDS = "how much [CLS], from which the class is read, attends to each, and "
STRIP_WORDS = (
    "Frames; under them, {}how much less sure of the first class the model is when a part is "
    "hidden."
)
PREFIX_WORDS = "What the model says when it has seen the video only up to that second."


def write_explanation(
    path: Path,
    config: "NetworkConfig",
    name: str,
    found: Explanation,
    along: Sequence[Thumbnail],
    attended: Sequence[Thumbnail],
    note: str,
    settings: ExplainSettings,
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
        settings: how many of what.
    """
    task = config.temporal.task
    is_share = task != "regression"
    order = found.scores.argsort(descending=True)[: settings.top].tolist()
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
        subtitle=f"{config.identity['backbone']}, {config.temporal.encoder}",
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
            for frame, (_, share) in zip(attended, found.most_attended(settings.most), strict=True)
        ],
        prefix_words=PREFIX_WORDS,
        prefixes=[
            line_chart(
                "Prediction as it goes on", series, x_label="seconds seen", is_share=is_share
            )
        ],
    )
