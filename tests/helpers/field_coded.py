"""H.264 whose frames are coded as two fields, each in a packet of its own, as camcorders do.

No encoder at hand writes it, so the bits are put together here: every macroblock is stored as it
is (I_PCM). ITU-T H.264, 7.3.
"""

from fractions import Fraction
from pathlib import Path

import av

WIDTH_MBS, FIELD_HEIGHT_MBS = 4, 2


def _golomb(value: int) -> str:
    bits = f"{value + 1:b}"
    return "0" * (len(bits) - 1) + bits


def _nal(head: int, bits: str) -> bytes:
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    escaped = bytearray()
    for byte in data:
        if byte <= 3 and escaped[-2:] == b"\0\0":
            escaped.append(3)
        escaped.append(byte)
    return b"\0\0\0\1" + bytes([head]) + bytes(escaped)


def _headers() -> bytes:
    sequence = f"{77:08b}" + "0" * 8 + f"{10:08b}"
    sequence += "".join(map(_golomb, (0, 0, 2, 1))) + "0"
    sequence += _golomb(WIDTH_MBS - 1) + _golomb(FIELD_HEIGHT_MBS - 1) + "0" + "0" + "1" + "00"
    picture = _golomb(0) * 2 + "00" + _golomb(0) * 3 + "000" + _golomb(0) * 3 + "100"
    return _nal(0x67, sequence) + _nal(0x68, picture)


def _field(number: int, brightness: int, *, is_bottom: bool) -> bytes:
    bits = "".join(map(_golomb, (0, 7, 0))) + "0000" + "1" + f"{is_bottom:d}"
    bits += "0" if is_bottom else _golomb(number % 2) + "00"  # only the first is an IDR picture
    bits += _golomb(0) + _golomb(1)
    for _ in range(WIDTH_MBS * FIELD_HEIGHT_MBS):
        bits += _golomb(25)
        bits += "0" * (-len(bits) % 8)
        bits += f"{brightness:08b}" * 256 + f"{128:08b}" * 128
    return _nal(0x61 if is_bottom else 0x65, bits)


def write_field_coded(path: Path, num_frames: int) -> Path:
    """Write frames of 64 x 64 pixels, of brightness 20 + 8 k; as a stream alone, or in .ts."""
    raw = path.with_suffix(".264")
    raw.write_bytes(
        b"".join(
            _headers()
            + _field(number, 20 + 8 * number, is_bottom=False)
            + _field(number, 20 + 8 * number, is_bottom=True)
            for number in range(num_frames)
        )
    )
    if path == raw:
        return path
    with av.open(str(raw)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(one for one in source.demux(video=0) if one.size):
            packet.pts = packet.dts = 1800 * number
            packet.time_base = Fraction(1, 90000)
            packet.stream = stream
            container.mux(packet)
    return path
