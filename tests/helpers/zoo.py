"""Bad, odd and hostile files, each created here; zoo.csv has the expected outcome of each."""

import os
import socket
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numbered_videos import draw_number, write_video

Make = Callable[[Path], None]
MAKERS: dict[str, Make] = {}
NUM_FRAMES = 50
FLIP = struct.pack(">9i", -(1 << 16), 0, 0, 0, 1 << 16, 0, 64 << 16, 0, 1 << 30)


def file(name: str) -> Callable[[Make], Make]:
    """Return a decorator that registers the function that creates a file of this name."""

    def decorate(make: Make) -> Make:
        MAKERS[name] = make
        return make

    return decorate


def data(name: str, content: bytes) -> None:
    MAKERS[name] = lambda path: path.write_bytes(content) and None


def video(name: str, num_frames: int = NUM_FRAMES, **options: Any) -> None:
    MAKERS[name] = lambda path: write_video(path, num_frames, **options) and None


def changed(
    name: str, change: Callable[[bytes], bytes], source: str = "a.mp4", **options: Any
) -> None:
    """A sound video with its bytes changed."""

    def make(path: Path) -> None:
        sound = path.with_name(f"sound-{source}")
        write_video(sound, NUM_FRAMES, **options)
        path.write_bytes(change(sound.read_bytes()))
        sound.unlink()

    MAKERS[name] = make


def make_zoo(folder: Path) -> list[str]:
    """Create all files, and return their names."""
    for name, make in MAKERS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    return list(MAKERS)


# No videos at all.
data("empty.mp4", b"")
data("one-byte.mp4", b"\0")
data("text.mp4", b"this is no video\n" * 100)
data("random.mp4", np.random.default_rng(0).bytes(4000))
data("zeros.mp4", bytes(4000))
data("web-page.mp4", b"<!DOCTYPE html><html><body>404</body></html>")
data("lfs-pointer.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
data("picture.mp4", b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(200))
data("only-ftyp.mp4", struct.pack(">I", 24) + b"ftypisom" + bytes(12))

# Files that name other files, and paths that are no regular files.
data("hls.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n")
data("ffconcat.mp4", b"ffconcat version 1.0\nfile 'sound.mp4'\n")
data("dash.mp4", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>')
MAKERS["folder.mp4"] = lambda path: path.mkdir()
MAKERS["fifo.mp4"] = lambda path: os.mkfifo(path)
MAKERS["device.mp4"] = lambda path: path.symlink_to("/dev/zero")
MAKERS["dangling.mp4"] = lambda path: path.symlink_to("nowhere.mp4")


@file("socket.mp4")
def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


# Cut short, damaged, or lying.
for tenth in range(1, 10):
    changed(f"truncated-{tenth}.mp4", lambda b, n=tenth: b[: len(b) * n // 10])
    changed(f"truncated-{tenth}.mkv", lambda b, n=tenth: b[: len(b) * n // 10], source="a.mkv")
changed("truncated.avi", lambda b: b[: len(b) * 8 // 10], source="a.avi", codec="mpeg4")
changed("truncated.ts", lambda b: b[: len(b) // 2 + 100], source="a.ts")
changed("no-tail.flv", lambda b: b[: len(b) // 2], source="a.flv")


def _damage(content: bytes) -> bytes:
    begin = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    middle = (begin + end) // 2
    return content[:middle] + b"\xff" * (end - middle) + content[end:]


changed("half-overwritten.mp4", _damage, gop=50, num_b_frames=0)
changed("unknown-codec.mp4", lambda b: b.replace(b"avc1", b"zzz9"))
changed("zero-size-sample.mp4", lambda b: _patch_sizes(b, 10, 0), gop=50, num_b_frames=0)
changed("huge-sample.mp4", lambda b: _patch_sizes(b, 10, 2**31 - 1), gop=50, num_b_frames=0)
changed("renamed-to.mkv", lambda b: b)
changed("hole.mkv", lambda b: b[:2000] + bytes(300) + b[2300:], source="a.mkv")
changed("stray-bytes.mp4", lambda b: b + b"\0\0\0")
changed("no-last-size.flv", lambda b: b[:-4], source="a.flv")
changed("more-behind.gif", lambda b: b + b"made by a person", source="a.gif", codec="gif")
changed("204-bytes.ts", lambda b: _longer_packets(b), source="a.ts")


def _longer_packets(content: bytes) -> bytes:
    """Return transport packets with room for a checksum behind each."""
    return b"".join(content[n : n + 188] + bytes(16) for n in range(0, len(content), 188))


def _patch_sizes(content: bytes, sample: int, size: int) -> bytes:
    begin = content.index(b"stsz") + 16 + 4 * sample
    return content[:begin] + struct.pack(">I", size) + content[begin + 4 :]


def gif(width: int, height: int) -> bytes:
    """Return a GIF of one frame of this size, in 35 bytes."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + screen + frame + b";"


data("16000-pixels.gif", gif(16000, 16000))
data("65535-pixels.gif", gif(65535, 65535))


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def full_box(kind: bytes, content: bytes, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", flags) + content)


def lying_mp4(num_samples: int) -> bytes:
    """Return an MP4 whose header claims so many samples of one byte, with hardly any data."""
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    mvhd = struct.pack(">IIII", 0, 0, 1000, 2000) + struct.pack(">IH", 0x10000, 0x100) + bytes(10)
    tkhd = struct.pack(">IIIII", 0, 0, 1, 0, 2000) + bytes(16) + matrix
    entry = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HH", 64, 64)
    entry += struct.pack(">II", 0x480000, 0x480000) + bytes(4) + struct.pack(">H", 1) + bytes(32)
    entry += struct.pack(">Hh", 24, -1)
    table = full_box(b"stsd", struct.pack(">I", 1) + box(b"jpeg", entry))
    table += full_box(b"stts", struct.pack(">III", 1, num_samples, 1))
    table += full_box(b"stsc", struct.pack(">IIII", 1, 1, num_samples, 1))
    table += full_box(b"stsz", struct.pack(">II", 1, num_samples))
    table += full_box(b"stco", struct.pack(">II", 1, 40))
    dinf = box(b"dinf", full_box(b"dref", struct.pack(">I", 1) + full_box(b"url ", b"", 1)))
    minf = full_box(b"vmhd", bytes(8), 1) + dinf + box(b"stbl", table)
    mdia = full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, 25, num_samples, 0x55C4, 0))
    mdia += full_box(b"hdlr", bytes(4) + b"vide" + bytes(12) + b"v\0") + box(b"minf", minf)
    trak = full_box(b"tkhd", tkhd + struct.pack(">II", 64 << 16, 64 << 16), 3) + box(b"mdia", mdia)
    head = full_box(b"mvhd", mvhd + matrix + bytes(24) + struct.pack(">I", 2)) + box(b"trak", trak)
    ftyp = box(b"ftyp", b"isom\0\0\2\0isomiso2")
    return ftyp + box(b"moov", head) + box(b"mdat", bytes(1000))


def lying_fragment(num_samples: int) -> bytes:
    """Return an MP4 with a fragment that claims so many samples, without an entry for each."""
    head = lying_mp4(0)
    begin, end = head.index(b"moov") + 4, head.index(b"mdat") - 4
    mvex = box(b"mvex", full_box(b"trex", struct.pack(">IIIII", 1, 1, 1, 1, 0)))
    run = full_box(b"tfhd", struct.pack(">I", 1), 0x20000)
    run += full_box(b"trun", struct.pack(">I", num_samples))
    moof = box(b"moof", full_box(b"mfhd", struct.pack(">I", 1)) + box(b"traf", run))
    return head[: begin - 8] + box(b"moov", head[begin:end] + mvex) + moof + head[end:]


data("50-million-samples.mp4", lying_mp4(50_000_000))
data("50-million-in-a-fragment.mp4", lying_fragment(50_000_000))
data("no-samples.mp4", lying_mp4(0))


@file("audio-only.mp4")
def _audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write(path: Path, height: int, width: int, options: dict[str, str], **stream: Any) -> None:
    """Write a numbered video of any size, with options of the muxer."""
    with av.open(str(path), "w", options=options) as container:
        made: Any = container.add_stream(stream.pop("codec", "libx264"), rate=25)
        made.width, made.height = width, height
        made.pix_fmt = stream.pop("pix_fmt", "yuv420p")
        made.codec_context.gop_size = 10
        made.codec_context.time_base = Fraction(1, 25)
        for number in range(NUM_FRAMES):
            drawn = draw_number(number, -(-height // 4) * 4, -(-width // 4) * 4)[:height, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="rgb24")
            frame.pts = number
            container.mux(made.encode(frame))
        container.mux(made.encode(None))


KEY = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 32, "encryption_kid": "1" * 32}
MAKERS["encrypted.mp4"] = lambda path: _write(path, 64, 128, KEY)
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
MAKERS["fragmented.mp4"] = lambda path: _write(path, 64, 128, FRAGMENTED)


@file("fragmented-cut.mp4")
def _fragmented_cut(path: Path) -> None:
    _write(path, 64, 128, FRAGMENTED)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"moof") + 200])


@file("faststart-cut.mp4")
def _faststart_cut(path: Path) -> None:
    _write(path, 64, 128, {"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 8 // 10])


@file("two-streams.mp4")
def _two_streams(path: Path) -> None:
    """The first has fewer pixels and frames, but it is the default one."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, (height, width) in zip(streams, ((64, 64), (128, 256)), strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for stream, count in zip(streams, (10, NUM_FRAMES), strict=True):
            for number in range(count):
                image = draw_number(number, stream.height, stream.width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))


# Odd, but sound: every frame must be decoded.
video("sound.mp4")
video("one-frame.mp4", 1)
video("rotated-90.mp4", rotation=90)
video("rotated-180.mp4", rotation=180)
changed("mirrored.mp4", lambda b: _mirror(b))


def _mirror(content: bytes) -> bytes:
    begin = content.index(b"tkhd") + 4 + 4 + 20 + 16
    return content[:begin] + FLIP + content[begin + 36 :]


video("narrow.mp4", width=16, height=16)
MAKERS["odd-size.webm"] = lambda path: _write(path, 49, 65, {}, codec="libvpx-vp9")
MAKERS["tiny.mkv"] = lambda path: _write(path, 2, 2, {}, codec="ffv1")
MAKERS["ten-bit.mkv"] = lambda path: _write(path, 64, 128, {}, codec="ffv1", pix_fmt="yuv420p10le")
video("variable-rate.mkv", 9, times=[0, 40, 41, 500, 520, 2000, 2001, 2002, 9000], num_b_frames=0)
video("late-start.mkv", times=[3000 + 40 * n for n in range(NUM_FRAMES)])
video("transport.ts")
video("program.mpg", codec="mpeg2video")
video("raw.264")
video("frames.gif", codec="gif")
changed("gif-renamed.mp4", lambda b: b, source="a.gif", codec="gif")
video("flash.flv")
video("with space.mp4")
video("new\nline.mp4")
video("ünïcode-日本.mp4")
video("\"quotes\" and 'quotes'.mp4")
video("-dash.mp4")
video("concat:a|b.mp4")
video("per%cent%d.mp4")
video("up/../beside.mp4")
