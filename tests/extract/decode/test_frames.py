"""Every presented frame, in order, once, upright, with its index and its time."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_videos import draw_number, read_number, write_video
from read_videos import assert_numbered, read_video
from vtnpipe.manifests.failures import VideoError

CONTAINERS = [
    ("a.mp4", "libx264"),
    ("a.mov", "libx264"),
    ("a.mkv", "libx264"),
    ("a.webm", "libvpx-vp9"),
    ("a.avi", "mpeg4"),
    ("h264.avi", "libx264"),
    ("a.ts", "libx264"),
    ("a.mpg", "mpeg2video"),
    ("a.flv", "libx264"),
    ("a.gif", "gif"),
    ("a.264", "libx264"),
]


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_every_container(tmp_path: Path, name: str, codec: str) -> None:
    frames, outcome = read_video(write_video(tmp_path / name, 61, codec=codec))
    assert_numbered(frames, range(61))
    assert (outcome.status, outcome.num_lost_frames) == ("ok", 0)
    assert (outcome.decoder, outcome.decoder_reason) == ("pyav", "")


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_both_decoders_give_the_same_pixels(tmp_path: Path, decoder: Any) -> None:
    path = write_video(tmp_path / "a.mp4", 40, height=72, width=128)
    expected, _ = read_video(path)
    found, outcome = read_video(path, decoder=decoder)
    assert outcome.decoder == decoder
    assert_numbered(found, range(40))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.time == other.time


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 40, 41, 500, 520, 2000, 2001, 2002, 9000]
    frames, _ = read_video(write_video(tmp_path / "vfr.mkv", 9, times=times, num_b_frames=0))
    assert [read_number(frame.image) for frame in frames] == list(range(9))
    np.testing.assert_allclose([frame.time for frame in frames], np.array(times) / 1000, atol=1e-9)


def test_times_count_from_the_first_presented_frame(tmp_path: Path) -> None:
    times = [3000 + 40 * number for number in range(30)]
    frames, _ = read_video(write_video(tmp_path / "late.mkv", 30, times=times))
    assert_numbered(frames, range(30))


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.avi"])
@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0.4, 1.0, range(10, 25)),
        (None, 0.2, range(5)),
        (2.3, None, range(58, 61)),
        (0.0, 99.0, range(61)),
        (1.0, 1.04, range(25, 26)),
    ],
)
def test_spans_are_half_open(
    tmp_path: Path, name: str, start: float | None, end: float | None, numbers: range
) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write_video(tmp_path / name, 61, codec=codec)
    frames, outcome = read_video(path, start=start, end=end)
    assert_numbered(frames, numbers)
    assert outcome.status == "ok"


def test_a_span_beyond_the_end_has_no_frames(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none of its 10 frames.*\[5, 6\)") as caught:
        read_video(write_video(tmp_path / "a.mp4", 10), start=5.0, end=6.0)
    assert caught.value.reason == "no-frames"


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_rotated_video_comes_out_upright(tmp_path: Path, rotation: int, decoder: Any) -> None:
    path = write_video(tmp_path / "r.mp4", 5, height=64, width=128, rotation=rotation)
    frames, outcome = read_video(path, decoder=decoder)
    assert outcome.decoder == decoder
    for number, frame in enumerate(frames):
        drawn = draw_number(number, 64, 128)
        expected = np.rot90(drawn, rotation // 90)
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image.astype(int) - expected).mean() < 10


def test_a_truncated_file_is_partial_with_the_frames_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 5
        for number in range(50):
            image = draw_number(number, 64, 96)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    frames, outcome = read_video(path)
    assert (outcome.status, outcome.reason) == ("partial", "truncated")
    assert 10 < len(frames) < 50
    assert len(frames) + outcome.num_lost_frames == 50
    for frame in frames[:-3]:
        assert read_number(frame.image) == frame.frame_index
    for span in ({"start": 0.2}, {"end": 1.9}, {"start": 0.2, "end": 1.9}):
        _, part = read_video(path, **span)
        assert (part.status, part.reason) == ("partial", "truncated")
        assert part.num_lost_frames > 0
    assert read_video(path, start=0.0, end=0.3)[1].status == "ok"
    with pytest.raises(VideoError, match="none of its") as caught:
        read_video(path, start=1.96)
    assert caught.value.reason == "truncated"


def test_two_readings_agree(clips: dict[str, Path]) -> None:
    for path in clips.values():
        first, second = read_video(path), read_video(path)
        assert first[1] == second[1]
        for one, other in zip(first[0], second[0], strict=True):
            np.testing.assert_array_equal(one.image, other.image)
