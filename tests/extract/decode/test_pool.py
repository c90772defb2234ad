"""The decoder pool: order, second tries, crashes, hangs, memory, and an end with the parent."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import CLIP_LENGTHS, damage_packet, read_number, write_video
from read_videos import read_video, write_video_that_loses_a_frame
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.decode.pool import DecodeAgain, DecoderPool
from vtnpipe.extract.decode.probe import Timeline
from vtnpipe.extract.decode.protocol import (
    Chunk,
    CutRequest,
    DecodeEvent,
    DecodeRequest,
    QuickProbeRequest,
    Selected,
    TimelineRequest,
)
from vtnpipe.extract.decode.quick_probe import QuickProbe
from vtnpipe.manifests.errors import StoppedError
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.plan import Cut

Request = DecodeRequest | Outcome
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
    events: Iterable[tuple[int, DecodeEvent]], num_requests: int
) -> tuple[list[list[int]], list[Outcome]]:
    """Return the numbers that each request's frames show, by frame index, and its outcome."""
    numbers: list[dict[int, int]] = [{} for _ in range(num_requests)]
    outcomes: list[Outcome] = []
    for row, event in events:
        assert row == len(outcomes)
        if isinstance(event, Chunk):
            shown = [read_number(image) for image in event.images]
            numbers[row].update(zip(event.frame_index, shown, strict=True))
            assert len(event.timestamps) == len(shown)
        elif isinstance(event, Outcome):
            if event.status == "failed":
                numbers[row].clear()
            outcomes.append(event)
    return [[one[index] for index in sorted(one)] for one in numbers], outcomes


def _decode(pool: DecoderPool, requests: list[Request]) -> tuple[list[list[int]], list[Outcome]]:
    """Decode as a task does: all requests again, the changed one among them."""
    while True:
        try:
            return _numbers(pool.decode(requests), len(requests))
        except DecodeAgain as again:
            requests = [*requests]
            requests[again.number] = again.request


def _decode_repeating(
    pool: DecoderPool, requests: list[Request]
) -> tuple[list[list[int]], list[Outcome]]:
    return _numbers(pool.decode_repeating(requests), len(requests))


@pytest.mark.parametrize("num_processes", [1, 3])
def test_rows_come_in_order_and_whole(clips: dict[str, Path], num_processes: int) -> None:
    requests = [DecodeRequest(str(path)) for path in clips.values()] * 2
    with DecoderPool(num_processes) as pool:
        numbers, outcomes = _numbers(pool.decode(requests), 8)
        pids = pool.pids
        again, _ = _numbers(pool.decode_repeating(requests), 8)
        assert pool.pids == pids  # the processes are kept
    expected = [
        list(range(1000 * k, 1000 * k + length)) for k, length in enumerate(CLIP_LENGTHS.values())
    ]
    assert numbers == again == expected * 2
    assert {outcome.status for outcome in outcomes} == {"ok"}


def test_the_order_of_events_does_not_depend_on_timing(
    clips: dict[str, Path], long_video: Path, pool: DecoderPool
) -> None:
    """Neither does what an event holds: positions in batches follow from the events."""
    requests: list[Request] = [
        *(DecodeRequest(str(path)) for path in clips.values()),
        Outcome(status="failed", reason="missing"),
        DecodeRequest(str(long_video)),
        DecodeRequest(str(clips["c"]), start=0.08),
    ]

    def listed(pool: DecoderPool, pause: float) -> list[object]:
        found: list[object] = []
        for row, event in pool.decode(requests):
            found.append((row, event.frame_index if isinstance(event, Chunk) else event))
            time.sleep(pause)
        return found

    expected = listed(pool, 0.0)
    assert listed(pool, 0.02) == expected
    with DecoderPool(3) as several:
        assert listed(several, 0.0) == expected


def test_the_number_of_frames_comes_first(clips: dict[str, Path], pool: DecoderPool) -> None:
    events = [event for _, event in pool.decode([DecodeRequest(str(clips["a"]))])]
    assert events[0] == Selected(50)
    assert isinstance(events[-1], Outcome)


def test_long_videos_pass_through_few_slots(long_video: Path, pool: DecoderPool) -> None:
    numbers, _ = _numbers(pool.decode([DecodeRequest(str(long_video))]), 1)
    assert numbers == [list(range(LONG))]


def test_a_video_that_is_decided_already_is_not_opened(
    clips: dict[str, Path], pool: DecoderPool
) -> None:
    decided = Outcome(status="failed", reason="crashed", message="twice")
    requests = [decided, DecodeRequest(str(clips["c"])), decided]
    numbers, outcomes = _numbers(pool.decode(requests), 3)
    assert [len(one) for one in numbers] == [0, 7, 0]
    assert outcomes[0] == outcomes[2] == decided
    assert outcomes[1].status == "ok"


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
    assert answers[2][1].first_frame == 25
    assert isinstance(answers[3], Timeline)
    assert answers[3].num_presented == 50


def test_a_fault_of_decord_in_mid_video_is_decoded_again_by_pyav(
    clips: dict[str, Path], faulty_video: Path, pool: DecoderPool
) -> None:
    requests = [DecodeRequest(str(path)) for path in (clips["a"], faulty_video, clips["b"])]
    num_before = 0
    with pytest.raises(DecodeAgain) as caught:  # noqa: PT012  # where it comes from matters
        for row, event in pool.decode(requests):
            num_before += len(event.images) if row == 1 and isinstance(event, Chunk) else 0
    assert num_before == 96  # in full chunks
    assert caught.value.number == 1
    again = caught.value.request
    assert isinstance(again, DecodeRequest)
    assert (again.path, again.decoder) == (str(faulty_video), "pyav")
    requests[1] = again
    numbers, outcomes = _numbers(pool.decode(requests), 3)
    assert numbers[0] == list(range(50))
    assert len(numbers[1]) == 99
    assert numbers[1][10:] == list(range(11, 100))  # those before are distorted
    assert numbers[2] == list(range(1000, 1033))
    assert [outcome.status for outcome in outcomes] == ["ok", "partial", "ok"]
    assert (outcomes[1].decoder, outcomes[1].num_lost_frames) == ("pyav", 1)
    assert "decord repeats its last frame" in outcomes[1].decoder_reason


def test_a_fault_of_decord_before_any_frame_needs_no_new_start(
    tmp_path: Path, clips: dict[str, Path], pool: DecoderPool
) -> None:
    path = write_video(tmp_path / "damaged.mp4", 30, gop=30, num_b_frames=0)
    damage_packet(path, 20)
    requests = [DecodeRequest(str(path)), DecodeRequest(str(clips["a"]))]
    numbers, outcomes = _numbers(pool.decode(requests), 2)
    assert [len(one) for one in numbers] == [29, 50]
    assert [outcome.decoder for outcome in outcomes] == ["pyav", "decord"]


def test_frames_are_repeated_for_those_who_index_them(
    clips: dict[str, Path], faulty_video: Path, pool: DecoderPool
) -> None:
    requests = [DecodeRequest(str(path)) for path in (clips["a"], faulty_video, clips["b"])]
    taken: list[list[int]] = [[], [], []]
    for row, event in pool.decode_repeating(requests):
        if isinstance(event, Chunk):
            taken[row] += event.frame_index
    assert taken[0] == list(range(50))
    assert taken[1][:96] == list(range(96))  # void
    assert len(set(taken[1][96:])) == len(taken[1][96:]) == 99
    assert taken[2] == list(range(33))


def test_a_video_that_fails_after_frames_leaves_no_frames(
    clips: dict[str, Path], faulty_video: Path, pool: DecoderPool
) -> None:
    failing = DecodeRequest(str(faulty_video), decoder="decord")
    requests: list[Request] = [failing, DecodeRequest(str(clips["a"]))]
    events = pool.decode(requests)
    assert next(events) == (0, Selected(100))
    assert isinstance(next(events)[1], Chunk)
    with pytest.raises(DecodeAgain) as caught:
        deque(events, maxlen=0)
    outcome = caught.value.request
    assert isinstance(outcome, Outcome)
    assert (caught.value.number, outcome.status, outcome.reason) == (0, "failed", "damaged")
    numbers, outcomes = _numbers(pool.decode([outcome, *requests[1:]]), 2)
    assert numbers == [[], list(range(50))]
    assert outcomes[0] == outcome


def _kill(pool: DecoderPool, number: int = signal.SIGKILL) -> None:
    os.kill(pool.pids[0], number)


@pytest.mark.slow
def test_a_killed_process_costs_one_more_try(clips: dict[str, Path], long_video: Path) -> None:
    requests: list[Request] = [
        DecodeRequest(str(path)) for path in (long_video, clips["a"], clips["b"])
    ]
    with DecoderPool() as pool:
        events, num_frames = pool.decode(requests), 0
        with pytest.raises(DecodeAgain) as caught:  # noqa: PT012
            for _, event in events:
                if isinstance(event, Chunk):
                    num_frames += len(event.images)
                    if num_frames == 64:
                        _kill(pool)
        assert 64 <= num_frames < LONG
        assert caught.value.number == 0
        again = caught.value.request
        assert isinstance(again, DecodeRequest)
        assert again.decoder_reason.startswith("crashed at the first try")
        numbers, outcomes = _numbers(pool.decode([again, *requests[1:]]), 3)
    assert numbers == [list(range(LONG)), list(range(50)), list(range(1000, 1033))]
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "ok"]
    assert [outcome.decoder for outcome in outcomes] == ["pyav", "decord", "decord"]


@pytest.mark.slow
@pytest.mark.parametrize("decode", [_decode, _decode_repeating])
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGSEGV, "crashed"), (signal.SIGSTOP, "stalled")]
)
def test_a_video_that_ends_its_process_twice_fails_alone(
    clips: dict[str, Path],
    long_video: Path,
    monkeypatch: pytest.MonkeyPatch,
    decode: Callable[..., tuple[list[list[int]], list[Outcome]]],
    number: int,
    reason: str,
) -> None:
    """It ends, or hangs, whenever its number of frames is known; the others do not suffer."""
    requests: list[Request] = [
        DecodeRequest(str(path)) for path in (clips["a"], long_video, clips["b"])
    ]
    with DecoderPool(limits=Limits(stall_seconds=1.5)) as pool:
        events = pool._events

        def deadly(process: object, request: DecodeRequest) -> Iterable[object]:
            for event in events(process, request):
                yield event
                if isinstance(event, Selected) and event.num_frames == LONG:
                    _kill(pool, number)

        monkeypatch.setattr(pool, "_events", deadly)
        numbers, outcomes = decode(pool, requests)
    assert numbers == [list(range(50)), [], list(range(1000, 1033))]
    assert [(o.status, o.reason) for o in outcomes] == [("ok", ""), ("failed", reason), ("ok", "")]
    assert str(long_video) in outcomes[1].message


@pytest.mark.slow
def test_a_loss_with_decord_is_tried_again_with_pyav(long_video: Path) -> None:
    with DecoderPool() as pool:
        events = pool.decode_repeating([DecodeRequest(str(long_video))])
        assert next(events) == (0, Selected(LONG))
        _kill(pool)
        outcome = [event for _, event in events][-1]
    assert isinstance(outcome, Outcome)
    assert (outcome.status, outcome.decoder) == ("ok", "pyav")
    assert outcome.decoder_reason.startswith("crashed at the first try")


@pytest.mark.slow
def test_a_question_whose_process_is_killed_is_asked_again(clips: dict[str, Path]) -> None:
    questions = [QuickProbeRequest(str(path)) for path in clips.values()]
    with DecoderPool() as pool:
        found = []
        for number, answer in pool.ask(questions):
            found.append((number, answer.width))
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
