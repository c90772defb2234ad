"""Truncation: what each container tells of the bytes that a file lacks."""

from pathlib import Path

import pytest
from numbered_videos import write_video
from vtnpipe.extract.decode.container import check_file
from vtnpipe.extract.decode.truncation import COMPLETE, Truncation, find_truncation

CUT_BYTES = 100


def _find(path: Path) -> Truncation:
    return find_truncation(str(path), check_file(str(path)))


@pytest.mark.parametrize(
    ("name", "codec", "num_missing_bytes"),
    [
        ("a.mp4", "libx264", CUT_BYTES),
        ("a.mov", "libx264", CUT_BYTES),
        ("a.mkv", "libx264", CUT_BYTES),
        ("a.webm", "libvpx-vp9", CUT_BYTES),
        ("a.avi", "mpeg4", CUT_BYTES),
        ("a.ts", "libx264", CUT_BYTES),
        ("a.flv", "libx264", None),  # up to the end of its last packet
        ("a.gif", "gif", 1),  # it does not tell how many
        ("a.mpg", "mpeg2video", 0),  # nor does it tell that any are
    ],
)
def test_missing_bytes_at_the_end(
    tmp_path: Path, name: str, codec: str, num_missing_bytes: int | None
) -> None:
    path = write_video(tmp_path / name, 30, codec=codec)
    assert _find(path) == COMPLETE
    path.write_bytes(path.read_bytes()[:-CUT_BYTES])
    found = _find(path)
    assert not found.has_hole
    if num_missing_bytes is None:
        assert 0 < found.num_missing_bytes <= CUT_BYTES
    else:
        assert found.num_missing_bytes == num_missing_bytes


def test_bytes_missing_in_the_middle_are_a_hole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 60)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + data[middle + CUT_BYTES :])
    assert _find(path).has_hole


def test_a_byte_too_many_behind_an_image_of_a_gif_is_no_hole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.gif", 10, codec="gif")
    data = path.read_bytes()
    for ending, found in ((b"\0;", COMPLETE), (b"", COMPLETE), (b"\0\0x;", Truncation(0, True))):
        path.write_bytes(data[:-1] + ending)
        assert _find(path) == found


def test_zeros_at_the_end_of_one_of_several_riff_chunks_are_no_hole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 10, codec="mpeg4")
    data = bytearray(path.read_bytes() + bytes(64))
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    path.write_bytes(data)
    assert _find(path) == COMPLETE
    path.write_bytes(data + b"RIFF" + (4 + 8 + 8).to_bytes(4, "little") + b"AVIXJUNK" + bytes(12))
    assert not _find(path).has_hole
