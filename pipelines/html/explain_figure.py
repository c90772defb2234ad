"""The picture of `vtnpipe explain`, as a paper shows it."""

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ...manifests.atomic import atomic_path
from ...manifests.times import seconds_edges
from .explain_page import Explanation
from .thumbnails import Thumbnail

INCHES_WIDE, DPI = 11.0, 150
ASPECT = 4 / 3  # of the pictures, which are cropped to it


def write_figure(
    path: Path, name: str, found: Explanation, along: Sequence[Thumbnail], top: int
) -> bool:
    """Writes frames, each layer's attention, occlusion and the prediction, one under another.

    Args:
        path: of the PNG.
        name: of the video.
        found: what there is to show.
        along: pictures evenly along the video.
        top: classes to follow.

    Returns:
        whether its font has all letters of the names.
    """
    attention = found.attention
    layers = [] if attention is None else [attention.layer(n) for n in range(attention.num_layers)]
    edges = seconds_edges(found.timestamps)
    pictures_height = 0.77 * INCHES_WIDE / len(along) / ASPECT
    heights = [pictures_height, *(1.2 for _ in layers), 1.2, 2.2]
    figure = Figure(figsize=(INCHES_WIDE, 1.15 * sum(heights) + 0.6), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights, sharex=True))
    figure.suptitle(name.replace("$", r"\$"))
    frames, below = axes[0], axes[1:]
    width = (edges[-1] - edges[0]) / len(along)
    for number, one in enumerate(along):
        if one.uri:
            picture: Image.Image = Image.open(
                io.BytesIO(base64.b64decode(one.uri.split(",", 1)[1]))
            )
            across = min(picture.width, round(ASPECT * picture.height))
            down = min(picture.height, round(picture.width / ASPECT))
            picture = ImageOps.fit(picture, (across, down))
            left = edges[0] + number * width
            frames.imshow(
                np.asarray(picture), extent=(left, left + 0.97 * width, 0, 1), aspect="auto"
            )
    frames.set_ylim(0, 1)
    frames.axis("off")
    for number, (track, ax) in enumerate(zip(layers, below, strict=False), 1):
        ax.bar(track.edges[:-1], 100 * track.values, np.diff(track.edges), align="edge")
        ax.axhline(100 * track.level, color="black", linestyle="--", linewidth=0.8)
        ax.set_ylabel(f"layer {number}\nattention (%)")
    starts = [begin for begin, _ in found.spans]
    span_edges = np.append(edges[starts], edges[-1])
    hidden, prediction = below[-2:]
    hidden.bar(span_edges[:-1], found.drops, np.diff(span_edges), align="edge", color="tab:red")
    hidden.axhline(0, color="black", linewidth=0.8)
    hidden.set_ylabel(f"fall of {found.drop_unit}\nwhen hidden")
    names: list[str] = []
    lines: list[Any] = []
    for index in found.scores.argsort(descending=True)[:top].tolist():
        points = [(seconds, float(scores[index])) for seconds, scores in found.prefixes]
        names.append(found.class_names[index].replace("$", r"\$"))
        lines += prediction.plot(*zip(*points, strict=True), marker=".")
    prediction.set_ylabel("score, video\nseen so far")
    prediction.set_xlabel("seconds")
    prediction.set_xlim(edges[0], edges[-1])
    prediction.legend(lines, names, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    with atomic_path(path) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(temporary, dpi=DPI, format="png")
    return not any("Glyph" in str(one.message) for one in caught)
