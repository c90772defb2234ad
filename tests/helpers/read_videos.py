"""Videos read in this process: all frames of a selection, by index, and the outcome."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numbered_videos import read_number, write_video
from vtnpipe.extract.decode.frames import Frame, FrameSource, Outcome, read_frames, select_frames
from vtnpipe.extract.decode.protocol import Chunk


def read_video(
    path: Path, *, decoder: Any = "auto", source: FrameSource | None = None, **selection: Any
) -> tuple[list[Frame], Outcome]:
    """Select frames, and read them all.

    Args:
        path: path of the file.
        decoder: decoder option.
        source: decodes the packets; planes that it gives are valid only until the next frame.
        selection: arguments of `select_frames`.
    """
    frames = read_frames(select_frames(str(path), **selection), decoder, source=source)
    found: list[Frame] = []
    while True:
        try:
            found.append(next(frames))
        except StopIteration as end:
            return sorted(found, key=lambda frame: frame.frame_index), end.value


def without_first(chunk: Chunk, num_frames: int) -> Chunk:
    """Return a chunk without its first frames."""
    return replace(
        chunk,
        data=chunk.data[num_frames:],
        frame_index=chunk.frame_index[num_frames:],
        timestamps=chunk.timestamps[num_frames:],
    )


def assert_numbered(frames: list[Frame], numbers: range, fps: float = 25) -> None:
    """The frames show these numbers, and their indices and times are theirs, too."""
    assert [frame.frame_index for frame in frames] == list(numbers)
    assert [read_number(frame.image) for frame in frames] == list(numbers)
    np.testing.assert_allclose([f.time for f in frames], np.array(numbers) / fps, atol=1e-3)


def write_video_that_loses_a_frame(path: Path, num_frames: int, number: int) -> Path:
    """An MPEG-4 video, of which one packet gives neither a frame nor an error.

    decord shifts the later frames, and shows the last one twice: a fault that shows at the end.
    """
    sound = write_video(path, num_frames, codec="mpeg4").read_bytes()
    with av.open(str(path)) as container:
        position = [packet for packet in container.demux(video=0) if packet.size][number].pos
    for bit in range(8 * 4, 8 * 12):  # some bit behind its start code says that nothing is coded
        data = bytearray(sound)
        data[position + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        _, outcome = read_video(path, decoder="pyav")
        if outcome.message.endswith(f"1 of {num_frames} frames could not be decoded"):
            return path
    raise AssertionError("no bit does")
