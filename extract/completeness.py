"""Whether a file is there to its end, by what its container says of its own length.

A download or a copy that broke off often decodes without an error up to where it ends. Containers
that say nothing of their length (MPEG program streams, raw streams) can't be told.
"""

import os
from pathlib import Path
from typing import BinaryIO

MAX_BOXES = 100_000
MOV_BOXES = (b"ftyp", b"moov", b"moof", b"mdat")
MATROSKA_SEGMENT = b"\x18\x53\x80\x67"


def num_missing_bytes(path: str, demuxers: str) -> int:
    """How many bytes a file lacks of what it says to have; 0 where it is whole, or can't be told.

    Args:
        path: a file.
        demuxers: FFmpeg's names of those that may open it, as `container.check_file` gives them.
    """
    look = _LOOKS.get(demuxers)
    if look is None:
        return 0
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        return max(0, look(file, size) - size)


def _mov(file: BinaryIO, size: int) -> int:
    """Where the last of the boxes ends that frames need: size and type, one after the other."""
    position = 0
    for _ in range(MAX_BOXES):
        head = _read(file, position, 16)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8:
            return position + 8 if head else position
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or not head[4:8].isascii():
            break  # to the file's end, or no box
        position += length
        if position >= size:
            return position if head[4:8] in MOV_BOXES else size
    return 0


def _matroska(file: BinaryIO, size: int) -> int:
    """Where the segment ends, if its length is known; it comes after the EBML header."""
    header = _read(file, 4, 8)
    length, width = _ebml_size(header)
    begin = 4 + width + length
    segment = _read(file, begin, 12)
    if segment[:4] != MATROSKA_SEGMENT:
        return 0
    length, width = _ebml_size(segment[4:])
    is_unknown = length == 2 ** (7 * width) - 1
    return 0 if is_unknown else begin + 4 + width + length


def _ebml_size(data: bytes) -> tuple[int, int]:
    """A variable-length integer, and its bytes: as many as the first one has leading zeros, and 1.

    >>> _ebml_size(bytes([0x81])), _ebml_size(bytes([0x40, 0x02]))
    ((1, 1), (2, 2))
    """
    width = 9 - data[0].bit_length() if data else 1
    return int.from_bytes(data[:width], "big") & (2 ** (7 * width) - 1), width


def _avi(file: BinaryIO, size: int) -> int:
    """Where the last of the RIFF chunks ends."""
    position = 0
    for _ in range(MAX_BOXES):
        head = _read(file, position, 8)
        if head[:4] != b"RIFF" or len(head) < 8:
            break
        position += 8 + int.from_bytes(head[4:], "little")
        if position >= size:
            return position
    return 0


def _mpegts(file: BinaryIO, size: int) -> int:
    """Whole packets."""
    packet_bytes = 188 if _read(file, 0, 1) == b"\x47" else 192
    return size + -size % packet_bytes


def _flv(file: BinaryIO, size: int) -> int:
    """A tag, whose length stands behind it, too, is at the end of a whole file."""
    length = int.from_bytes(_read(file, size - 4, 4), "big")
    tag = _read(file, max(0, size - 4 - length), 4)
    is_whole = int.from_bytes(tag[1:4], "big") + 11 == length
    return size if is_whole else size + 1


def _gif(file: BinaryIO, size: int) -> int:
    """A semicolon ends it; some have zeros behind that."""
    return size if _read(file, max(0, size - 64), 64).rstrip(b"\0").endswith(b";") else size + 1


_LOOKS = {
    "mov": _mov,
    "matroska": _matroska,
    "avi": _avi,
    "mpegts": _mpegts,
    "flv": _flv,
    "gif": _gif,
}


def _read(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    if position >= os.fstat(file.fileno()).st_size:
        return b""  # file systems refuse to go very far beyond the end
    file.seek(max(0, position))
    return file.read(num_bytes)
