"""Stage two against the same work on data in memory, and against the same model from video.

    python benchmarks/train_temporal.py [--quick] [--only NAME ...] [--device cuda]

reading     epochs from the shards, and from features copied to memory, against the very same
            batches kept in memory
end_to_end  vit-b-vtn: an epoch of stage two against one of the whole network from video, on the
            same clips (a few batches, extrapolated), the backbone learning or frozen; and the
            inference of a whole video from features against that from its file
processes   the weights that two gloo processes make, against those of one with the whole batch

Features are random numbers of vit_base_patch16_224's shape, in float16; videos are drawn here.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch
from measure import finish, in_turn, spread
from torch import Tensor
from vtnpipe.extract.backbone import evaluation_transform
from vtnpipe.extract.create_backbone import create_module, default_preprocessing
from vtnpipe.manifests.feature_folder import FeatureFolder, write_extraction
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.shards import VideoPart, write_shard
from vtnpipe.temporal.batch import Batch
from vtnpipe.temporal.checkpoint import read_weights, save_weights
from vtnpipe.temporal.clips import ClipSampling, draw_clip
from vtnpipe.temporal.dataset import ClipDataset, EvenClips, Key, RandomClips
from vtnpipe.temporal.distributed import accelerated
from vtnpipe.temporal.feature_reader import FeatureReader, preload
from vtnpipe.temporal.inference import Scored
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.optim import Recipe
from vtnpipe.temporal.order import training_batches
from vtnpipe.temporal.presets import preset
from vtnpipe.temporal.progress import Progress
from vtnpipe.temporal.run_folder import RunFolder
from vtnpipe.temporal.train import Fit

from extract import draw

PRESET, NUM_CLASSES = "vit-b-vtn", 400
NUM_FRAMES, FPS, DIM = 250, 25, 768


def main() -> None:
    """Runs all of it, or what is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a minute, to try it; no result file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {"preset": PRESET}
    with TemporaryDirectory(prefix="vtnpipe-benchmark-") as folder:
        for name in arguments.only:
            print(f"== {name}", file=sys.stderr, flush=True)
            result[name] = PARTS[name](Path(folder), arguments.quick, arguments.device)
            print(json.dumps({name: result[name]}), file=sys.stderr, flush=True)
    if arguments.quick:
        print(json.dumps(result))
    else:
        finish("train_temporal", result)


def made_up_store(root: Path, num_videos: int) -> FeatureStore:
    """Features of so many videos of ten seconds, in one shard; a folder that is there stays."""
    folder = FeatureFolder(root)
    if not folder.extraction.exists():
        folder.shards.mkdir(parents=True)
        identity: dict[str, Any] = {
            "backbone": "vit_base_patch16_224",
            "feature_dtype": "float16",
            "precision": "float32",
        }
        identity |= {"weights_digest": "", "views": ["center"], "fps": None, "frame_stride": 1}
        write_extraction(folder, identity, row_shape=[DIM])
        folder.backbone.write_bytes(b"")
        generator = np.random.default_rng(0)
        parts = [
            VideoPart(
                video_id=f"v{number}",
                features=generator.standard_normal((NUM_FRAMES, DIM)).astype(np.float16),
                frame_index=np.arange(NUM_FRAMES),
                timestamps=np.arange(NUM_FRAMES) / FPS,
                status="ok",
            )
            for number in range(num_videos)
        ]
        write_shard(
            folder.shards / "000-00000.h5",
            parts,
            row_shape=(DIM,),
            dtype="float16",
            fingerprint=FeatureStore(root).extraction["fingerprint"],
            views=["center"],
            settings={},
        )
        rows = [
            VideoRow(
                video_id=part.video_id,
                path="/none",
                label=f"{number % 5}",
                split="val" if number % 4 == 3 else "train",
            )
            for number, part in enumerate(parts)
        ]
        write_manifest(rows, folder.manifest)
    return FeatureStore(root)


def fit_of(dataset: ClipDataset, accelerator: Any, folder: Path, **recipe: Any) -> Fit:
    """A fit of the preset's model, ready for its first step."""
    config = preset(PRESET).temporal_config(num_classes=NUM_CLASSES)
    model = TemporalClassifier(config)
    fit = Fit(
        model=model,
        config=config,
        train=dataset,
        validate=lambda network, should_stop: Scored(torch.zeros(len(dataset), NUM_CLASSES)),
        validation_targets=dataset.targets,
        save=lambda path: save_weights(model, path),
        class_names=[str(number) for number in range(NUM_CLASSES)],
        recipe=Recipe(**recipe),
        folder=RunFolder(folder),
        accelerator=accelerator,
    )
    fit._prepare()
    return fit


def train_epoch(fit: Fit) -> None:
    """An epoch of the fit's own loop, from its first step."""
    fit._train_epoch(Progress())


def on_device(batch: Batch, device: str) -> Batch:
    """A batch whose tensors are there."""
    there: dict[str, Any] = {
        name: value.to(device)
        for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    }
    return batch._replace(**there)


class InMemory(ClipDataset):
    """Batches that have been read before."""

    kept: dict[tuple[Key, ...], Batch]

    def batch(self, keys: Sequence[Key]) -> Batch:
        """A batch out of the dictionary `kept`."""
        return self.kept[tuple(keys)]

    __getitems__ = batch


def reading(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Seconds of an epoch of the fit's own loop, from three places in turn."""
    num_videos = 64 if is_quick else 320
    store = made_up_store(folder / "features", num_videos)
    video_ids = list(store)
    targets = torch.arange(num_videos) % NUM_CLASSES
    readers = {"shards": FeatureReader(store), "copied": preload(store, list(store), device)}
    datasets: dict[str, ClipDataset] = {
        name: ClipDataset(reader, video_ids, targets, RandomClips(), position_fps=25)
        for name, reader in readers.items()
    }
    in_memory = InMemory(readers["copied"], video_ids, targets, RandomClips(), position_fps=25)
    datasets["the same batches in memory"] = in_memory
    with accelerated(device, "float32") as accelerator:
        fits = {name: fit_of(data, accelerator, folder) for name, data in datasets.items()}
        fit = next(iter(fits.values()))
        in_memory.kept = {}
        for keys in training_batches(in_memory.lengths, fit.recipe.batch_size, seed=0, epoch=0):
            batch = datasets["copied"].batch(keys)
            in_memory.kept[tuple(keys)] = on_device(batch, device)
        seconds = in_turn(
            {name: partial(train_epoch, fit) for name, fit in fits.items()},
            rounds=1 if is_quick else 5,
        )
        alone = time.perf_counter()
        for kept in in_memory.kept:
            datasets["shards"].batch(kept)
        alone = time.perf_counter() - alone
    least = median(seconds["the same batches in memory"])
    return {
        "in memory over shards": round(least / median(seconds["shards"]), 3),
        "in memory over copied": round(least / median(seconds["copied"]), 3),
        "seconds an epoch": {name: spread(found) for name, found in seconds.items()},
        "seconds of reading the shards alone": round(alone, 4),
        "clips": num_videos,
    }


def end_to_end(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Seconds a clip in training, and seconds a video in inference."""
    store = made_up_store(folder / "features", 64 if is_quick else 320)
    num_clips = 1 if is_quick else 2
    video = draw(folder / "video.mp4", NUM_FRAMES)
    name = "vit_tiny_patch16_224" if is_quick else preset(PRESET).backbone
    backbone = create_module(name, pretrained=False).to(device)
    transform = evaluation_transform(default_preprocessing(backbone), device)
    config = preset(PRESET).temporal_config(num_classes=NUM_CLASSES)
    if is_quick:
        config = replace(config, feature_dim=192)
    temporal = TemporalClassifier(config).to(device)
    both = torch.nn.ModuleList([backbone, temporal])
    optimizer = torch.optim.SGD(both.parameters(), lr=1e-3, momentum=0.9)
    times = np.arange(NUM_FRAMES) / FPS

    def frames_of(chosen: np.ndarray) -> Tensor:
        images = decode(video, chosen)
        return transform.normalize(transform.resize(transform.upload(images))[:, 0])

    def train(is_frozen: bool) -> None:
        clips = [
            draw_clip(times, ClipSampling(), np.random.default_rng(n)) for n in range(num_clips)
        ]
        images = torch.cat([frames_of(chosen) for chosen in clips])
        with torch.set_grad_enabled(not is_frozen):
            features = backbone(images).unflatten(0, (num_clips, -1))
        positions = torch.tensor(np.stack(clips), device=device)
        logits = temporal(features, positions)
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros_like(logits[:, 0]).long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def infer_from_video() -> None:
        with torch.inference_mode():
            images = frames_of(np.arange(NUM_FRAMES))
            features = torch.cat([backbone(chunk) for chunk in images.split(32)])[None]
            temporal(features, torch.arange(NUM_FRAMES, device=device)[None])

    def infer_from_features(dataset: ClipDataset, model: torch.nn.Module) -> None:
        with torch.inference_mode():
            there = on_device(dataset.batch([(0, 0)]), device)
            model(there.inputs, there.positions, there.mask)

    video_ids = list(store)
    targets = torch.arange(len(video_ids)) % NUM_CLASSES
    with accelerated(device, "float32") as accelerator:
        reader = FeatureReader(store)
        dataset = ClipDataset(reader, video_ids, targets, RandomClips(), position_fps=25)
        whole = ClipDataset(reader, video_ids, targets, EvenClips(), position_fps=25)
        fit = fit_of(dataset, accelerator, folder)
        candidates: dict[str, Callable[[], None]] = {
            "stage two": partial(train_epoch, fit),
            "end to end": lambda: train(False),
            "end to end, backbone frozen": lambda: train(True),
        }
        seconds = in_turn(candidates, rounds=1 if is_quick else 3)
        both.eval()
        inference = in_turn(
            {
                "from features": lambda: infer_from_features(whole, fit.model.eval()),
                "from video": infer_from_video,
            },
            rounds=1 if is_quick else 3,
        )
    a_clip = {
        name: median(found) / (len(video_ids) if name == "stage two" else num_clips)
        for name, found in seconds.items()
    }
    return {
        "backbone": name,
        "end to end over stage two": round(a_clip["end to end"] / a_clip["stage two"], 1),
        "frozen over stage two": round(
            a_clip["end to end, backbone frozen"] / a_clip["stage two"], 1
        ),
        "inference from video over from features": round(
            median(inference["from video"]) / median(inference["from features"]), 1
        ),
        "seconds a clip": {name: round(found, 4) for name, found in a_clip.items()},
        "seconds a video of 250 frames": {n: spread(found) for n, found in inference.items()},
        "clips a batch": {"stage two": fit.recipe.batch_size, "end to end": num_clips},
    }


def decode(path: Path, chosen: np.ndarray) -> np.ndarray:
    """Frames [t, H, W, 3] of a file, by their number."""
    wanted = set(chosen.tolist())
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(video=0))
        return np.stack([f.to_ndarray(format="rgb24") for n, f in frames if n in wanted])


def processes(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """The largest differences of the weights that two processes make from those of one."""
    store = made_up_store(folder / "few", 40)
    options = "--dropout 0 --head-dropout 0 --epochs 2 --batch-size 10 --lr 0.01 --layers".split()
    options += ["1" if is_quick else "3"]
    launch = "-m torch.distributed.run --standalone --nproc-per-node".split()
    for count in (1, 2):
        run = folder / f"run-{count}"
        command = [sys.executable, *launch, str(count), "-m", "vtnpipe", "train-temporal"]
        command += [str(store.folder.root), str(run), *options, "--device", device]
        subprocess.run(command, check=True, stdout=sys.stderr)
    one, two = (read_weights(folder / f"run-{count}/last.safetensors") for count in (1, 2))
    difference = max(float((two[key] - tensor).abs().max()) for key, tensor in one.items())
    return {
        "largest difference of a weight": difference,
        "largest weight": max(float(tensor.abs().max()) for tensor in one.values()),
        "steps": 2 * 3,
        "batch_size": 10,
    }


PARTS = {"reading": reading, "end_to_end": end_to_end, "processes": processes}


if __name__ == "__main__":
    main()
