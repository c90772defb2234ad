"""Decoding in child processes: order, crashes, hangs, memory, and an end with the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import CLIP_LENGTHS, read_number, write_video
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.protocol import Chunk, Decode, Probed, Restarted
from vtnpipe.manifests.errors import StoppedError


def _numbers(
    children: DecoderPool, requests: list[Decode]
) -> tuple[list[list[int]], list[Outcome]]:
    """Of each request: the numbers that its frames show, and its outcome."""
    numbers: list[list[int]] = [[] for _ in requests]
    outcomes = []
    for row, event in children.run(requests):
        if isinstance(event, Chunk):
            numbers[row] += [read_number(image) for image in event.images]
            assert len(event.images) == len(event.frame_index) == len(event.timestamps)
        elif isinstance(event, Restarted):
            numbers[row] = []
        elif isinstance(event, Outcome):
            assert row == len(outcomes)
            outcomes.append(event)
    return numbers, outcomes


@pytest.mark.parametrize("num_children", [1, 3])
def test_rows_come_in_order_and_whole(clips: dict[str, Path], num_children: int) -> None:
    requests = [Decode(str(path)) for path in clips.values()] * 2
    with DecoderPool(num_children) as children:
        numbers, outcomes = _numbers(children, requests)
        again, _ = _numbers(children, requests)  # the children are kept
    expected = [
        list(range(1000 * k, 1000 * k + length)) for k, length in enumerate(CLIP_LENGTHS.values())
    ]
    assert numbers == again == expected * 2
    assert {outcome.status for outcome in outcomes} == {"ok"}


def test_a_probe_comes_first(clips: dict[str, Path]) -> None:
    with DecoderPool() as children:
        events = [event for _, event in children.run([Decode(str(clips["a"]))])]
    assert events[0] == Probed(50)
    assert isinstance(events[-1], Outcome)


def test_long_videos_pass_through_few_slots(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", 700, height=240, width=320)
    with DecoderPool() as children:
        numbers, _ = _numbers(children, [Decode(str(path))])
    assert numbers == [list(range(700))]


def test_a_killed_child_costs_one_more_try(tmp_path: Path, clips: dict[str, Path]) -> None:
    path = write_video(tmp_path / "long.mp4", 600, height=240, width=320)
    requests = [Decode(str(path)), Decode(str(clips["a"])), Decode(str(clips["b"]))]
    numbers: list[int] = []
    statuses = []
    with DecoderPool() as children:
        for row, event in children.run(requests):
            if isinstance(event, Chunk) and row == 0:
                if len(numbers) == 64 and "restarted" not in statuses:
                    os.kill(children.pids[0], signal.SIGKILL)
                numbers += event.frame_index
            elif isinstance(event, Restarted):
                numbers, statuses = [], ["restarted"]
            elif isinstance(event, Outcome):
                statuses.append(event.status)
    assert numbers == list(range(600))
    assert statuses == ["restarted", "ok", "ok", "ok"]


def test_a_video_that_kills_its_child_twice_is_crashed(clips: dict[str, Path]) -> None:
    requests = [Decode(str(clips["a"])), Decode(str(clips["b"]))]
    outcomes = []
    with DecoderPool() as children:
        for row, event in children.run(requests):
            if row == 0 and not isinstance(event, Outcome | Restarted):
                os.kill(children.pids[0], signal.SIGSEGV)
            if isinstance(event, Outcome):
                outcomes.append(event)
    assert [(o.status, o.reason) for o in outcomes] == [("failed", "crashed"), ("ok", "")]
    assert str(clips["a"]) in outcomes[0].message


def test_a_child_that_hangs_is_ended(clips: dict[str, Path]) -> None:
    requests = [Decode(str(clips["a"])), Decode(str(clips["b"]))]
    outcomes = []
    with DecoderPool(limits=Limits(stall_seconds=1.5)) as children:
        for row, event in children.run(requests):
            if row == 0 and isinstance(event, Probed):  # the second try, too
                os.kill(children.pids[0], signal.SIGSTOP)
                time.sleep(0.2)
            if isinstance(event, Outcome):
                outcomes.append(event)
    assert [(o.status, o.reason) for o in outcomes] == [("failed", "stalled"), ("ok", "")]


def test_a_loss_with_decord_is_tried_again_with_pyav(clips: dict[str, Path]) -> None:
    with DecoderPool() as children:
        events = children.run([Decode(str(clips["a"]))])
        assert isinstance(next(events)[1], Probed)
        os.kill(children.pids[0], signal.SIGKILL)
        outcome = [event for _, event in events][-1]
    assert isinstance(outcome, Outcome)
    assert (outcome.status, outcome.decoder) == ("ok", "pyav")
    assert outcome.decoder_reason.startswith("crashed with the first try")


def test_failures_after_some_frames_leak_no_slot(tmp_path: Path, clips: dict[str, Path]) -> None:
    damaged = write_video(tmp_path / "d.mp4", 30, gop=30, num_b_frames=0)
    with av.open(str(damaged)) as container:
        packet = [p for p in container.demux(video=0) if p.size][20]
    data = bytearray(damaged.read_bytes())
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    damaged.write_bytes(data)
    requests = [Decode(str(damaged), decoder="decord")] * 6 + [Decode(str(clips["a"]))]
    with DecoderPool(limits=Limits(stall_seconds=10)) as children:
        numbers, outcomes = _numbers(children, requests)
    assert [outcome.reason for outcome in outcomes] == ["damaged"] * 6 + [""]
    assert numbers[-1] == list(range(50))


def test_a_frame_beyond_a_slot_is_too_large(tmp_path: Path, clips: dict[str, Path]) -> None:
    path = tmp_path / "huge.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8000, 6000, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(8000, 6000, "yuvj420p")))
        container.mux(stream.encode(None))
    requests = [Decode(str(path), decoder=d) for d in ("auto", "decord", "pyav")]
    with DecoderPool() as children:
        numbers, outcomes = _numbers(children, [*requests, Decode(str(clips["a"]))])
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3 + ["ok"]
    assert numbers[-1] == list(range(50))


def test_a_child_that_does_not_start_blames_no_video(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with DecoderPool() as children, pytest.raises(StoppedError, match="broken on purpose"):
        next(children.run([Decode(str(clips["a"]))]))


def test_files_in_the_current_folder_are_not_imported(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resource.py").write_text("raise ImportError('not mine')")
    monkeypatch.chdir(tmp_path)
    with DecoderPool() as children:
        _, outcomes = _numbers(children, [Decode(str(clips["a"]))])
    assert outcomes[0].status == "ok"


def test_memory_is_limited(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mp4", 3, height=2160, width=3840)
    with DecoderPool(limits=Limits(memory_bytes=160 * 2**20)) as children:
        _, outcomes = _numbers(children, [Decode(str(path), decoder="pyav")])
    assert outcomes[0].status == "failed"
    assert outcomes[0].reason in ("too-large", "crashed", "damaged")


def test_abandoned_rows_do_not_disturb_the_next(clips: dict[str, Path]) -> None:
    requests = [Decode(str(path)) for path in clips.values()]
    with DecoderPool() as children:
        events = children.run(requests)
        next(events)
        events.close()
        numbers, _ = _numbers(children, requests[1:2])
    assert numbers == [list(range(1000, 1033))]


def test_children_end_with_their_parent(clips: dict[str, Path]) -> None:
    code = (
        "from vtnpipe.extract.decode.pool import *\nfrom vtnpipe.extract.decode.protocol import *\n"
        f"events = DecoderPool(2).run([Decode({str(clips['a'])!r})] * 4)\n"
        "print(next(events), flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    tree = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = [Path(f"/proc/{pid}") for pid in tree.read_text().split()]
    assert len(children) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(child.exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.exists() for child in children)


def test_images_are_what_a_direct_reading_gives(clips: dict[str, Path]) -> None:
    from vtnpipe.extract.decode.frames import Frame, read_frames

    direct = [f.image for f in read_frames(str(clips["b"])) if isinstance(f, Frame)]
    with DecoderPool() as children:
        images = [
            image.copy()
            for _, event in children.run([Decode(str(clips["b"]))])
            if isinstance(event, Chunk)
            for image in event.images
        ]
    np.testing.assert_array_equal(np.stack(images), np.stack(direct))
