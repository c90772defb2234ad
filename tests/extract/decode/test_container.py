"""Opening files: what is refused before any decoder sees it, and by which reason."""

from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import write_video
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
        "refused": str(tmp_path / "folder.mp4"),
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
