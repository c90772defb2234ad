"""Video files with random bytes changed, read by real decoder processes: none hangs, and no wrong
number of frames counts as ok.

    python tests/helpers/fuzz.py --inputs 2000 --json result.json
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import av
from numbered_videos import write_video
from vtnpipe.extract.decode.container import ANY_METADATA
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.protocol import Chunk, DecodeRequest, Selected

SOURCES = {
    "a.mp4": "libx264",
    "b.mov": "mpeg4",
    "c.mkv": "libx264",
    "d.webm": "libvpx-vp9",
    "e.avi": "mpeg4",
    "f.ts": "libx264",
    "g.flv": "libx264",
    "h.mpg": "mpeg2video",
    "i.gif": "gif",
    "j.264": "libx264",
}
NUM_FRAMES = 30
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
INPUTS_PER_CALL = 40


def flip(data: bytearray, draws: random.Random) -> None:
    for _ in range(draws.choice((1, 1, 2, 8, 64))):
        data[place(data, draws)] ^= 1 << draws.randrange(8)


def overwrite(data: bytearray, draws: random.Random) -> None:
    """Replace a number, of a header perhaps, by an extreme one."""
    width = draws.choice((1, 2, 4, 8))
    value = draws.choice(EXTREMES) & (256**width - 1)
    begin = place(data, draws)
    data[begin : begin + width] = value.to_bytes(width, draws.choice(("big", "little")))


def cut(data: bytearray, draws: random.Random) -> None:
    del data[draws.randrange(1, len(data) + 1) :]


def remove(data: bytearray, draws: random.Random) -> None:
    begin = place(data, draws)
    del data[begin : begin + draws.choice((1, 4, 100, 1000))]


def repeat(data: bytearray, draws: random.Random) -> None:
    begin = place(data, draws)
    data[begin:begin] = data[begin : begin + draws.choice((4, 100, 1000))]


def shuffle(data: bytearray, draws: random.Random) -> None:
    begin, width = place(data, draws), draws.choice((8, 64, 512))
    piece = list(data[begin : begin + width])
    draws.shuffle(piece)
    data[begin : begin + width] = bytes(piece)


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip, flip, overwrite, overwrite, cut, remove, repeat, shuffle),
)


def place(data: bytearray, draws: random.Random) -> int:
    """Return a position: half of the time in the first or last bytes, where headers are."""
    near = min(len(data), 1500)
    kind = draws.randrange(4)
    if kind == 0:
        return draws.randrange(near)
    if kind == 1:
        return len(data) - 1 - draws.randrange(near)
    return draws.randrange(len(data))


def inputs(folder: Path, number: int, draws: random.Random) -> Iterator[Path]:
    """Write and yield `number` changed files."""
    sources = [
        write_video(folder / f"source-{name}", NUM_FRAMES, codec=codec).read_bytes()
        for name, codec in SOURCES.items()
    ]
    names = list(SOURCES)
    for count in range(number):
        kind = draws.randrange(len(names))
        data = bytearray(sources[kind])
        for _ in range(draws.choice((1, 1, 1, 2, 4))):
            draws.choice(CHANGES)(data, draws)
            data = data or bytearray(b"\0")
        path = folder / f"{count}-{names[kind]}"
        path.write_bytes(data)
        yield path


def count_plainly(path: Path) -> int | None:
    """Return the number of frames by the plainest reading; None if that meets an error."""
    try:
        with av.open(str(path), **ANY_METADATA) as container:
            stream = container.streams.best("video")
            assert stream is not None
            stream.thread_type = "NONE"
            return sum(len(packet.decode()) for packet in container.demux(stream))
    except (av.error.FFmpegError, ValueError, AssertionError, IndexError):
        return None


def fuzz(folder: Path, number: int, seed: int) -> dict[str, object]:
    """Read `number` inputs; return their outcomes.

    Raises:
        AssertionError: one hung, or the number of its frames is wrong though its outcome is ok.
    """
    outcomes: Counter[str] = Counter()
    crashed: list[str] = []
    slowest = 0.0
    waiting = list(inputs(folder, number, random.Random(seed)))
    with DecoderPool(2, Limits(stall_seconds=30)) as pool:
        while waiting:
            paths, waiting = waiting[:INPUTS_PER_CALL], waiting[INPUTS_PER_CALL:]
            counts = [0] * len(paths)
            begun = time.monotonic()
            requests = [DecodeRequest(str(path)) for path in paths]
            for row, event in pool.decode(requests):
                if isinstance(event, Chunk):
                    counts[row] += len(event.frame_index)
                elif isinstance(event, Selected):
                    counts[row] = 0  # of a second try, too
                else:
                    slowest = max(slowest, time.monotonic() - begun)
                    begun = time.monotonic()
                    outcomes[event.reason or event.status] += 1
                    assert event.reason != "stalled", f"{paths[row]}: {event}"
                    if event.reason == "crashed":
                        crashed.append(paths[row].name)
                    if event.status == "ok":
                        plain = count_plainly(paths[row])
                        assert plain in (None, counts[row]), f"{paths[row]}: {plain}, {event}"
                    if event.status != "ok" or plain is not None:
                        paths[row].unlink()
    return {
        "inputs": number,
        "seed": seed,
        "outcomes": dict(outcomes.most_common()),
        "crashed": crashed,
        "slowest_seconds": round(slowest, 1),
    }


def main() -> None:
    """Run the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="Folder of the inputs; doubtful ones stay.")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        result = {
            "command": " ".join(["python", *sys.argv]),
            **fuzz(folder, arguments.inputs, arguments.seed),
        }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
