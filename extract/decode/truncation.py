"""Truncation: whether a file ends too early or has holes, by what its container says of its parts.

An interrupted download often decodes without an error up to its end, and some readers go on behind
a hole silently. Containers that do not store lengths (MPEG program streams, raw streams) cannot be
checked; nor is a missing index at the end noticed if no frame is missing.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_PARTS = 20_000_000  # parts that are read; a day of video has ten million
MOV_BOXES = (b"ftyp", b"moov", b"moof", b"mdat")  # boxes that frames need
CLUSTER = 0x1F43B675
LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770}
LEVEL_1 |= {0x1254C367, 0xEC, 0xBF}
IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0xEC, 0xBF}
UNKNOWN = -1  # length of an element that does not store it
FLV_TAGS = (8, 9, 18)
TS_SYNC = 0x47
TS_HEAD_BYTES = 420  # enough for two packets


class Truncation(NamedTuple):
    """Missing part of a file.

    Attributes:
        num_missing_bytes: bytes missing at the end, by the lengths that the file stores.
        has_hole: whether some bytes in the middle are not the part that must follow.
    """

    num_missing_bytes: int = 0
    has_hole: bool = False


COMPLETE = Truncation()


def find_truncation(path: str, demuxers: str) -> Truncation:
    """Return what a file lacks; nothing, if its container does not tell.

    Args:
        path: path of the file.
        demuxers: FFmpeg's names of the demuxers, as `container.check_file` returns them.
    """
    check = _CHECKS.get(demuxers)
    if check is None:
        return COMPLETE
    with Path(path).open("rb") as file:
        return check(file, file.seek(0, os.SEEK_END))


def _until(end: int, size: int, *, slack: int = 0) -> Truncation:
    """Compare the end that a file stores with its size; `slack` bytes may be missing."""
    return Truncation(end - size) if end > size + slack else COMPLETE


def _mov(file: BinaryIO, size: int) -> Truncation:
    """Check MP4/MOV boxes, each of which begins with its length and kind."""
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


def _matroska(file: BinaryIO, size: int) -> Truncation:
    """Check Matroska's elements: a header, a segment, its clusters, their blocks."""
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
            return Truncation(missing, has_hole=True)
    return Truncation(missing)


def _element(file: BinaryIO, position: int, size: int) -> tuple[int, int, int]:
    """Return kind, length and start of the content of a Matroska element."""
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
    """Return the bytes of a variable-length integer: the leading zeros of the first byte, plus 1.

    >>> _width(bytes([0x81])), _width(bytes([0x40, 0x02]))
    (1, 2)
    """
    return 9 - data[0].bit_length() if data else 1


def _avi(file: BinaryIO, size: int) -> Truncation:
    """Check RIFF chunks; some writers count the first 8 bytes of a chunk, too."""
    position = 0
    for _ in range(MAX_PARTS):
        head = _read(file, position, 8, size)
        if head[:4] != b"RIFF" or len(head) < 8:
            break
        position += 8 + int.from_bytes(head[4:], "little")
        if position >= size:
            return _until(position, size, slack=8)
    return COMPLETE


def _mpegts(file: BinaryIO, size: int) -> Truncation:
    """Check that the size is a multiple of the packet length."""
    return Truncation(-size % ts_packet_bytes(_read(file, 0, TS_HEAD_BYTES, size)))


def ts_packet_bytes(head: bytes) -> int:
    """Return the packet length of an MPEG transport stream, by its first bytes; 0 for others."""
    # Plain packets; with 4 bytes before each; with 16 bytes after each.
    for start, length in ((0, 188), (4, 192), (0, 204)):
        if len(head) > start + length and head[start] == head[start + length] == TS_SYNC:
            return length
    return 0


def _flv(file: BinaryIO, size: int) -> Truncation:
    """Check FLV tags: 11 bytes of header, the content, and its length once more."""
    position = int.from_bytes(_read(file, 5, 4, size), "big") + 4
    for _ in range(MAX_PARTS):
        head = _read(file, position, 11, size)
        if not head:
            break
        if head[0] & 0x1F not in FLV_TAGS:
            return Truncation(has_hole=any(head))
        position += 11 + int.from_bytes(head[1:4], "big")
        if position > size:
            return _until(position, size)
        position += 4
    return COMPLETE


def _gif(file: BinaryIO, size: int) -> Truncation:
    """Check GIF blocks, whose sub-blocks begin with their length, up to the trailer."""
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
            return Truncation(int(not kind), has_hole=bool(kind.strip(b"\0")))
        while length := _read(file, position, 1, size):
            position += 1 + length[0]
            if length == b"\0":
                break
    return COMPLETE


def _table_bytes(flags: bytes) -> int:
    """Return the bytes of a color table, by its flags."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


_CHECKS: dict[str, Callable[[BinaryIO, int], Truncation]] = {
    "mov": _mov,
    "matroska": _matroska,
    "avi": _avi,
    "mpegts": _mpegts,
    "flv": _flv,
    "gif": _gif,
}


def _read(file: BinaryIO, position: int, num_bytes: int, size: int) -> bytes:
    if not 0 <= position < size:
        return b""  # file systems refuse to seek very far beyond the end
    file.seek(position)
    return file.read(num_bytes)
