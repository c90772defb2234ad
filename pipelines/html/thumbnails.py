"""Small pictures of some frames of videos, as data URIs."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console

from ...extract.cores import num_cpus
from ...extract.decode.frames import Outcome
from ...extract.decode.index import VideoIndex
from ...extract.decode.pool import DecoderPool
from ...extract.decode.protocol import Chunk, DecodeRequest
from ...extract.decode.sampling import Sampling
from ...manifests.manifest import VideoRow
from ...manifests.times import seconds_edges
from ..inference.clip_reader import IndexedVideos, index_videos

HEIGHT = 96  # pixels
MAX_WIDTH = 256  # of a panorama
JPEG_QUALITY = 78
HALF_FRAME = 0.5  # by which a file's times may differ from the stored ones


class Thumbnail(NamedTuple):
    """A frame: its rank in the file, seconds, and the picture; no picture where it is lost."""

    frame_index: int
    seconds: float
    uri: str


class Wanted(NamedTuple):
    """Frames of a row, by rank in the file, with the seconds of each.

    Attributes:
        row: of which video.
        ranks: of the frames.
        seconds: of each.
        size: of the file when its frames were stored, in bytes; None where that is not known.
    """

    row: VideoRow
    ranks: Sequence[int]
    seconds: Sequence[float]
    size: int | None = None

    @classmethod
    def of(
        cls,
        row: VideoRow,
        places: Iterable[int],
        frame_index: npt.NDArray[np.int64],
        timestamps: npt.NDArray[np.float64],
        size: int | None = None,
    ) -> "Wanted":
        """Frames by their places among those that are stored, whose ranks and times are given."""
        chosen = list(places)
        return cls(row, frame_index[chosen].tolist(), timestamps[chosen].tolist(), size)


class Pictures(NamedTuple):
    """Of one video; a note where they are not all there."""

    thumbnails: list[Thumbnail]
    note: str


def even_places(timestamps: npt.NDArray[np.float64], count: int) -> list[int]:
    """The frames at the middles of so many equal spans of a video's time; no more than there are.

    >>> even_places(np.array([0.0, 0.1, 0.2, 0.3, 5.0, 9.0]), 2)
    [3, 4]
    """
    count = min(count, len(timestamps))
    edges = seconds_edges(timestamps)
    middles = edges[0] + (np.arange(count) + 0.5) * (edges[-1] - edges[0]) / count
    nearest = np.searchsorted(edges[:-1], middles, side="right") - 1
    return [int(place) for place in np.clip(nearest, 0, None)]


def thumbnails(wanted: Mapping[str, Wanted], *, height: int = HEIGHT) -> dict[str, Pictures]:
    """Decodes frames of videos, in child processes, each from the keyframe before it.

    A file that is not the one whose frames were stored gives none: its size or its times differ.

    Args:
        wanted: by video_id.
        height: of the pictures, in pixels.

    Returns:
        for each video all that was wanted of it, in order; without a picture where there is none.
    """
    found: dict[str, dict[int, str]] = {video_id: {} for video_id in wanted}
    notes = dict.fromkeys(wanted, "")
    with TemporaryDirectory(prefix="vtnpipe-thumbnails-") as folder:
        rows = [one.row for one in wanted.values()]
        index = index_videos(Path(folder) / "index.safetensors", rows, Console(quiet=True))
        videos = IndexedVideos(
            rows={row.video_id: row for row in rows}, index=index, sampling=Sampling()
        )
        requests: list[DecodeRequest] = []
        owners: list[str] = []
        for video_id, one in wanted.items():
            notes[video_id] = _why_none(one, index)
            if not notes[video_id]:
                pieces = videos.requests(video_id, np.unique(one.ranks))
                requests += pieces
                owners += [video_id] * len(pieces)
    with DecoderPool(max(1, min(len(requests), num_cpus()))) as pool:
        for number, event in pool.decode_repeating(requests):
            if isinstance(event, Chunk):
                for rank, image in zip(event.frame_index, event.images, strict=True):
                    found[owners[number]][rank] = _jpeg_uri(image, height)
            elif isinstance(event, Outcome) and event.status != "ok":
                notes[owners[number]] = f"{event.reason}: {event.message}"
    return {
        video_id: Pictures(
            [
                Thumbnail(rank, seconds, found[video_id].get(rank, ""))
                for rank, seconds in zip(one.ranks, one.seconds, strict=True)
            ],
            notes[video_id],
        )
        for video_id, one in wanted.items()
    }


def _why_none(wanted: Wanted, index: VideoIndex) -> str:
    """Why a file can't give the frames that were stored; empty where it can."""
    path = wanted.row.path
    fault = index.fault(path)
    if fault is not None:
        return f"no pictures: {fault.reason}: {fault.message}"
    size = index.state(path).size
    if wanted.size not in (None, size):
        return f"no pictures: {path} has changed since, from {wanted.size:,} to {size:,} bytes"
    times, ranks = index.timeline(path).times, np.asarray(wanted.ranks)
    near = HALF_FRAME * np.median(np.diff(times)) if len(times) > 1 else 1.0
    if ranks.max() >= len(times) or np.abs(times[ranks] - wanted.seconds).max() > max(0.001, near):
        return f"no pictures: {path} has other frames than those that were stored"
    return ""


def _jpeg_uri(image: npt.NDArray[np.uint8], height: int) -> str:
    """An image [H, W, 3] as a small JPEG."""
    picture: Any = Image.fromarray(image)
    picture.thumbnail((MAX_WIDTH * height // HEIGHT, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
