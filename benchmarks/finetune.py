"""Finetuning: time of its stages, memory, and what it learns beyond frozen features.

    python benchmarks/finetune.py [--quick] [--only NAME ...] [--device cuda]

stages      vit_tiny: seconds per clip of 16 frames of decoding, augmentation, forward and backward,
            each alone; and how long a real run waits for clips, with two workers
memory      peak memory of a training step, with and without gradient checkpointing
textures    classes that are a horizontal and a vertical hatching, with an untrained backbone:
            stage two on its frozen features, and finetuning
demo        the demo's videos: stage two, and finetuning from its weights

All videos are synthetic.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import av
import numpy as np
import torch
from measure import finish, in_turn, spread
from rich.console import Console
from vtnpipe.extract.augmentation import Augmentation, default_short_sides
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.protocol import Chunk
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.extract.device import resolve_precision
from vtnpipe.manifests.feature_folder import FeatureSpec
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.pipelines.demo import write_videos
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.finetune import finetune
from vtnpipe.pipelines.inference.clip_reader import IndexedVideos, index_videos
from vtnpipe.pipelines.models.model_folder import NetworkConfig
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.finetune_settings import FinetuneSettings
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.clips import ClipSampling, draw_clip
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.presets import preset_like

from extract import draw

BACKBONE = "vit_tiny_patch16_224"
NUM_CLASSES, NUM_FRAMES, CLIP_FRAMES = 400, 250, 16
MEMORY_CLIPS = 4
HATCHING_BACKBONE = "test_vit"  # untrained convolutions would distinguish hatchings
HATCHING: dict[str, Any] = {
    "encoder": "mean",  # every frame tells the class
    "head_dim": 64,
    "head_dropout": 0.0,
    "optimizer": "adamw",
    "lr": 1e-3,
    "schedule": "cosine",
}


def main() -> None:
    """Run all parts, or the named ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="minutes, as a test; no result files")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one-step", choices=("plain", "checkpointing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_step:
        print(one_step(arguments.one_step == "checkpointing", arguments.device))
        return
    torch.manual_seed(0)
    with TemporaryDirectory(prefix="vtnpipe-benchmark-") as folder:
        for name in arguments.only:
            print(f"== {name}", file=sys.stderr, flush=True)
            result = PARTS[name](Path(folder), arguments.quick, arguments.device)
            if arguments.quick:
                print(json.dumps({name: result}))
            else:
                finish(f"finetune_{name}", result)


def fastest_precision(device: str) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 if the device has instructions for it, else float32."""
    precision, _ = resolve_precision("auto", device)
    return "bfloat16" if precision == "bfloat16" else "float32"


def untrained() -> VideoTransformerNetwork:
    """Return the backbone with a new temporal model, all parameters trainable."""
    from vtnpipe.extract.create_backbone import create_module, default_preprocessing

    backbone = create_module(BACKBONE, pretrained=False)
    temporal = TemporalClassifier(preset_like(192).temporal_config(num_classes=NUM_CLASSES))
    preprocessing = default_preprocessing(backbone).to_json()
    spec = FeatureSpec(backbone=BACKBONE, preprocessing=preprocessing)
    names = [str(number) for number in range(NUM_CLASSES)]
    config = NetworkConfig(spec=spec, temporal=temporal.config, class_names=names)
    network = VideoTransformerNetwork(backbone, temporal, config)
    network.unfreeze()
    return network


def stages(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Measure the seconds per clip of each stage, and a run's share of waiting for clips."""
    num_videos = 4 if is_quick else 40
    root = folder / "stages"
    root.mkdir()
    rows = []
    for number in range(num_videos):
        path = draw(root / f"{number}.mp4", NUM_FRAMES)
        for copy in range(1 if is_quick else 3):  # so that an epoch is long compared with its start
            split = "train" if number % 20 else "val"
            name, label = f"{number}-{copy}", str(number % 2)
            rows.append(VideoRow(video_id=name, path=str(path), label=label, split=split))
    write_manifest(rows, root / "m.csv")
    index = index_videos(root / "index.safetensors", rows, Console(quiet=True))
    videos = IndexedVideos(
        rows={row.video_id: row for row in rows}, index=index, sampling=Sampling()
    )
    requests = []
    for number, row in enumerate(rows[: 4 if is_quick else 16]):
        frame_index, times = videos.times(row.video_id)
        chosen = draw_clip(times, ClipSampling(), number)
        requests += videos.requests(row.video_id, frame_index[chosen])
    augment = Augmentation(
        size=(224, 224),
        short_sides=default_short_sides((224, 224)),
        flip=True,
        interpolation="bicubic",
    )
    images = torch.randint(0, 256, (CLIP_FRAMES, 240, 320, 3), dtype=torch.uint8)
    network = untrained().to(device).train()
    clip = torch.randint(0, 256, (1, CLIP_FRAMES, 3, 224, 224), dtype=torch.uint8, device=device)
    positions = torch.arange(CLIP_FRAMES, device=device)[None]
    passed: dict[str, torch.Tensor] = {}

    def decode() -> None:
        for _, event in pool.decode(requests):
            assert not isinstance(event, Chunk) or len(event.images)

    precision = fastest_precision(device)

    def forward() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(clip, positions)
        passed["loss"] = logits.float().logsumexp(-1).mean()

    with DecoderPool() as pool:
        seconds = in_turn(
            {
                "decode": decode,
                "augment": lambda: augment(images, 1),
                "forward": forward,
                "backward": lambda: passed["loss"].backward(),
            },
            rounds=2 if is_quick else 9,
        )
    seconds["decode"] = [spent / len(requests) for spent in seconds["decode"]]
    settings = FinetuneSettings(
        backbone=BACKBONE,
        weights="none",
        epochs=1 if is_quick else 2,
        batch_size=4,
        precision=precision,
        val_clips=1,
        num_workers=2,
        device=device,
    )
    report = finetune(root / "m.csv", root / "run", settings)
    one = {name: median(spent) for name, spent in seconds.items()}
    return {
        "seconds a clip": {name: spread(spent) for name, spent in seconds.items()},
        "share of decoding and augmentation": round(
            (one["decode"] + one["augment"]) / sum(one.values()), 3
        ),
        "a run's waiting for clips": report.training.last["waiting"],
        "a run's clips a second": report.training.last["videos_per_second"],
        "backbone": BACKBONE,
        "precision": precision,
        "num_workers": 2,
        "clips an epoch": sum(row.split == "train" for row in rows),
    }


def memory(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Measure the MiB that a step adds to a process with the model."""
    found = {}
    for kind in ("plain", "checkpointing"):
        command = [sys.executable, __file__, "--one-step", kind, "--device", device]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[kind] = json.loads(printed)
    return {
        "backbone": BACKBONE,
        "clips a step": MEMORY_CLIPS,
        "MiB of a step": {kind: round(one["mib"]) for kind, one in found.items()},
        "seconds of a step": {kind: round(one["seconds"], 2) for kind, one in found.items()},
        "memory, checkpointing over plain": round(
            found["checkpointing"]["mib"] / found["plain"]["mib"], 3
        ),
    }


def one_step(is_checkpointing: bool, device: str) -> str:
    """Return a training step's seconds and its peak memory beyond the model, as JSON."""
    network = untrained().to(device).train()
    if is_checkpointing:
        network.use_gradient_checkpointing()
    shape = (MEMORY_CLIPS, CLIP_FRAMES, 3, 224, 224)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    positions = torch.arange(CLIP_FRAMES, device=device).expand(MEMORY_CLIPS, -1)
    before = peak_mib(device)
    begun = time.perf_counter()
    network(frames, positions).logsumexp(-1).mean().backward()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    return json.dumps({"mib": peak_mib(device) - before, "seconds": seconds})


def peak_mib(device: str) -> float:
    """Return the peak memory of this process, or of the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10


def textures(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Measure the top-1 of an untrained backbone, frozen and finetuned, on hatchings."""
    rows = write_hatchings(folder / "hatchings", 40 if is_quick else 400)
    manifest, features = folder / "hatchings.csv", folder / "hatching-features"
    write_manifest(rows, manifest)
    extract(
        manifest,
        features,
        ExtractSettings(backbone=HATCHING_BACKBONE, weights="none", device=device),
    )
    frozen = train_temporal(
        features,
        folder / "hatching-frozen",
        TrainTemporalSettings(**HATCHING, epochs=10 if is_quick else 100, device=device),
    )
    finetuned = finetune(
        manifest,
        folder / "hatching-run",
        FinetuneSettings(
            **HATCHING,
            backbone=HATCHING_BACKBONE,
            weights="none",
            epochs=1 if is_quick else 30,
            warmup_epochs=0.5 if is_quick else 2,
            weight_decay=0.05,
            clip_frames=1,
            augment="no",
            device=device,
        ),
    )
    num_held_out = sum(row.split == "val" for row in rows)
    return {
        "backbone": HATCHING_BACKBONE,
        "top-1, frozen": {"best": frozen.best["top1"], "last": frozen.last["top1"]},
        "top-1, finetuned": {
            "best": finetuned.training.best["top1"],
            "last": finetuned.training.last["top1"],
        },
        "videos": {"training": len(rows) - num_held_out, "validation": num_held_out},
    }


def write_hatchings(folder: Path, num_videos: int) -> list[VideoRow]:
    """Write videos of 4 frames: a fine hatching over a random gradient, with noise.

    The phase of the hatching is different in each tile.
    """
    folder.mkdir()
    rows = []
    for number in range(num_videos):
        label = ("horizontal", "vertical")[number % 2]
        path = folder / f"{number:03d}.mp4"
        with av.open(str(path), "w") as container:
            options = {"qp": "18", "preset": "veryfast"}
            stream: Any = container.add_stream("libx264", rate=4, options=options)
            stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
            for time_, image in enumerate(_hatching(label, np.random.default_rng(number))):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = time_, Fraction(1, 4)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        split = "val" if number % 10 >= 6 else "train"
        rows.append(VideoRow(video_id=path.stem, path=str(path), label=label, split=split))
    return rows


def _hatching(label: str, generator: np.random.Generator) -> Iterator[np.ndarray]:
    y, x = np.mgrid[:128, :160]
    phase = np.kron(generator.uniform(0, 2 * np.pi, (8, 10)), np.ones((16, 16)))
    lines = 24 * np.sin(2 * np.pi * (y if label == "horizontal" else x) / 6 + phase)
    slope = generator.normal(0, 40, 2)
    ground = slope[0] * (y / 128 - 0.5) + slope[1] * (x / 160 - 0.5)
    still = generator.uniform(70, 180, 3) + (ground + lines)[..., None]
    for _ in range(4):
        yield np.clip(still + generator.normal(0, 12, still.shape), 0, 255).astype(np.uint8)


def demo(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Measure the top-1 of stage two, and of finetuning from its weights, on the demo's videos."""
    manifest, features, before = (folder / f"demo{end}" for end in (".csv", "-features", "-run"))
    write_manifest(write_videos(folder / "demo-videos", 12 if is_quick else 90), manifest)
    extract(manifest, features, ExtractSettings(backbone=BACKBONE, weights="none", device=device))
    epochs = 5 if is_quick else 45
    train_temporal(features, before, TrainTemporalSettings(epochs=epochs, device=device))
    found = {"stage two": evaluate(before, manifest).values["top1"]}
    settings = FinetuneSettings(
        from_=str(before),
        optimizer="adamw",
        lr=1e-5,
        augment="no",
        epochs=1 if is_quick else 2,
        precision=fastest_precision(device),
        device=device,
    )
    report = finetune(manifest, folder / "demo-finetuned", settings)
    found["finetuned, best"] = report.training.best["top1"]
    found["finetuned, last"] = report.training.last["top1"]
    return {"backbone": BACKBONE, "top-1": found, "lr": settings.lr, "epochs": settings.epochs}


PARTS = {"stages": stages, "memory": memory, "textures": textures, "demo": demo}


if __name__ == "__main__":
    main()
