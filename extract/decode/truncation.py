"""Truncation: whether a file ends too early or has holes, by what its container says of its parts.

An interrupted download often decodes without an error up to its end, and some readers go on behind
a hole silently. Containers that do not store lengths (MPEG program streams, raw streams) cannot be
checked; nor is a missing index at the end noticed if no frame is missing. What is neither a part of
the container nor zeros up to the end of the file is a hole.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .bitstream import color_table_bytes

BLOCK_BYTES = 2**16
MAX_PARTS = 20_000_000  # parts that are read; a day of video has ten million
MOV_BOXES = (b"ftyp", b"moov", b"moof", b"mdat")  # boxes that frames need
CLUSTER = 0x1F43B675
LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770}
LEVEL_1 |= {0x1254C367, 0xEC, 0xBF}
IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0xEC, 0xBF}
UNKNOWN = -1  # length of an element that does not store it
FLV_TAGS = (8, 9, 18)
TS_SYNC = 0x47
TS_LENGTHS = (188, 192, 204)  # plain packets; with 4 bytes before each; with 16 bytes after each
HEAD_BYTES = 8192  # enough for a few packets or packs, and for what may stand before them
PS_PACKET = re.compile(rb"\x00\x00\x01[\xbd\xc0-\xef]")  # ISO/IEC 13818-1, table 2-22
PS_START = re.compile(rb"\x00\x00\x01[\xb9-\xef]")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_CORRECTED = b"\x82"  # first byte of a packet with error correction data
AVI_LISTS = (b"LIST", b"RIFF")
TRACKS, TRACK, ENCODINGS, ENCODING, ENCRYPTION = 0x1654AE6B, 0xAE, 0x6D80, 0x6240, 0x5035


class Truncation(NamedTuple):
    """Missing part of a file.

    Attributes:
        num_missing_bytes: bytes missing at the end, by the lengths that the file stores.
        has_hole: whether bytes in the middle do not belong to any part of the container.
        is_header_alone: whether the file has a header, but nothing of what it describes.
    """

    num_missing_bytes: int = 0
    has_hole: bool = False
    is_header_alone: bool = False


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


def _hole(file: BinaryIO, position: int, size: int) -> Truncation:
    """Return a hole, unless there are only zeros up to the end of the file."""
    while block := _read(file, position, BLOCK_BYTES, size):
        if block.count(0) < len(block):
            return Truncation(has_hole=True)
        position += len(block)
    return COMPLETE


def _mov(file: BinaryIO, size: int) -> Truncation:
    """Check MP4/MOV boxes, each of which begins with its length and kind.

    In a file without fragments, the index tells where frames are, whatever stands between boxes.
    """
    kinds: set[bytes] = set()
    numbers: list[int] = []  # of fragments
    position = 0
    for kind, position, length in _boxes(file, size):
        kinds.add(kind)
        if kind == b"moof":
            head = _read(file, position + 8, 16, size)
            numbers += [int.from_bytes(head[12:], "big")] if head[4:8] == b"mfhd" else []
        position += length
        if position > size:
            return _until(position, size) if kind in MOV_BOXES else COMPLETE
    if {b"moof", b"moov"} <= kinds and position < size:
        return _hole(file, position, size)
    if b"moov" in kinds and not kinds & {b"mdat", b"moof"}:
        return Truncation(is_header_alone=True)
    return Truncation(has_hole=_has_gap(numbers))


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, position and length of the boxes at the top of an MP4/MOV, up to what is none."""
    position = 0
    for _ in range(MAX_PARTS):
        head = _read(file, position, 16, size)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0 and head[4:8] in MOV_BOXES:
            length = size - position  # a box to the end
        if len(head) < 8 or length < 8 or not head[4:8].isascii():
            return
        yield head[4:8], position, length
        position += length


def top_boxes(path: str) -> set[bytes]:
    """Return the kinds of the boxes at the top of an MP4/MOV."""
    with Path(path).open("rb") as file:
        return {kind for kind, _, _ in _boxes(file, file.seek(0, os.SEEK_END))}


def _has_gap(numbers: list[int]) -> bool:
    """Return whether fragments are missing; writers may count by another step than 1.

    >>> _has_gap([1, 2, 4, 5]), _has_gap([1, 3, 5, 7]), _has_gap([1, 1, 1, 1, 2, 3])
    (True, False, False)
    """
    steps = Counter(after - before for before, after in pairwise(numbers))
    usual = max((1, *(step for step, _ in steps.most_common(1))))
    return any(step > usual for step in steps)


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


def is_encrypted_matroska(path: str) -> bool:
    """Return whether a track of a Matroska file is encrypted (RFC 9559, 5.1.4.1.31.8)."""
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        _, length, begin = _element(file, 0, size)
        _, _, begin = _element(file, begin + length, size)
        return _contains(file, begin, size, (TRACKS, TRACK, ENCODINGS, ENCODING, ENCRYPTION))


def _contains(file: BinaryIO, position: int, end: int, kinds: tuple[int, ...]) -> bool:
    """Return whether there is an element of the last kind in one of the kind before it, and so on.

    At the top, clusters end the search.
    """
    if not kinds:
        return True
    while position < end:
        kind, length, content = _element(file, position, end)
        if length == UNKNOWN or kind in (0, CLUSTER):
            return False
        if kind == kinds[0] and _contains(file, content, content + length, kinds[1:]):
            return True
        position = content + length
    return False


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
    """Check RIFF chunks and the frames in them; some writers count a chunk's head, too."""
    position = 0
    has_hole = False
    for _ in range(MAX_PARTS):
        head = _read(file, position, 8, size)
        if head[:4] != b"RIFF" or len(head) < 8:
            break
        end = position + 8 + int.from_bytes(head[4:], "little")
        has_hole = has_hole or _has_avi_hole(file, position + 12, min(end, size))
        position = end
        if position >= size:
            return _until(position, size, slack=8)._replace(has_hole=has_hole)
    return Truncation(has_hole=has_hole)


def _has_avi_hole(file: BinaryIO, position: int, end: int) -> bool:
    """Return whether something in the list of frames is no chunk."""
    is_in_movi, is_odd = False, False
    for _ in range(MAX_PARTS):
        head = _read(file, position, 12, end)
        if len(head) < 8:
            return False
        if not _is_avi_chunk(head) and is_odd:  # its writer pads no chunks
            position -= 1
            head = _read(file, position, 12, end)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] in AVI_LISTS:
            is_in_movi = is_in_movi or head[8:] == b"movi"
            # A list's chunks follow; of lists before the frames, only the lengths count.
            position += 12 if head[8:] in (b"movi", b"rec ") else 8 + length + length % 2
        elif not _is_avi_chunk(head):
            return is_in_movi and _hole(file, position, end).has_hole
        else:
            position += 8 + length + length % 2
        is_odd = length % 2 == 1
    return False


def _is_avi_chunk(head: bytes) -> bool:
    return head[:4].strip().isalnum()


def _mpegts(file: BinaryIO, size: int) -> Truncation:
    """Check that the file ends with a whole packet."""
    start, length = ts_layout(_read(file, 0, HEAD_BYTES, size)) or (0, 1)
    return Truncation((start - size) % length)


def ts_layout(head: bytes) -> tuple[int, int] | None:
    """Return start and length of the packets of an MPEG transport stream; None for other files.

    A recording may begin within a packet; then five of them must follow.
    """
    for length in TS_LENGTHS:
        before = 4 if length == 192 else 0
        if len(head) > length + before and head[before] == head[length + before] == TS_SYNC:
            return 0, length
    for length in TS_LENGTHS:
        for start in range(length):
            syncs = head[start : start + 5 * length : length]
            if len(syncs) == 5 and syncs.count(TS_SYNC) == 5:
                return start - (4 if length == 192 else 0), length
    return None


def has_ps_packets(head: bytes) -> bool:
    """Return whether bytes have packets of an MPEG program stream, which may begin within one."""
    for match in PS_PACKET.finditer(head):
        following = match.end() + 2 + int.from_bytes(head[match.end() : match.end() + 2], "big")
        if PS_START.match(head, following):
            return True
    return False


def _asf(file: BinaryIO, size: int) -> Truncation:
    """Check that the packets of one length begin alike, where they have error correction data.

    Advanced Systems Format, 3.1, 3.2 and 5.2.
    """
    position, packet_bytes = 0, 0
    for _ in range(MAX_PARTS):
        head = _read(file, position, 50, size)
        length = int.from_bytes(head[16:24], "little")
        if head[:16] == ASF_HEADER:
            header = _read(file, position, length, size)
            place = header.find(ASF_FILE_PROPERTIES)
            if place >= 0:
                packet_bytes = int.from_bytes(header[place + 92 : place + 96], "little")
        elif head[:16] == ASF_DATA:
            num_packets = int.from_bytes(head[40:48], "little")
            first, end = position + 50, position + length if length > 50 else size
            starts = range(first, min(end, size), packet_bytes or size)
            has_hole = _read(file, first, 1, size) == ASF_CORRECTED and any(
                _read(file, start, 1, size) != ASF_CORRECTED and _hole(file, start, size).has_hole
                for start in starts
            )
            return Truncation(max(0, end - size) if num_packets else 0, has_hole)
        if len(head) < 24 or length < 24:
            break
        position += length
    return COMPLETE


def _ivf(file: BinaryIO, size: int) -> Truncation:
    """Check frames, each of which begins with its length and its timestamp."""
    position = int.from_bytes(_read(file, 6, 2, size), "little")
    while position < size:
        length = int.from_bytes(_read(file, position, 4, size), "little")
        if not length:
            return _hole(file, position, size)
        position += 12 + length
    return _until(position, size)


def _flv(file: BinaryIO, size: int) -> Truncation:
    """Check FLV tags: 11 bytes of header, the content, and its length once more."""
    position = int.from_bytes(_read(file, 5, 4, size), "big") + 4
    for _ in range(MAX_PARTS):
        head = _read(file, position, 11, size)
        if not head:
            break
        if head[0] & 0x1F not in FLV_TAGS:
            return _hole(file, position, size)
        position += 11 + int.from_bytes(head[1:4], "big")
        if position > size:
            return _until(position, size)
        position += 4
    return COMPLETE


def _gif(file: BinaryIO, size: int) -> Truncation:
    """Check GIF blocks, whose sub-blocks begin with their length, up to the trailer."""
    flags = _read(file, 10, 1, size)
    position = 13 + color_table_bytes(flags)
    for _ in range(MAX_PARTS):
        kind = _read(file, position, 1, size)
        if kind == b"\0":  # some writers put one too many behind an image
            position += 1
            kind = _read(file, position, 1, size)
        if kind == b";" or position == size:  # only the trailer is missing
            return COMPLETE
        if kind == b"!":
            position += 2
        elif kind == b",":
            position += 11 + color_table_bytes(_read(file, position + 9, 1, size))
        elif not kind:
            return Truncation(1)
        else:
            return _hole(file, position, size)
        length = b"\1"
        while length > b"\0":
            length = _read(file, position, 1, size)
            position += 1 + sum(length)
        if not length:
            return Truncation(1)
    return COMPLETE


_CHECKS: dict[str, Callable[[BinaryIO, int], Truncation]] = {
    "mov": _mov,
    "matroska": _matroska,
    "avi": _avi,
    "mpegts": _mpegts,
    "flv": _flv,
    "gif": _gif,
    "asf": _asf,
    "ivf": _ivf,
}


def _read(file: BinaryIO, position: int, num_bytes: int, size: int) -> bytes:
    if not 0 <= position < size:
        return b""  # file systems refuse to seek very far beyond the end
    file.seek(position)
    return file.read(min(num_bytes, size - position))
