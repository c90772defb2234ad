"""Image sequences: JPEG and PNG files of a folder, or of a .zip or .tar archive, as a video.

The images are in natural order of their names (`2.jpg` before `10.jpg`), evenly spaced in time, and
each can be read by itself.
"""

import contextlib
import io
import re
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ...manifests.failures import VideoError
from ...manifests.image_sequences import DEFAULT_FPS, IMAGE_EXTENSIONS, split_rate
from .frame_format import UPRIGHT
from .limits import MAX_PIXELS, check_pixels
from .packets import Keyframe, Window
from .probe import VideoInfo

IMAGES = "images"  # container of an image sequence
BYTES_PER_PIXEL = 8  # more than a file of either format can need
_DIGITS = re.compile(r"(\d+)")

ReadImage = Callable[[str], bytes]


class _Sequence(NamedTuple):
    """An open sequence.

    Attributes:
        names: names of the images, in order.
        read: name → bytes of the file.
    """

    names: list[str]
    read: ReadImage


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names by the numbers in them.

    >>> sorted(["f10.jpg", "f9.jpg", "F1.jpg"], key=natural_order)
    ['F1.jpg', 'f9.jpg', 'f10.jpg']
    """
    parts = _DIGITS.split(name.lower())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


@contextlib.contextmanager
def _opened(path: str, max_pixels: int) -> Iterator[_Sequence]:
    """Open a sequence.

    Raises:
        VideoError: it cannot be read, or has no image.
    """
    bare, _ = split_rate(path)
    most_bytes = BYTES_PER_PIXEL * max_pixels
    try:
        with contextlib.ExitStack() as stack:
            if Path(bare).is_dir():
                found = _folder(Path(bare), most_bytes)
            elif bare.lower().endswith(".zip"):
                found = _zip(stack.enter_context(zipfile.ZipFile(bare)), most_bytes)
            else:
                found = _tar(stack.enter_context(tarfile.open(bare, "r:")), most_bytes)
            if not found.names:
                raise VideoError(
                    "no-frames", f"{path}: has no .jpg, .jpeg or .png; give a folder of images"
                )
            found.names.sort(key=natural_order)
            yield found
    except PermissionError:
        raise VideoError(
            "permission", f"{path}: no permission to read it; check its mode"
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as error:
        raise VideoError(
            "damaged", f"{path}: not a readable archive ({error}); copy it again"
        ) from None
    except OSError as error:
        why = error.strerror or error
        raise VideoError("missing", f"{path}: not readable ({why}); restore it") from None


def _is_image(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(IMAGE_EXTENSIONS) and not base.startswith(".")


def _folder(folder: Path, most_bytes: int) -> _Sequence:
    def read(name: str) -> bytes:
        path = folder / name
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would block
            raise OSError(f"{name} is not a regular file")
        with path.open("rb") as file:
            return file.read(most_bytes)

    return _Sequence([one.name for one in folder.iterdir() if _is_image(one.name)], read)


def _zip(archive: zipfile.ZipFile, most_bytes: int) -> _Sequence:
    def read(name: str) -> bytes:
        with archive.open(name) as file:
            return file.read(most_bytes)

    return _Sequence([name for name in archive.namelist() if _is_image(name)], read)


def _tar(archive: tarfile.TarFile, most_bytes: int) -> _Sequence:
    members = {one.name: one for one in archive if one.isreg() and _is_image(one.name)}

    def read(name: str) -> bytes:
        file = archive.extractfile(members[name])
        assert file is not None  # it is a regular file
        return file.read(most_bytes)

    return _Sequence(list(members), read)


def probe_images(path: str, window: Window, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Return the timeline of a sequence, or of a window of it, as of a video; see `probe`.

    Raises:
        VideoError: the sequence cannot be read, or none of its images.
    """
    with _opened(path, max_pixels) as sequence:
        num_images = len(sequence.names)
        size = codec = None
        for name in sequence.names:
            with contextlib.suppress(_BrokenImageError):
                image = _open(path, name, sequence.read, max_pixels)
                size, codec = image.size, image.format
                break
    if size is None:
        raise VideoError("damaged", f"{path}: none of its {num_images:,} images can be read")
    first = 0 if window.keyframe is None else window.keyframe.packet
    stop = num_images if window.num_packets is None else first + window.num_packets
    pts = np.arange(first, min(stop, num_images))
    none = np.array([], dtype=np.int64)
    rate = split_rate(path)[1] or DEFAULT_FPS
    is_whole = window == Window()
    return VideoInfo(
        path=path,
        container=IMAGES,
        codec=str(codec).lower(),
        width=size[0],
        height=size[1],
        presented_pts=pts,
        num_presented=len(pts),
        origin_pts=0,
        packet_pts=pts,
        keyframes=tuple(Keyframe(n, n, n) for n in pts.tolist()) if is_whole else (),
        clean_keyframes=frozenset(pts.tolist() if is_whole else ()),
        num_beyond_end=0,
        beyond_end_dts=none,
        time_base=1 / Fraction(rate).limit_denominator(1_000_000),
        rate=rate,
        count_reason="",
        orientation=UPRIGHT,
        oddities=(),
        corrupt_pts=none,
        num_corrupt=0,
        demuxer_error="",
        notes=(),
        max_pixels=max_pixels,
        first_frame=None,
    )


def read_images(
    info: VideoInfo, wanted: npt.NDArray[np.int64], on_progress: Callable[[], None]
) -> Iterator[tuple[int, npt.NDArray[np.uint8] | str]]:
    """Yield (position, image [H, W, 3] uint8) of the wanted images, or (position, error).

    EXIF orientations are applied.

    Args:
        info: from `probe_images`.
        wanted: [S] positions in `info`.
        on_progress: called for each image.

    Raises:
        VideoError: the sequence cannot be read, or an image is too large.
    """
    with _opened(info.path, info.max_pixels) as sequence:
        for position in wanted.tolist():
            on_progress()
            number = int(info.presented_pts[position])
            if number >= len(sequence.names):
                yield position, "images have been removed"
                continue
            name = sequence.names[number]
            try:
                image = _open(info.path, name, sequence.read, info.max_pixels)
                upright = ImageOps.exif_transpose(image).convert("RGB")
            except (_BrokenImageError, OSError, SyntaxError, ValueError) as error:
                yield position, f"{name}: {error}"
            else:
                yield position, np.asarray(upright)


class _BrokenImageError(Exception):
    """One image cannot be read."""


def _open(path: str, name: str, read: ReadImage, max_pixels: int) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        VideoError: it is too large.
        _BrokenImageError: it cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(read(name)), formats=("JPEG", "PNG"))
    except (
        *(UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError),
        *(KeyError, RuntimeError, zipfile.BadZipFile, tarfile.TarError),
    ) as error:
        raise _BrokenImageError(str(error)[:200]) from None
    check_pixels(f"{path}, {name}", *image.size, max_pixels)
    return image
