"""Image sequences: folders and archives of images, read as videos."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_videos import draw_number, read_number
from PIL import Image
from read_videos import read_video
from vtnpipe.extract.decode.cuts import cut_video
from vtnpipe.extract.decode.frames import probe_any
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.protocol import Chunk, DecodeRequest
from vtnpipe.extract.decode.quick_probe import quick_probe
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.image_sequences import with_rate

LENGTH = 40


def image_bytes(number: int, *, format: str = "PNG", size: tuple[int, int] = (64, 128)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw_number(number, *size)).save(file, format)
    return file.getvalue()


def _files(num_images: int = LENGTH) -> dict[str, bytes]:
    """Names in natural order, not in that of the alphabet; and files that are no images."""
    found = {f"frame{n}.png": image_bytes(n) for n in range(num_images)}
    return {**found, "notes.txt": b"x", ".hidden.png": b"x", "Thumbs.db": b"x"}


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"v/{name}", data)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path = path.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


KINDS = [write_folder, write_zip, write_tar]
Write = Callable[[Path, dict[str, bytes]], Path]


@pytest.mark.parametrize("write", KINDS)
def test_images_are_frames_in_natural_order(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "v", _files())
    frames, outcome = read_video(path)
    assert (outcome.status, outcome.decoder) == ("ok", "pillow")
    assert [read_number(frame.image) for frame in frames] == list(range(LENGTH))
    assert [frame.frame_index for frame in frames] == list(range(LENGTH))
    np.testing.assert_allclose([f.time for f in frames], np.arange(LENGTH) / 25)
    probed = quick_probe(str(path))
    assert (probed.num_frames, probed.fps, probed.source) == (LENGTH, 25, "index")
    assert (probed.container, probed.codec, probed.width, probed.height) == (
        *("images", "png"),
        *(128, 64),
    )


@pytest.mark.parametrize("fps", [12.5, 30000 / 1001])
def test_the_rate_stands_behind_the_path(tmp_path: Path, fps: float) -> None:
    path = with_rate(str(write_folder(tmp_path / "v", _files())), fps)
    frames, _ = read_video(path, sampling=Sampling(fps=fps / 2), start=4 / fps, end=20 / fps)
    assert [frame.frame_index for frame in frames] == list(range(4, 20, 2))
    np.testing.assert_allclose([f.time for f in frames], np.arange(4, 20, 2) / fps, rtol=1e-6)


def test_parts_of_a_sequence(tmp_path: Path) -> None:
    path = str(write_zip(tmp_path / "v", _files()))
    cuts = cut_video(probe_any(path), [0, 20], Sampling(), max_preroll=4)
    assert [cut.num_frames for cut in cuts] == [20, 20] or sum(c.num_frames for c in cuts) == LENGTH
    numbers = []
    for cut in cuts:
        frames, _ = read_video(path, cut=cut)
        numbers += [read_number(frame.image) for frame in frames]
        assert [frame.frame_index for frame in frames] == numbers[-len(frames) :]
    assert numbers == list(range(LENGTH))


@pytest.mark.parametrize("write", KINDS)
def test_broken_images_are_counted(tmp_path: Path, write: Write) -> None:
    files = _files(10)
    files["frame3.png"] = files["frame3.png"][:60]
    files["frame7.png"] = b"not an image"
    frames, outcome = read_video(write(tmp_path / "v", files))
    assert [read_number(frame.image) for frame in frames] == [0, 1, 2, 4, 5, 6, 8, 9]
    assert (outcome.status, outcome.reason, outcome.num_lost_frames) == ("partial", "damaged", 2)
    assert "2 of 10 images could not be read; frame3.png" in outcome.message.replace("v/", "")


def test_images_of_several_sizes_formats_and_orientations(tmp_path: Path) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.fromarray(np.ascontiguousarray(np.rot90(draw_number(9, 64, 128))))
    image.save(turned, "JPEG", exif=exif, quality=95)
    files = {
        "1.png": image_bytes(7),
        "2.JPG": image_bytes(8, format="JPEG", size=(96, 64)),
        "3.jpeg": turned.getvalue(),
    }
    path = write_folder(tmp_path / "v", files)
    with DecoderPool() as pool:
        found = [
            (read_number(image), image.shape)
            for _, event in pool.decode([DecodeRequest(str(path), as_planes=True)])
            if isinstance(event, Chunk)
            for image in event.images
        ]
    assert found == [(7, (64, 128, 3)), (8, (96, 64, 3)), (9, (64, 128, 3))]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(write_folder(tmp_path / "fifo", {}) / "1.png")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    (tmp_path / "bad.tar").write_bytes(b"nothing")
    write_folder(tmp_path / "broken", {"1.png": b"x", "2.jpg": b"y"})
    write_folder(tmp_path / "large", {"1.png": image_bytes(1, size=(512, 512))})
    for name, reason in {
        "empty": "no-frames",
        "fifo": "damaged",
        "bad.zip": "damaged",
        "bad.tar": "damaged",
        "broken": "damaged",
        "large": "too-large",
        "none.zip": "missing",
    }.items():
        with pytest.raises(VideoError) as caught:
            read_video(tmp_path / name, max_pixels=512 * 511)
        assert (caught.value.reason, name in str(caught.value)) == (reason, True), name


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(50_000_000))
        archive.writestr("2.png", image_bytes(2))
    sizes: list[int] = []
    read = zipfile.ZipExtFile.read

    def noting(self: Any, size: int = -1) -> bytes:
        sizes.append(size)
        return read(self, size)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", noting)
    frames, _ = read_video(path, max_pixels=100_000)
    assert [frame.frame_index for frame in frames] == [1]
    assert set(sizes) == {800_000}
