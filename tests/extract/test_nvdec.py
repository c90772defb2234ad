"""Video engines of a GPU, with a stand-in on the CPU: rules, checks, fallback, and shares."""

import ctypes
import hashlib
import re
import threading
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from feature_folders import extract_rows, make_folder
from numbered_videos import CLIP_LENGTHS, write_video
from vtnpipe.extract.decode import nvdec
from vtnpipe.extract.decode import pool as pool_module
from vtnpipe.extract.decode.frames import Frame, Outcome
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.decode.nvdec import (
    Engines,
    NvdecFaultError,
    describe,
    format_refusal,
    read_engines,
)
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.decode.protocol import NUM_SLOTS, Chunk, DecodeRequest, Restarted
from vtnpipe.extract.nvdec_process import DeviceSlots, HardwareFrames, NvdecLauncher
from vtnpipe.extract.planes import split
from vtnpipe.extract.task import release_worker
from vtnpipe.manifests.feature_folder import AFTER_RESIZE, FeatureFolder
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import PlannedRow, with_file_state

Decoded = tuple[Outcome, dict[int, bytes], dict[int, float]]


def _launcher(num_threads: int = 2) -> NvdecLauncher:
    return NvdecLauncher("cpu", num_threads, "standin_engines")


def _decode(pool: DecoderPool, paths: list[Path], decoder: Any = "nvdec") -> list[Decoded]:
    """Outcome, and the planes and time of each frame, of files that are decoded one by one."""
    requests = [DecodeRequest(str(path), decoder=decoder, as_planes=True) for path in paths]
    found: list[Any] = [(None, {}, {}) for _ in paths]
    groups = deque((number, [request]) for number, request in enumerate(requests))
    for number, _, event in pool.run(groups):
        if isinstance(event, Restarted):
            found[number] = (None, {}, {})
        elif isinstance(event, Chunk):
            for index, time, data in zip(
                event.frame_index, event.timestamps, event.data, strict=True
            ):
                found[number][1][index], found[number][2][index] = data.tobytes(), time
        elif isinstance(event, Outcome):
            found[number] = (event, *found[number][1:])
    return found


def _assert_as_on_cpu(pool: DecoderPool, paths: list[Path], found: list[Decoded]) -> None:
    for one, expected in zip(found, _decode(pool, paths, "pyav"), strict=True):
        assert one[1:] == expected[1:]
        assert (one[0].status, one[0].num_lost_frames) == (
            expected[0].status,
            expected[0].num_lost_frames,
        )


def test_the_engines_give_the_frames_of_the_cpu(tmp_path: Path) -> None:
    paths = [
        write_video(tmp_path / "a.mp4", 100),
        write_video(tmp_path / "b.mkv", 60, first=500, codec="libx265"),
        write_video(tmp_path / "c.webm", 30, codec="libvpx-vp9"),
        write_video(tmp_path / "d.ts", 50, first=700),
        write_video(tmp_path / "e.mp4", 40, rotation=90),
        write_video(tmp_path / "f.mp4", 40, times=[40 * n + n % 7 for n in range(40)]),
    ]
    with DecoderPool(1, engines=_launcher()) as pool:
        found = _decode(pool, paths)
        assert [(one[0].decoder, one[0].decoder_reason) for one in found] == [("nvdec", "")] * 6
        assert [len(one[1]) for one in found] == [100, 60, 30, 50, 40, 40]
        _assert_as_on_cpu(pool, paths, found)
        assert len(pool.pids) == 2  # all threads of the engines are one process


def test_by_rule_the_cpu_decodes(tmp_path: Path, clips: dict[str, Path]) -> None:
    def write(name: str, pixel_format: str, codec: str = "libx264", width: int = 64) -> Path:
        with av.open(str(tmp_path / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 48, pixel_format
            for number in range(5):
                frame = av.VideoFrame.from_ndarray(
                    np.full((48, width, 3), 40 * number, np.uint8), format="rgb24"
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return tmp_path / name

    truncated = tmp_path / "truncated.mkv"
    whole = write_video(tmp_path / "whole.mkv", 300).read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    cases = {
        write("a.mp4", "yuv444p"): "nvdec: h264 with pixel format yuv444p",
        write("b.mp4", "yuv422p"): "nvdec: h264 with pixel format yuv422p",
        write("c.mp4", "yuv420p10le"): "nvdec: h264 with pixel format yuv420p10le",
        write("e.webm", "yuv420p", "libvpx-vp9", width=65): "nvdec: an odd size, 65x48",
        clips["d"]: "nvdec: codec mpeg4",
        truncated: "nvdec: the file ends before its index",
    }
    with DecoderPool(2, engines=_launcher()) as pool:
        found = _decode(pool, list(cases))
        assert [one[0].decoder for one in found] == ["pyav"] * len(cases)
        reasons = [one[0].decoder_reason for one in found]
        for reason, expected in zip(reasons, cases.values(), strict=True):
            assert reason.startswith(expected)
        _assert_as_on_cpu(pool, list(cases), found)


def test_a_file_with_a_fault_is_decoded_by_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = r"nvdec: timestamp \d+ is no packet's, or comes twice"
    reasons = {
        "a": "",
        "garbled": "nvdec: its first frame differs from the CPU's",
        "loses": "nvdec: .*1 of 60 frames could not be decoded",
        "b": "",
        "doubles": unknown,
        "shifts": unknown,
        "fails": "nvdec: .*1 of 60 frames could not be decoded; engine error",
        "crashes": "nvdec: the decoder process ended with code 9",
        "c": "",
        "breaks": "nvdec: the decoder process ended with code 1",
        "stalls": "nvdec: no progress for 2 s",
        "d": "",
    }
    paths = [write_video(tmp_path / f"{name}.mp4", 60) for name in reasons]
    monkeypatch.setattr(pool_module, "MAX_ENGINE_DEATHS", 9)
    with DecoderPool(1, Limits(stall_seconds=2), engines=_launcher(1)) as pool:
        found = _decode(pool, paths)
        for one, reason in zip(found, reasons.values(), strict=True):
            assert one[0].decoder == ("pyav" if reason else "nvdec")
            assert re.fullmatch(reason, one[0].decoder_reason)
        _assert_as_on_cpu(pool, paths, found)


def test_engines_that_are_lost_again_and_again_are_left_alone(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"crashes{n}.mp4", 30) for n in range(4)]
    paths.append(write_video(tmp_path / "a.mp4", 30))
    with DecoderPool(1, engines=_launcher(1)) as pool:
        with pytest.warns(UserWarning, match="its process was lost 3 times"):
            found = _decode(pool, paths)
        assert [one[0].decoder for one in found] == ["pyav"] * 5
        assert "lost 3 times" in found[-1][0].decoder_reason
        _assert_as_on_cpu(pool, paths, found)


def test_engines_that_do_not_start_are_left_alone(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", 30) for n in range(3)]
    with DecoderPool(1, engines=NvdecLauncher("cpu", 2, "no_such_module")) as pool:
        with pytest.warns(UserWarning, match="does not start: .*no_such_module"):
            found = _decode(pool, paths)
        assert [one[0].decoder for one in found] == ["pyav"] * 3
        assert "No module named 'no_such_module'" in found[0][0].decoder_reason


def test_frames_of_the_engines_are_void_even_if_the_cpus_process_is_dead(tmp_path: Path) -> None:
    path = write_video(tmp_path / "loses.mp4", 60)  # which shows only at the end
    request = DecodeRequest(str(path), decoder="nvdec", as_planes=True)
    with DecoderPool(1, engines=_launcher(1)) as pool:
        pool.start()
        link = pool._links[0]
        assert link is not None
        link.child.process.kill()
        frames: list[int] = []
        for _, _, event in pool.run(deque([("g", [request])])):
            if isinstance(event, Restarted):
                frames.clear()
            elif isinstance(event, Chunk):
                frames += event.frame_index
    assert frames == list(range(60))


def test_threads_may_lose_the_engines_at_the_same_time(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"crashes{n}.mp4", 30) for n in range(8)]
    with DecoderPool(2, engines=_launcher(8)) as pool, ThreadPoolExecutor(4) as threads:
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = list(threads.map(lambda path: _decode(pool, [path])[0], paths, timeout=60))
            assert {one[0].status for one in found} == {"ok"}
            assert [len(one[1]) for one in found] == [30] * 8


class _Engine:
    """A frame as PyAV gives it for a GPU, but in the CPU's memory; rows are padded."""

    format = SimpleNamespace(name="cuda")
    colorspace, color_range = 1, 1

    def __init__(self, height: int, width: int, dtype: Any) -> None:
        generator = np.random.default_rng(0)
        most = 1024 if dtype == np.uint16 else 256
        shift = 6 if dtype == np.uint16 else 0
        self.height, self.width = height, width
        luma = generator.integers(0, most, (height, 2 * width)).astype(dtype) << shift
        chroma = generator.integers(0, most, (height // 2, width, 2)).astype(dtype) << shift
        self.planes = [luma[:, :width], chroma[:, : width // 2]]
        self.expected = [self.planes[0] >> shift, *np.moveaxis(self.planes[1] >> shift, -1, 0)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planes_of_the_engines_in_their_slots(
    dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = probe(str(write_video(tmp_path / "v.mp4", 2, height=48, width=64)))
    source, frame = HardwareFrames(info, None), _Engine(48, 64, dtype)
    layout, planes = source.read(frame)
    assert (layout.num_bits, layout.matrix) == (10 if dtype == np.uint16 else 8, "bt709")
    slots = DeviceSlots(torch.zeros(NUM_SLOTS, 100_000, dtype=torch.uint8))
    for number in range(3):
        slots.write(2, number, Frame(planes, layout, number, 0.0))
    slots.flush()
    data = slots.data(2, 3, layout.num_bytes)
    for row in data:
        luma, chroma = split(row[None], layout)
        found = [luma[0, 0], *chroma[0]]
        for ours, theirs in zip(found, frame.expected, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)
    assert not slots.data(1, 3, layout.num_bytes).any()
    monkeypatch.setattr(source, "_read_software", lambda expected: (layout, expected))
    assert source.equals(frame, frame.expected)
    frame.expected[1] = frame.expected[1] ^ 1
    assert not source.equals(frame, frame.expected)
    frame.planes[1] = frame.planes[1][:-1]
    with pytest.raises(NvdecFaultError, match="gives planes"):
        source.read(frame)
    frame.format = SimpleNamespace(name="yuv420p")
    with pytest.raises(NvdecFaultError, match="gives frames of the format yuv420p"):
        source.read(frame)


def test_threads_share_engines_and_cores(tmp_path: Path) -> None:
    """Each thread has groups of both kinds, and more of them than there are links."""
    paths = [write_video(tmp_path / f"{name}.mp4", 40) for name in "abcdef"]
    with DecoderPool(1, engines=_launcher(1)) as pool, ThreadPoolExecutor(3) as threads:
        barrier = threading.Barrier(3)

        def run(number: int) -> list[tuple[int, int]]:
            barrier.wait()
            groups: Any = deque(
                (n, [DecodeRequest(str(path), decoder=decoder, as_planes=True)])
                for n, (path, decoder) in enumerate(
                    (path, decoder) for path in paths for decoder in ("nvdec", "pyav")
                )
            )
            done = []
            for n, _, event in pool.run(groups):
                if isinstance(event, Outcome):
                    assert event.decoder == ("nvdec", "pyav")[n % 2]
                    done.append(n)
            return sorted(done)

        assert list(threads.map(run, range(3), timeout=120)) == [list(range(12))] * 3


def test_a_group_with_an_odd_file_starts_again_on_the_cpu(
    tmp_path: Path, clips: dict[str, Path]
) -> None:
    paths = [write_video(tmp_path / "a.mp4", 60), clips["d"], write_video(tmp_path / "b.mp4", 30)]
    requests = [DecodeRequest(str(path), decoder="nvdec", as_planes=True) for path in paths]
    events: list[tuple[int, Any]] = []
    with DecoderPool(1, engines=_launcher()) as pool:
        for _, number, event in pool.run(deque([("g", requests)])):
            if isinstance(event, Restarted):
                events.clear()
            elif isinstance(event, Outcome):
                events.append((number, event.decoder_reason))
    beside = "nvdec: beside a file that the CPU decodes"
    assert events == [(0, beside), (1, "nvdec: codec mpeg4"), (2, beside)]


@pytest.fixture
def planned(rows: list[VideoRow], tmp_path: Path) -> list[PlannedRow]:
    """Clips, one of them AVI, and a long video."""
    found = [
        with_file_state(row)._replace(num_frames=length, may_use_nvdec=row.video_id != "d")
        for row, length in zip(rows, CLIP_LENGTHS.values(), strict=True)
    ]
    long = VideoRow(video_id="long", path=str(write_video(tmp_path / "long.mp4", 400)))
    return [*found, with_file_state(long)._replace(num_frames=400, may_use_nvdec=True)]


def _folder(root: Path) -> FeatureFolder:
    return make_folder(root, "test_vit", color_conversion=AFTER_RESIZE)


def test_the_share_of_the_engines_changes_no_bit(tmp_path: Path, planned: list[PlannedRow]) -> None:
    digests, decoders = [], []
    for number, share in enumerate((0.5, 0.5, 1.0, 0.0)):
        folder = _folder(tmp_path / str(number))
        report = extract_rows(
            folder, planned, lane_frames=60, nvdec_share=share, engines="cpu" if share else ""
        )
        release_worker()
        assert ("nvdec" in report.seconds) == (share > 0)
        digests.append(hashlib.sha256((folder.shards / "000-00000.h5").read_bytes()).hexdigest())
        store = open_features(folder.root)
        decoders.append([store[row.video_id].decoder for row in planned])
        if number:
            for video_id, first in open_features(tmp_path / "0").items():
                np.testing.assert_array_equal(store[video_id].features, first.features)
                np.testing.assert_array_equal(store[video_id].timestamps, first.timestamps)
    assert digests[0] == digests[1]
    assert decoders[0] == decoders[1] == ["nvdec", "pyav", "pyav", "pyav", "nvdec, pyav"]
    assert decoders[2] == ["nvdec", "nvdec", "nvdec", "pyav", "nvdec"]
    assert set(decoders[3]) == {"pyav"}


def test_planes_that_are_converted_later_give_about_the_same_features(
    tmp_path: Path, planned: list[PlannedRow]
) -> None:
    before, after = make_folder(tmp_path / "0", "test_vit"), _folder(tmp_path / "1")
    for folder in (before, after):
        extract_rows(folder, planned)
    assert before.extraction.read_text() != after.extraction.read_text()
    first, second = open_features(before.root), open_features(after.root)
    for video_id in first:
        one, other = first[video_id].features, second[video_id].features
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        assert ((one * other).sum(1) / norms).min() >= 0.9995


def test_formats_for_the_engines() -> None:
    assert format_refusal("h264", "yuv420p", 320, 240) == ""
    assert format_refusal("vp9", "yuv420p10le", 320, 240) == ""
    assert format_refusal("h264", "yuvj420p", 320, 241) == "an odd size, 320x241"
    assert format_refusal("mpeg2video", "yuv420p", 320, 240) == "codec mpeg2video"
    assert format_refusal("hevc", "", 320, 240) == "hevc with pixel format "


def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ctypes.sizeof(nvdec._DecoderCaps) == 88  # as in cuviddec.h

    class Library:
        def cuvidGetDecoderCaps(self, pointer: Any) -> int:  # noqa: N802
            caps = pointer._obj
            caps.is_supported = caps.codec == 4 and caps.bit_depth_minus_8 == 0
            caps.num_engines = 7
            return 0

    found = nvdec._engines(Library())  # type: ignore[arg-type]
    assert found == Engines(7, ("h264 8",))
    assert describe(found) == "7 video engines: h264 8 bits"

    def no_library(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(nvdec, "driver", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert "driver capability `video`" in describe(read_engines(0))
