"""Stage one against its parts, and against the usual loop.

    python benchmarks/extract.py [--quick] [--only NAME ...]

efficiency  extracted frames/s over those of the backbone alone, in as many processes and threads,
            on random input; the backbone is measured before and after each extraction
scaling     two workers of one thread over one
peer        over a loop as in most tools: one process, float32, timm's PIL transform frame by frame,
            batches of 32; the rate of --compile includes the compilation
memory      memory of a worker and its decoder processes in two hours of 1080p (PSS, which counts
            shared memory once)
million     a manifest of 1,000,000 rows; quick probes and the tasks' work are replaced by stubs

Videos are synthetic: moving shapes and noise, H.264, 25 frames/s. Each part has a result file.
"""

import argparse
import json
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import psutil
import torch
from measure import finish
from rich.console import Console
from vtnpipe.extract.backbone import load_backbone
from vtnpipe.extract.decode.quick_probe import QuickProbe
from vtnpipe.extract.task import TaskReport, set_num_threads
from vtnpipe.manifests.feature_folder import Extraction, FeatureFolder, read_extraction
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest
from vtnpipe.manifests.plan import PlannedRow, Task, read_plans
from vtnpipe.manifests.shards import VideoPart, write_shard
from vtnpipe.pipelines import extract as command
from vtnpipe.pipelines.dask_cluster.client import open_client
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction import planning
from vtnpipe.pipelines.extraction.planning import Plan, ProbedRow
from vtnpipe.pipelines.extraction.scheduler import run_on_each_worker
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.extraction.summary import FinishedRun, Throughput
from vtnpipe.pipelines.extraction.workers import Workers

FPS = 25
BACKBONE = "vit_small_patch16_224"
BARE_SECONDS = 30.0


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
    batch_size = read_plans(folder, read_extraction(folder).fingerprint)[0].batch_size
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
            "busy_at_end": throughput.busy_at_end,
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
    """Compare vtnpipe with the usual loop, on the same weights and videos."""
    paths = [draw(folder / f"short-{n}.mp4", 50, seed=n) for n in range(3 if is_quick else 20)]
    manifest = manifest_of(folder, "peer", paths)
    found: dict[str, Any] = {}
    features = {name: folder / f"peer-{name}" for name in ("auto", "float32", "compiled")}
    auto = run(manifest, features["auto"])
    state = features["auto"] / "backbone.safetensors"
    before = usual_loop(paths, state)
    float32 = run(manifest, features["float32"], precision="float32")
    after = usual_loop(paths, state)
    compiled = run(manifest, features["compiled"], compile=True)
    usual = mean((before[0], after[0]))
    store = open_features(features["auto"])
    stored = torch.from_numpy(np.concatenate([store[path.stem].features for path in paths]))
    cosines = torch.cosine_similarity(stored.float(), before[1])
    for name, throughput in (("auto", auto), ("float32", float32), ("compiled", compiled)):
        found[f"{name} over the usual loop"] = round(throughput.frames_per_second / usual, 2)
        found[f"{name} frames_per_second"] = throughput.frames_per_second
    return {
        **found,
        "usual loop frames_per_second": [round(before[0], 2), round(after[0], 2)],
        "precision auto": store.spec.precision,
        "least cosine": round(float(cosines.min()), 5),
    }


def usual_loop(paths: list[Path], state: Path) -> tuple[float, torch.Tensor]:
    """Decode, transform by PIL and compute in one process; return frames/s and features [N, D]."""
    import safetensors.torch
    import timm
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model(BACKBONE, num_classes=0).eval()
    model.load_state_dict(safetensors.torch.load_file(state))
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    features: list[torch.Tensor] = []
    start = time.perf_counter()
    with torch.inference_mode():
        for path in paths:
            batch: list[torch.Tensor] = []
            with av.open(str(path)) as container:
                for frame in container.decode(video=0):
                    batch.append(transform(frame.to_image()))
                    if len(batch) == 32:
                        features.append(model(torch.stack(batch)))
                        batch = []
            if batch:
                features.append(model(torch.stack(batch)))
    found = torch.cat(features)
    return len(found) / (time.perf_counter() - start), found


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


def remux(source: Path, path: Path, times: int) -> None:
    """Copy a file's packets so many times, one after the other."""
    with av.open(str(source)) as container:
        packets = [
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


@contextmanager
def sampled(samples: list[tuple[float, float]]) -> Iterator[None]:
    """Sample (seconds, MiB) of the worker with its decoder processes."""
    is_over = threading.Event()
    start = time.perf_counter()

    def sample() -> None:
        while not is_over.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    family = [process, *process.children()]
                    commands = [" ".join(one.cmdline()) for one in family[1:]]
                    if not any("vtnpipe.extract.decode.process" in command for command in commands):
                        continue
                    size = sum(one.memory_full_info().pss for one in family)
                    samples.append((time.perf_counter() - start, size / 2**20))
                except psutil.Error:
                    continue

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
        backbone="test_vit", weights="none", shard_frames=str(planning.TASK_FRAMES["cuda"])
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
            decoder="decord",
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
    "efficiency": efficiency,
    "scaling": scaling,
    "peer": peer,
    "memory": memory,
    "million": million,
}

if __name__ == "__main__":
    main()
