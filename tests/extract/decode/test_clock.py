"""Clocks that jump: joined recordings in decoding order, with times that continue."""

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_videos import draw_number, read_number
from read_videos import read_video
from vtnpipe.extract.decode.clock import ClockContinuer
from vtnpipe.extract.decode.cuts import cut_video
from vtnpipe.extract.decode.frames import EVERY_FRAME
from vtnpipe.extract.decode.probe import probe

HOUR, WRAP = 3600 * 90_000, 2**33
NUM_FRAMES = 30  # of a part


def _part(
    path: Path, number: int, start: int, codec: str, *, has_audio: bool, **options: str
) -> bytes:
    """Return a recording whose clock starts at `start`, in units of 1/90000 s."""
    muxer = {"mpegts_copyts": "1"} if path.suffix == ".ts" else {}
    container_format = "mpegts" if path.suffix == ".ts" else "mpeg"
    with av.open(str(path), "w", format=container_format, options=muxer) as container:
        video: Any = container.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = 128, 64, "yuv420p"
        video.codec_context.gop_size, video.codec_context.max_b_frames = 12, 2
        video.codec_context.time_base = Fraction(1, 25)
        audio: Any = container.add_stream("mp2", rate=48_000) if has_audio else None

        def mux(packets: list[Any]) -> None:
            for packet in packets:
                shift = int(Fraction(start, 90_000) / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                container.mux(packet)

        for index in range(NUM_FRAMES):
            image = draw_number(NUM_FRAMES * number + index, 64, 128)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            mux(video.encode(frame))
            if audio is not None:
                silence = np.zeros((1, 2 * 1920), np.int16)
                sound = av.AudioFrame.from_ndarray(silence, format="s16", layout="stereo")
                sound.sample_rate, sound.pts = 48_000, 1920 * index
                sound.time_base = Fraction(1, 48_000)
                mux(audio.encode(sound))
        mux(video.encode(None))
    return path.read_bytes()


def _join(path: Path, starts: tuple[int, ...], codec: str = "libx264", **options: Any) -> Path:
    options.setdefault("has_audio", False)
    parts = [_part(path, k, start, codec, **options) for k, start in enumerate(starts)]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", "libx264"), ("a.ts", "mpeg2video"), ("a.mpg", "mpeg2video")]
)
@pytest.mark.parametrize("has_audio", [False, True])
@pytest.mark.parametrize(
    "starts",
    [
        (0, 37),
        (0, 0, 0),
        (2 * HOUR, 0),
        (0, 2 * HOUR),
        (WRAP - 5 * HOUR, 5 * HOUR),
        (WRAP - 90_000, 10 * HOUR, WRAP - 3 * 90_000),
    ],
)
def test_joined_recordings_are_read_in_decoding_order(
    tmp_path: Path, name: str, codec: str, starts: tuple[int, ...], has_audio: bool
) -> None:
    path = _join(tmp_path / name, starts, codec, has_audio=has_audio)
    frames, outcome = read_video(path)
    assert [read_number(frame.image) for frame in frames] == list(range(len(starts) * NUM_FRAMES))
    times = np.array([frame.time for frame in frames])
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-3)
    assert outcome.status == "ok"
    assert "its clock jumps" in outcome.message


@pytest.mark.parametrize("second", [30 * 3600 + 37, 28 * 3600 + 37])
def test_a_jump_is_seen_by_pictures_that_would_come_before_earlier_ones(
    tmp_path: Path, second: int
) -> None:
    """The second clock starts when the first ends, or two frames earlier; groups are open."""
    options = {"x264-params": "open-gop=1"}
    frames, outcome = read_video(_join(tmp_path / "a.ts", (0, second), **options))
    assert [read_number(frame.image) for frame in frames] == list(range(2 * NUM_FRAMES))
    assert (np.diff([frame.time for frame in frames]) > 0.03).all()
    assert outcome.status == "ok"


def test_a_recording_across_the_end_of_the_clock_has_no_jump(tmp_path: Path) -> None:
    for start in (WRAP - 54_000, WRAP - 3000):
        frames, outcome = read_video(_join(tmp_path / "a.ts", (start,)))
        assert (outcome.status, outcome.message) == ("ok", "")
        np.testing.assert_allclose(np.diff([frame.time for frame in frames]), 0.04, atol=1e-3)


def test_parts_of_a_joined_recording_equal_the_whole(tmp_path: Path) -> None:
    path = _join(tmp_path / "a.ts", (HOUR, 0, 37))
    whole, _ = read_video(path)
    cuts = cut_video(probe(str(path)), [0, 25, 50, 75], EVERY_FRAME)
    assert len(cuts) > 1
    parts = list(chain.from_iterable(read_video(path, cut=cut)[0] for cut in cuts))
    assert [(one.frame_index, one.time) for one in parts] == [
        (one.frame_index, one.time) for one in whole
    ]
    assert [read_number(one.image) for one in parts] == list(range(3 * NUM_FRAMES))


@dataclass
class _Packet:
    pts: int | None
    dts: int | None
    is_keyframe: bool = False
    duration: int = field(default=1)


def _continued(packets: list[_Packet], container: str = "flv") -> tuple[list[int | None], int]:
    clock = ClockContinuer(packets, container, Fraction(1, 1000))
    return [packet.pts for packet in clock], clock.num_jumps


def test_one_wrong_time_is_no_jump() -> None:
    times = [0, 40, 80, 20, 160, 200, 240]
    assert _continued([_Packet(time, time) for time in times]) == (times, 0)


def test_a_gap_is_kept_where_clocks_do_not_wrap() -> None:
    """A jump forwards may be a pause; only streams with 33 bits make it a jump, beyond 10 s."""
    times = [0, 40, 60_000, 60_040]
    packets = [_Packet(time, time, True) for time in times]
    assert _continued(packets) == (times, 0)
    packets = [_Packet(time, time, True) for time in times]
    assert _continued(packets, "mpegts") == ([0, 40, 41, 81], 1)
    slides = [20_000 * number for number in range(5)]  # a frame every 20 s
    assert _continued([_Packet(time, time, True) for time in slides], "mpegts") == (slides, 0)


def test_packets_without_times_stay_without() -> None:
    assert _continued([_Packet(None, None), _Packet(40, None), _Packet(None, 80)]) == (
        [None, 40, None],
        0,
    )
    assert _continued([]) == ([], 0)
