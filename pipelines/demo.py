"""`vtnpipe demo`: run all stages on generated videos whose classes differ only in frame order.

Each event (a scene that changes into another, a disc that grows) is written twice, forwards and
backwards in time. Both files contain the same frames, so that no model without temporal order can
distinguish the classes. The stages are extract, train-temporal, evaluate and report.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
import numpy.typing as npt
from rich.console import Console

from ..manifests.atomic import atomic_path
from ..manifests.errors import EXIT_OK
from ..manifests.manifest import VideoRow, write_manifest
from .console import say
from .evaluate import evaluate
from .extract import extract
from .extraction.settings import ExtractSettings
from .inference.evaluation import EvaluateSettings
from .options import settings_options
from .report import report as write_report
from .settings import at_least, check_settings, make_folder, option_name, setting
from .train_temporal import train_temporal
from .training.settings import TrainTemporalSettings

HEIGHT, WIDTH, NUM_FRAMES, FPS = 128, 160, 8, 4
LABELS = ("forwards", "backwards")
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of `vtnpipe demo`."""

    events: int = setting(
        90, help="Number of events, each written forwards and backwards.", check=at_least(6)
    )
    seeds: int = setting(3, help="Number of trainings of each model.", check=at_least(1))
    backbone: str = setting(
        "vit_tiny_patch16_224", help="Backbone; its weights are random.", metavar="NAME"
    )
    epochs: int | None = setting(
        None, help="Epochs per training; by default the recipe's.", check=at_least(1)
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Top-1 accuracy on the validation videos, one value per seed.

    Attributes:
        vtn: values of the VTN.
        mean_pooling: values of the baseline, which ignores the order of frames.
    """

    vtn: list[float]
    mean_pooling: list[float]

    @property
    def is_clear(self) -> bool:
        """Whether the VTN is far above chance, and the baseline near it."""
        vtn, baseline = statistics.mean(self.vtn), statistics.mean(self.mean_pooling)
        return vtn > 0.9 and abs(baseline - 1 / len(LABELS)) < 0.1


def demo(
    folder: str | Path, settings: DemoSettings | None = None, *, console: Console | None = None
) -> DemoReport:
    """Run all stages on generated videos.

    Args:
        folder: folder of videos, features and runs; stages that it already contains are resumed.
        settings: by default `DemoSettings()`.
        console: for progress and results; by default nothing is printed.
    """
    settings = settings or DemoSettings()
    console = console or Console(quiet=True)
    root = Path(folder)
    rows = write_videos(root / "videos", settings.events)
    manifest = root / "videos.csv"
    write_manifest(rows, manifest)
    say(
        console,
        f"{len(rows)} H.264 files of {NUM_FRAMES} frames in {root / 'videos'}:",
        "  a scene that changes into another, or a disc that grows, each forwards and backwards.",
        "  Both contain the same frames; the class is determined by their order alone.",
        f"\nvtnpipe extract {manifest} {root / 'features'} --backbone {settings.backbone} "
        "--weights none",
        "  The backbone is untrained, which is enough here: its features differ between images,",
        "  and the temporal model has to learn only their order.",
    )
    extract(
        manifest,
        root / "features",
        ExtractSettings(backbone=settings.backbone, weights="none"),
        console=console,
    )
    scores = {
        encoder: [_score(root, encoder, seed, settings, console) for seed in range(settings.seeds)]
        for encoder in ("longformer", "mean")
    }
    report = DemoReport(vtn=scores["longformer"], mean_pooling=scores["mean"])
    _print(report, console)
    run = root / "run-longformer-0"
    say(console, f"\nvtnpipe report {run}")
    write_report(run, console=console)
    return report


def _score(root: Path, encoder: str, seed: int, settings: DemoSettings, console: Console) -> float:
    """Train a model and return its top-1 accuracy on the validation videos."""
    options: dict[str, Any] = {"encoder": encoder}
    if settings.epochs is not None:
        options["epochs"] = settings.epochs
    run = root / f"run-{encoder}-{seed}"
    if seed == 0:
        arguments = " ".join(f"{option_name(name)} {value}" for name, value in options.items())
        say(
            console,
            f"\nvtnpipe train-temporal {root / 'features'} {run} {arguments}",
            f"and evaluate, with {settings.seeds} seeds:",
        )
    train_temporal(root / "features", run, TrainTemporalSettings(**options, seed=seed))
    report = evaluate(run, root / "features", EvaluateSettings(split="val"))
    top1 = report.values["top1"]
    assert top1 is not None
    say(console, f"{run.name}: top-1 {top1:.1%} of {report.counts.scored} videos")
    return top1


def write_videos(folder: Path, num_events: int) -> list[VideoRow]:
    """Draw events and write each to two files, unless these exist.

    Both files of an event are in the same split, so that the baseline cannot memorize a file.

    Args:
        folder: folder of the files.
        num_events: number of events; half of them are scene changes, half are growing discs.

    Returns:
        manifest rows of the splits train and val.
    """
    make_folder(folder)
    rows = []
    for number in range(num_events):
        generator = np.random.default_rng(number)
        draw, kind = ((_scene_change, "scene"), (_growth, "growth"))[number % 2]
        frames = list(draw(generator))
        split = "val" if number % 6 < 2 else "train"  # a third of each kind is for validation
        for label, ordered in zip(LABELS, (frames, frames[::-1]), strict=True):
            path = folder / f"{kind}-{number:03d}-{label}.mp4"
            if not path.exists():
                _encode(ordered, path)
            rows.append(
                VideoRow(video_id=path.stem, path=str(path.absolute()), label=label, split=split)
            )
    return rows


def _scene_change(generator: np.random.Generator) -> Iterator[Image]:
    """Yield frames of warm stripes, then, from a random frame on, of cold rings."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    phase, width = generator.uniform(0, 6), generator.uniform(7, 12)
    center_y, center_x = generator.uniform(30, 100), generator.uniform(40, 120)
    distance = np.hypot(y - center_y, x - center_x)
    stripes = _colored(np.sin(y / width + phase), (90, 40, 10), (150, 90, 60))
    rings = _colored(np.sin(distance / width), (10, 50, 90), (60, 100, 150))
    change = generator.integers(2, NUM_FRAMES - 1)
    for number in range(NUM_FRAMES):
        yield _finish(stripes if number < change else rings, generator)


def _growth(generator: np.random.Generator) -> Iterator[Image]:
    """Yield frames of a disc that is small, grows from a random frame on, and stays large."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    center_y, center_x = generator.uniform(50, 78), generator.uniform(60, 100)
    color, ground = generator.uniform(150, 250, 3), generator.uniform(20, 90, 3)
    start = generator.integers(1, NUM_FRAMES - 3)
    for number in range(NUM_FRAMES):
        radius = 8 + 44 * np.clip((number - start) / 3, 0, 1)
        is_inside = np.hypot(y - center_y, x - center_x) < radius
        yield _finish(np.where(is_inside[..., None], color, ground), generator)


def _colored(
    pattern: npt.NDArray[np.float64], amplitude: tuple[int, ...], mean: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Return an image [H, W, 3] of a pattern [H, W] in [-1, 1]."""
    return np.asarray(pattern[..., None] * np.array(amplitude) + np.array(mean))


def _finish(image: npt.NDArray[np.float64], generator: np.random.Generator) -> Image:
    """Return the image with noise, as uint8."""
    noisy = image + generator.normal(0, 6, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _encode(frames: list[Image], path: Path) -> None:
    """Write an H.264 file.

    Every frame is intra-coded with the same quantizer, so that its bytes do not depend on the order
    of frames.
    """
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        options = {"qp": "20", "preset": "veryfast"}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 1
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _print(report: DemoReport, console: Console) -> None:
    say(console, "\ntop-1 on validation videos mean   by seed")
    for name, scores in (
        ("VTN (Longformer)", report.vtn),
        ("mean pooling, same head", report.mean_pooling),
    ):
        by_seed = " ".join(f"{score:6.1%}" for score in scores)
        say(console, f"{name:24s} {statistics.mean(scores):6.1%}  {by_seed}")
    say(console, f"{'chance':24s} {1 / len(LABELS):6.1%}")
    if not report.is_clear:
        say(console, "The two are not far apart, which is not as it should be with the defaults.")


@click.command("demo")
@click.argument("folder", default="vtnpipe-demo")
@settings_options(DemoSettings)
def command(folder: str, console: Console, **options: Any) -> int:
    """Generate labeled videos in FOLDER (vtnpipe-demo), and run extract, train-temporal, evaluate
    and report on them.
    """
    demo(folder, DemoSettings(**options), console=console)
    return EXIT_OK
