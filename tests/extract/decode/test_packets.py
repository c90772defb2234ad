"""Packets and frames: conversion to RGB, side data, damage that a demuxer or a decoder reports."""

import struct
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from numbered_videos import write_video
from read_videos import read_video
from vtnpipe.extract.decode.cuts import cut_video
from vtnpipe.extract.decode.packets import PacketReader, RgbConverter
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.decode.sampling import EVERY_FRAME, Sampling


def _by_filter_graph(frame: Any) -> npt.NDArray[np.uint8]:
    """Convert as FFmpeg's own programs do."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    to_rgb, sink = graph.add("format", "rgb24"), graph.add("buffersink")
    source.link_to(to_rgb)
    to_rgb.link_to(sink)
    graph.configure()
    graph.push(frame)
    pulled: Any = graph.pull()
    image: npt.NDArray[np.uint8] = pulled.to_ndarray()
    return image


@pytest.mark.parametrize(
    "pixels", "yuv420p yuv420p10le p010le yuv422p10le yuv444p yuv411p gray yuvj420p gbrp".split()
)
def test_conversion_equals_ffmpegs(pixels: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (66, 130, 3)).astype(np.uint8)
    frame: Any = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pixels)
    for space, color_range in ((2, 0), (1, 1), (1, 2), (5, 1), (9, 1)):
        frame.colorspace, frame.color_range = space, color_range
        np.testing.assert_array_equal(RgbConverter("a")(frame), _by_filter_graph(frame))


def _write_with_exif(path: Path, tag: int) -> None:
    """Write Motion JPEG whose frames carry EXIF with an orientation, as cameras do."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, tag, 0, 0)
    body = b"Exif\0\0" + tiff
    exif = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuvj420p"
        for number in range(10):
            gray = np.full((96, 128, 3), number * 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(gray, format="rgb24").reformat(format="yuvj420p")
            for packet in stream.encode(frame):
                made = av.Packet(bytes(packet)[:2] + exif + bytes(packet)[2:])
                made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
                made.stream, made.is_keyframe = stream, True
                container.mux(made)
        stream.encode(None)


@pytest.mark.parametrize(("tag", "shape"), [(1, (96, 128, 3)), (6, (128, 96, 3))])
def test_unknown_side_data_does_no_harm(tmp_path: Path, tag: int, shape: tuple[int, ...]) -> None:
    _write_with_exif(tmp_path / "a.avi", tag)
    frames, outcome = read_video(tmp_path / "a.avi")
    assert (outcome.status, len(frames)) == ("ok", 10)
    assert frames[0].image.shape == shape


def _write_noise(path: Path, codec: str = "libx264") -> None:
    base = np.random.default_rng(0).integers(0, 255, (128, 160, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 128, "yuv420p", 12
        for number in range(60):
            moved = np.roll(base, 3 * number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))


def _zero(path: Path, at: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + size] = bytes(size)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_damage_in_the_pictures_shows_in_every_cut_stride_and_span(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    _write_noise(path)
    assert read_video(path)[1].status == "ok"
    _zero(path, path.stat().st_size // 2 // 512 * 512, 512)
    assert read_video(path)[1].status == "partial"
    assert read_video(path, sampling=Sampling(frame_stride=7))[1].status == "partial"
    cuts = cut_video(probe(str(path)), [0, 20, 40], EVERY_FRAME)
    assert len(cuts) > 1
    statuses = [read_video(path, cut=cut)[1].status for cut in cuts]
    assert "partial" in statuses
    assert "ok" in statuses
    assert read_video(path, end=0.4)[1].status == "ok"


@pytest.mark.parametrize(
    ("name", "codec", "num_bytes"),
    [("a.avi", "mpeg4", 4096), ("a.flv", "flv1", 4096), ("a.asf", "mpeg4", 4096)],
)
def test_a_hole_makes_a_video_partial(
    tmp_path: Path, name: str, codec: str, num_bytes: int
) -> None:
    path = tmp_path / name
    _write_noise(path, codec="flv" if codec == "flv1" else codec)
    frames, outcome = read_video(path)
    assert (outcome.status, len(frames)) == ("ok", 60)
    _zero(path, path.stat().st_size // 2, num_bytes)
    frames, outcome = read_video(path)
    assert (outcome.status, outcome.reason) == ("partial", "damaged")
    assert outcome.num_lost_frames > 0
    if name == "a.avi":  # its header counts them
        assert len(frames) + outcome.num_lost_frames == 60


def test_an_ivf_that_ends_early_lacks_what_its_header_counts(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ivf", 50, codec="libvpx")
    assert read_video(path)[1].status == "ok"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    frames, outcome = read_video(path)
    assert (outcome.status, outcome.reason) == ("partial", "truncated")
    assert len(frames) + outcome.num_lost_frames == 50


class _FailingContainer:
    """A container whose demuxer fails after some packets."""

    def __init__(self, container: Any, num_packets: int) -> None:
        self.format, self.name = container.format, container.name
        self._container, self._num_packets = container, num_packets

    def demux(self, stream: Any) -> Any:
        yield from islice(self._container.demux(stream), self._num_packets)
        raise av.error.InvalidDataError(1, "Invalid data found")


def test_an_error_of_the_demuxer_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 20)
    with av.open(str(path)) as container:
        reader = PacketReader(_FailingContainer(container, 7), container.streams.video[0])
        assert len(list(reader)) == 7
        assert reader.error == "Invalid data found"
    assert probe(str(path)).demuxer_error == ""


def test_the_curve_of_hdr_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p10le"
        stream.codec_context.color_trc = 16
        for _ in range(5):
            gray = np.full((64, 128, 3), 100, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode(None))
    _, outcome = read_video(path)
    assert outcome.status == "ok"
    assert "HDR (PQ)" in outcome.message


def test_equal_timestamps_share_the_time_until_the_next(tmp_path: Path) -> None:
    times = [0, 40, 80, 80, 80, 120, 160, 160]
    path = tmp_path / "a.flv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("flv", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number, time in enumerate(times):
            gray = np.full((64, 128, 3), 20 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")):
                packet.pts = packet.dts = time
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)
    frames, outcome = read_video(path)
    assert (outcome.status, len(frames)) == ("ok", len(times))
    found = [frame.time for frame in frames]
    np.testing.assert_allclose(found[:6], [0, 0.04, 0.08, 0.08 + 0.04 / 3, 0.08 + 0.08 / 3, 0.12])
    assert (np.diff(found) > 0).all()
