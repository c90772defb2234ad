"""Thumbnails: evenly in time, of the right frames, and never of another file."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numbered_videos import read_number, write_video
from PIL import Image
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.pipelines.html.thumbnails import (
    HEIGHT,
    MAX_WIDTH,
    ThumbnailRequest,
    decode_thumbnails,
    even_positions,
)


def _image(uri: str) -> Any:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def _request(path: Path, frames: list[int], num_frames: int = 30) -> ThumbnailRequest:
    row = VideoRow(video_id=path.stem, path=str(path))
    index = np.arange(num_frames)
    return ThumbnailRequest.of(row, frames, index, index / 25, path.stat().st_size)


def test_positions_are_even_in_time_and_not_in_frames() -> None:
    times = np.concatenate([np.arange(10) / 10, [5.0, 9.0]])  # most frames in the first second
    assert even_positions(times, 2) == [9, 10]
    assert even_positions(times, 50) == even_positions(times, 12)


def test_thumbnails_show_the_requested_frames(tmp_path: Path) -> None:
    paths = [
        write_video(tmp_path / "a.mp4", 30),
        write_video(tmp_path / "b.mkv", 30, first=500, gop=30, height=192, width=384),
    ]
    found = decode_thumbnails({"a": _request(paths[0], [3, 20, 3]), "b": _request(paths[1], [29])})
    assert [one.note for one in found.values()] == ["", ""]
    assert [one.frame_index for one in found["a"].thumbnails] == [3, 20, 3]
    assert [round(one.seconds, 2) for one in found["a"].thumbnails] == [0.12, 0.8, 0.12]
    numbers = [read_number(np.asarray(_image(one.uri))) for one in found["a"].thumbnails]
    assert numbers == [3, 20, 3]
    large = _image(found["b"].thumbnails[0].uri)
    assert large.height == HEIGHT
    assert large.width <= MAX_WIDTH
    assert read_number(np.asarray(large)) == 529


def test_a_file_that_is_another_one_gives_no_images(tmp_path: Path) -> None:
    good = _request(write_video(tmp_path / "v.mp4", 30), [3, 20])
    video = decode_thumbnails({"v": good})["v"]
    assert video.note == ""
    assert all(one.uri for one in video.thumbnails)
    for request, reason in (
        (good._replace(size=17), "from 17 to"),
        (good._replace(frame_index=[3, 40]), "other frames"),
        (good._replace(seconds=[0.12, 1.5]), "other frames"),
        (good._replace(row=VideoRow(video_id="v", path="/none.mp4")), "missing"),
    ):
        video = decode_thumbnails({"v": request})["v"]
        assert reason in video.note
        assert len(video.thumbnails) == 2
        assert not any(one.uri for one in video.thumbnails)
