"""Stage two against training on batches in memory, and against training from video.

    python benchmarks/train_temporal.py [--quick] [--only NAME ...] [--device cuda]

loader      clips/s of the loader alone, from an array in RAM of 100,000 videos of 250 frames,
            against a loop over clips; and of an epoch of a small model on them
reading     an epoch from the shards, and from features copied to memory, against the same batches
            kept in memory
end_to_end  vit-b-vtn: an epoch of stage two against one of the whole network from video, on clips
            of the same shape (a few batches, extrapolated), with a trained or frozen backbone; and
            inference of a whole video from its features against that from its file
processes   the weights after a training in two gloo processes, against those of one process

Features are random, of vit_base_patch16_224's shape, in float16; videos are synthetic.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from vtnpipe.manifests.feature_folder import (
    Extraction,
    FeatureFolder,
    FeatureSpec,
    write_extraction,
)
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.shards import VideoPart, write_shard
from vtnpipe.temporal.checkpoint import RunFolder, read_weights
from vtnpipe.temporal.clips import ClipSampling, draw_clip
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.dataset import (
    Batch,
    ClipDataset,
    EvenClips,
    Keys,
    RandomClips,
    training_batches,
)
from vtnpipe.temporal.distributed import accelerated
from vtnpipe.temporal.feature_reader import FeatureReader, preload
from vtnpipe.temporal.inference import Scored
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.optim import FEATURES, Recipe
from vtnpipe.temporal.presets import preset
from vtnpipe.temporal.train import Callbacks, EpochReport, Validation, train

from extract import draw

PRESET, NUM_CLASSES = "vit-b-vtn", 400
NUM_FRAMES, FPS, DIM = 250, 25, 768
SMALL_DIM = 192
RECIPE = Recipe()


def main() -> None:
    """Run all parts, or the named ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a minute, as a test; no result file")
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
    """Write features of so many videos of ten seconds in one shard, unless the folder exists."""
    folder = FeatureFolder(root)
    if not folder.extraction.exists():
        folder.shards.mkdir(parents=True)
        spec = FeatureSpec(
            backbone="vit_base_patch16_224", feature_dtype="float16", precision="float32"
        )
        write_extraction(
            folder,
            Extraction(spec=spec, fingerprint=spec.fingerprint, row_shape=(DIM,), weights="none"),
        )
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
            fingerprint=spec.fingerprint,
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """Training of a model on a data set."""

    model: TemporalClassifier
    dataset: ClipDataset
    accelerator: Any
    recipe: Recipe = RECIPE

    def epoch(self) -> float:
        """Train one epoch; return its seconds without validation and checkpoint."""
        reports: list[EpochReport] = []
        config, targets = self.model.config, self.dataset.targets
        assert isinstance(targets, Tensor)
        scored = Scored(torch.zeros(len(targets), config.num_classes))
        names = [str(number) for number in range(config.num_classes)]
        validation = Validation.of(scored, targets, names, config)
        with TemporaryDirectory(prefix="vtnpipe-benchmark-") as run:
            train(
                self.model,
                config,
                self.dataset,
                replace(self.recipe, epochs=1),
                RunFolder(Path(run)),
                self.accelerator,
                validate=lambda network, should_stop: validation,
                save=lambda path: None,
                callbacks=Callbacks(on_epoch=reports.append),
            )
        return len(self.dataset) / reports[0].videos_per_second


def new_training(dataset: ClipDataset, accelerator: Any) -> Training:
    """Return a training of the preset's temporal model."""
    model = TemporalClassifier(preset(PRESET).temporal_config(num_classes=NUM_CLASSES))
    return Training(model=model, dataset=dataset, accelerator=accelerator)


def on_device(batch: Batch, device: str) -> Batch:
    """Copy a batch to a device."""
    there: dict[str, Any] = {
        name: value.to(device)
        for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    }
    return batch._replace(**there)


class InMemory(ClipDataset):
    """Batches that were read before."""

    kept: dict[bytes, Batch]

    def batches(self, batches: Sequence[Keys]) -> Iterator[Batch]:
        """Yield batches of the dictionary `kept`."""
        for keys in batches:
            yield self.kept[keys.tobytes()]


class InOneArray(FeatureReader):
    """Features of videos of equal length in RAM, without a feature folder."""

    num_views = 1

    @classmethod
    def drawn(cls, num_videos: int) -> "InOneArray":
        """Draw one frame, and repeat it."""
        table = torch.empty(num_videos * NUM_FRAMES, SMALL_DIM, dtype=torch.float16)
        table[:] = torch.randn(SMALL_DIM)
        starts = {f"v{n}": n * NUM_FRAMES for n in range(num_videos)}
        return cls(None, table, starts)  # type: ignore[arg-type]

    def times(self, video_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Return frame_index and timestamps of any video."""
        return np.arange(NUM_FRAMES), np.arange(NUM_FRAMES) / FPS


def loader(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Measure clips/s of the loader, and of an epoch of a small model."""
    num_videos, num_batches = (2_000, 100) if is_quick else (100_000, 1_000)
    reader = InOneArray.drawn(num_videos)
    video_ids, targets = list(reader.starts), torch.arange(num_videos) % 5
    dataset = ClipDataset(reader, video_ids, targets, RandomClips(), position_fps=FPS)
    begun = time.perf_counter()
    batches = training_batches(dataset.lengths, RECIPE.batch_size, seed=0, epoch=0)
    seconds_to_begin = time.perf_counter() - begun
    batches = batches[:num_batches]
    table = reader.table
    assert table is not None

    def loop_over_clips() -> None:
        for keys in batches:
            clips, positions = [], []
            for number, epoch in keys.tolist():
                times = reader.times(video_ids[number])[1]
                frames = draw_clip(times, ClipSampling(), seed=epoch * num_videos + number)
                clips.append(table[number * NUM_FRAMES + torch.from_numpy(frames)])
                positions.append(torch.from_numpy(np.rint(times[frames] * FPS).astype(np.int64)))
            torch.stack(clips), torch.stack(positions), targets[keys[:, 0]]

    seconds = in_turn(
        {
            "the loader": lambda: deque(dataset.batches(batches), maxlen=0),
            "a loop over clips": loop_over_clips,
        },
        rounds=1 if is_quick else 3,
    )
    num_clips = sum(map(len, batches))
    config = TemporalConfig(
        feature_dim=SMALL_DIM, num_classes=5, encoder="mean", head_dim=SMALL_DIM
    )
    found = {name: round(num_clips / median(one)) for name, one in seconds.items()}
    epochs = {}
    with accelerated(device, "float32") as accelerator:
        for batch_size in (RECIPE.batch_size, 128):
            recipe = Recipe(**FEATURES, epochs=1, batch_size=batch_size)
            training = Training(
                model=TemporalClassifier(config),
                dataset=dataset,
                accelerator=accelerator,
                recipe=recipe,
            )
            epochs[f"batches of {batch_size}"] = round(num_videos / training.epoch())
    return {
        "the loader over a loop over clips": round(
            found["the loader"] / found["a loop over clips"], 1
        ),
        "clips/s": found,
        "clips/s of an epoch of a small model": epochs,
        "seconds until the first batch": round(seconds_to_begin, 2),
        "videos": num_videos,
    }


def reading(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Measure an epoch with features from three places, in turn."""
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
        trainings = {name: new_training(data, accelerator) for name, data in datasets.items()}
        in_memory.kept = {}
        lengths, seed = in_memory.lengths, RECIPE.seed
        batches = training_batches(lengths, RECIPE.batch_size, seed=seed, epoch=0)
        for keys in batches:
            batch = datasets["copied"].batch(keys)
            in_memory.kept[keys.tobytes()] = on_device(batch, device)
        seconds = in_turn(
            {name: training.epoch for name, training in trainings.items()},
            rounds=1 if is_quick else 5,
        )
        alone = time.perf_counter()
        deque(datasets["shards"].batches(batches), maxlen=0)
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
    """Measure seconds per clip in training, and seconds per video in inference."""
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
        return transform.normalize(transform(images)[:, 0])

    def train_from_video(is_frozen: bool) -> None:
        clips = [draw_clip(times, ClipSampling(), n) for n in range(num_clips)]
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
            model(*dataset.batch([(0, 0)]).on(torch.device(device)))

    video_ids = list(store)
    targets = torch.arange(len(video_ids)) % NUM_CLASSES
    with accelerated(device, "float32") as accelerator:
        reader = FeatureReader(store)
        dataset = ClipDataset(reader, video_ids, targets, RandomClips(), position_fps=25)
        whole = ClipDataset(reader, video_ids, targets, EvenClips(), position_fps=25)
        training = new_training(dataset, accelerator)
        candidates: dict[str, Callable[[], Any]] = {
            "stage two": training.epoch,
            "end to end": lambda: train_from_video(False),
            "end to end, backbone frozen": lambda: train_from_video(True),
        }
        seconds = in_turn(candidates, rounds=1 if is_quick else 3)
        both.eval()
        inference = in_turn(
            {
                "from features": lambda: infer_from_features(whole, training.model.eval()),
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
        "clips a batch": {"stage two": RECIPE.batch_size, "end to end": num_clips},
    }


def decode(path: Path, chosen: np.ndarray) -> np.ndarray:
    """Return frames [t, H, W, 3] of a file, by their number."""
    wanted = set(chosen.tolist())
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(video=0))
        return np.stack([f.to_ndarray(format="rgb24") for n, f in frames if n in wanted])


def processes(folder: Path, is_quick: bool, device: str) -> dict[str, Any]:
    """Compare the weights after training in two processes with those of one."""
    store = made_up_store(folder / "few", 40)
    options = "--recipe paper --dropout 0 --head-dropout 0 --epochs 2 --batch-size 10".split()
    options += ["--lr", "0.01", "--layers"]
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


PARTS = {"loader": loader, "reading": reading, "end_to_end": end_to_end, "processes": processes}


if __name__ == "__main__":
    main()
