"""Part `nvdec` of `on_gpu.py`: decoding by the video engines of a GPU, against the CPU.

rates       frames/s of the engines' process alone, by number of threads, at each size, in H.264 and
            HEVC; and of decoder processes on all cores, to planes and to RGB
equality    odd files, drawn and of `--files`: number, index and time of each frame, bytes of its
            planes, and why the CPU decoded a file
parity      features by the engines against features by the CPU, and against frames that the CPU
            converted to RGB before the resize
extract     `extract --decoder nvdec` and `pyav` at 720p and 1080p; the part `extract` has `auto`
memory      of the GPU and of the engines' process, over thousands of short clips
killed      the engines' process is killed while it decodes

On a CPU, a stand-in decodes in software in the engines' process.
"""

import contextlib
import hashlib
import itertools
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from vtnpipe.extract.cores import num_cpus
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.nvdec import describe, read_engines
from vtnpipe.extract.decode.pool import DecoderPool, Requests
from vtnpipe.extract.decode.protocol import Chunk, DecodeRequest, Restarted, Selected
from vtnpipe.extract.device import pinning_of
from vtnpipe.extract.nvdec_process import NvdecLauncher
from vtnpipe.extract.task import release_worker
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction.settings import ExtractSettings

from extract import draw

THREADS = (1, 2, 4, 8)
NUM_SHORT_CLIPS = 2000
SHORT_FRAMES = 10
MIN_COSINE = 0.9995


def nvdec(
    folder: Path,
    device: str,
    clip: Callable[[str], Path],
    sizes: Sequence[str],
    backbone: str,
    files: Path | None,
    *,
    is_quick: bool,
) -> dict[str, Any]:
    """Run all of the above; `failed` in the result names the steps that failed.

    Args:
        folder: for drawn videos and features.
        device: `cuda:N`; `cpu` for the stand-in.
        clip: size → path of a drawn H.264 clip of 10 s.
        sizes: names of the sizes.
        backbone: name of the backbone.
        files: folder of further files to compare.
        is_quick: whether to run a short form.
    """
    found: dict[str, Any] = {}
    if device != "cpu":
        engines = read_engines(torch.device(device).index or 0)
        found["engines"] = describe(engines)
        if not engines.num_engines:
            raise RuntimeError(engines.obstacle)
    folder = folder / "nvdec"
    folder.mkdir()
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "rates": lambda: rates(folder, device, clip, sizes, is_quick=is_quick),
        "equality": lambda: equality(folder, device, files),
        "parity": lambda: parity(folder, device, clip, backbone),
        "extract": lambda: rates_of_extract(folder, device, clip, sizes, backbone, is_quick),
        "memory": lambda: memory(folder, device, 60 if is_quick else NUM_SHORT_CLIPS),
        "killed": lambda: killed(device, clip(sizes[0])),
    }
    found["failed"] = []
    for name, step in steps.items():
        try:
            found[name] = step()
        except Exception as error:  # noqa: BLE001  # the other steps run all the same
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            found["failed"].append(name)
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def decoded(
    pool: DecoderPool,
    requests: Sequence[DecodeRequest],
    note: Callable[[int, Chunk], None] = lambda number, chunk: None,
    restart: Callable[[int], None] = lambda number: None,
) -> list[Outcome]:
    """Decode requests, each in a group of its own; return their outcomes."""
    outcomes: dict[int, Outcome] = {}
    groups: deque[Requests[int]] = deque((n, [one]) for n, one in enumerate(requests))
    for number, _, event in pool.run(groups):
        if isinstance(event, Restarted | Selected):
            restart(number)
        elif isinstance(event, Chunk):
            note(number, event)
        elif isinstance(event, Outcome):
            outcomes[number] = event
    return [outcomes[number] for number in range(len(requests))]


def rates(
    folder: Path, device: str, clip: Callable[[str], Path], sizes: Sequence[str], *, is_quick: bool
) -> dict[str, Any]:
    """Measure decoding alone."""
    found: dict[str, Any] = {}
    cores = num_cpus()
    with DecoderPool(cores, pin=pinning_of(device), engines=NvdecLauncher(device)) as pool:
        for size in sizes:
            row = found[size] = {}
            h264 = clip(size)
            num_files = 2 if is_quick else {"240p": 60, "720p": 32, "1080p": 16}[size]
            for num_threads in THREADS[-2:] if is_quick else THREADS:
                row[f"h264, {num_threads} threads"] = rate_of(pool, h264, num_files, num_threads)
            if not is_quick:
                hevc = encode(h264, folder / f"{size}.hevc.mp4", "libx265")
                row[f"hevc, {THREADS[-1]} threads"] = rate_of(pool, hevc, num_files, THREADS[-1])
            for name, as_planes in (("planes", True), ("RGB", False)):
                row[f"h264, {cores} cores, {name}"] = rate_of(
                    pool, h264, max(num_files, cores), cores, "pyav", as_planes=as_planes
                )
    return found


def rate_of(
    pool: DecoderPool,
    path: Path,
    num_files: int,
    num_groups: int,
    decoder: Any = "nvdec",
    *,
    as_planes: bool = True,
) -> float:
    """Return frames/s of a pool that decodes a file again and again, in groups side by side."""
    request = DecodeRequest(str(path), decoder=decoder, as_planes=as_planes)

    def decode(num_requests: int) -> int:
        groups: deque[Requests[int]] = deque(
            (n, [request] * num_requests) for n in range(num_groups)
        )
        num_frames = 0
        for _, _, event in pool.run(groups):
            if isinstance(event, Chunk):
                num_frames += len(event.frame_index)
            elif isinstance(event, Outcome):
                assert event.decoder == decoder, event
        return num_frames

    decode(1)  # starts the processes
    start = time.perf_counter()
    num_frames = decode(-(-num_files // num_groups))
    return round(num_frames / (time.perf_counter() - start), 1)


def encode(source: Path, path: Path, codec: str, **options: Any) -> Path:
    """Encode a video again; `options` set attributes of the stream.

    Args:
        source: path of the video.
        path: path of the result.
        codec: FFmpeg's name of the encoder.
        options: attributes of the stream; `rotation`, of the display matrix.
    """
    if path.exists():
        return path
    with av.open(str(source)) as input_, av.open(str(path), "w") as output:
        video = input_.streams.video[0]
        stream: Any = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        if codec in ("libx264", "libx265"):
            stream.codec_context.options = {"preset": "veryfast"}
        if rotation := options.pop("rotation", 0):
            stream.set_display_rotation(rotation)
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        for number, frame in enumerate(input_.decode(video)):
            changed = frame.reformat(stream.width, stream.height, stream.pix_fmt)
            changed.pts, changed.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(changed))
        output.mux(stream.encode(None))
    return path


def odd_files(folder: Path) -> list[Path]:
    """Draw videos that engines decode wrongly in other tools, or not at all."""
    clip = draw(folder / "odd.mp4", 60, height=240, width=320)
    h264, hevc = "libx264", "libx265"
    made = [
        encode(clip, folder / "odd.mkv", h264),
        encode(clip, folder / "odd.ts", h264),
        encode(clip, folder / "hevc.mp4", hevc),
        encode(clip, folder / "hevc10.mp4", hevc, pix_fmt="yuv420p10le"),
        encode(clip, folder / "vp9.webm", "libvpx-vp9"),
        encode(clip, folder / "vp8.webm", "libvpx"),
        encode(clip, folder / "h264-10.mp4", h264, pix_fmt="yuv420p10le"),
        encode(clip, folder / "h264-444.mp4", h264, pix_fmt="yuv444p"),
        encode(clip, folder / "h264-422.mp4", h264, pix_fmt="yuv422p"),
        encode(clip, folder / "mpeg4.avi", "mpeg4"),
        encode(clip, folder / "cropped.mp4", h264, width=318, height=238),
        encode(clip, folder / "odd-size.mp4", "libvpx-vp9", width=319, height=239),
        encode(clip, folder / "turned.mp4", h264, rotation=90),
        encode(clip, folder / "b-frames.mp4", h264, max_b_frames=7, gop_size=250),
        encode(clip, folder / "intra.mp4", h264, gop_size=1),
        encode(clip, folder / "bt709-full.mp4", h264, colorspace=1, color_range=2),
        encode(clip, folder / "bt2020.mp4", hevc, colorspace=9, pix_fmt="yuv420p10le"),
        encode(clip, folder / "uhd.mp4", h264, width=3840, height=2160),
    ]
    whole = made[0].read_bytes()
    for name, data in {
        "truncated.mkv": whole[: len(whole) // 2],
        "damaged.mkv": whole[: len(whole) // 2] + bytes(2000) + whole[len(whole) // 2 + 2000 :],
    }.items():
        (folder / name).write_bytes(data)
        made.append(folder / name)
    return [clip, *made]


def equality(folder: Path, device: str, files: Path | None) -> dict[str, Any]:
    """Compare each frame of odd files by the engines with the CPU's."""
    paths = odd_files(folder)
    if files is not None:
        paths += sorted(path for path in files.rglob("*") if path.is_file())

    def read(pool: DecoderPool, decoder: Any) -> tuple[list[Outcome], list[dict[int, Any]]]:
        frames: list[dict[int, Any]] = [{} for _ in paths]

        def note(number: int, chunk: Chunk) -> None:
            data = chunk.data.cpu().numpy() if isinstance(chunk.data, torch.Tensor) else chunk.data
            for row, index in enumerate(chunk.frame_index):
                digest = hashlib.sha256(np.ascontiguousarray(data[row]).tobytes()).hexdigest()
                frames[number][index] = (chunk.timestamps[row], chunk.format, digest)

        requests = [DecodeRequest(str(path), decoder=decoder, as_planes=True) for path in paths]
        outcomes = decoded(pool, requests, note, lambda number: frames[number].clear())
        return outcomes, frames

    with DecoderPool(num_cpus(), engines=NvdecLauncher(device)) as pool:
        outcomes, frames = read(pool, "nvdec")
        expected_outcomes, expected = read(pool, "pyav")
    wrong = [
        path.name
        for path, ours, theirs, one, other in zip(
            paths, frames, expected, outcomes, expected_outcomes, strict=True
        )
        if ours != theirs or (one.status, one.reason) != (other.status, other.reason)
    ]
    assert not wrong, f"frames differ from the CPU's: {wrong}"
    return {
        "files": len(paths),
        "frames": sum(map(len, frames)),
        "by nvdec": [
            path.name for path, one in zip(paths, outcomes, strict=True) if one.decoder == "nvdec"
        ],
        "by the CPU": {
            path.name: one.decoder_reason[:120]
            for path, one in zip(paths, outcomes, strict=True)
            if one.decoder == "pyav"
        },
    }


def extracted(
    folder: Path, name: str, rows: list[VideoRow], device: str, **settings: Any
) -> tuple[Path, Any]:
    """Extract rows into a new folder; return it and the report."""
    manifest = folder / f"{name}.csv"
    write_manifest(rows, manifest)
    report = extract(
        manifest,
        folder / name,
        ExtractSettings(weights="none", device=device, max_failures="100%", **settings),
    )
    return folder / name, report


def parity(folder: Path, device: str, clip: Callable[[str], Path], backbone: str) -> dict[str, Any]:
    """Compare features of odd files: engines, CPU, and RGB before the resize."""
    names = ("odd.mp4", "hevc10.mp4", "vp9.webm", "turned.mp4", "bt709-full.mp4", "mpeg4.avi")
    paths = [path for path in odd_files(folder) if path.name in names]
    rows = [VideoRow(video_id=path.name, path=str(path)) for path in paths]
    choices: dict[str, dict[str, Any]] = {
        "nvdec": {"decoder": "nvdec"},
        "pyav": {"decoder": "pyav"},
        "rgb": {"decoder": "pyav", "device": "cpu", "precision": "float32", "frame_stride": 10},
    }
    if device == "cpu":
        del choices["nvdec"]  # `extract` has no stand-in
    stores = {
        name: open_features(
            extracted(folder, name, rows, **{"device": device, "backbone": backbone, **settings})[0]
        )
        for name, settings in choices.items()
    }
    found: dict[str, Any] = {}
    for one, other in itertools.combinations(stores, 2):
        stride = 10 if other == "rgb" else 1
        cosines = {
            video_id: float(
                torch.cosine_similarity(
                    torch.from_numpy(stores[one][video_id].features[::stride].astype(np.float32)),
                    torch.from_numpy(stores[other][video_id].features.astype(np.float32)),
                ).min()
            )
            for video_id in stores[one]
            if len(stores[one][video_id].features[::stride])
            == len(stores[other][video_id].features)
        }
        worst = min(cosines, key=lambda name: cosines[name])
        found[f"{one} and {other}"] = {"least cosine": round(cosines[worst], 6), "of": worst}
    low = {key: value for key, value in found.items() if value["least cosine"] < MIN_COSINE}
    assert not low, found
    return found


def rates_of_extract(
    folder: Path,
    device: str,
    clip: Callable[[str], Path],
    sizes: Sequence[str],
    backbone: str,
    is_quick: bool,
) -> dict[str, Any]:
    """Measure `extract` with each decoder."""
    found: dict[str, Any] = {}
    for size in sizes[-2:]:
        copies = 2 if is_quick else {"720p": 64, "1080p": 32}[size]
        rows = [VideoRow(video_id=f"v{n}", path=str(clip(size))) for n in range(copies)]
        for decoder in ("pyav",) if device == "cpu" else ("nvdec", "pyav"):
            _, report = extracted(
                folder, f"{size}-{decoder}", rows, device, backbone=backbone, decoder=decoder
            )
            assert report.throughput is not None
            found[f"{size}, {decoder}"] = {
                "frames_per_second": report.throughput.frames_per_second,
                "frames": report.num_frames,
                "busy": report.throughput.busy,
            }
    return found


def memory(folder: Path, device: str, num_clips: int) -> dict[str, Any]:
    """Measure memory while thousands of short clips are decoded: it must not grow."""
    clip = draw(folder / "short.mp4", SHORT_FRAMES, height=240, width=320)
    request = DecodeRequest(str(clip), decoder="nvdec", as_planes=True)
    found = []
    with DecoderPool(1, engines=NvdecLauncher(device)) as pool:
        for _ in range(4):
            outcomes = decoded(pool, [request] * (num_clips // 4))
            assert {one.decoder for one in outcomes} == {"nvdec"}
            used = 0.0
            if device != "cpu":
                free, total = torch.cuda.mem_get_info(device)
                used = (total - free) / 2**20
            resident = max(map(_resident_mib, pool.pids))
            found.append({"GPU, MiB": round(used), "process, MiB": round(resident)})
    for name in found[0]:
        growth = found[-1][name] - found[1][name]
        assert growth <= 0.05 * found[1][name] + 64, (name, found)
    return {"clips": num_clips, "after each quarter": found}


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def killed(device: str, clip: Path) -> dict[str, Any]:
    """Kill the engines' process while it decodes: its files go to the CPU, the rest goes on."""
    request = DecodeRequest(str(clip), decoder="nvdec", as_planes=True)
    with DecoderPool(num_cpus(), engines=NvdecLauncher(device)) as pool:
        decoded(pool, [request])
        engines = max(pool.pids, key=_resident_mib)  # it alone has loaded PyTorch
        timer = threading.Timer(0.2, lambda: _kill(engines))
        timer.start()
        outcomes = decoded(pool, [request] * 40)
        timer.join()
        after = decoded(pool, [request] * 4)
    assert {one.status for one in (*outcomes, *after)} == {"ok"}
    assert {one.decoder for one in after} == {"nvdec"}, after
    release_worker()
    reasons = {one.decoder_reason for one in outcomes if one.decoder == "pyav"}
    assert reasons, "the process was not killed in time"
    return {"by the CPU": sum(one.decoder == "pyav" for one in outcomes), "why": sorted(reasons)}


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
