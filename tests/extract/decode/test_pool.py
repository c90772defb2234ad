"""The decoder pool: order, second tries, crashes, hangs, memory, and an end with the parent."""

import contextlib
import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_videos import CLIP_LENGTHS, damage_packet, read_number, write_video
from read_videos import read_video, write_video_that_loses_a_frame
from vtnpipe.extract.decode import groups as groups_module
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.probe import Timeline
from vtnpipe.extract.decode.protocol import (
    CHUNK_BYTES,
    NUM_SLOTS,
    Chunk,
    CutRequest,
    DecodeRequest,
    QuickProbeRequest,
    Restarted,
    Selected,
    TimelineRequest,
)
from vtnpipe.extract.decode.quick_probe import QuickProbe
from vtnpipe.manifests.errors import StoppedError
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.plan import Cut

LONG = 300  # frames: more than the slots of a process hold


@pytest.fixture(scope="module")
def pool() -> Iterable[DecoderPool]:
    """One process, kept between the tests that do it no harm."""
    with DecoderPool() as pool:
        yield pool


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", LONG)


@pytest.fixture(scope="module")
def faulty_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of which decord gives 100 frames before it shows that they are wrong."""
    return write_video_that_loses_a_frame(tmp_path_factory.mktemp("faulty") / "a.mov", 100, 9)


def _numbers(
    events: Iterable[tuple[int, Any]], num_requests: int
) -> tuple[list[list[int]], list[Outcome]]:
    """Return the numbers that each request's frames show, by frame index, and its outcome."""
    numbers: list[dict[int, int]] = [{} for _ in range(num_requests)]
    outcomes: dict[int, Outcome] = {}
    for row, event in events:
        assert row not in outcomes
        if isinstance(event, Selected):
            numbers[row].clear()
        elif isinstance(event, Chunk):
            shown = [read_number(image) for image in event.images]
            numbers[row].update(zip(event.frame_index, shown, strict=True))
            assert len(event.timestamps) == len(shown)
        elif isinstance(event, Outcome):
            if event.status == "failed":
                numbers[row].clear()
            outcomes[row] = event
    return [[one[index] for index in sorted(one)] for one in numbers], [
        outcomes[row] for row in range(num_requests)
    ]


@pytest.mark.parametrize("num_processes", [1, 3])
def test_requests_are_decoded_whole(clips: dict[str, Path], num_processes: int) -> None:
    requests = [DecodeRequest(str(path)) for path in clips.values()] * 2
    with DecoderPool(num_processes) as pool:
        pool.start()
        numbers, outcomes = _numbers(pool.decode(requests), 8)
        pids = pool.pids
        assert len(pids) == num_processes
        again, _ = _numbers(pool.decode(requests), 8)
        assert pool.pids == pids  # the processes are kept
    expected = [
        list(range(1000 * k, 1000 * k + length)) for k, length in enumerate(CLIP_LENGTHS.values())
    ]
    assert numbers == again == expected * 2
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert all(outcome.decode_seconds > 0 for outcome in outcomes)


def test_all_processes_decode_at_the_same_time(long_video: Path) -> None:
    """While frames of one video are taken, those of others arrive."""
    rows = []
    with DecoderPool(3) as pool:
        _numbers(pool.decode([DecodeRequest(str(long_video), end=0.5)] * 9), 9)  # all have started
        for row, event in pool.decode([DecodeRequest(str(long_video))] * 3):
            if isinstance(event, Chunk):
                rows.append(row)
                time.sleep(0.02)
    first = [rows.index(row) for row in range(3)]
    last = [len(rows) - rows[::-1].index(row) for row in range(3)]
    assert max(first) < min(last)


def _listed(pool: DecoderPool, groups: list[tuple[str, list[Any]]]) -> dict[str, list[object]]:
    """Return what the events of each group are, in order."""
    found: dict[str, list[object]] = {key: [] for key, _ in groups}
    for key, number, event in pool.run(deque(groups)):
        found[key].append((number, event.frame_index if isinstance(event, Chunk) else event))
    return found


def test_the_events_of_a_group_come_in_order(
    clips: dict[str, Path], long_video: Path, pool: DecoderPool
) -> None:
    missing = Outcome(status="failed", reason="missing")
    groups: list[tuple[str, list[Any]]] = [
        ("clips", [DecodeRequest(str(path)) for path in clips.values()]),
        ("decided", [missing, DecodeRequest(str(long_video)), missing]),
        ("span", [DecodeRequest(str(clips["c"]), start=0.08)]),
    ]
    expected = _listed(pool, groups)
    numbers = [number for number, _ in expected["clips"]]  # type: ignore[misc]
    assert numbers == sorted(numbers)
    assert set(numbers) == {0, 1, 2, 3}
    assert expected["decided"][0] == (0, missing)
    assert expected["decided"][-1] == (2, missing)
    with DecoderPool(3) as several:
        assert _listed(several, groups) == expected


def test_groups_are_added_while_events_are_taken(clips: dict[str, Path], pool: DecoderPool) -> None:
    path = str(clips["a"])
    groups: deque[Any] = deque([("ask", [CutRequest(path, [0, 25])])])
    taken: dict[str, list[int]] = {}
    for key, _, event in pool.run(groups):
        if isinstance(event, list):
            groups.extend(
                (f"part {n}", [DecodeRequest(path, cut=cut)]) for n, cut in enumerate(event)
            )
        elif isinstance(event, Chunk):
            taken.setdefault(key, []).extend(event.frame_index)
    assert taken["part 0"] + taken["part 1"] == list(range(50))


def test_threads_share_a_pool(clips: dict[str, Path]) -> None:
    requests = [DecodeRequest(str(path)) for path in clips.values()] * 2
    with DecoderPool(2) as pool, ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: _numbers(pool.decode(requests), 8), range(3)))
        assert len(pool.pids) == 2
    assert all(numbers == found[0][0] for numbers, _ in found)
    assert [len(one) for one in found[0][0]] == [*CLIP_LENGTHS.values()] * 2


def test_a_stopped_pool_ends_the_threads_that_use_it(long_video: Path) -> None:
    with DecoderPool(2) as pool, ThreadPoolExecutor(2) as threads:
        begun = threading.Barrier(3)

        def take() -> None:
            for number, _ in enumerate(pool.decode([DecodeRequest(str(long_video))] * 50)):
                if number == 1:
                    begun.wait(20)

        futures = [threads.submit(take) for _ in range(2)]
        with contextlib.suppress(threading.BrokenBarrierError):
            begun.wait(3)  # the second one may wait for its turn
        pool.stop()
        for future in futures:
            with pytest.raises((StoppedError, threading.BrokenBarrierError)):
                future.result(20)


def test_a_chunk_that_is_held_stays_valid(long_video: Path, pool: DecoderPool) -> None:
    held: tuple[Chunk, Any] | None = None
    num_frames = 0
    for _, event in pool.decode([DecodeRequest(str(long_video))]):
        if not isinstance(event, Chunk):
            continue
        if held is not None:
            chunk, release = held
            assert [read_number(image) for image in chunk.images] == chunk.frame_index
            release()
        num_frames += len(event.images)
        held = event, event.hold()
    assert num_frames == LONG


def test_memory_of_frames_is_registered_and_undone(long_video: Path) -> None:
    registered: dict[int, int] = {}

    def pin(address: int, num_bytes: int) -> Callable[[], None]:
        registered[address] = num_bytes
        return lambda: registered.pop(address) and None

    with DecoderPool(2, pin=pin) as pool:
        pool.start()
        assert len(registered) == 2 * NUM_SLOTS
        assert set(registered.values()) == {CHUNK_BYTES}
        assert all(address % mmap.PAGESIZE == 0 for address in registered)
        chunks = [
            event
            for _, event in pool.decode([DecodeRequest(str(long_video))])
            if isinstance(event, Chunk)
        ]
        assert all(chunk.is_pinned for chunk in chunks)
        assert chunks[0].images.ctypes.data in registered
    assert len(registered) == NUM_SLOTS  # of the process whose frames are still referred to
    chunks.clear()
    gc.collect()
    assert registered == {}


def test_the_number_of_frames_comes_first(clips: dict[str, Path], pool: DecoderPool) -> None:
    events = [event for _, event in pool.decode([DecodeRequest(str(clips["a"]))])]
    assert events[0] == Selected(50)
    assert isinstance(events[-1], Outcome)


def test_long_videos_pass_through_few_slots(long_video: Path, pool: DecoderPool) -> None:
    numbers, _ = _numbers(pool.decode([DecodeRequest(str(long_video))]), 1)
    assert numbers == [list(range(LONG))]


def test_questions_are_answered_in_order(
    clips: dict[str, Path], tmp_path: Path, pool: DecoderPool
) -> None:
    path = str(clips["a"])
    questions = [
        QuickProbeRequest(path),
        TimelineRequest(str(tmp_path / "none.mp4")),
        CutRequest(path, [0, 25]),
        TimelineRequest(path),
    ]
    numbers, answers = zip(*pool.ask(questions), strict=True)
    assert numbers == (0, 1, 2, 3)
    assert isinstance(answers[0], QuickProbe)
    assert answers[0].num_frames == 50
    assert isinstance(answers[1], VideoError)
    assert answers[1].reason == "missing"
    assert [type(one) for one in answers[2]] == [Cut, Cut]
    assert answers[2][1].first_frame == 28  # 16 frames after a keyframe
    assert isinstance(answers[3], Timeline)
    assert answers[3].num_presented == 50


def test_a_video_that_fails_after_frames_starts_its_group_again(
    clips: dict[str, Path], faulty_video: Path, pool: DecoderPool
) -> None:
    group = [DecodeRequest(str(path), decoder="decord") for path in (clips["a"], faulty_video)]
    events = [(number, event) for _, number, event in pool.run(deque([("", group)]))]
    (place,) = (n for n, (_, event) in enumerate(events) if isinstance(event, Restarted))
    before = [number for number, event in events[:place] if isinstance(event, Chunk)]
    assert set(before) == {0, 1}
    numbers, outcomes = _numbers(events[place + 1 :], 2)
    assert numbers == [list(range(50)), []]
    assert [(one.status, one.reason) for one in outcomes] == [("ok", ""), ("failed", "damaged")]
    alone, outcomes = _numbers(pool.decode(group[1:]), 1)
    assert (alone, outcomes[0].status) == ([[]], "failed")


def _kill(pool: DecoderPool, number: int = signal.SIGKILL) -> None:
    os.kill(pool.pids[0], number)


@pytest.mark.slow
def test_a_killed_process_costs_one_more_try(clips: dict[str, Path], long_video: Path) -> None:
    requests = [DecodeRequest(str(path)) for path in (long_video, clips["a"], clips["b"])]
    with DecoderPool() as pool:
        events, num_frames, num_again = [], 0, 0
        for _, number, event in pool.run(deque([("", requests)])):
            if isinstance(event, Chunk):
                num_frames += len(event.images)
                events.append((number, replace(event, data=event.data.copy())))
                if num_frames == 64:
                    _kill(pool)
            elif isinstance(event, Restarted):
                num_again, events = num_again + 1, []
            else:
                events.append((number, event))
    assert num_again == 1
    numbers, outcomes = _numbers(events, 3)
    assert numbers == [list(range(LONG)), list(range(50)), list(range(1000, 1033))]
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "ok"]
    assert outcomes[0].decoder_reason.startswith("crashed at the first try")
    assert [outcome.decoder_reason for outcome in outcomes[1:]] == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGSEGV, "crashed"), (signal.SIGSTOP, "stalled")]
)
def test_a_video_that_ends_its_process_twice_fails_alone(
    clips: dict[str, Path],
    long_video: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    reason: str,
) -> None:
    """It ends, or hangs, whenever its number of frames is known; the others do not suffer."""
    requests = [DecodeRequest(str(path)) for path in (clips["a"], long_video, clips["b"])]
    with DecoderPool(limits=Limits(stall_seconds=1.5)) as pool:
        handle = groups_module.Group.handle

        def deadly(group: Any, message: Any) -> Outcome | None:
            found = handle(group, message)
            if message == {"kind": "selected", "num_frames": LONG}:
                _kill(pool, number)
            return found

        monkeypatch.setattr(groups_module.Group, "handle", deadly)
        events: list[tuple[int, Any]] = []
        for _, row, event in pool.run(deque([("", requests)])):
            if isinstance(event, Restarted):
                events.clear()
            elif isinstance(event, Chunk):
                events.append((row, replace(event, data=event.data.copy())))
            else:
                events.append((row, event))
    numbers, outcomes = _numbers(events, 3)
    assert numbers == [list(range(50)), [], list(range(1000, 1033))]
    assert [(o.status, o.reason) for o in outcomes] == [("ok", ""), ("failed", reason), ("ok", "")]
    assert str(long_video) in outcomes[1].message


@pytest.mark.slow
def test_a_process_that_ended_while_idle_is_replaced(clips: dict[str, Path]) -> None:
    with DecoderPool() as pool:
        _numbers(pool.decode([DecodeRequest(str(clips["a"]))]), 1)
        _kill(pool)
        time.sleep(0.2)
        _, outcomes = _numbers(pool.decode([DecodeRequest(str(clips["a"]))]), 1)
    assert outcomes == [Outcome(status="ok", decoder="pyav")]


@pytest.mark.slow
def test_a_question_whose_process_is_killed_is_asked_again(clips: dict[str, Path]) -> None:
    questions = [QuickProbeRequest(str(path)) for path in clips.values()]
    with DecoderPool() as pool:
        found = []
        for number, answer in pool.ask(questions):
            found.append((number, answer.width))
            if pool.pids:
                _kill(pool)
    assert found == [(number, 128) for number in range(4)]


def test_what_decord_can_not_read_it_is_not_asked_to_read_again(
    tmp_path: Path, clips: dict[str, Path], pool: DecoderPool
) -> None:
    path = write_video(tmp_path / "damaged.mp4", 30, gop=30, num_b_frames=0)
    damage_packet(path, 20)
    requests = [DecodeRequest(str(path), decoder="decord")] * 6 + [DecodeRequest(str(clips["a"]))]
    _numbers(pool.decode(requests[-1:]), 1)
    pids = pool.pids
    numbers, outcomes = _numbers(pool.decode(requests), 7)
    assert [outcome.reason for outcome in outcomes] == ["damaged"] * 6 + [""]
    assert numbers[-1] == list(range(50))
    assert pool.pids == pids  # nor is a slot lost each time


def _write_still(path: Path, width: int, height: int) -> str:
    """A video of one large frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(width, height, "yuvj420p")))
        container.mux(stream.encode(None))
    return str(path)


def test_a_frame_beyond_a_slot_is_too_large(
    tmp_path: Path, clips: dict[str, Path], pool: DecoderPool
) -> None:
    path = _write_still(tmp_path / "huge.mp4", 8000, 6000)
    requests = [DecodeRequest(path, decoder=d) for d in ("auto", "decord", "pyav")]
    numbers, outcomes = _numbers(pool.decode([*requests, DecodeRequest(str(clips["a"]))]), 4)
    assert [outcome.reason for outcome in outcomes] == ["too-large"] * 3 + [""]
    assert numbers[-1] == list(range(50))


def test_memory_is_limited(tmp_path: Path, clips: dict[str, Path]) -> None:
    path = _write_still(tmp_path / "large.mp4", 7680, 4320)
    requests = [DecodeRequest(one, decoder="pyav") for one in (path, str(clips["a"]))]
    with DecoderPool(limits=Limits(memory_bytes=256 * 2**20)) as pool:
        numbers, outcomes = _numbers(pool.decode(requests), 2)
    assert [(o.status, o.reason) for o in outcomes] == [("failed", "too-large"), ("ok", "")]
    assert numbers[1] == list(range(50))


def test_a_process_that_does_not_start_blames_no_video(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with DecoderPool() as pool, pytest.raises(StoppedError, match="broken on purpose"):
        next(pool.decode([DecodeRequest(str(clips["a"]))]))


def test_files_in_the_current_folder_are_not_imported(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resource", "socket", "json", "vtnpipe", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not mine')")
    monkeypatch.chdir(tmp_path)
    with DecoderPool() as pool:
        _, outcomes = _numbers(pool.decode([DecodeRequest(str(clips["a"]))]), 1)
    assert outcomes[0].status == "ok"


def test_abandoned_rows_do_not_disturb_the_next(
    clips: dict[str, Path], long_video: Path, pool: DecoderPool
) -> None:
    requests = [DecodeRequest(str(long_video)), DecodeRequest(str(clips["b"]))]
    events = pool.decode(requests)
    next(events)
    events.close()
    numbers, _ = _numbers(pool.decode(requests[1:]), 1)
    assert numbers == [list(range(1000, 1033))]


@pytest.mark.slow
def test_processes_end_with_their_parent(clips: dict[str, Path]) -> None:
    code = (
        "from vtnpipe.extract.decode.pool import *\nfrom vtnpipe.extract.decode.protocol import *\n"
        f"events = DecoderPool(2).decode([DecodeRequest({str(clips['a'])!r})] * 4)\n"
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


def test_images_are_what_a_direct_reading_gives(clips: dict[str, Path], pool: DecoderPool) -> None:
    images = [
        image.copy()
        for _, event in pool.decode([DecodeRequest(str(clips["b"]))])
        if isinstance(event, Chunk)
        for image in event.images
    ]
    direct, _ = read_video(clips["b"])
    np.testing.assert_array_equal(np.stack(images), np.stack([frame.image for frame in direct]))
