"""Drawn videos of events, whose classes need order.

A disc and then a square is `give`, a square and then a disc is `take`, and a cross is `wave`.
Everything else is background.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.segments import Segment, write_segments

FPS, SIZE = 8, 64
PARTS = {"give": ("disc", "square"), "take": ("square", "disc"), "wave": ("cross",)}


def draw_event_videos(
    folder: Path, num_videos: int, *, seed: int = 0, seconds: tuple[float, float] = (30.0, 120.0)
) -> tuple[Path, Path]:
    """Draw videos, and write their manifest and segments; return the paths of the two."""
    generator = np.random.default_rng(seed)
    rows, segments = [], []
    for number in range(num_videos):
        name = f"video{number:03}"
        of_video, shapes = _plan(generator, name, float(generator.uniform(*seconds)))
        segments += of_video
        _write(folder / f"{name}.mp4", shapes, generator)
        share = number / num_videos
        split = "train" if share < 0.6 else "val" if share < 0.8 else "test"
        rows.append(VideoRow(video_id=name, path=str(folder / f"{name}.mp4"), split=split))
    write_manifest(rows, folder / "videos.csv")
    write_segments(segments, folder / "segments.csv")
    return folder / "videos.csv", folder / "segments.csv"


def _plan(
    generator: np.random.Generator, name: str, seconds: float
) -> tuple[list[Segment], list[str]]:
    """Return the segments of a video, and the shape that each of its frames shows."""
    shapes = [""] * round(seconds * FPS)
    num_events = int(generator.integers(3, 7))
    room = len(shapes) // num_events
    segments = []
    for number in range(num_events):
        label = str(generator.choice(list(PARTS)))
        parts = PARTS[label]
        longest = min(4.0, room / FPS / len(parts) * 0.8)
        counts = [round(generator.uniform(0.4, 1.0) * longest * FPS) for _ in parts]
        start = number * room + int(generator.integers(0, max(1, room - sum(counts))))
        at = start
        for part, count in zip(parts, counts, strict=True):
            shapes[at : at + count] = [part] * count
            at += count
        segments.append(Segment(name, start / FPS, at / FPS, label))
    return segments, shapes


def _write(path: Path, shapes: list[str], generator: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        center = generator.uniform(24, SIZE - 24, 2)
        tint = generator.uniform(60, 120, 3)
        for number, shape in enumerate(shapes):
            center = np.clip(center + generator.normal(0, 1.5, 2), 22, SIZE - 22)
            frame = av.VideoFrame.from_ndarray(_image(shape, center, tint, generator), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _image(
    shape: str, center: npt.NDArray[Any], tint: npt.NDArray[Any], generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:SIZE, :SIZE] - center[:, None, None]
    where = {
        "": np.zeros((SIZE, SIZE), bool),
        "disc": x**2 + y**2 < 14**2,
        "square": (abs(x) < 12) & (abs(y) < 12),
        "cross": (abs(x) < 4) & (abs(y) < 20) | (abs(y) < 4) & (abs(x) < 20),
    }[shape]
    color = {"disc": (230, 80, 60), "square": (60, 200, 90), "cross": (80, 90, 230)}.get(shape, ())
    image = np.broadcast_to(tint, (SIZE, SIZE, 3)) + generator.normal(0, 12, (SIZE, SIZE, 1))
    if color:
        image = np.where(where[..., None], color, image)
    return image.clip(0, 255).astype(np.uint8)
