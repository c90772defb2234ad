"""Keyframes that need nothing of what came before them, told by their first bytes."""

from collections.abc import Iterator

# A keyframe of these replaces everything that a later frame may refer to.
_ALWAYS = frozenset("vp8 vp9 mjpeg prores dnxhd ffv1 rawvideo".split())


def starts_afresh(codec: str, extradata: bytes | None, packet: bytes) -> bool:
    """Whether decoding that begins at a keyframe gives the frames of a decoding from the start.

    In H.264 and HEVC that is an IDR picture (ITU-T H.264, table 7-1; H.265, table 7-1); other
    keyframes there may be followed by frames that refer to earlier ones, or may recover slowly.

    Args:
        codec: FFmpeg's name.
        extradata: of the stream.
        packet: the keyframe's bytes.
    """
    if codec in _ALWAYS:
        return True
    if codec == "h264":
        kinds = (first & 31 for first in _nal_bytes(packet, _length_size(extradata, 4)))
        return next((kind for kind in kinds if 1 <= kind <= 5), 0) == 5
    if codec == "hevc":
        kinds = (first >> 1 & 63 for first in _nal_bytes(packet, _length_size(extradata, 21)))
        return next((kind for kind in kinds if kind < 32), 0) in (19, 20)
    return False


def _length_size(extradata: bytes | None, offset: int) -> int:
    """Bytes of the length before each unit, as MP4 and Matroska have it; 0 for start codes."""
    if not extradata or len(extradata) <= offset or extradata[0] != 1:
        return 0
    return (extradata[offset] & 3) + 1


def _nal_bytes(packet: bytes, length_size: int) -> Iterator[int]:
    """The first byte of each unit of a packet."""
    place = 0
    if length_size:
        while place + length_size < len(packet):
            length = int.from_bytes(packet[place : place + length_size], "big")
            yield packet[place + length_size]
            place += length_size + length
        return
    while (place := packet.find(b"\x00\x00\x01", place)) >= 0 and place + 3 < len(packet):
        yield packet[place + 3]
        place += 3
