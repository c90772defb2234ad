"""Small pictures of some frames of videos, as data URIs."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ..extract.children import DecodingChildren
from ..extract.frames import Outcome
from ..extract.requests import Chunk, Decode
from ..extract.sampling import Sampling
from ..manifests.videos import VideoRow
from .cluster import num_cpus
from .video_reader import IndexedVideos, index_videos

HEIGHT = 96  # pixels
MAX_WIDTH = 256  # of a panorama
JPEG_QUALITY = 78


class Thumbnail(NamedTuple):
    """A frame: its rank in the file, seconds, and the picture; no picture where it is lost."""

    frame_index: int
    seconds: float
    uri: str


class Wanted(NamedTuple):
    """Frames of a row, by rank in the file, with the seconds of each."""

    row: VideoRow
    ranks: Sequence[int]
    seconds: Sequence[float]


class Pictures(NamedTuple):
    """Of one video; a note where they are not all there."""

    thumbnails: list[Thumbnail]
    note: str


def thumbnails(wanted: Mapping[str, Wanted], *, height: int = HEIGHT) -> dict[str, Pictures]:
    """Decodes frames of videos, in child processes, each from the keyframe before it.

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
        requests: list[Decode] = []
        owners: list[str] = []
        for video_id, one in wanted.items():
            fault = index.fault(one.row.path)
            if fault is not None:
                notes[video_id] = f"{fault.reason}: {fault.message}"
                continue
            num_frames = index.num_presented(one.row.path)
            ranks = np.unique([rank for rank in one.ranks if rank < num_frames])
            pieces = videos.requests(video_id, ranks) if len(ranks) else []
            requests += pieces
            owners += [video_id] * len(pieces)
    with DecodingChildren(max(1, min(len(requests), num_cpus()))) as children:
        for number, event in children.run(requests):
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


def _jpeg_uri(image: npt.NDArray[np.uint8], height: int) -> str:
    """An image [H, W, 3] as a small JPEG."""
    from PIL import Image

    picture: Any = Image.fromarray(image)
    picture.thumbnail((MAX_WIDTH * height // HEIGHT, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
