"""Videos that show their frame numbers as 4 x 4 blocks, one bit each: no frame is mistaken."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

GRID = 4
DARK, BRIGHT = 20, 220


def draw_number(number: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """An image [H, W, 3]; height and width are multiples of 4."""
    bits = (number >> np.arange(GRID * GRID)) & 1
    blocks = np.where(bits, BRIGHT, DARK).astype(np.uint8).reshape(GRID, GRID)
    gray = np.kron(blocks, np.ones((height // GRID, width // GRID), dtype=np.uint8))
    return np.repeat(gray[..., None], 3, axis=-1)


def read_number(image: npt.NDArray[np.uint8]) -> int:
    """The number that an image [H, W, 3] shows."""
    height, width, _ = image.shape
    blocks = image.reshape(GRID, height // GRID, GRID, width // GRID, 3).mean(axis=(1, 3, 4))
    return number_of_blocks(blocks.ravel() / 255)


def number_of_blocks(brightness: npt.NDArray[Any]) -> int:
    """The number of 16 block means in [0, 1], row by row."""
    return sum(1 << bit for bit, value in enumerate(brightness) if value > 0.5)


def write_video(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    height: int = 64,
    width: int = 128,  # decord pads rows: on CPUs with AVX-512 it gives narrower frames out wrong
    fps: int = 25,
    times: Sequence[int] | None = None,
    gop: int = 12,
    num_b_frames: int = 2,
    rotation: int = 0,
    first: int = 0,
) -> Path:
    """Writes a numbered video; `times` are its timestamps in ms, if they are not regular."""
    time_base = Fraction(1, 1000) if times else Fraction(1, fps)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = time_base
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.max_b_frames = num_b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(
                draw_number(first + number, height, width), format="rgb24"
            )
            frame.pts = times[number] if times else number
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damage_packet(path: Path, number: int) -> None:
    """Overwrite one packet, by its number in the file, so that it gives an error and no frame."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)


CLIP_LENGTHS = {"a": 50, "b": 33, "c": 7, "d": 41}


def write_clips(folder: Path) -> dict[str, Path]:
    """Four clips of different containers, name → path; clip k begins with number 1000 k."""
    length = CLIP_LENGTHS
    return {
        "a": write_video(folder / "a.mp4", length["a"]),
        "b": write_video(folder / "b.mkv", length["b"], first=1000, height=96),
        "c": write_video(folder / "c.webm", length["c"], first=2000, codec="libvpx-vp9"),
        "d": write_video(folder / "d.avi", length["d"], first=3000, codec="mpeg4"),
    }
