"""Packets and frames of a video stream: seek to a keyframe, read, decode, convert to RGB."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from ...manifests.atomic import read_through
from ...manifests.failures import VideoError
from .clock import ClockContinuer
from .container import MOV, SEEKABLE, open_best_stream, time_base_of
from .limits import MAX_PIXELS


class Keyframe(NamedTuple):
    """Packet at which decoding may begin: packets after it in the file are not presented before it.

    Attributes:
        packet: number of the stream's packets before it in the file.
        pts: timestamp, in the stream's units.
        dts: decoding time, by which MP4/MOV seek.
    """

    packet: int
    pts: int
    dts: int | None


class Window(NamedTuple):
    """Range of a file's packets: from a keyframe or the beginning, up to a number or the end.

    Attributes:
        keyframe: first packet; None for the file's first.
        num_packets: number of packets; None for all.
    """

    keyframe: Keyframe | None = None
    num_packets: int | None = None


WHOLE_FILE = Window()


class PacketReader:
    """Iterator over a stream's packets, without the empty one that ends it; an error ends them.

    The timestamps of packets continue behind a jump of the clock, see `clock.py`.

    Args:
        container: open container, at its beginning; or elsewhere in a file without jumps.
        stream: one of its streams.

    Attributes:
        error: error of the demuxer that ended the packets; "" if the file ended.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.error = ""
        self._clock: ClockContinuer | None = None
        self._packets = self._read(container, stream)
        if container.format.name != MOV:  # its tables of times cannot jump back
            self._clock = ClockContinuer(self._packets, container.format.name, time_base_of(stream))
            self._packets = iter(self._clock)

    @property
    def num_jumps(self) -> int:
        """Number of jumps of the clock before the last packet."""
        return 0 if self._clock is None else self._clock.num_jumps

    def __iter__(self) -> Iterator[Any]:
        return self._packets

    def close(self) -> None:
        """Release the container: the packets' generator and this object refer to each other."""
        self._packets, self._clock = iter(()), None

    def limit(self, window: Window, first: Any = None) -> None:
        """Restrict the packets to a window; `first`: its first packet, if that has been read."""
        if first is not None:
            self._packets = itertools.chain([first], self._packets)
        elif (keyframe := window.keyframe) is not None:
            every = self._packets
            self._packets = itertools.dropwhile(lambda one: not _is_at(one, keyframe), every)
        if window.num_packets is not None:
            self._packets = itertools.islice(self._packets, window.num_packets)

    def _read(self, container: Any, stream: Any) -> Iterator[Any]:
        while True:
            try:
                yield from (packet for packet in container.demux(stream) if packet.size)
                return
            except av.error.FFmpegError as error:
                read_through(Path(container.name))  # FFmpeg reports a lost disk like damage
                self.error = error.strerror or str(error)
                return
            except IndexError:
                continue  # a packet of a stream that begins in mid-file, which PyAV does not know


@contextmanager
def open_window(
    path: str, window: Window, max_pixels: int = MAX_PIXELS, *, gpu: int | None = None
) -> Iterator[tuple[Any, Any, PacketReader]]:
    """Open a file at a window; yield (container, best video stream, packets).

    The first packet is the window's keyframe, found by a seek if that lands on it, else by reading
    from the file's beginning.

    Args:
        path: path of the file.
        window: packets to read.
        max_pixels: pixel limit of a frame.
        gpu: see `open_best_stream`.

    Raises:
        VideoError: as `open_best_stream`.
    """
    if window.keyframe is not None:
        with open_best_stream(path, max_pixels, gpu=gpu) as (container, stream):
            packets = _seek(container, stream, window)
            if packets is not None:
                try:
                    yield container, stream, packets
                finally:
                    packets.close()
                return
    with open_best_stream(path, max_pixels, gpu=gpu) as (container, stream):
        packets = PacketReader(container, stream)
        packets.limit(window)
        try:
            yield container, stream, packets
        finally:
            packets.close()


def _seek(container: Any, stream: Any, window: Window) -> PacketReader | None:
    """Return the packets from a keyframe on, if a seek lands on it or shortly before it."""
    keyframe = window.keyframe
    if container.format.name not in SEEKABLE or keyframe is None:
        return None
    is_mov = container.format.name == MOV
    to = keyframe.dts if is_mov and keyframe.dts is not None else keyframe.pts
    try:
        container.seek(to, stream=stream)
    except av.error.FFmpegError:
        return None
    packets = PacketReader(container, stream)
    for packet in packets:
        if _is_at(packet, keyframe):
            packets.limit(window, packet)
            return packets
        if packet.pts is None or (packet.is_keyframe and packet.pts > keyframe.pts):
            return None
    return None


def _is_at(packet: Any, keyframe: Keyframe) -> bool:
    return bool(packet.is_keyframe and packet.pts == keyframe.pts)


def decode(stream: Any, packet: Any) -> tuple[list[Any], str]:
    """Return the frames that the decoder outputs for a packet, and its error or "".

    A packet of None flushes the decoder at the end.
    """
    try:
        return stream.codec_context.decode(packet), ""
    except MemoryError:
        name = stream.container.name
        raise VideoError(
            "too-large", f"{name}: a frame exceeds the memory limit; leave it out"
        ) from None
    except av.error.FFmpegError as error:
        return [], error.strerror or str(error)


class RgbConverter:
    """Converts the decoded frames of a file to RGB; keeps FFmpeg's scaler from frame to frame.

    The bytes are those of FFmpeg's own programs: by default, PyAV would place chroma differently in
    some formats, of 10 bits among them.

    Args:
        path: path of the file, for messages.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> npt.NDArray[np.uint8]:
        """Return a frame as [H, W, 3] uint8.

        Raises:
            VideoError: `too-large`; the scaler fails only for want of memory.
        """
        try:
            # By default, the scaler would start a pool of threads for every frame.
            converted = self._reformatter.reformat(
                frame, format="rgb24", interpolation="BICUBIC", threads=1
            )
            rgb: Any = converted.to_ndarray()
        except (MemoryError, av.error.FFmpegError):
            raise VideoError(
                "too-large",
                f"{self._path}: a frame of {frame.width}x{frame.height} exceeds the memory limit; "
                "leave the file out",
            ) from None
        image: npt.NDArray[np.uint8] = rgb
        return image
