"""Opening files: what is refused before any decoder sees it, and by which reason."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_videos import draw_number, write_video
from read_videos import read_video
from vtnpipe.extract.decode.container import check_file
from vtnpipe.manifests.failures import VideoError


def test_a_path_is_the_systems_through_links_and_back(tmp_path: Path) -> None:
    """`..` behind a link leads out of what it points to, for those who check a file and read it."""
    for folder, count in (("data", 7), ("home", 5)):
        (tmp_path / folder / "m").mkdir(parents=True)
        write_video(tmp_path / folder / "a.mp4", count)
    link = tmp_path / "home/link"
    link.symlink_to(tmp_path / "data/m")
    frames, _ = read_video(link / "../a.mp4")
    assert len(frames) == 7


def _file(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_refusals_by_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n"
    cases = {
        "missing": str(tmp_path / "none.mp4"),
        "refused": "/dev/null",
        "no-frames": str(tmp_path / "folder.mp4"),
        "empty": _file(tmp_path, "empty.mp4", b""),
        "not-a-video": _file(tmp_path, "text.mp4", b"hello" * 100),
        "damaged": _file(tmp_path, "head.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 12),
    }
    for reason, path in cases.items():
        with pytest.raises(VideoError) as caught:
            read_video(Path(path))
        assert caught.value.reason == reason
        assert path in str(caught.value)
    for data, words in ((lfs, "Git LFS"), (playlist, "a playlist"), (b"ffconcat", "a playlist")):
        with pytest.raises(VideoError, match=words):
            read_video(Path(_file(tmp_path, "a.mp4", data)))
    with pytest.raises(VideoError, match="a URL"):
        check_file("http://localhost/a.mp4")


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
        read_video(path)
    assert caught.value.reason == "no-video-stream"


def _mp4_behind(box: bytes, mp4: bytes) -> bytes:
    """Return an MP4 with a box put before it, and the offsets of its samples moved."""
    data = bytearray(box + mp4)
    place = data.index(b"stco") + 8
    for number in range(int.from_bytes(data[place : place + 4], "big")):
        entry = slice(place + 4 + 4 * number, place + 8 + 4 * number)
        data[entry] = (int.from_bytes(data[entry], "big") + len(box)).to_bytes(4, "big")
    return bytes(data)


def test_files_whose_beginning_is_unusual_are_read(tmp_path: Path) -> None:
    """Recordings that begin within a packet, boxes of QuickTime, zeros before a raw stream."""
    for kind in (b"pnot", b"uuid"):
        mov = write_video(tmp_path / "a.mov", 20).read_bytes()
        box = (28).to_bytes(4, "big") + kind + bytes(20)
        path = _file(tmp_path, f"{kind.decode()}.mov", _mp4_behind(box, mov))
        assert len(read_video(Path(path))[0]) == 20
    raw = write_video(tmp_path / "a.264", 20).read_bytes()
    assert len(read_video(Path(_file(tmp_path, "zeros.264", bytes(7) + raw)))[0]) == 20
    transport = write_video(tmp_path / "a.ts", 20).read_bytes()
    frames, outcome = read_video(Path(_file(tmp_path, "mid.ts", transport[100:])))
    assert (len(frames), outcome.status) == (20, "ok")
    program = write_video(tmp_path / "a.mpg", 200, codec="mpeg2video", gop=5).read_bytes()
    frames, _ = read_video(Path(_file(tmp_path, "mid.mpg", program[1000:])))
    assert len(frames) > 150


def _fragmented(path: Path) -> bytes:
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.gop_size = 10
        for number in range(50):
            image = draw_number(number, 64, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_a_segment_without_its_header_asks_for_it(tmp_path: Path) -> None:
    data = _fragmented(tmp_path / "a.mp4")
    segment = _file(tmp_path, "a.m4s", data[data.index(b"moof") - 4 :])
    with pytest.raises(VideoError, match="init segment") as caught:
        read_video(Path(segment))
    assert caught.value.reason == "truncated"


def test_fragments_that_are_missing_or_zeroed_make_a_video_partial(tmp_path: Path) -> None:
    data = _fragmented(tmp_path / "a.mp4")
    starts = [place - 4 for place in range(len(data)) if data[place : place + 4] == b"moof"]
    zeroed = data[: starts[2]] + bytes(64) + data[starts[2] + 64 :]
    missing = data[: starts[2]] + data[starts[3] :]
    for name, damaged in (("zeroed.mp4", zeroed), ("missing.mp4", missing)):
        frames, outcome = read_video(Path(_file(tmp_path, name, damaged)))
        assert (outcome.status, outcome.reason) == ("partial", "damaged")
        assert outcome.num_lost_frames > 0
        assert len(frames) >= 20
    frames, outcome = read_video(tmp_path / "a.mp4")
    assert (outcome.status, len(frames)) == ("ok", 50)


def test_an_mp4_without_its_frames_is_truncated(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", 50).read_bytes()
    begin = data.index(b"mdat") - 4
    end = begin + int.from_bytes(data[begin : begin + 4], "big")
    with pytest.raises(VideoError) as caught:
        read_video(Path(_file(tmp_path, "header.mp4", data[:begin] + data[end:])))
    assert caught.value.reason == "truncated"


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound: Any = container.add_stream("aac", rate=44100)
        image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(image))
        silence = np.zeros((1, 1024), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(cover.encode(None))
        container.mux(sound.encode(None))
    with pytest.raises(VideoError) as caught:
        read_video(path)
    assert caught.value.reason == "no-video-stream"


def _element(kind: str, content: bytes) -> bytes:
    """Return a Matroska element with a length of 8 bytes."""
    return bytes.fromhex(kind) + b"\1" + len(content).to_bytes(7, "big") + content


def _content(data: bytes, place: int) -> slice:
    """Return where the content of an element is whose length begins at `place`."""
    width = 9 - data[place].bit_length()
    length = int.from_bytes(data[place : place + width], "big") & (1 << 7 * width) - 1
    return slice(place + width, place + width + length)


def test_an_encrypted_matroska_is_not_called_damaged(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.webm", 20, codec="libvpx-vp9").read_bytes()
    begin = data.rindex(bytes.fromhex("1654ae6b"))  # the seek head names it before
    tracks = _content(data, begin + 4)
    track = _content(data, data.index(b"\xae", tracks.start) + 1)
    encryption = _element("5035", _element("47e1", b"\5") + _element("47e2", b"key"))
    encoding = _element("6240", _element("5033", b"\1") + encryption)
    entry = _element("ae", data[track] + _element("6d80", encoding))
    changed = data[:begin] + _element("1654ae6b", entry) + data[tracks.stop :]
    with pytest.raises(VideoError) as caught:
        read_video(Path(_file(tmp_path, "encrypted.webm", changed)))
    assert caught.value.reason == "encrypted"
