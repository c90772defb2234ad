"""Packets that show no frame of their own: second fields, hidden frames, leading pictures."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from field_coded import write_field_coded
from numbered_videos import draw_number, read_number, write_video
from read_videos import read_video
from vtnpipe.extract.decode.bitstream import FrameParser
from vtnpipe.extract.decode.sampling import EVERY_FRAME, Sampling


@pytest.mark.parametrize("name", ["a.264", "a.ts"])
@pytest.mark.parametrize("stride", [1, 3])
def test_two_fields_are_one_frame(tmp_path: Path, name: str, stride: int) -> None:
    path = write_field_coded(tmp_path / name, 10)
    sampling = EVERY_FRAME if stride == 1 else Sampling(frame_stride=stride)
    frames, outcome = read_video(path, sampling=sampling)
    assert (outcome.status, outcome.num_lost_frames) == ("ok", 0)
    assert [frame.frame_index for frame in frames] == list(range(0, 10, stride))
    brightness = [float(frame.image.mean()) for frame in frames]
    np.testing.assert_allclose(np.diff(brightness), stride * 8 * 255 / 219, atol=1)
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(0, 10, stride) / 25)


def test_interlaced_frames_of_one_packet_are_frames(tmp_path: Path) -> None:
    """x264 codes both fields in one picture, with the header of a stream that allows fields."""
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"x264-params": "tff=1"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.flags |= 1 << 18  # interlaced DCT
        for number in range(30):
            image = draw_number(number, 64, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    frames, outcome = read_video(path)
    assert (outcome.status, len(frames)) == ("ok", 30)


def test_hidden_frames_of_vp8_and_vp9() -> None:
    vp8, vp9 = FrameParser("vp8", None), FrameParser("vp9", None)
    assert [vp8.shows_frame(bytes([head])) for head in (0b10000, 0b00000)] == [True, False]
    # Marker 2, profile 0; a shown frame, a hidden one, and a request to show an earlier one.
    heads = (0b10_00_0_1_1_0, 0b10_00_0_1_0_0, 0b10_00_1_000)
    assert [vp9.shows_frame(bytes([head, 0])) for head in heads] == [True, False, True]
    assert vp9.shows_frame(bytes([heads[1], 0b110_00_001]))  # a superframe


def test_leading_pictures_of_a_first_cra_picture() -> None:
    parser = FrameParser("hevc", None)
    kinds = [21, 8, 9, 6, 1, 21, 8, 1]  # CRA, RASL, RASL, RADL, trailing, CRA, RASL, trailing
    packets = [b"\0\0\1" + bytes([kind << 1, 1, 0]) for kind in kinds]
    shown = [parser.shows_frame(packet) for packet in packets]
    assert shown == [True, False, False, True, True, True, True, True]


def test_a_lost_packet_of_a_raw_stream_is_a_lost_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.264", 40, num_b_frames=0)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    body = packets[20][:8] + bytes(len(packets[20]) - 8)  # neither a frame nor an error
    path.write_bytes(b"".join([*packets[:20], body, *packets[21:]]))
    frames, outcome = read_video(path)
    assert outcome.status == "partial"
    assert len(frames) + outcome.num_lost_frames >= 40


def test_a_comment_behind_the_last_image_of_a_gif(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.gif", 10, codec="gif")
    path.write_bytes(path.read_bytes()[:-1] + b"!\xfe\x05hello\0;")
    frames, outcome = read_video(path)
    assert (outcome.status, len(frames)) == ("ok", 10)
    assert [read_number(frame.image) for frame in frames] == list(range(10))
