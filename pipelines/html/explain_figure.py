"""Figure of `vtnpipe explain`: a PNG for papers and slides."""

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

WIDTH_INCHES, DPI = 11.0, 150
ASPECT = 4 / 3  # to which thumbnails are cropped


def write_figure(
    path: Path, name: str, explanation: Explanation, thumbnails: Sequence[Thumbnail], top: int
) -> bool:
    """Write thumbnails, each layer's attention, occlusion and the prediction, from top to bottom.

    Args:
        path: path of the PNG.
        name: name of the video.
        explanation: explanation of the model's prediction.
        thumbnails: thumbnails, evenly spaced in time.
        top: number of most probable classes to plot.

    Returns:
        whether the font has all letters of the names.
    """
    attention = explanation.attention
    layers = [] if attention is None else [attention.layer(n) for n in range(attention.num_layers)]
    edges = seconds_edges(explanation.timestamps)
    thumbnail_height = 0.77 * WIDTH_INCHES / len(thumbnails) / ASPECT
    heights = [thumbnail_height, *(1.2 for _ in layers), 1.2, 2.2]
    figure = Figure(figsize=(WIDTH_INCHES, 1.15 * sum(heights) + 0.6), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights, sharex=True))
    figure.suptitle(name.replace("$", r"\$"))
    frames, below = axes[0], axes[1:]
    width = (edges[-1] - edges[0]) / len(thumbnails)
    for number, one in enumerate(thumbnails):
        if one.uri:
            image: Image.Image = Image.open(io.BytesIO(base64.b64decode(one.uri.split(",", 1)[1])))
            crop_width = min(image.width, round(ASPECT * image.height))
            crop_height = min(image.height, round(image.width / ASPECT))
            image = ImageOps.fit(image, (crop_width, crop_height))
            left = edges[0] + number * width
            frames.imshow(
                np.asarray(image), extent=(left, left + 0.97 * width, 0, 1), aspect="auto"
            )
    frames.set_ylim(0, 1)
    frames.axis("off")
    for number, (track, ax) in enumerate(zip(layers, below, strict=False), 1):
        ax.bar(track.edges[:-1], 100 * track.values, np.diff(track.edges), align="edge")
        ax.axhline(100 * track.level, color="black", linestyle="--", linewidth=0.8)
        ax.set_ylabel(f"layer {number}\nattention (%)")
    spans = explanation.span_edges
    occlusion, prediction = below[-2:]
    occlusion.bar(spans[:-1], explanation.drops, np.diff(spans), align="edge", color="tab:red")
    occlusion.axhline(0, color="black", linewidth=0.8)
    occlusion.set_ylabel(f"drop in {explanation.drop_unit}\nif hidden")
    names: list[str] = []
    lines: list[Any] = []
    for index in explanation.scores.argsort(descending=True)[:top].tolist():
        points = [(seconds, float(scores[index])) for seconds, scores in explanation.prefixes]
        names.append(explanation.class_names[index].replace("$", r"\$"))
        lines += prediction.plot(*zip(*points, strict=True), marker=".")
    prediction.set_ylabel("score of the\nvideo so far")
    prediction.set_xlabel("seconds")
    prediction.set_xlim(edges[0], edges[-1])
    prediction.legend(lines, names, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    with atomic_path(path) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(temporary, dpi=DPI, format="png")
    return not any("Glyph" in str(one.message) for one in caught)
