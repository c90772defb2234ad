"""`vtnpipe train-temporal`: stage two, from a feature folder to a run folder; the same command
resumes.
"""

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from ..manifests.folder import locked
from ..temporal.choices import (
    ENCODERS,
    ClassWeights,
    Optimizer,
    PositionEmbedding,
    Precision,
    Preload,
    Schedule,
    Task,
)
from .figures import figure_text
from .options import above, at_least, between, check_settings, one_of_or_factory, setting
from .progress import say
from .runs import begin_run, check_root
from .stopping import StopOnSignals
from .training_log import TrainingLog

if TYPE_CHECKING:
    from ..manifests.store import FeatureStore
    from ..temporal.checkpoint import RunFolder
    from ..temporal.model import TemporalClassifier
    from ..temporal.processes import Accelerator
    from ..temporal.reader import FeatureReader
    from ..temporal.recipe import Recipe
    from .training import Splits

OF_THE_PRESET = "By default, the preset's."


@dataclass(frozen=True, kw_only=True)
class TrainTemporalSettings:
    """The settings of `vtnpipe train-temporal`; where a default is None, the preset decides."""

    preset: str = setting(
        "auto",
        help="vit-b-vtn, vit-b-vtn-1layer, deit-b-vtn, deit-ti-vtn, r50-vtn, r101-vtn; auto: the "
        "one with the features' backbone, else vit-b-vtn's shape on the features' dimensions.",
        metavar="NAME",
    )
    task: Task = setting(
        "classification", help="multi-label: labels are a|b; regression: labels are numbers."
    )
    encoder: str = setting(
        "longformer",
        help="full: exact attention; perceiver: transformers'; mean: sees no order; or your own.",
        check=one_of_or_factory(*ENCODERS),
        metavar=f"{'|'.join(ENCODERS)}|package.module:factory",
    )
    layers: int | None = setting(None, help=OF_THE_PRESET, check=at_least(1))
    heads: int | None = setting(None, help=OF_THE_PRESET, check=at_least(1))
    window: int = setting(18, help="Of the local attention, in frames; even, half to each side.")
    intermediate: int | None = setting(
        None, help=f"Dimensions inside each layer. {OF_THE_PRESET}", check=at_least(1)
    )
    head: str = setting(
        "mlp",
        help="The paper's, or your own.",
        check=one_of_or_factory("mlp"),
        metavar="mlp|package.module:factory",
    )
    head_dim: int | None = setting(
        None, help=f"Dimensions inside the head. {OF_THE_PRESET}", check=at_least(1)
    )
    position_embedding: PositionEmbedding = setting(
        "learned", help="sinusoidal: fixed; none: the encoder sees no positions."
    )
    max_positions: int = setting(
        288, help="Rows of the learned position embedding.", check=at_least(3)
    )
    positions: Literal["seconds", "frames"] = setting(
        "seconds", help="frames: a frame's position is its index, whatever its time."
    )
    position_fps: float = setting(25.0, help="Positions a second.", check=between(1e-3, 1e6))
    dropout: float = setting(0.1, help="In the encoder, attention included.", check=between(0, 1))
    head_dropout: float = setting(0.5, help="In the head.", check=between(0, 1))
    epochs: int = setting(25, help="Passes over the training split.", check=at_least(1))
    batch_size: int | None = setting(None, help=f"Clips a step. {OF_THE_PRESET}", check=at_least(1))
    optimizer: Optimizer = setting("sgd", help="SGD is the paper's.")
    lr: float = setting(1e-3, help="Learning rate at the start.", check=between(0, 1e30))
    momentum: float = setting(0.9, help="Of SGD.", check=between(0, 1))
    weight_decay: float = setting(0.0, help="Of either optimizer.", check=between(0, 1))
    schedule: Schedule | None = setting(
        None, help=f"steps: x0.1 at epoch 13 of 25, x0.01 at 24. {OF_THE_PRESET}"
    )
    warm_up_epochs: float = setting(
        0.0, help="In which the learning rate rises from a hundredth.", check=between(0, 1e6)
    )
    gradient_accumulation: int = setting(
        1, help="Parts that a batch is computed in: less memory, the same step.", check=at_least(1)
    )
    clip_gradients: float | None = setting(None, help="Largest norm of all.", check=above(0))
    label_smoothing: float = setting(0.0, help="Share for all classes.", check=between(0, 1))
    class_weights: ClassWeights = setting(
        "none", help="balanced: rare classes count as much as frequent ones."
    )
    precision: Precision = setting("float32", help="That the model is computed in.")
    patience: int | None = setting(
        None, help="Stop after so many epochs without a better figure.", check=at_least(1)
    )
    train_on: Literal["clips", "videos"] = setting(
        "clips", help="videos: every frame of each, as in evaluation."
    )
    clip_frames: int = setting(16, help="Frames of a training clip.", check=at_least(1))
    clip_seconds: float = setting(5.12, help="Its length.", check=between(0.01, 1e6))
    time_jitter: float = setting(
        0.0, help="Moves each frame of a clip by up to this share of a gap.", check=between(0, 1)
    )
    frame_drop: float = setting(
        0.0, help="Share of a clip's frames that is left out at random.", check=between(0, 1)
    )
    train_split: str = setting("train", help="The manifest's split to learn from.")
    val_split: str = setting("val", help="The split that decides which epoch is the best.")
    manifest: str | None = setting(
        None, help="Labels and splits; by default the features' own.", metavar="FILE"
    )
    drop_partial: bool = setting(False, help="Leave out videos with missing frames.")
    gradient_checkpointing: bool = setting(
        False, help="Less memory for long clips, for more time; the same weights."
    )
    preload: Preload = setting(
        "auto", help="Copy the features into memory, where half of what is free holds them."
    )
    loaders: int = setting(
        0, help="Processes that read ahead, where features are not copied.", check=at_least(0)
    )
    checkpoint_minutes: float = setting(
        10.0, help="Between checkpoints inside an epoch; each epoch has one.", check=at_least(0)
    )
    keep_checkpoints: int = setting(2, help="The newest that stay.", check=at_least(1))
    seed: int = setting(0, help="Of weights, clips and their order.", check=between(0, 2**31))
    device: str = setting("auto", help="Where to train.", metavar="auto|cpu|cuda|cuda:N")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """How a training ended: the line of its best epoch, from metrics.jsonl, and of its last."""

    best: dict[str, Any]
    last: dict[str, Any]


def train_temporal(
    features: str | Path,
    run: str | Path,
    settings: TrainTemporalSettings | None = None,
    *,
    console: Console | None = None,
) -> TrainReport:
    """Fits a temporal model on stored features; resumes what the run folder holds.

    Under `torchrun` or `accelerate launch`, all processes fit one model together.

    Args:
        features: a feature folder.
        run: the run folder; made if it is not there.
        settings: by default, `TrainTemporalSettings()`.
        console: for progress; by default, nothing is printed.

    Raises:
        VtnpipeError: features, manifest or a setting breaks a rule; nothing has been written then.
        StoppedError: a signal asked for it; the same call resumes.
    """
    import torch

    from ..extract.device import resolve_device
    from ..manifests.shards import open_features
    from ..temporal.checkpoint import RunFolder
    from ..temporal.clips import WHOLE, ClipSampling
    from ..temporal.dataset import ClipDataset, EvenClips, RandomClips
    from ..temporal.fit import Fit
    from ..temporal.metrics import METRICS
    from ..temporal.model import TemporalClassifier
    from ..temporal.processes import accelerated
    from ..temporal.progress import Keeping, Watch
    from .network import NetworkConfig, link_backbone, write_config
    from .training import read_splits, resolve

    settings = settings or TrainTemporalSettings()
    device = resolve_device(settings.device)
    store = open_features(features)
    splits = read_splits(store, settings)
    config, recipe = resolve(settings, store, splits)
    files = RunFolder(Path(run))
    check_root(files)
    sampling = ClipSampling(num_frames=settings.clip_frames, seconds=settings.clip_seconds)
    if settings.train_on == "videos":
        sampling = WHOLE
    sampling = replace(sampling, jitter=settings.time_jitter, drop=settings.frame_drop)
    with accelerated(device, settings.precision) as accelerator, torch.random.fork_rng():
        is_main = accelerator.is_main_process
        console = console if console and is_main else Console(quiet=True)
        torch.manual_seed(settings.seed)
        model = TemporalClassifier(config)
        if settings.gradient_checkpointing:
            model.use_gradient_checkpointing()
        with locked(files) if is_main else nullcontext():
            if is_main:
                if begin_run(files, settings, recipe, data=splits.digest(store)):
                    identity, names = store.extraction["identity"], splits.class_names
                    network = NetworkConfig(identity=identity, temporal=config, class_names=names)
                    write_config(files, network)
                    files.backbone.unlink(missing_ok=True)  # of a run that failed at its start
                link_backbone(store.folder, files)
            accelerator.wait_for_everyone()
            reader, place = _open_reader(store, splits.video_ids, settings, accelerator)
            train, validation = (
                ClipDataset(reader, part.rows, targets, clips, position_fps=config.position_fps)
                for part, targets, clips in (
                    (splits.train, splits.targets[0], RandomClips(sampling, settings.seed)),
                    (splits.validation, splits.targets[1], EvenClips()),
                )
            )
            say(console, _describe(model, recipe, splits, accelerator), place, *splits.gaps)
            with (
                StopOnSignals() as stop,
                TrainingLog(console, recipe.epochs, files.tensorboard if is_main else None) as log,
            ):
                lines = Fit(
                    model=model,
                    config=config,
                    train=train,
                    validation=validation,
                    class_names=splits.class_names,
                    recipe=recipe,
                    folder=files,
                    accelerator=accelerator,
                    keeping=Keeping(
                        checkpoint_minutes=settings.checkpoint_minutes,
                        num_checkpoints=settings.keep_checkpoints,
                        num_loaders=settings.loaders if reader.table is None else 0,
                    ),
                    watch=Watch(
                        on_step=log.on_step,
                        on_epoch=log.on_epoch,
                        should_stop=lambda: stop.is_asked,
                    ),
                ).run()
    return _report(files, lines, METRICS[config.task].figures[0], console)


def _describe(
    model: "TemporalClassifier", recipe: "Recipe", splits: "Splits", accelerator: "Accelerator"
) -> str:
    """What is fitted to what, and how, in a line."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    classes = f", {len(splits.class_names)} classes" if splits.class_names else ""
    count, device = accelerator.num_processes, accelerator.device
    place = device.type if count > 1 else str(device)
    return (
        f"{model.config.encoder}, {num_parameters / 1e6:.1f}M parameters in {recipe.precision}, "
        f"on {place}{f' x {count} processes' if count > 1 else ''}; "
        f"{len(splits.train.rows)} training and {len(splits.validation.rows)} validation "
        f"videos{classes}; {recipe.optimizer}, learning rate {recipe.lr:g} ({recipe.schedule}), "
        f"batches of {recipe.batch_size}"
    )


def _open_reader(
    store: "FeatureStore",
    video_ids: list[str],
    settings: TrainTemporalSettings,
    accelerator: "Accelerator",
) -> tuple["FeatureReader", str]:
    """The features of videos, where they are read fastest, and a line on where that is."""
    from ..temporal.reader import FeatureReader, choose_place, num_table_bytes, preload

    device = accelerator.device
    place, why = choose_place(
        settings.preload,
        num_table_bytes(store, video_ids),
        "cpu" if device.type == "cpu" else str(device),
        num_processes=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
    )
    return FeatureReader(store) if place is None else preload(store, video_ids, place), why


def _report(
    files: "RunFolder", lines: list[dict[str, Any]], decisive: str, console: Console
) -> TrainReport:
    best = [line for line in lines if line["is_best"]][-1]
    say(
        console,
        f"{files.root}: {len(lines)} epochs; best {figure_text(decisive, best[decisive])} (epoch "
        f"{best['epoch']}), last {figure_text(decisive, lines[-1][decisive])}",
    )
    return TrainReport(best=best, last=lines[-1])
