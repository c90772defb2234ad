"""Stage one against its parts, and against the usual loop.

    python benchmarks/extract.py [--quick] [--only NAME ...]

fed         with a stand-in for a GPU, a backbone that only waits, at 2,000 frames/s: extracted
            frames/s of one worker with two decoder processes over the lower of 2,000 and what two
            bare processes do that decode to RGB and resize
worker      CPU time per frame of a worker whose frames are decoded already
decoders    frames/s of one process that decodes to RGB: PyAV as here, PyAV's default conversion,
            decord
sampling    CPU time of the decoder processes for ten minutes of 720p, by --fps
efficiency  extracted frames/s over those of the backbone alone, in as many processes and threads,
            on random input; the backbone is measured before and after each extraction
scaling     two workers of one thread over one
peer        over a loop as in most tools (usual_loop.py), whole processes with their start
start       seconds from the command to the first features and to the end, three clips of 15 s
memory      memory of a worker and its decoder processes in two hours of 1080p (PSS, which counts
            shared memory once)
million     a manifest of 1,000,000 rows; quick probes and the tasks' work are replaced by stubs

Videos are synthetic: moving shapes and noise, H.264, 25 frames/s. Each part has a result file.
"""

import argparse
import contextlib
import itertools
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import psutil
import torch
from av.video.reformatter import VideoReformatter
from measure import finish, in_turn, spread
from rich.console import Console
from torchvision.transforms import v2
from vtnpipe.extract.backbone import Backbone, evaluation_transform, load_backbone
from vtnpipe.extract.batching import Batcher, StageTimer
from vtnpipe.extract.decode.frame_format import FrameFormat
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.limits import KEEP_FREED_MEMORY
from vtnpipe.extract.decode.protocol import Chunk, DecodeRequest, Selected
from vtnpipe.extract.decode.quick_probe import QuickProbe
from vtnpipe.extract.device import resolve_precision
from vtnpipe.extract.lanes import RowRequest, extract_rows
from vtnpipe.extract.preprocessing import Preprocessing
from vtnpipe.extract.task import TaskReport, set_num_threads
from vtnpipe.manifests.feature_folder import Extraction, FeatureFolder, read_extraction
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest
from vtnpipe.manifests.plan import PlannedRow, Task, read_plans
from vtnpipe.manifests.shards import VideoPart, write_shard
from vtnpipe.pipelines import extract as command
from vtnpipe.pipelines.dask_cluster.client import open_client
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction import planning
from vtnpipe.pipelines.extraction.planning import Plan
from vtnpipe.pipelines.extraction.probing import ProbedRow
from vtnpipe.pipelines.extraction.scheduler import run_on_each_worker
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.extraction.summary import FinishedRun, Throughput
from vtnpipe.pipelines.extraction.workers import Workers
from waiting_backbone import FRAMES_PER_SECOND, SIZE

FPS = 25
BACKBONE = "vit_small_patch16_224"
BARE_SECONDS = 30.0
HERE = Path(__file__).parent
VTNPIPE = str(Path(sys.executable).with_name("vtnpipe"))


def main() -> None:
    """Run all parts, or the named ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a minute, as a test; no result files")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--million", choices=MILLION, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.million:
        print(json.dumps(MILLION[arguments.million](arguments.folder)))
        return
    result: dict[str, Any] = {"backbone": BACKBONE}
    with TemporaryDirectory(prefix="vtnpipe-benchmark-") as folder:
        for name in arguments.only:
            print(f"== {name}", file=sys.stderr, flush=True)
            result[name] = PARTS[name](Path(folder), arguments.quick)
            if not arguments.quick:
                finish(f"extract_{name}", {"backbone": BACKBONE, name: result[name]})
    print(json.dumps(result))


def draw(
    path: Path, num_frames: int, *, height: int = 240, width: int = 320, seed: int = 0
) -> Path:
    """Encode moving shapes and noise, unless the file exists."""
    if path.exists():
        return path
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    noise = generator.integers(-12, 13, (8, height, width, 3), dtype=np.int16)
    phase, speed = generator.uniform(0, 6, 3), generator.uniform(0.03, 0.1, 3)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            waves = [
                np.sin(x * 0.05 * (k + 1) + y * 0.03 * (3 - k) + phase[k] + number * speed[k])
                for k in range(3)
            ]
            image = 128 + 90 * np.stack(waves, axis=-1) + noise[number % len(noise)]
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def manifest_of(folder: Path, name: str, paths: list[Path]) -> Path:
    """Write a manifest of videos."""
    rows = [VideoRow(video_id=path.stem, path=str(path)) for path in paths]
    write_manifest(rows, folder / f"{name}.csv")
    return folder / f"{name}.csv"


def run(manifest: Path, features: Path, **options: Any) -> Throughput:
    """Extract into a new folder, and return the throughput."""
    shutil.rmtree(features, ignore_errors=True)
    settings = ExtractSettings(**{"backbone": BACKBONE, "weights": "none", **options})
    report = extract(manifest, features, settings, console=Console(stderr=True))
    assert report.throughput is not None
    return report.throughput


def bare_rate(features: Path, num_workers: int, seconds: float) -> float:
    """Return frames/s of the backbone alone in so many processes of one thread."""
    folder = FeatureFolder(features)
    batch_size = read_plans(folder, read_extraction(folder).fingerprint)[0].computation.batch_size
    with open_client(num_workers=num_workers) as client:
        return sum(run_on_each_worker(client, bare_forward, features, 1, batch_size, seconds))


def bare_forward(features: Path, num_threads: int, batch_size: int, seconds: float) -> float:
    """Return frames/s of the module alone, in this process, on normalized input in its dtype."""
    set_num_threads("cpu", num_threads)
    folder = FeatureFolder(features)
    backbone = load_backbone(folder.backbone, read_extraction(folder).spec, "cpu")
    shape = (batch_size, *backbone.transform.preprocessing.input_size)
    inputs = torch.randn(shape).to(backbone.dtype)
    if backbone.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        backbone.module(inputs)
        start, num_batches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            backbone.module(inputs)
            num_batches += 1
    return num_batches * batch_size / (time.perf_counter() - start)


FED_SECONDS = 5.0  # of decoding by the bare processes, before and after each extraction


def fed(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Extract sets of videos with a backbone that only waits."""
    scale = 10 if is_quick else 1
    large = {"height": 720, "width": 1280}
    short = [draw(folder / f"short-{n}.mp4", 50, seed=n) for n in range(200 // scale)]
    clips = [draw(folder / f"clip-{n}.mp4", 350, seed=n) for n in range(30 // scale)]
    drawn, drawn_large = draw(folder / "drawn.mp4", 1000), draw(folder / "large.mp4", 250, **large)
    large_clips = [remux(drawn_large, folder / f"large-{n}.mp4", 1) for n in range(30 // scale)]
    sets: dict[str, list[Path]] = {
        "240p, one long video": [remux(drawn, folder / "hours.mp4", 20 // scale)],
        "240p, 30 clips of 14 s": clips,
        "240p, 200 clips of 2 s": short,
        "240p, a mix, one video 20 times the others": [
            *short,
            draw(folder / "twenty.mp4", 1000 // scale, seed=1),
        ],
        "720p, one long video": [remux(drawn_large, folder / "long.mp4", 30 // scale)],
        "720p, 30 clips of 10 s": large_clips,
    }
    found: dict[str, Any] = {}
    for name, paths in sets.items():
        manifest = manifest_of(folder, "fed", paths)
        before = bare_decoding(paths, FED_SECONDS / scale)
        cpu_seconds = time.process_time()
        throughput = run(
            manifest,
            folder / "fed",
            backbone="waiting_backbone:waiting",
            device="cpu",
            precision="float32",
            workers=1,
            threads=1,
            batch_size=128,
            decoder_processes=2,
        )
        cpu_seconds = time.process_time() - cpu_seconds
        after = bare_decoding(paths, FED_SECONDS / scale)
        bare = mean((before, after))
        num_frames = throughput.frames_per_second * throughput.seconds
        found[name] = {
            "over the lower of backbone and decoding": round(
                throughput.frames_per_second / min(FRAMES_PER_SECOND, bare), 3
            ),
            "frames_per_second": throughput.frames_per_second,
            "bare_decoding_before_and_after": [round(before, 1), round(after, 1)],
            "cpu_microseconds_per_frame_of_the_worker": round(1e6 * cpu_seconds / num_frames, 1),
            "busy": throughput.busy,
            "seconds_by_stage": throughput.seconds_by_stage,
        }
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    return found


def worker(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Measure the CPU time per frame of a worker, 240p, with frames that are decoded already."""
    torch.set_num_threads(1)
    num_chunks = 50 if is_quick else 600
    layout = FrameFormat(240, 320)
    shape = (8, 32, layout.num_bytes)
    slots = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def run(groups: Any) -> Iterator[tuple[Any, int, Any]]:
        lane, _ = groups.popleft()
        yield lane, 0, Selected(32 * num_chunks)
        for number in range(num_chunks):
            frames = list(range(32 * number, 32 * number + 32))
            times = [one / FPS for one in frames]
            yield lane, 0, Chunk(slots[number % len(slots)], layout, frames, times)
        yield lane, 0, Outcome(status="ok")

    found: dict[str, Any] = {}
    for interpolation in ("bilinear", "bicubic"):
        backbone = without_waiting(interpolation)
        timer = StageTimer()
        batcher = Batcher(backbone, 128, np.float16, timer=timer)
        request = RowRequest(name="v", request=DecodeRequest("v.mp4"))
        cpu_seconds, seconds = time.process_time(), time.perf_counter()
        deque(extract_rows([request], [[0]], SimpleNamespace(run=run), batcher), maxlen=0)  # type: ignore[arg-type]
        cpu_seconds = time.process_time() - cpu_seconds
        seconds = time.perf_counter() - seconds
        num_frames = 32 * num_chunks
        found[interpolation] = {
            "cpu_microseconds_per_frame": round(1e6 * cpu_seconds / num_frames, 1),
            "frames_per_second": round(num_frames / seconds),
            "of these microseconds": {
                stage: round(1e6 * spent / num_frames, 1) for stage, spent in timer.seconds.items()
            },
        }
    return found


def without_waiting(interpolation: str) -> Backbone:
    """Return a backbone of 32 pixels that gives each frame's mean color at once."""
    preprocessing = Preprocessing(
        input_size=(3, SIZE, SIZE),
        interpolation=interpolation,
        crop_pct=1.0,
        crop_mode="center",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return Backbone(
        module=lambda images: images.mean((2, 3)),
        transform=evaluation_transform(preprocessing, "cpu"),
        dtype=torch.float32,
    )


def environment() -> Any:
    """Return a context in which processes start with the environment of decoder processes."""
    return patch.dict(os.environ, KEEP_FREED_MEMORY)


def bare_decoding(paths: list[Path], seconds: float) -> float:
    """Return frames/s of two processes that decode to RGB and resize to the stand-in's input."""
    context = get_context("spawn")
    with environment(), ProcessPoolExecutor(2, mp_context=context) as pool:
        barrier = context.Manager().Barrier(2)
        rates = pool.map(
            decode_and_resize, [list(map(str, paths))] * 2, [seconds] * 2, [barrier] * 2
        )
        return sum(rates)


def decode_and_resize(paths: list[str], seconds: float, barrier: Any) -> float:
    """Decode and resize files, over and over, in one thread; return frames/s."""
    torch.set_num_threads(1)
    resize = v2.Resize(SIZE, v2.InterpolationMode.BILINEAR, antialias=True)
    num_frames = 0
    barrier.wait()
    start = time.perf_counter()
    for path in itertools.cycle(paths):
        frames = decoded(path, "kept")
        while images := list(itertools.islice(frames, 32)):
            resize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
            num_frames += len(images)
            if time.perf_counter() - start > seconds:
                return num_frames / (time.perf_counter() - start)
    raise AssertionError


def decoded(path: str, how: str) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the frames of a file as RGB, [H, W, 3] uint8, by one thread.

    Args:
        path: path of the file.
        how: `kept` (PyAV with one kept scaler in one thread, as in stage one), `default` (PyAV's
            own conversion, which starts threads for every frame), or `decord`.
    """
    if how == "decord":
        sys.modules["nvidia"] = None  # type: ignore[assignment]  # it would load CUDA's libraries
        import decord

        reader = decord.VideoReader(path, num_threads=1)
        for _ in range(len(reader)):
            yield reader.next().asnumpy()
        return
    reformatter = VideoReformatter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        for frame in container.decode(stream):
            if how == "default":
                yield frame.to_ndarray(format="rgb24")
            else:
                yield reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def decoders(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Compare decoders, in turn, in as many processes as there are cores."""
    rounds = 1 if is_quick else 3
    found: dict[str, Any] = {}
    for height, num_copies in ((240, 50), (720, 12), (1080, 6)):
        drawn = draw(folder / f"{height}p.mp4", 50, height=height, width=height * 16 // 9 // 2 * 2)
        path = remux(drawn, folder / f"{height}p-long.mp4", 1 if is_quick else num_copies)
        rates: dict[str, list[float]] = {"kept": [], "default": [], "decord": []}
        for _ in range(rounds):
            for how, of_how in rates.items():
                of_how.append(decoding_rate(path, how))
        names = {"kept": "PyAV", "default": "PyAV, default conversion", "decord": "decord"}
        best = {names[how]: round(median(of_how), 1) for how, of_how in rates.items()}
        found[f"{height}p"] = {
            "frames_per_second": best,
            "PyAV over decord": round(best["PyAV"] / best["decord"], 2),
            "PyAV over its default conversion": round(
                best["PyAV"] / best["PyAV, default conversion"], 2
            ),
        }
        print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def decoding_rate(path: Path, how: str, num_processes: int = 2) -> float:
    """Return frames/s of several processes that decode the same file."""
    context = get_context("spawn")
    with environment(), ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        barrier = context.Manager().Barrier(num_processes)
        tasks = [pool.submit(_decode_all, str(path), how, barrier) for _ in range(num_processes)]
        return sum(task.result() for task in tasks)


def _decode_all(path: str, how: str, barrier: Any) -> float:
    next(decoded(path, how))  # loads the libraries
    barrier.wait()
    start = time.perf_counter()
    num_frames = sum(1 for _ in decoded(path, how))
    return num_frames / (time.perf_counter() - start)


def sampling(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Extract one video at several rates: all frames are decoded, those taken are converted."""
    seconds = 20 if is_quick else 600
    drawn = draw(folder / "sampling-drawn.mp4", 10 * FPS, height=720, width=1280)
    video = remux(drawn, folder / "sampling.mp4", seconds // 10)
    manifest = manifest_of(folder, "sampling", [video])
    found = {}
    for fps in (None, 8.0, 2.0, 1.0):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(manifest, folder / "sampling", backbone="test_vit", fps=fps)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found[f"{fps or FPS:g}"] = round(cpu_seconds, 1)
    return {"video_seconds": seconds, "cpu_seconds_by_fps": found}


def efficiency(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Measure sets of videos; the backbone alone is measured before and after each extraction."""
    scale = 20 if is_quick else 1
    short = [draw(folder / f"short-{n}.mp4", 50, seed=n) for n in range(100 // scale)]
    num_mixed = 40 // scale
    mixes = {
        "one long video": [draw(folder / "long.mp4", 2250 // scale)],
        "clips of 2 s": short,
        "a mix, one video 20 times the others": [
            *short[:num_mixed],
            draw(folder / "twenty.mp4", 1000 // scale, seed=1),
        ],
        "720p": [draw(folder / "720p.mp4", 1250 // scale, height=720, width=1280)],
    }
    features = folder / "efficiency"
    run(manifest_of(folder, "first", short[:5]), features, workers=2, threads=1)
    bare_seconds = BARE_SECONDS / scale
    before = bare_rate(features, 2, bare_seconds)
    found: dict[str, Any] = {}
    for name, paths in mixes.items():
        throughput = run(manifest_of(folder, "mix", paths), features, workers=2, threads=1)
        after = bare_rate(features, 2, bare_seconds)
        found[name] = {
            "efficiency": round(throughput.frames_per_second / mean((before, after)), 3),
            "frames_per_second": throughput.frames_per_second,
            "bare_before_and_after": [round(before, 2), round(after, 2)],
            "busy": throughput.busy,
            "seconds_by_stage": throughput.seconds_by_stage,
        }
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
        before = after
    return found


def scaling(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Compare two workers of one thread with one, which is measured before and after."""
    paths = [draw(folder / f"short-{n}.mp4", 50, seed=n) for n in range(3 if is_quick else 20)]
    manifest = manifest_of(folder, "scaling", paths)
    rates = [
        run(manifest, folder / "scaling", workers=workers, threads=1).frames_per_second
        for workers in (1, 2, 1)
    ]
    return {
        "two workers over one": round(rates[1] / mean((rates[0], rates[2])), 3),
        "frames_per_second": rates,
    }


def peer(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Compare vtnpipe with the usual loop on the same videos: whole processes, in turn."""
    num_frames = 355 // (10 if is_quick else 1)
    paths = [draw(folder / f"peer-{n}.mp4", num_frames, seed=n) for n in range(4)]
    manifest = manifest_of(folder, "peer", paths)
    extract_command = [VTNPIPE, "extract", str(manifest), str(folder / "peer"), "--quiet"]
    extract_command += ["--backbone", BACKBONE, "--weights", "none", "--precision"]
    commands = {
        "auto": [*extract_command, "auto"],
        "float32": [*extract_command, "float32"],
        "usual loop": [sys.executable, str(HERE / "usual_loop.py"), BACKBONE, *map(str, paths)],
    }

    def seconds_of(command: list[str]) -> float:
        shutil.rmtree(folder / "peer", ignore_errors=True)
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    seconds = in_turn(
        {name: partial(seconds_of, command) for name, command in commands.items()},
        1,
        warm_up=False,
    )
    usual = median(seconds["usual loop"])
    return {
        **{
            f"{name}, times as fast as the usual loop": round(usual / median(seconds[name]), 2)
            for name in ("auto", "float32")
        },
        "seconds": {name: spread(of_name) for name, of_name in seconds.items()},
        "precision auto": resolve_precision("auto", "cpu")[0],
    }


def start(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Measure a run over three clips of 15 s with a small backbone, from the command on."""
    paths = [draw(folder / f"start-{n}.mp4", 15 * FPS, seed=n) for n in range(3)]
    manifest = manifest_of(folder, "start", paths)
    features = folder / "start"
    command = [VTNPIPE, "extract", str(manifest), str(features), "--backbone", "test_vit"]
    first, whole = [], []
    for _ in range(1 if is_quick else 5):
        shutil.rmtree(features, ignore_errors=True)
        begun = time.perf_counter()
        process = subprocess.Popen([*command, "--weights", "none", "--quiet"])
        while not list(features.glob("shards/*.h5")) and process.poll() is None:
            time.sleep(0.01)
        first.append(time.perf_counter() - begun)
        process.wait()
        whole.append(time.perf_counter() - begun)
    return {"seconds_to_first_features": spread(first), "seconds_to_the_end": spread(whole)}


def memory(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Measure a worker and its decoder processes in the middle of two hours of 1080p."""
    seconds = 1 if is_quick else 10
    drawn = draw(folder / "seconds.mp4", seconds * FPS, height=1080, width=1920)
    hours = folder / "two-hours.mp4"
    remux(drawn, hours, 720)
    manifest = folder / "memory.csv"
    start = 360.0 * seconds
    row = VideoRow(video_id="stretch", path=str(hours), start=start, end=start + 20.0 * seconds)
    write_manifest([row], manifest)
    samples: list[tuple[float, float]] = []
    with sampled(samples):
        throughput = run(manifest, folder / "memory", backbone="vit_tiny_patch16_224", workers=1)
    sizes = [size for _, size in samples]
    steady = sizes[len(sizes) // 4 :]
    half = len(steady) // 2
    return {
        "file_gib": round(hours.stat().st_size / 2**30, 2),
        "frames": round(throughput.frames_per_second * throughput.seconds),
        "frames_per_second": throughput.frames_per_second,
        "peak_mib": round(max(sizes)),
        "steady_mib_first_and_second_half": [
            round(mean(steady[:half])),
            round(mean(steady[half:])),
        ],
        "samples": len(sizes),
    }


def remux(source: Path, path: Path, times: int) -> Path:
    """Copy a file's packets so many times, one after the other; return the path of the copy."""
    with av.open(str(source)) as container:
        packets: list[Any] = [
            (bytes(p), p.pts, p.dts, p.duration, p.is_keyframe, p.time_base)
            for p in container.demux(video=0)
            if p.size
        ]
        span = sum(packet[3] for packet in packets)
        with av.open(str(path), "w") as output:
            stream = output.add_stream_from_template(container.streams.video[0])
            for number in range(times):
                for data, pts, dts, duration, is_keyframe, time_base in packets:
                    packet = av.Packet(data)
                    packet.pts, packet.dts = pts + number * span, dts + number * span
                    packet.duration, packet.time_base = duration, time_base
                    packet.is_keyframe, packet.stream = is_keyframe, stream
                    output.mux(packet)
    return path


@contextmanager
def sampled(samples: list[tuple[float, float]]) -> Iterator[None]:
    """Sample (seconds, MiB) of the worker with its decoder processes."""
    is_over = threading.Event()
    start = time.perf_counter()

    def sample() -> None:
        while not is_over.wait(0.5):
            with contextlib.suppress(psutil.Error):  # a single worker is a thread of this process
                family = [psutil.Process(), *psutil.Process().children(recursive=True)]
                size = sum(one.memory_full_info().pss for one in family)
                samples.append((time.perf_counter() - start, size / 2**20))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


NUM_ROWS, NUM_FILES, NUM_DONE = 1_000_000, 1000, 0.99


def million(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Measure seconds and peak memory of each step, in a process of its own."""
    folder = folder / "million"
    (folder / "videos").mkdir(parents=True)
    for number in range(NUM_FILES):
        (folder / f"videos/{number}.mp4").write_bytes(b"video")
    num_rows = NUM_ROWS // (100 if is_quick else 1)
    rows = (
        VideoRow(
            video_id=f"some/class/{number:07d}",
            path=str(folder / f"videos/{number % NUM_FILES}.mp4"),
            label=f"class {number % 400}",
            split="train",
        )
        for number in range(num_rows)
    )
    write_manifest(rows, folder / "videos.csv")
    found: dict[str, Any] = {"rows": num_rows}
    for step in MILLION:
        command = [sys.executable, __file__, "--million", step, "--folder", str(folder)]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[step] = json.loads(ran.stdout.splitlines()[-1])
    return found


def read_step(folder: Path) -> dict[str, Any]:
    """Read the manifest."""
    start = time.perf_counter()
    read_manifest(folder / "videos.csv")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gib": peak_gib()}


def plan_step(folder: Path) -> dict[str, Any]:
    """Plan the manifest, and write the shards of 99% of the tasks, which is not timed."""
    return extract_with_stubs(folder, NUM_DONE)


def resume_step(folder: Path) -> dict[str, Any]:
    """Resume the extraction, and write the other shards."""
    return extract_with_stubs(folder, 1.0)


def extract_with_stubs(folder: Path, share: float) -> dict[str, Any]:
    """Run `extract` without decoding, and write the shards of a share of the tasks."""
    probe = QuickProbe("mov,mp4,m4a,3gp,3g2,mj2", "h264", 320, 240, 25.0, 250, 10.0, "index")
    spent = 0.0
    details: dict[str, Any] = {}
    workers = Workers(
        device="cpu", num_workers=2, num_threads=1, num_decoder_processes=1, description="stubs"
    )

    def probe_rows(rows: list[PlannedRow], *arguments: Any, **options: Any) -> list[ProbedRow]:
        return [ProbedRow(row=row._replace(num_frames=250), probe=probe) for row in rows]

    def run_tasks(tasks: list[Task], plan: Plan, *arguments: Any) -> FinishedRun:
        nonlocal spent
        start = time.perf_counter()
        done = tasks[: round(len(tasks) * share)]
        features = plan.store.folder
        extraction = read_extraction(features)
        for task in done:
            write_stub(task, features, extraction)
        sizes = [len(pickle.dumps(task)) for task in tasks]
        details.update(tasks=len(tasks), largest_task_bytes=max(sizes))
        spent = time.perf_counter() - start
        reports = [TaskReport(task=task.name, num_frames=len(task.rows), end=1.0) for task in done]
        return FinishedRun(reports=reports, seconds=1.0, workers=workers)

    settings = ExtractSettings(
        backbone="test_vit", weights="none", shard_frames=str(16 * planning.TASK_FRAMES["cuda"])
    )
    start = time.perf_counter()
    with (
        patch.object(planning, "probe_rows", probe_rows),
        patch.object(command, "_run", run_tasks),
    ):
        extract(folder / "videos.csv", folder / "features", settings)
    seconds = time.perf_counter() - start - spent
    return {"seconds": round(seconds, 1), "peak_gib": peak_gib(), **details}


def write_stub(task: Task, features: FeatureFolder, extraction: Extraction) -> None:
    """Write a shard of the task's videos with one frame each."""
    row_shape = extraction.row_shape
    parts = [
        VideoPart(
            video_id=row.video_id,
            features=np.zeros((1, *row_shape), np.float16),
            frame_index=np.zeros(1, np.int64),
            timestamps=np.zeros(1),
            status="ok",
            decoder="pyav",
        )
        for row in task.rows
    ]
    write_shard(
        task.shard(features),
        parts,
        row_shape=row_shape,
        dtype="float16",
        fingerprint=extraction.fingerprint,
        views=["center"],
        settings={},
    )


def peak_gib() -> float:
    """Return the peak memory of this process."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


MILLION = {"read": read_step, "plan": plan_step, "resume": resume_step}
PARTS = {
    "fed": fed,
    "worker": worker,
    "decoders": decoders,
    "sampling": sampling,
    "start": start,
    "efficiency": efficiency,
    "scaling": scaling,
    "peer": peer,
    "memory": memory,
    "million": million,
}

if __name__ == "__main__":
    main()
