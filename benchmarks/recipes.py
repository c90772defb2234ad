"""Recipes of stage two on sets of few videos: what the defaults learn, beside the alternatives.

Each made set is drawn from a known rule: a shift of the mean, the order of two halves, a short
event in a long video, many classes. The features have slow and fast noise. A seed draws the set,
and trains; 200 test videos are scored once. The paper's recipe, whose model has 60M parameters at
768 dimensions and 140M at 2048, is trained with one seed there, or not at all.

    python recipes.py [--quick] [--only SET] [--clips FOLDER --backbone NAME --weights FILE]
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import finish
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction.import_features import ImportSettings, import_features
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.inference.evaluation import EvaluateSettings
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings

NUM_SEEDS, NUM_VAL, NUM_TEST = 5, 40, 200
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "attentive": {"encoder": "attentive"},
    "mean": {"encoder": "mean"},
    "paper": {"recipe": "paper"},
}
PROBES = ("probe_mean", "probe_motion", "knn")
MAX_DIM_OF_PAPER, MAX_DIM_OF_ONE_SEED = 192, 768

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MadeSet:
    """Rule of a made set.

    Attributes:
        dim: D, dimensions of the features.
        num_frames: frames of each video.
        num_train: training videos.
        num_classes: number of classes.
        norm: mean norm of a frame's features.
        signal: adds a video's signal to its features [T, D]; takes generator, label, the classes'
            directions [2 C, D] and the features.
        strength: length of the directions, in units of the noise per dimension.
        fps: frames per second.
    """

    dim: int
    num_frames: int
    num_train: int
    num_classes: int
    norm: float
    signal: Callable[[np.random.Generator, int, Array, Array], None]
    strength: float
    fps: float = 8.0


def shift(generator: np.random.Generator, label: int, directions: Array, frames: Array) -> None:
    """Shift the mean of all frames."""
    frames += directions[label]


def order(generator: np.random.Generator, label: int, directions: Array, frames: Array) -> None:
    """Show two scenes, the second one after a random time; the label tells which comes first."""
    cut = int(generator.integers(len(frames) // 4, 3 * len(frames) // 4))
    frames[:cut] += directions[label]
    frames[cut:] += directions[1 - label]


def event(generator: np.random.Generator, label: int, directions: Array, frames: Array) -> None:
    """Show an event of 20 frames at a random time."""
    start = int(generator.integers(0, len(frames) - 20))
    frames[start : start + 20] += directions[label]


SETS = {
    "mean shift, 768, norm 1": MadeSet(
        dim=768, num_frames=24, num_train=300, num_classes=10, norm=1, signal=shift, strength=0.13
    ),
    "mean shift, 2048, norm 100": MadeSet(
        dim=2048, num_frames=16, num_train=200, num_classes=4, norm=100, signal=shift, strength=0.1
    ),
    "order, 192, norm 1": MadeSet(
        dim=192, num_frames=24, num_train=200, num_classes=2, norm=1, signal=order, strength=0.5
    ),
    "order, 768, norm 100": MadeSet(
        dim=768, num_frames=24, num_train=200, num_classes=2, norm=100, signal=order, strength=0.4
    ),
    "event of 20 s in 10 minutes, 192": MadeSet(
        dim=192,
        num_frames=600,
        num_train=60,
        num_classes=2,
        norm=1,
        signal=event,
        strength=1.0,
        fps=1.0,
    ),
    "40 classes of 6 videos, 192": MadeSet(
        dim=192, num_frames=16, num_train=240, num_classes=40, norm=1, signal=shift, strength=0.35
    ),
}


def write_set(made: MadeSet, seed: int, folder: Path) -> Path:
    """Draw a set and import it; return its feature folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    shape = (2 * made.num_classes, made.dim)
    directions = (made.strength * generator.standard_normal(shape)).astype(np.float32)
    counts = {"train": made.num_train, "val": NUM_VAL, "test": NUM_TEST}
    with (folder / "arrays.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "path", "label", "split"))
        for split, count in counts.items():
            for number in range(count):
                label = number % made.num_classes
                noise = generator.standard_normal((made.num_frames, made.dim))
                frames = (noise + generator.standard_normal(made.dim)).astype(np.float32)
                made.signal(generator, label, directions, frames)
                frames *= made.norm / np.sqrt(2 * made.dim)
                name = f"{split}{number}"
                np.save(folder / f"{name}.npy", frames)
                writer.writerow((name, f"{name}.npy", f"c{label:02d}", split))
    settings = ImportSettings(fps=made.fps, feature_dtype="float32")
    import_features(folder / "arrays.csv", folder / "features", settings)
    return folder / "features"


def write_splits(features: Path, seed: int, path: Path) -> Path:
    """Assign splits to a folder's videos, half of them for training; return the new manifest."""
    with (features / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    generator = np.random.default_rng(seed)
    for label in sorted({row["label"] for row in rows}):
        own = [row for row in rows if row["label"] == label]
        for place, number in enumerate(generator.permutation(len(own))):
            share = place / len(own)
            own[number]["split"] = "train" if share < 0.5 else "val" if share < 2 / 3 else "test"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def score(
    features: Path, run: Path, seed: int, recipe: str, manifest: Path | None = None
) -> dict[str, float]:
    """Train, and return top-1 on the test split of the model, and of its probes."""
    torch.set_num_threads(1)
    given: dict[str, Any] = {} if manifest is None else {"manifest": str(manifest)}
    train_temporal(features, run, TrainTemporalSettings(seed=seed, **given, **RECIPES[recipe]))
    report = evaluate(run, features, EvaluateSettings(split="test", bootstrap=0, **given))
    found = {recipe: report.values["top1"]}
    if recipe == "default":
        found |= {name: report.baselines[name].top1 for name in PROBES}  # type: ignore[union-attr]
    return found  # type: ignore[return-value]


def measure_made(arguments: tuple[str, int, bool]) -> tuple[str, dict[str, float]]:
    """Measure all recipes on one drawing of a made set."""
    name, seed, is_quick = arguments
    made = SETS[name]
    found: dict[str, float] = {}
    with TemporaryDirectory(prefix="vtnpipe-benchmark-") as folder:
        features = write_set(made, seed, Path(folder) / "set")
        for recipe in RECIPES:
            most = MAX_DIM_OF_ONE_SEED if seed == 0 else MAX_DIM_OF_PAPER
            if recipe == "paper" and (is_quick or made.dim > most):
                continue
            found |= score(features, Path(folder) / recipe, seed, recipe)
    return name, found


def measure_clips(arguments: tuple[str, int, bool]) -> tuple[str, dict[str, float]]:
    """Measure all recipes on one division of real clips."""
    features, seed, is_quick = arguments
    found: dict[str, float] = {}
    with TemporaryDirectory(prefix="vtnpipe-benchmark-") as folder:
        manifest = write_splits(Path(features), seed, Path(folder) / "splits.csv")
        for recipe in RECIPES:
            if recipe == "paper" and (is_quick or seed):
                continue
            found |= score(Path(features), Path(folder) / recipe, seed, recipe, manifest)
    return "real clips", found


def extract_clips(clips: Path, backbone: str, weights: str, folder: Path) -> Path:
    """Extract the clips below a folder of one sub-folder per class; return the feature folder."""
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "path", "label", "split"))
        for path in sorted(clips.glob("*/*.mp4")):
            writer.writerow((path.stem, path.absolute(), path.parent.name, "train"))
    settings = ExtractSettings(backbone=backbone, weights=weights, fps=8)
    extract(folder / "clips.csv", folder / "features", settings)
    return folder / "features"


def table(results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of each set and recipe."""
    found: dict[str, Any] = {}
    for name, cells in results.items():
        keys = {key: None for cell in cells for key in cell}
        row: dict[str, Any] = {}
        for key in keys:
            values = [cell[key] for cell in cells if key in cell]
            row[key] = {
                "mean": round(float(np.mean(values)), 3),
                "std": round(float(np.std(values)), 3),
                "seeds": len(values),
            }
        best = max(row[other]["mean"] for other in ("probe_mean", "mean"))
        row["default minus the better of mean probe and mean pooling"] = round(
            row["default"]["mean"] - best, 3
        )
        found[name] = row
    return found


def main() -> None:
    """Measure the sets, and print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=[*SETS, "real clips"])
    parser.add_argument("--clips", type=Path, help="folder of real clips, one sub-folder per class")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="none")
    options = parser.parse_args()
    seeds = range(1 if options.quick else NUM_SEEDS)
    names = [name for name in SETS if options.only in (None, name)]
    work: list[tuple[Any, tuple[str, int, bool]]] = [
        (measure_made, (name, seed, options.quick)) for seed in seeds for name in names
    ]
    with (
        TemporaryDirectory(prefix="vtnpipe-benchmark-") as temporary,
        ProcessPoolExecutor(2) as pool,
    ):
        if options.clips is not None and options.only in (None, "real clips"):
            features = extract_clips(
                options.clips, options.backbone, options.weights, Path(temporary)
            )
            work += [(measure_clips, (str(features), seed, options.quick)) for seed in seeds]
        results: dict[str, list[dict[str, float]]] = {}
        for future in [pool.submit(function, arguments) for function, arguments in work]:
            name, found = future.result()
            results.setdefault(name, []).append(found)
            print(json.dumps({name: found}), file=sys.stderr, flush=True)
    found = {"top-1 on test videos": table(results)}
    if options.quick or options.only:
        print(json.dumps(found))
    else:
        finish("recipes", found)


if __name__ == "__main__":
    main()
