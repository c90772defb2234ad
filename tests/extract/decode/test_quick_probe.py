"""Quick probes: how many frames, from what, and how they are turned."""

import struct
from pathlib import Path
from typing import Any

import av
import pytest
from numbered_videos import draw_number, write_video
from vtnpipe.extract.decode.quick_probe import quick_probe
from vtnpipe.manifests.failures import VideoError

SOURCES = [
    ("a.mp4", "libx264", "index"),
    ("a.mov", "libx264", "index"),
    ("a.mkv", "libx264", "duration"),
    ("a.webm", "libvpx-vp9", "duration"),
    ("a.avi", "mpeg4", "header"),
    ("a.ts", "libx264", "duration"),
    ("a.264", "libx264", "size"),
]


@pytest.mark.parametrize(("name", "codec", "source"), SOURCES)
def test_how_many_frames_and_from_what(tmp_path: Path, name: str, codec: str, source: str) -> None:
    found = quick_probe(str(write_video(tmp_path / name, 75, codec=codec)))
    assert found.source == source
    assert (found.width, found.height) == (128, 64)
    assert found.is_counted == (source == "index")
    if source != "size":
        assert found.fps == pytest.approx(25, rel=0.02)
        assert found.seconds == pytest.approx(3, rel=0.02)
        assert found.num_frames == 75 if source == "index" else abs(found.num_frames - 75) <= 2
    assert found.num_frames > 0


def test_an_index_counts_what_is_presented(shared_videos: Path) -> None:
    path = shared_videos / "hard/am_sample_edit_list_no_sync_frame_before_edit.mp4"
    assert quick_probe(str(path)).num_frames == 68  # of 85 in the file


def test_fragments_are_estimated(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(50):
            image = draw_number(number, 64, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    found = quick_probe(str(path))
    assert not found.is_counted
    assert abs(found.num_frames - 50) <= 2


def test_a_duration_that_lies_costs_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 75)
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes
    data[place : place + 8] = struct.pack(">d", 1e15)
    path.write_bytes(data)
    assert quick_probe(str(path)).num_frames == len(data)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_orientation_is_read_from_the_first_frame(tmp_path: Path, rotation: int) -> None:
    path = write_video(tmp_path / "a.mp4", 3, rotation=rotation)
    assert quick_probe(str(path)).orientation == ""
    words = f"turned by {rotation}°" if rotation else "upright"
    assert quick_probe(str(path), with_orientation=True).orientation == words


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(VideoError, match="no known video container"):
        quick_probe(str(tmp_path / "a.mp4"))
