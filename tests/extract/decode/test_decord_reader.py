"""decord: the files that it is kept from, and the faults that are noticed while it reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from numbered_videos import damage_packet, draw_number, read_number, write_video
from read_videos import assert_numbered, read_video, write_video_that_loses_a_frame
from vtnpipe.extract.decode.decord_reader import decord_refusal
from vtnpipe.extract.decode.probe import probe
from vtnpipe.manifests.failures import VideoError


def test_decord_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", 40).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    for path, rule in (
        (tmp_path / "cut.mkv", "the file ends before its index"),
        (write_video(tmp_path / "a.avi", 10, codec="mpeg4"), "container avi"),
    ):
        with pytest.raises(VideoError, match=f"{rule}.*give --decoder auto") as caught:
            read_video(path, decoder="decord")
        assert caught.value.reason == "refused"


def test_narrow_video_is_not_for_decord(tmp_path: Path) -> None:
    path = write_video(tmp_path / "narrow.mp4", 5, height=64, width=32)
    with pytest.raises(VideoError, match="32 pixels wide"):
        read_video(path, decoder="decord")
    assert_numbered(read_video(path)[0], range(5))


def test_odd_sizes_are_not_for_decord(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.webm", 5, codec="libvpx-vp9", height=68, width=100)
    assert read_video(path, decoder="decord")[1].decoder == "decord"
    info = replace(probe(str(path)), width=101)
    assert decord_refusal(info, is_part=False).startswith("an odd size")


def test_a_damaged_packet_costs_its_frame_and_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, gop=60, num_b_frames=0)
    damage_packet(path, 30)
    with pytest.raises(VideoError, match="fails before the end; give --decoder auto") as caught:
        read_video(path, decoder="decord")
    assert caught.value.reason == "damaged"
    frames, outcome = read_video(path)
    assert outcome.status == "partial"
    assert outcome.reason == "damaged"
    assert outcome.num_lost_frames == 1
    assert outcome.decoder == "pyav"
    assert [frame.frame_index for frame in frames] == [n for n in range(60) if n != 30]


def test_a_packet_that_gives_nothing_and_no_error_is_missed(tmp_path: Path) -> None:
    path = write_video_that_loses_a_frame(tmp_path / "a.mov", 30, 9)
    with pytest.raises(VideoError, match="decord repeats its last frame in place of a lost one"):
        read_video(path, decoder="decord")
    frames, outcome = read_video(path)
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
    frames, outcome = read_video(path, decoder="decord")
    assert (len(frames), outcome.status, outcome.decoder) == (30, "ok", "decord")


def test_refusal_of_decord_names_the_rule(tmp_path: Path) -> None:
    info = probe(str(write_video(tmp_path / "a.mp4", 3)))
    assert decord_refusal(info, is_part=False) == ""
    assert decord_refusal(info, is_part=True) == "a part is wanted"
