"""`vtnpipe train-temporal`: stage two, from a feature folder to a run folder; the same command
resumes.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from ..manifests.errors import ManifestError, SettingsError
from ..manifests.folder import locked
from ..manifests.videos import read_manifest
from ..temporal.choices import ENCODERS, Optimizer, PositionEmbedding, Schedule, Task
from .figures import figure_text, figures_text
from .options import at_least, between, check_settings, one_of_or_factory, setting
from .progress import say
from .runs import begin_run, check_root, data_digest

if TYPE_CHECKING:
    from torch import Tensor

    from ..manifests.store import FeatureStore
    from ..temporal.checkpoint import RunFolder
    from ..temporal.config import TemporalConfig
    from ..temporal.fit import EpochReport, Recipe
    from ..temporal.presets import Preset

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
    clip_frames: int = setting(16, help="Frames of a training clip.", check=at_least(1))
    clip_seconds: float = setting(5.12, help="Its length.", check=between(0.01, 1e6))
    train_split: str = setting("train", help="The manifest's split to learn from.")
    val_split: str = setting("val", help="The split that decides which epoch is the best.")
    manifest: str | None = setting(
        None, help="Labels and splits; by default the features' own.", metavar="FILE"
    )
    drop_partial: bool = setting(False, help="Leave out videos with missing frames.")
    gradient_checkpointing: bool = setting(
        False, help="Less memory for long clips, for more time; the same weights."
    )
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

    Args:
        features: a feature folder.
        run: the run folder; made if it is not there.
        settings: by default, `TrainTemporalSettings()`.
        console: for progress; by default, nothing is printed.

    Raises:
        VtnpipeError: features, manifest or a setting breaks a rule; nothing has been written then.
    """
    import torch

    from ..extract.device import resolve_device
    from ..manifests.shards import open_features
    from ..temporal.checkpoint import RunFolder
    from ..temporal.dataset import ClipDataset, ClipSampling
    from ..temporal.fit import fit
    from ..temporal.metrics import METRICS
    from ..temporal.model import TemporalClassifier
    from ..temporal.splits import usable_rows
    from ..temporal.tasks import read_targets, training_classes
    from .network import NetworkConfig, link_backbone, write_config

    settings = settings or TrainTemporalSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    store = open_features(features)
    rows = read_manifest(settings.manifest or store.folder.manifest)
    parts = [
        usable_rows(store, rows, split, drop_partial=settings.drop_partial)
        for split in (settings.train_split, settings.val_split)
    ]
    names = training_classes(rows, parts[0].rows, settings.train_split, settings.task)
    targets = [read_targets(part.rows, names, settings.task) for part in parts]
    config, recipe = _resolve(settings, store, targets[0], len(names))
    sampling = ClipSampling(
        num_frames=settings.clip_frames, seconds=settings.clip_seconds, seed=settings.seed
    )
    train, val = (
        ClipDataset(store, part.rows, wanted, position_fps=config.position_fps, sampling=drawn)
        for part, wanted, drawn in zip(parts, targets, (sampling, None), strict=True)
    )
    files = RunFolder(Path(run))
    check_root(files)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = TemporalClassifier(config)
        if settings.gradient_checkpointing:
            model.use_gradient_checkpointing()
        with locked(files):
            data = data_digest(store, parts, targets, names)
            if begin_run(files, settings, recipe, data=data):
                identity = store.extraction["identity"]
                write_config(
                    files, NetworkConfig(identity=identity, temporal=config, class_names=names)
                )
                files.backbone.unlink(missing_ok=True)  # that of a run that failed at its start
            link_backbone(store.folder, files)
            num_parameters = sum(parameter.numel() for parameter in model.parameters())
            classes = f", {len(names)} classes" if names else ""
            say(
                console,
                f"{config.encoder}, {num_parameters / 1e6:.1f}M parameters, on {device}; "
                f"{len(train)} training and {len(val)} validation videos{classes}; "
                f"{recipe.optimizer}, learning rate {recipe.lr:g} ({recipe.schedule}), "
                f"batches of {recipe.batch_size}",
                *(part.gaps for part in parts if part.gaps),
            )
            fit(
                *(model, train, val, names, recipe, files),
                device=device,
                on_epoch=lambda report: say(console, _line(report, recipe.epochs)),
            )
    return _report(files, METRICS[config.task].figures[0], console)


def _resolve(
    settings: TrainTemporalSettings, store: "FeatureStore", targets: "Tensor", num_classes: int
) -> tuple["TemporalConfig", "Recipe"]:
    """The model's shape and the recipe: what is set, else the preset's."""
    from ..temporal.config import TemporalConfig
    from ..temporal.fit import Recipe

    chosen = _preset(settings, store)
    dim = store.row_shape[-1]

    def own_or(value: Any, of_preset: Any) -> Any:
        return of_preset if value is None else value

    is_regression = settings.task == "regression"
    config = TemporalConfig(
        feature_dim=dim,
        num_classes=1 if is_regression else num_classes,
        task=settings.task,
        encoder=settings.encoder,
        num_layers=own_or(settings.layers, chosen.num_layers),
        num_heads=own_or(settings.heads, chosen.num_heads),
        attention_window=settings.window,
        intermediate_dim=own_or(settings.intermediate, chosen.intermediate_dim),
        head=settings.head,
        head_dim=own_or(settings.head_dim, chosen.head_dim),
        position_embedding=settings.position_embedding,
        max_positions=settings.max_positions,
        position_fps=settings.position_fps if settings.positions == "seconds" else None,
        dropout=settings.dropout,
        attention_dropout=settings.dropout,
        head_dropout=settings.head_dropout,
        target_mean=float(targets.mean()) if is_regression else 0.0,
        target_std=_spread(targets) if is_regression else 1.0,
    )
    recipe = Recipe(
        epochs=settings.epochs,
        batch_size=own_or(settings.batch_size, chosen.batch_size),
        optimizer=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=own_or(settings.schedule, chosen.schedule),
        seed=settings.seed,
    )
    return config, recipe


def _spread(targets: "Tensor") -> float:
    """The labels' standard deviation; 1 where they are all the same."""
    spread = 1.0 if bool((targets == targets[0]).all()) else float(targets.std(correction=0))
    if not 0 < spread < math.inf:
        raise ManifestError(
            f"the training labels spread by {spread:g}, which is no number to learn with; give "
            "them in another unit"
        )
    return spread


def _preset(settings: TrainTemporalSettings, store: "FeatureStore") -> "Preset":
    from ..temporal.presets import preset, preset_for, preset_like

    dim = store.row_shape[-1]
    backbone = store.extraction["identity"]["backbone"]
    if settings.preset == "auto":
        return preset_for(backbone) or preset_like(dim)
    chosen = preset(settings.preset)
    if chosen.feature_dim != dim:
        raise SettingsError(
            f"--preset {settings.preset!r} is for features of {chosen.feature_dim} dimensions, "
            f"but those in {store.folder.root} ({backbone}) have {dim}; give --preset auto"
        )
    return chosen


def _line(report: "EpochReport", epochs: int) -> str:
    figures = figures_text(report.figures, "  ")
    return (
        f"epoch {report.epoch:3d}/{epochs}  training loss {report.train_loss:.4f}  {figures}  "
        f"{report.videos_per_second:,.0f} videos/s{'  best' if report.is_best else ''}"
    )


def _report(files: "RunFolder", decisive: str, console: Console) -> TrainReport:
    lines = [json.loads(line) for line in files.metrics.read_text(encoding="utf-8").splitlines()]
    best = [line for line in lines if line["is_best"]][-1]
    say(
        console,
        f"{files.root}: {len(lines)} epochs; best {figure_text(decisive, best[decisive])} (epoch "
        f"{best['epoch']}), last {figure_text(decisive, lines[-1][decisive])}",
    )
    return TrainReport(best=best, last=lines[-1])
