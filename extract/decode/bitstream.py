"""Coded pictures: which packets show a frame, and at which keyframes decoding may begin.

A packet need not show a frame of its own: the second field of a picture coded as two, a frame that
is kept hidden for later ones to refer to, a leading picture whose references are not in the file.
"""

from collections.abc import Iterator

# Codecs whose keyframes replace everything that a later frame may refer to.
_ALWAYS_CLEAN = frozenset("vp8 vp9 mjpeg prores dnxhd ffv1 rawvideo".split())
H264_SLICES, H264_IDR, H264_SPS, H264_PPS = (1, 5), 5, 7, 8
# H.264 profiles whose sequence header tells chroma format, bit depths and scaling lists.
H264_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
HEVC_RASL, HEVC_IDR, HEVC_IRAP, HEVC_PICTURES = (8, 9), (19, 20), range(16, 24), range(32)
HEVC_LEADING = range(6, 10)


def is_clean_keyframe(codec: str, extradata: bytes | None, packet: bytes) -> bool:
    """Return whether decoding that begins at a keyframe equals decoding from the start.

    In H.264 and HEVC that is an IDR picture (ITU-T H.264, table 7-1; H.265, table 7-1). Frames
    after other keyframes may refer to earlier ones, or recover slowly.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: extradata of the stream.
        packet: bytes of the keyframe.
    """
    if codec in _ALWAYS_CLEAN:
        return True
    if codec == "h264":
        kinds = (nal[0] & 31 for nal in _nal_units(packet, _length_size(extradata, 4)))
        return next((kind for kind in kinds if 1 <= kind <= H264_IDR), 0) == H264_IDR
    if codec == "hevc":
        return _hevc_picture(packet, _length_size(extradata, 21)) in HEVC_IDR
    return False


class FrameParser:
    """Tells which packets of a stream show a frame; takes all of them, in file order.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: extradata of the stream.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._extradata = extradata
        self._has_references = False
        self._shows = {
            "hevc": self._shows_hevc,
            "vp8": _shows_vp8,
            "vp9": _shows_vp9,
            "gif": _shows_gif,
        }.get(codec)
        if codec == "h264":
            fields = _FieldParser(extradata)
            self._shows = None if fields.is_progressive else fields.shows_frame

    def shows_frame(self, packet: object) -> bool:
        """Return whether a packet shows a frame; `packet` has the buffer protocol."""
        return self._shows is None or self._shows(memoryview(packet))  # type: ignore[arg-type]

    def _shows_hevc(self, packet: memoryview) -> bool:
        """Return False for the leading pictures that a first CRA picture lacks references for."""
        if self._has_references:
            return True
        kind = _hevc_picture(bytes(packet), _length_size(self._extradata, 21))
        self._has_references = kind in HEVC_IDR or not (kind in HEVC_IRAP or kind in HEVC_LEADING)
        return kind not in HEVC_RASL


class _FieldParser:
    """Finds the second fields of H.264 frames that are coded as two packets.

    ITU-T H.264, 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header) and 7.4.1.2.4: the second
    field of a frame has the frame number of the first, and the other parity.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._length_size = _length_size(extradata, 4)
        # For each sequence parameter set that allows fields: bits before and of a frame number.
        self._frame_num_bits: dict[int, tuple[int, int]] = {}
        self._sequence_of: dict[int, int] = {}  # by picture parameter set
        self._first_field: tuple[int, int, int] | None = None
        headers = bytes(extradata or b"")
        for nal in _avcc_headers(headers) if self._length_size else _nal_units(headers, 0):
            self._read_header(nal)
        self.is_progressive = bool(self._sequence_of) and not self._frame_num_bits

    def shows_frame(self, packet: memoryview) -> bool:
        for nal in _nal_units(bytes(packet), self._length_size):
            kind = nal[0] & 31
            if kind in (H264_SPS, H264_PPS):
                self._read_header(nal)
            elif kind in H264_SLICES:
                return self._begins_frame(nal)
        return True

    def _read_header(self, nal: bytes) -> None:
        bits = _Bits(nal[1:])
        try:
            if nal[0] & 31 == H264_SPS:
                self._read_sequence(bits)
            elif nal[0] & 31 == H264_PPS:
                picture = bits.golomb()
                self._sequence_of[picture] = bits.golomb()
        except IndexError:
            return  # cut short

    def _read_sequence(self, bits: "_Bits") -> None:
        profile = bits.read(8)
        bits.read(16)
        number, plane_bits = bits.golomb(), 0
        if profile in H264_HIGH:
            chroma = bits.golomb()
            if chroma == 3:
                plane_bits = 2 * bits.read(1)
            bits.golomb(), bits.golomb(), bits.read(1)
            if bits.read(1):
                for index in range(12 if chroma == 3 else 8):
                    if bits.read(1):
                        _skip_scaling_list(bits, 16 if index < 6 else 64)
        frame_num_bits = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.read(1), bits.golomb(), bits.golomb()
            for _ in range(bits.golomb()):
                bits.golomb()
        bits.golomb(), bits.read(1), bits.golomb(), bits.golomb()
        if bits.read(1):
            self._frame_num_bits.pop(number, None)  # frames only
        else:
            self._frame_num_bits[number] = (plane_bits, frame_num_bits)

    def _begins_frame(self, nal: bytes) -> bool:
        """Return False for the second field of a frame."""
        bits = _Bits(nal[1:32])
        first, self._first_field = self._first_field, None
        try:
            bits.golomb(), bits.golomb()
            sequence = self._sequence_of.get(bits.golomb(), -1)
            if sequence not in self._frame_num_bits:
                return True
            plane_bits, frame_num_bits = self._frame_num_bits[sequence]
            bits.read(plane_bits)
            frame_num = bits.read(frame_num_bits)
            if not bits.read(1):
                return True  # a frame
            parity = bits.read(1)
        except IndexError:
            return True
        if first == (sequence, frame_num, 1 - parity):
            return False
        self._first_field = (sequence, frame_num, parity)
        return True


class _Bits:
    """Reads the bits of a NAL unit, without its emulation prevention bytes (H.264, 7.4.1)."""

    def __init__(self, data: bytes) -> None:
        self._data = data.replace(b"\0\0\x03", b"\0\0")
        self._position = 0

    def read(self, num_bits: int) -> int:
        """Return an unsigned number.

        Raises:
            IndexError: there are no more bits.
        """
        value = 0
        for _ in range(num_bits):
            byte = self._data[self._position >> 3]
            value = value << 1 | byte >> (7 - (self._position & 7)) & 1
            self._position += 1
        return value

    def golomb(self) -> int:
        """Return an unsigned Exp-Golomb code (H.264, 9.1)."""
        num_zeros = 0
        while not self.read(1):
            num_zeros += 1
        return (1 << num_zeros) - 1 + self.read(num_zeros)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """Skip a scaling list (H.264, 7.3.2.1.1.1)."""
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            following = (last + (-(code // 2) if code % 2 == 0 else (code + 1) // 2)) % 256
        last = following or last


def _shows_vp8(packet: memoryview) -> bool:
    """Return the show_frame flag of a frame (RFC 6386, 9.1)."""
    return bool(packet[0] >> 4 & 1) if len(packet) else True


def _shows_vp9(packet: memoryview) -> bool:
    """Return whether a frame is shown; a superframe shows its last one (VP9 bitstream, 6.2)."""
    if not len(packet) or packet[-1] & 0xE0 == 0xC0:
        return True
    header = packet[0] << (packet[0] >> 4 & 3 == 3)  # profile 3 has a reserved bit more
    return bool(header & 0b1000 or header & 0b10)


def _shows_gif(content: memoryview) -> bool:
    """Return whether a packet has an image, besides comments and other extensions."""
    place, packet = 0, bytes(content)
    if packet.startswith(b"GIF"):
        place = 13 + color_table_bytes(packet[10:11])
    while packet[place : place + 1] == b"!":
        place += 2
        while place < len(packet) and packet[place]:
            place += 1 + packet[place]
        place += 1
    return packet[place : place + 1] == b","


def color_table_bytes(flags: bytes) -> int:
    """Return the bytes of a GIF's color table, by its flags."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _hevc_picture(packet: bytes, length_size: int) -> int:
    """Return the type of a packet's first slice; -1 without one."""
    kinds = (nal[0] >> 1 & 63 for nal in _nal_units(packet, length_size))
    return next((kind for kind in kinds if kind in HEVC_PICTURES), -1)


def _length_size(extradata: bytes | None, offset: int) -> int:
    """Return the bytes of a NAL unit's length, as in MP4 and Matroska; 0 for start codes."""
    if not extradata or len(extradata) <= offset or extradata[0] != 1:
        return 0
    return (extradata[offset] & 3) + 1


def _avcc_headers(extradata: bytes) -> Iterator[bytes]:
    """Yield the parameter sets of H.264 in MP4 and Matroska (ISO/IEC 14496-15, 5.3.3.1)."""
    place = 5
    for mask in (31, 255):
        for _ in range(extradata[place] & mask if place < len(extradata) else 0):
            length = int.from_bytes(extradata[place + 1 : place + 3], "big")
            if nal := extradata[place + 3 : place + 3 + length]:
                yield nal
            place += 2 + length
        place += 1


def _nal_units(packet: bytes, length_size: int) -> Iterator[bytes]:
    """Yield the NAL units of a packet; behind start codes, up to the end of the packet."""
    place = 0
    if length_size:
        while place + length_size < len(packet):
            length = int.from_bytes(packet[place : place + length_size], "big")
            place += length_size
            if length:
                yield packet[place : place + length]
            place += length
        return
    while (place := packet.find(b"\x00\x00\x01", place)) >= 0 and place + 3 < len(packet):
        place += 3
        yield packet[place : place + 256]
