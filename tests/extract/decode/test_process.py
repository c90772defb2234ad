"""The decoder process: served here in a thread, by the protocol that the pool speaks."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from numbered_videos import CLIP_LENGTHS, read_number, write_video
from vtnpipe.extract.decode import process
from vtnpipe.extract.decode.frame_format import FrameFormat
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.decode.protocol import (
    NUM_SLOTS,
    CutRequest,
    DecodeRequest,
    Message,
    QuickProbeRequest,
    Request,
    SharedFrames,
    TimelineRequest,
    receive,
    send,
    to_message,
)
from vtnpipe.manifests.failures import VideoError

MAX_PIXELS = 2 * 128 * 64  # two frames of most clips
Ask = Callable[[Request], list[Message]]


@pytest.fixture
def frames() -> SharedFrames:
    return SharedFrames(MAX_PIXELS)


@pytest.fixture
def ask(frames: SharedFrames) -> Iterator[Ask]:
    """Sends a request, gives slots back, and returns the messages up to `end`."""
    ours, theirs = (Connection(one.detach()) for one in socket.socketpair())
    worker = process.Server(theirs, frames, MAX_PIXELS)

    def serve() -> None:
        with pytest.raises(EOFError):  # ours is closed
            worker.serve()

    thread = Thread(target=serve)
    thread.start()
    assert receive(ours) == {"kind": "ready"}

    def ask(request: Request) -> list[Message]:
        send(ours, to_message(request))
        messages: list[Message] = []
        while not messages or messages[-1]["kind"] != "end":
            assert ours.poll(20), "the process hangs"
            messages.append(receive(ours))
            if messages[-1]["kind"] == "chunk":
                layout = FrameFormat.from_json(messages[-1]["format"])
                num_frames = len(messages[-1]["frame_index"])
                data = frames.data(messages[-1]["slot"], num_frames, layout.num_bytes)
                images = data.reshape(num_frames, layout.height, layout.width, 3)
                messages[-1]["numbers"] = [read_number(image) for image in images]
                send(ours, {"slot": messages[-1]["slot"]})
        return messages

    yield ask
    ours.close()
    thread.join(20)
    assert not thread.is_alive()
    theirs.close()


def _numbers(messages: list[Message]) -> list[int]:
    chunks = [message for message in messages if message["kind"] == "chunk"]
    return [number for chunk in chunks for number in chunk["numbers"]]


def test_nothing_that_decodes_loads_torch(clips: dict[str, Path]) -> None:
    code = (
        "import sys\n"
        "import vtnpipe.extract.decode.process\n"
        "from vtnpipe.extract.decode.pool import DecoderPool\n"
        "from vtnpipe.extract.decode.protocol import DecodeRequest\n"
        "from vtnpipe.extract.decode.frames import read_frames, select_frames\n"
        "import vtnpipe.extract.decode.index\n"
        f"path = {str(clips['a'])!r}\n"
        "with DecoderPool() as pool:\n"
        "    *_, (_, outcome) = pool.decode([DecodeRequest(path)])\n"
        "assert outcome.status == 'ok'\n"
        "assert len(list(read_frames(select_frames(path), 'auto'))) == 50\n"
        "assert len(list(read_frames(select_frames(path), 'pyav'))) == 50\n"
        "print([name for name in ('torch', 'torchvision', 'timm') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_video_is_selected_sent_in_chunks_and_ended(clips: dict[str, Path], ask: Ask) -> None:
    for k, (name, length) in enumerate(CLIP_LENGTHS.items()):
        first, *chunks, last = ask(DecodeRequest(str(clips[name])))
        assert first == {"kind": "selected", "num_frames": length}
        assert {chunk["kind"] for chunk in chunks} == {"chunk"}
        assert _numbers(chunks) == list(range(1000 * k, 1000 * k + length))
        indices = [index for chunk in chunks for index in chunk["frame_index"]]
        assert indices == list(range(length))
        assert (last["kind"], last["outcome"]["status"]) == ("end", "ok")
        assert last["outcome"]["decode_seconds"] > 0


def test_questions_have_one_answer(clips: dict[str, Path], ask: Ask) -> None:
    path = str(clips["a"])
    for request in (QuickProbeRequest(path), CutRequest(path, [0, 25]), TimelineRequest(path)):
        answer, end = ask(request)
        assert (answer["kind"], end["kind"]) == ("answer", "end")
        assert end["outcome"]["status"] == "ok"


def test_frames_beyond_the_pixel_limit_are_refused(tmp_path: Path, ask: Ask) -> None:
    path = str(write_video(tmp_path / "large.mp4", 3, height=128, width=132))
    for request in (DecodeRequest(path), QuickProbeRequest(path), TimelineRequest(path)):
        (end,) = ask(request)
        assert (end["outcome"]["status"], end["outcome"]["reason"]) == ("failed", "too-large")


def test_spans_of_one_file_are_probed_once(
    tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = []
    monkeypatch.setattr(
        process, "probe_any", lambda path, **options: probed.append(path) or probe(path, **options)
    )
    path = write_video(tmp_path / "a.mp4", 80)
    for start in (0.0, 1.0, 2.0):
        found = _numbers(ask(DecodeRequest(str(path), start, start + 0.2)))
        assert found == [int(25 * start) + n for n in range(5)]
    assert probed == [str(path)]
    write_video(path, 80, first=100)  # another file of the same name
    assert _numbers(ask(DecodeRequest(str(path), 0.0, 0.2))) == list(range(100, 105))
    assert len(probed) == 2


def _frames_and_then(error: Exception, *, num_frames: int = 20) -> Callable[..., Any]:
    """A `read_frames` that fails after some frames."""
    read_frames = process.read_frames

    def fail(*args: Any, **options: Any) -> Iterator[Any]:
        yield from islice(read_frames(*args, **options), num_frames)
        raise error

    return fail


def test_failures_after_some_frames_leak_no_slot(
    clips: dict[str, Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = DecodeRequest(str(clips["a"]))
    for num_frames in (1, 21):  # a chunk holds two frames
        fail = _frames_and_then(VideoError("too-large", "too large"), num_frames=num_frames)
        monkeypatch.setattr(process, "read_frames", fail)
        for _ in range(NUM_SLOTS + 1):
            messages = ask(request)
            assert messages[-1]["outcome"]["reason"] == "too-large"
            assert _numbers(messages) == list(range(num_frames - 1))
        monkeypatch.undo()
        assert _numbers(ask(request)) == list(range(50))


def test_a_bug_costs_a_video_and_says_so(
    clips: dict[str, Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "read_frames", _frames_and_then(KeyError("x")))
    outcome = ask(DecodeRequest(str(clips["a"])))[-1]["outcome"]
    assert (outcome["status"], outcome["reason"]) == ("failed", "crashed")
    assert "KeyError: 'x' (test_process.py:" in outcome["message"]
    monkeypatch.setattr(process, "read_frames", _frames_and_then(MemoryError()))
    outcome = ask(DecodeRequest(str(clips["a"])))[-1]["outcome"]
    assert (outcome["status"], outcome["reason"]) == ("failed", "too-large")
    monkeypatch.setattr(process, "read_frames", _frames_and_then(OSError(5, "disk")))
    outcome = ask(DecodeRequest(str(clips["a"])))[-1]["outcome"]
    assert (outcome["status"], outcome["reason"]) == ("failed", "missing")


def test_a_long_file_shows_that_it_is_being_read(
    clips: dict[str, Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ALIVE_SECONDS", 0.0)
    kinds = [message["kind"] for message in ask(TimelineRequest(str(clips["a"])))]
    assert kinds.count("alive") >= 50
    assert [kind for kind in kinds if kind != "alive"] == ["answer", "end"]


def test_a_lower_limit_of_the_system_stays() -> None:
    code = """
import resource
from vtnpipe.extract.decode.limits import apply_memory_limit
resource.setrlimit(resource.RLIMIT_DATA, (2**29, 2**29))
apply_memory_limit(2**32)
print(*resource.getrlimit(resource.RLIMIT_DATA))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(2**29)] * 2
