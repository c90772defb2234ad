"""Thumbnails of video frames, as data URIs."""

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
from ...extract.decode.protocol import Chunk, DecodeRequest, Selected
from ...extract.decode.sampling import Sampling
from ...manifests.manifest import VideoRow
from ...manifests.times import seconds_edges
from ..inference.clip_reader import IndexedVideos, index_videos

HEIGHT = 96  # pixels
MAX_WIDTH = 256  # pixels, at this height; wider frames are scaled to this width
JPEG_QUALITY = 78
TIME_TOLERANCE = 0.5  # frames, by which a file's timestamps may differ from the stored ones


class Thumbnail(NamedTuple):
    """Thumbnail of a frame.

    Attributes:
        frame_index: index of the frame in the file.
        seconds: timestamp of the frame.
        uri: JPEG as a data URI; empty if the frame could not be decoded.
    """

    frame_index: int
    seconds: float
    uri: str


class ThumbnailRequest(NamedTuple):
    """Frames of one video whose thumbnails are wanted.

    Attributes:
        row: manifest row of the video.
        frame_index: indices of the frames in the file.
        seconds: timestamps of the frames.
        size: size of the file in bytes when its features were stored; None if it is not known.
    """

    row: VideoRow
    frame_index: Sequence[int]
    seconds: Sequence[float]
    size: int | None = None

    @classmethod
    def of(
        cls,
        row: VideoRow,
        positions: Iterable[int],
        frame_index: npt.NDArray[np.int64],
        timestamps: npt.NDArray[np.float64],
        size: int | None = None,
    ) -> "ThumbnailRequest":
        """Create a request from positions among a video's stored frames.

        Args:
            row: manifest row of the video.
            positions: positions among the T stored frames.
            frame_index: [T] indices of the stored frames in the file.
            timestamps: [T] seconds of the stored frames.
            size: size of the file in bytes when its features were stored; None if it is not known.
        """
        chosen = list(positions)
        return cls(row, frame_index[chosen].tolist(), timestamps[chosen].tolist(), size)


class VideoThumbnails(NamedTuple):
    """Thumbnails of one video.

    Attributes:
        thumbnails: one per requested frame, in order.
        note: why some or all of them have no image, or "".
    """

    thumbnails: list[Thumbnail]
    note: str


def even_positions(timestamps: npt.NDArray[np.float64], count: int) -> list[int]:
    """Return the positions of the frames at the middles of equal spans of a video's time.

    Args:
        timestamps: [T] seconds.
        count: number of spans; T if it is larger.

    >>> even_positions(np.array([0.0, 0.1, 0.2, 0.3, 5.0, 9.0]), 2)
    [3, 4]
    """
    count = min(count, len(timestamps))
    edges = seconds_edges(timestamps)
    middles = edges[0] + (np.arange(count) + 0.5) * (edges[-1] - edges[0]) / count
    nearest = np.searchsorted(edges[:-1], middles, side="right") - 1
    return [int(position) for position in np.clip(nearest, 0, None)]


def decode_thumbnails(
    requests: Mapping[str, ThumbnailRequest], *, height: int = HEIGHT
) -> dict[str, VideoThumbnails]:
    """Decode thumbnails in decoder processes, each frame from the keyframe before it.

    If a file is not the one whose features were stored, as its size or its timestamps differ, its
    thumbnails have no images.

    Args:
        requests: video_id → frames.
        height: height of the thumbnails in pixels.

    Returns:
        video_id → a thumbnail for each requested frame, with or without an image.
    """
    uris: dict[str, dict[int, str]] = {video_id: {} for video_id in requests}
    notes = dict.fromkeys(requests, "")
    with TemporaryDirectory(prefix="vtnpipe-thumbnails-") as folder:
        rows = [one.row for one in requests.values()]
        index = index_videos(Path(folder) / "index.safetensors", rows, Console(quiet=True))
        videos = IndexedVideos(
            rows={row.video_id: row for row in rows}, index=index, sampling=Sampling()
        )
        pieces: list[DecodeRequest] = []
        owners: list[str] = []  # video_id of each piece
        for video_id, one in requests.items():
            notes[video_id] = _why_unusable(one, index)
            if not notes[video_id]:
                of_video = videos.requests(video_id, np.unique(one.frame_index))
                pieces += of_video
                owners += [video_id] * len(of_video)
    with DecoderPool(max(1, min(len(pieces), num_cpus()))) as pool:
        for number, event in pool.decode(pieces):
            if isinstance(event, Selected):
                for frame_index in pieces[number].frames or ():
                    uris[owners[number]].pop(frame_index, None)
            elif isinstance(event, Chunk):
                for frame_index, image in zip(event.frame_index, event.images, strict=True):
                    uris[owners[number]][frame_index] = _jpeg_uri(image, height)
            elif isinstance(event, Outcome) and event.status != "ok":
                notes[owners[number]] = f"{event.reason}: {event.message}"
    return {
        video_id: VideoThumbnails(
            [
                Thumbnail(frame_index, seconds, uris[video_id].get(frame_index, ""))
                for frame_index, seconds in zip(one.frame_index, one.seconds, strict=True)
            ],
            notes[video_id],
        )
        for video_id, one in requests.items()
    }


def _why_unusable(request: ThumbnailRequest, index: VideoIndex) -> str:
    """Return why a file is not the one whose features were stored; "" if it is."""
    path = request.row.path
    fault = index.fault(path)
    if fault is not None:
        return f"no thumbnails: {fault.reason}: {fault.message}"
    size = index.state(path).size
    if request.size not in (None, size):
        return (
            f"no thumbnails: {path} has changed since extraction, from {request.size:,} to "
            f"{size:,} bytes"
        )
    times, frame_index = index.timeline(path).times, np.asarray(request.frame_index)
    tolerance = TIME_TOLERANCE * np.median(np.diff(times)) if len(times) > 1 else 1.0
    is_same = frame_index.max() < len(times) and bool(
        (np.abs(times[frame_index] - request.seconds) <= max(0.001, tolerance)).all()
    )
    return "" if is_same else f"no thumbnails: {path} has other frames than at extraction"


def _jpeg_uri(image: npt.NDArray[np.uint8], height: int) -> str:
    """Return an image [H, W, 3] as a small JPEG, in a data URI."""
    thumbnail: Any = Image.fromarray(image)
    thumbnail.thumbnail((MAX_WIDTH * height // HEIGHT, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    thumbnail.save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
