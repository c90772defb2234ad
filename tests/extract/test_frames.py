"""Every presented frame, in order, once, upright, with its index and its time."""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_videos import draw_number, read_number, write_video
from vtnpipe.extract.decode.decord_reader import decord_refusal
from vtnpipe.extract.decode.frames import Frame, Outcome, Restart, read_frames
from vtnpipe.extract.decode.orientation import Orientation
from vtnpipe.extract.decode.probe import probe
from vtnpipe.manifests.errors import VideoError


def collect(path: Path, **options: Any) -> tuple[list[Frame], Outcome]:
    """All frames, as a worker gathers them, and how it ended."""
    frames: list[Frame] = []
    reader: Generator[Frame | Restart, None, Outcome] = read_frames(str(path), **options)
    while True:
        try:
            item = next(reader)
        except StopIteration as end:
            return sorted(frames, key=lambda frame: frame.frame_index), end.value
        if isinstance(item, Restart):
            frames = []
        else:
            frames.append(item)


def assert_numbered(frames: list[Frame], numbers: range, fps: float = 25) -> None:
    assert [frame.frame_index for frame in frames] == list(numbers)
    assert [read_number(frame.image) for frame in frames] == list(numbers)
    np.testing.assert_allclose([f.time for f in frames], np.array(numbers) / fps, atol=1e-3)


CONTAINERS = [
    ("a.mp4", "libx264", "decord"),
    ("a.mov", "libx264", "decord"),
    ("a.mkv", "libx264", "decord"),
    ("a.webm", "libvpx-vp9", "decord"),
    ("a.avi", "mpeg4", "pyav"),
    ("h264.avi", "libx264", "pyav"),
    ("a.ts", "libx264", "pyav"),
    ("a.mpg", "mpeg2video", "pyav"),
    ("a.flv", "libx264", "pyav"),
    ("a.gif", "gif", "pyav"),
    ("a.264", "libx264", "pyav"),
]


@pytest.mark.parametrize(("name", "codec", "decoder"), CONTAINERS)
def test_every_container(tmp_path: Path, name: str, codec: str, decoder: str) -> None:
    frames, outcome = collect(write_video(tmp_path / name, 61, codec=codec))
    assert_numbered(frames, range(61))
    assert (outcome.status, outcome.num_lost_frames) == ("ok", 0)
    assert outcome.decoder == decoder
    assert (outcome.decoder_reason == "") == (decoder == "decord")


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_both_decoders_give_the_same_pixels(tmp_path: Path, decoder: Any) -> None:
    path = write_video(tmp_path / "a.mp4", 40, height=72, width=128)
    expected, _ = collect(path)
    found, outcome = collect(path, decoder=decoder)
    assert outcome.decoder == decoder
    assert_numbered(found, range(40))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.time == other.time


def test_decord_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", 40).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    for path, rule in (
        (tmp_path / "cut.mkv", "the file ends before its index does"),
        (write_video(tmp_path / "a.avi", 10, codec="mpeg4"), "container avi"),
    ):
        with pytest.raises(VideoError, match=f"{rule}.*give --decoder auto") as caught:
            collect(path, decoder="decord")
        assert caught.value.reason == "refused"


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 40, 41, 500, 520, 2000, 2001, 2002, 9000]
    frames, _ = collect(write_video(tmp_path / "vfr.mkv", 9, times=times, num_b_frames=0))
    assert [read_number(frame.image) for frame in frames] == list(range(9))
    np.testing.assert_allclose([frame.time for frame in frames], np.array(times) / 1000, atol=1e-9)


def test_times_count_from_the_first_presented_frame(tmp_path: Path) -> None:
    times = [3000 + 40 * number for number in range(30)]
    frames, _ = collect(write_video(tmp_path / "late.mkv", 30, times=times))
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
    frames, outcome = collect(path, start=start, end=end)
    assert_numbered(frames, numbers)
    assert outcome.status == "ok"


def test_a_path_is_the_systems_through_links_and_back(tmp_path: Path) -> None:
    """`..` behind a link leads out of what it points to, for those who check a file and read it."""
    for folder, count in (("data", 7), ("home", 5)):
        (tmp_path / folder / "m").mkdir(parents=True)
        write_video(tmp_path / folder / "a.mp4", count)
    link = tmp_path / "home/link"
    link.symlink_to(tmp_path / "data/m")
    frames, _ = collect(link / "../a.mp4")
    assert len(frames) == 7


def test_a_span_beyond_the_end_has_no_frames(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none of its 10 frames.*\[5, 6\)") as caught:
        collect(write_video(tmp_path / "a.mp4", 10), start=5.0, end=6.0)
    assert caught.value.reason == "no-frames"


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_rotated_video_comes_out_upright(tmp_path: Path, rotation: int, decoder: Any) -> None:
    path = write_video(tmp_path / "r.mp4", 5, height=64, width=128, rotation=rotation)
    frames, outcome = collect(path, decoder=decoder)
    assert outcome.decoder == decoder
    for number, frame in enumerate(frames):
        drawn = draw_number(number, 64, 128)
        expected = np.rot90(drawn, rotation // 90)
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image.astype(int) - expected).mean() < 10
    assert collect(path)[1].decoder == "decord"


def test_orientation_of_all_eight() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    rotations = {
        Orientation(False, False, False): 0,
        Orientation(True, False, True): 1,
        Orientation(False, True, True): 2,
        Orientation(True, True, False): 3,
    }
    for orientation, turns in rotations.items():
        np.testing.assert_array_equal(orientation.apply(image), np.rot90(image, turns))
        assert not orientation.is_mirrored
    mirrored = [Orientation(False, True, False), Orientation(False, False, True)]
    mirrored += [Orientation(True, False, False), Orientation(True, True, True)]
    assert all(orientation.is_mirrored for orientation in mirrored)


def test_narrow_video_is_not_for_decord(tmp_path: Path) -> None:
    path = write_video(tmp_path / "narrow.mp4", 5, height=64, width=32)
    frames, outcome = collect(path)
    assert_numbered(frames, range(5))
    assert outcome.decoder_reason == "32 pixels wide"


def test_odd_sizes_are_not_for_decord(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.webm", 5, codec="libvpx-vp9", height=68, width=100)
    assert collect(path)[1].decoder == "decord"
    info = replace(probe(str(path)), width=101)
    assert decord_refusal(info, is_whole=True).startswith("an odd size")


def test_a_damaged_packet_costs_its_frame_and_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, gop=60, num_b_frames=0)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        position, size = packets[30].pos, packets[30].size
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    frames, outcome = collect(path)
    assert outcome.status == "partial"
    assert outcome.reason == "damaged"
    assert outcome.num_lost_frames == 1
    assert outcome.decoder == "pyav"
    assert "decord: fails" in outcome.decoder_reason
    assert [frame.frame_index for frame in frames] == [n for n in range(60) if n != 30]


def test_a_packet_that_gives_nothing_and_no_error_is_missed(tmp_path: Path) -> None:
    """decord then shifts the later frames, and shows the last one twice."""
    path = write_video(tmp_path / "a.mov", 30, codec="mpeg4")
    with av.open(str(path)) as container:
        position = [p for p in container.demux(video=0) if p.size][9].pos
    sound = path.read_bytes()
    for bit in range(8 * 12):  # some bit of its head says that nothing is coded
        data = bytearray(sound)
        data[position + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        if collect(path, decoder="pyav")[1].message.endswith("1 of 30 frames could not be decoded"):
            break
    else:
        pytest.fail("no bit does")
    frames, outcome = collect(path)
    assert "decord: repeats its last frame" in outcome.decoder_reason
    assert (outcome.status, outcome.num_lost_frames, len(frames)) == ("partial", 1, 29)
    assert all(read_number(frame.image) == frame.frame_index for frame in frames[10:])


def test_a_still_ending_is_no_fault_of_decord(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for _ in range(30):
            image = draw_number(7, 64, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    frames, outcome = collect(path)
    assert (len(frames), outcome.status, outcome.decoder) == (30, "ok", "decord")


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
    frames, outcome = collect(path)
    assert (outcome.status, outcome.reason) == ("partial", "truncated")
    assert 10 < len(frames) < 50
    assert len(frames) + outcome.num_lost_frames == 50
    for frame in frames[:-3]:
        assert read_number(frame.image) == frame.frame_index
    for span in ({"start": 0.2}, {"end": 1.9}, {"start": 0.2, "end": 1.9}):
        _, part = collect(path, **span)
        assert (part.status, part.reason) == ("partial", "truncated")
        assert part.num_lost_frames > 0
    assert collect(path, start=0.0, end=0.3)[1].status == "ok"
    with pytest.raises(VideoError, match="none of its") as caught:
        collect(path, start=1.96)
    assert caught.value.reason == "truncated"


def test_two_readings_agree(clips: dict[str, Path]) -> None:
    for path in clips.values():
        first, second = collect(path), collect(path)
        assert first[1] == second[1]
        for one, other in zip(first[0], second[0], strict=True):
            np.testing.assert_array_equal(one.image, other.image)


def _file(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_refusals_by_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n"
    cases = {
        "missing": str(tmp_path / "none.mp4"),
        "refused": str(tmp_path / "folder.mp4"),
        "empty": _file(tmp_path, "empty.mp4", b""),
        "not-a-video": _file(tmp_path, "text.mp4", b"hello" * 100),
        "damaged": _file(tmp_path, "head.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 12),
    }
    for reason, path in cases.items():
        with pytest.raises(VideoError) as caught:
            collect(Path(path))
        assert caught.value.reason == reason
        assert path in str(caught.value)
    for data, words in ((lfs, "Git LFS"), (playlist, "a playlist"), (b"ffconcat", "a playlist")):
        with pytest.raises(VideoError, match=words):
            collect(Path(_file(tmp_path, "a.mp4", data)))
    with pytest.raises(VideoError, match="a URL"):
        next(read_frames("http://localhost/a.mp4"))


def test_audio_only_has_no_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError) as caught:
        collect(path)
    assert caught.value.reason == "no-video-stream"


def test_refusal_of_decord_names_the_rule(tmp_path: Path) -> None:
    info = probe(str(write_video(tmp_path / "a.mp4", 3)))
    assert decord_refusal(info, is_whole=True) == ""
    assert decord_refusal(info, is_whole=False) == "a span is wanted"
