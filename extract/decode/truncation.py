"""Whether a file is there to its end and without holes, by what its container says of its parts.

A download or a copy that broke off often decodes without an error up to where it ends, and some
readers go on behind a hole without a word. Containers that say nothing of their length (MPEG
program streams, raw streams) can't be told; nor is an index at the end missed, if no frame is.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_PARTS = 20_000_000  # that are walked through; a day of video has ten million
MOV_BOXES = (b"ftyp", b"moov", b"moof", b"mdat")  # that frames need
CLUSTER = 0x1F43B675
LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770}
LEVEL_1 |= {0x1254C367, 0xEC, 0xBF}
IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0xEC, 0xBF}
UNKNOWN = -1  # a length that is not given
FLV_TAGS = (8, 9, 18)
TS_SYNC = 0x47
TS_HEAD_BYTES = 420  # enough for two packets


class Completeness(NamedTuple):
    """What a file lacks.

    Attributes:
        num_missing_bytes: at its end, of what it says to have.
        has_hole: whether something in its midst is not what must stand there.
    """

    num_missing_bytes: int = 0
    has_hole: bool = False


COMPLETE = Completeness()


def completeness(path: str, demuxers: str) -> Completeness:
    """What a file lacks; nothing, where that can't be told.

    Args:
        path: a file.
        demuxers: FFmpeg's names of those that may open it, as `container.check_file` gives them.
    """
    look = _LOOKS.get(demuxers)
    if look is None:
        return COMPLETE
    with Path(path).open("rb") as file:
        return look(file, file.seek(0, os.SEEK_END))


def _until(end: int, size: int, *, slack: int = 0) -> Completeness:
    """Of a file that says to end there."""
    return Completeness(end - size) if end > size + slack else COMPLETE


def _mov(file: BinaryIO, size: int) -> Completeness:
    """Boxes, one after the other, that begin with their length and kind."""
    position = 0
    for _ in range(MAX_PARTS):
        head = _read(file, position, 16, size)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or length < 8 or not head[4:8].isascii():
            break  # the end, a box to the end, or no box
        position += length
        if position >= size:
            return _until(position, size) if head[4:8] in MOV_BOXES else COMPLETE
    return COMPLETE


def _matroska(file: BinaryIO, size: int) -> Completeness:
    """A header; a segment; in that, clusters; in those, blocks; each begins with its kind and
    length.
    """
    _, length, begin = _element(file, 0, size)
    _, length, begin = _element(file, begin + length, size)
    end = size if length == UNKNOWN else begin + length
    missing = _until(end, size).num_missing_bytes
    position, cluster_end = begin, begin
    for _ in range(MAX_PARTS):
        if position >= min(end, size):
            break
        kind, length, content = _element(file, position, size)
        if kind == CLUSTER:
            cluster_end = end if length == UNKNOWN else content + length
            position = content
        elif kind in (IN_CLUSTER if position < cluster_end else LEVEL_1) or kind in LEVEL_1:
            position = end if length == UNKNOWN else content + length
        else:
            return Completeness(missing, has_hole=True)
    return Completeness(missing)


def _element(file: BinaryIO, position: int, size: int) -> tuple[int, int, int]:
    """Kind, length and where the content begins of one of Matroska's elements."""
    head = _read(file, position, 12, size)
    width = _width(head)
    length_width = _width(head[width:])
    content = position + width + length_width
    data = head[width : width + length_width]
    length = int.from_bytes(data, "big") & (2 ** (7 * length_width) - 1)
    if length == 2 ** (7 * length_width) - 1:
        length = UNKNOWN
    return int.from_bytes(head[:width], "big"), length, content


def _width(data: bytes) -> int:
    """Bytes of a variable-length integer: as many as the first one has leading zeros, and 1.

    >>> _width(bytes([0x81])), _width(bytes([0x40, 0x02]))
    (1, 2)
    """
    return 9 - data[0].bit_length() if data else 1


def _avi(file: BinaryIO, size: int) -> Completeness:
    """RIFF chunks, one after the other; some writers count the first 8 bytes of one, too."""
    position = 0
    for _ in range(MAX_PARTS):
        head = _read(file, position, 8, size)
        if head[:4] != b"RIFF" or len(head) < 8:
            break
        position += 8 + int.from_bytes(head[4:], "little")
        if position >= size:
            return _until(position, size, slack=8)
    return COMPLETE


def _mpegts(file: BinaryIO, size: int) -> Completeness:
    """Packets of one length."""
    return Completeness(-size % ts_packet_bytes(_read(file, 0, TS_HEAD_BYTES, size)))


def ts_packet_bytes(head: bytes) -> int:
    """The length of the packets of an MPEG transport stream that begins so; 0 for none."""
    for start, length in ((0, 188), (4, 192), (0, 204)):  # four bytes before each, or 16 behind
        if len(head) > start + length and head[start] == head[start + length] == TS_SYNC:
            return length
    return 0


def _flv(file: BinaryIO, size: int) -> Completeness:
    """Tags, each of 11 bytes, what they say to hold, and their length once more."""
    position = int.from_bytes(_read(file, 5, 4, size), "big") + 4
    for _ in range(MAX_PARTS):
        head = _read(file, position, 11, size)
        if not head:
            break
        if head[0] & 0x1F not in FLV_TAGS:
            return Completeness(has_hole=any(head))
        position += 11 + int.from_bytes(head[1:4], "big")
        if position > size:
            return _until(position, size)
        position += 4
    return COMPLETE


def _gif(file: BinaryIO, size: int) -> Completeness:
    """Blocks of a known kind, in sub-blocks that begin with their length, to a last one."""
    flags = _read(file, 10, 1, size)
    position = 13 + _table_bytes(flags)
    for _ in range(MAX_PARTS):
        kind = _read(file, position, 1, size)
        if kind == b";":
            return COMPLETE
        if kind == b"!":
            position += 2
        elif kind == b",":
            position += 11 + _table_bytes(_read(file, position + 9, 1, size))
        else:
            return Completeness(int(not kind), has_hole=bool(kind.strip(b"\0")))
        while length := _read(file, position, 1, size):
            position += 1 + length[0]
            if length == b"\0":
                break
    return COMPLETE


def _table_bytes(flags: bytes) -> int:
    """Of a table of colours, by a byte of flags."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


_LOOKS: dict[str, Callable[[BinaryIO, int], Completeness]] = {
    "mov": _mov,
    "matroska": _matroska,
    "avi": _avi,
    "mpegts": _mpegts,
    "flv": _flv,
    "gif": _gif,
}


def _read(file: BinaryIO, position: int, num_bytes: int, size: int) -> bytes:
    if not 0 <= position < size:
        return b""  # file systems refuse to go very far beyond the end
    file.seek(position)
    return file.read(num_bytes)
