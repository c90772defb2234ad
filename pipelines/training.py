"""What fitting on features and fitting from video share: rows and targets, the model's shape, the
recipe, and the fit itself with all who look on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from ..manifests.errors import ManifestError, SettingsError
from ..manifests.folder import fingerprint
from ..manifests.videos import VideoRow
from ..temporal.checkpoint import RunFolder
from ..temporal.clips import ClipSampling
from ..temporal.config import TemporalConfig
from ..temporal.dataset import ClipDataset
from ..temporal.fit import Fit
from ..temporal.inference import Scored
from ..temporal.metrics import METRICS
from ..temporal.presets import Preset, preset, preset_for, preset_like
from ..temporal.processes import Accelerator
from ..temporal.progress import Keeping, Watch
from ..temporal.recipe import Recipe
from ..temporal.splits import UsableRows, usable_rows
from ..temporal.tasks import read_targets, training_classes
from .figures import figure_text
from .fit_settings import FitSettings
from .progress import say, say_more
from .settings import check_unset
from .stopping import StopOnSignals
from .training_log import TrainingLog

# Setting → field of the temporal model's configuration.
SHAPE = {
    "encoder": "encoder",
    "layers": "num_layers",
    "heads": "num_heads",
    "window": "attention_window",
    "intermediate": "intermediate_dim",
    "head": "head",
    "head_dim": "head_dim",
    "position_embedding": "position_embedding",
    "max_positions": "max_positions",
    "position_fps": "position_fps",
}
DROPOUT = {
    "dropout": ("dropout", "attention_dropout"),
    "head_dropout": ("head_dropout",),
}


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The rows to learn from and those to validate on, with their targets."""

    train: UsableRows
    validation: UsableRows
    targets: tuple[Tensor, Tensor]
    class_names: list[str]

    @property
    def rows(self) -> list[VideoRow]:
        """Of both."""
        return self.train.rows + self.validation.rows

    @property
    def gaps(self) -> list[str]:
        """What is missing or partial, in words."""
        return [part.gaps for part in (self.train, self.validation) if part.gaps]

    def digest(self, source: Any, mark: Callable[[VideoRow], Any]) -> str:
        """What is learnt from, as 16 hexadecimal digits.

        Args:
            source: what all videos have in common.
            mark: what changes when a video's frames do.
        """
        rows = [
            [
                (row.video_id, target, mark(row))
                for row, target in zip(part.rows, wanted.tolist(), strict=True)
            ]
            for part, wanted in zip((self.train, self.validation), self.targets, strict=True)
        ]
        return fingerprint({"source": source, "rows": rows, "classes": self.class_names})


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """How a training ended.

    Attributes:
        best: the line of its best epoch, from metrics.jsonl, see `temporal/progress.py`.
        last: that of its last epoch.
        lost: what could not be read in any of them, and why.
    """

    best: dict[str, Any]
    last: dict[str, Any]
    lost: list[str]


def read_splits(
    rows: list[VideoRow],
    statuses: Mapping[str, str],
    settings: FitSettings,
    *,
    what: str,
    remedy: str,
    drop_partial: bool = False,
    class_names: list[str] | None = None,
) -> Splits:
    """The rows of the two splits that can be used.

    Args:
        rows: of the manifest.
        statuses: video_id → `ok`, `partial` or `failed`.
        settings: which splits, which task.
        what: videos must have, in words.
        remedy: where none has it.
        drop_partial: leave out partial videos.
        class_names: of the model; None for those of the training split.

    Raises:
        ManifestError: a rule is broken, or a label can't be learned.
    """
    train, validation = (
        usable_rows(statuses, rows, split, what=what, remedy=remedy, drop_partial=drop_partial)
        for split in (settings.train_split, settings.val_split)
    )
    names = class_names
    if names is None:
        names = training_classes(rows, train.rows, settings.train_split, settings.task)
    try:
        targets = [read_targets(part.rows, names, settings.task) for part in (train, validation)]
    except ManifestError as error:
        if class_names is None:
            raise
        raise ManifestError(f"{error}; or give --new-head, for the manifest's classes") from None
    return Splits(
        train=train, validation=validation, targets=(targets[0], targets[1]), class_names=names
    )


def shape(
    settings: FitSettings, preset_shape: Preset, dim: int, targets: Tensor, num_classes: int
) -> TemporalConfig:
    """A new model's shape: what is set, else the preset's.

    Args:
        settings: of the fit.
        preset_shape: the preset.
        dim: D, of the features.
        targets: to learn from.
        num_classes: C; 0 for regression.

    Raises:
        SettingsError: a setting does not fit the features or the task.
    """
    is_regression = settings.task == "regression"
    base = preset_shape.temporal_config(num_classes=num_classes or 1)
    changes = {
        field: getattr(settings, name)
        for name, field in SHAPE.items()
        if getattr(settings, name) is not None
    }
    if settings.positions == "frames":
        changes["position_fps"] = None
    return replace(
        base,
        feature_dim=dim,
        task=settings.task,
        target_mean=float(targets.mean()) if is_regression else 0.0,
        target_std=_spread(targets) if is_regression else 1.0,
        **dropouts(settings),
        **changes,
    )


def dropouts(settings: FitSettings) -> dict[str, Any]:
    """What the settings say of dropout, as fields of a configuration."""
    return {
        field: getattr(settings, name)
        for name, fields in DROPOUT.items()
        for field in fields
        if getattr(settings, name) is not None
    }


def check_shape_is_unset(settings: FitSettings, model: object) -> None:
    """Refuses settings of a new model's shape beside a model that has one.

    Raises:
        SettingsError: names the setting.
    """
    why = f"the model has the shape of {model}, which it begins with"
    check_unset(settings, ("preset", "positions", *SHAPE), why)


def choose_preset(settings: FitSettings, backbone: str, dim: int) -> Preset:
    """The preset that a fit on features of a backbone goes by.

    Raises:
        SettingsError: it is for other features.
    """
    if settings.preset == "auto":
        return preset_for(backbone) or preset_like(dim)
    chosen = preset(settings.preset)
    if chosen.feature_dim != dim:
        raise SettingsError(
            f"--preset {settings.preset!r} is for features of {chosen.feature_dim} dimensions, "
            f"but those of {backbone} have {dim}; give --preset auto"
        )
    return chosen


def make_recipe(settings: FitSettings, preset_recipe: Preset) -> Recipe:
    """The recipe: what is set, else the preset's.

    Raises:
        SettingsError: a setting does not fit the task.
    """
    has_class_settings = settings.label_smoothing or settings.class_weights != "none"
    if settings.task == "regression" and has_class_settings:
        raise SettingsError(
            "--task regression has no classes: leave out --label-smoothing and --class-weights"
        )
    return Recipe(
        epochs=settings.epochs,
        batch_size=settings.batch_size or preset_recipe.batch_size,
        gradient_accumulation=settings.gradient_accumulation,
        optimizer=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule or preset_recipe.schedule,
        warm_up_epochs=settings.warm_up_epochs,
        clip_gradients=settings.clip_gradients,
        label_smoothing=settings.label_smoothing,
        class_weights=settings.class_weights,
        patience=settings.patience,
        precision=settings.precision,
        seed=settings.seed,
    )


def clip_sampling(settings: FitSettings) -> ClipSampling:
    """Of training clips."""
    return ClipSampling(
        num_frames=settings.clip_frames,
        seconds=settings.clip_seconds,
        jitter=settings.time_jitter,
        drop=settings.frame_drop,
    )


def _spread(targets: Tensor) -> float:
    """The labels' standard deviation; 1 where they are all the same."""
    spread = 1.0 if bool((targets == targets[0]).all()) else float(targets.std(correction=0))
    if not 0 < spread < math.inf:
        raise ManifestError(
            f"the training labels spread by {spread:g}, which is no number to learn with; give "
            "them in another unit"
        )
    return spread


def describe_fit(model: nn.Module, what: str, recipe: Recipe, accelerator: Accelerator) -> str:
    """What is fitted and how, in a line."""
    num_parameters = sum(p.numel() for p in model.parameters())
    num_learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    learning = (
        "" if num_learning == num_parameters else f", {num_learning / 1e6:.1f}M of them learn"
    )
    count, device = accelerator.num_processes, accelerator.device
    place = device.type if count > 1 else str(device)
    return (
        f"{what}, {num_parameters / 1e6:.1f}M parameters{learning}, in {recipe.precision}, "
        f"on {place}{f' x {count} processes' if count > 1 else ''}; {recipe.optimizer}, "
        f"learning rate {recipe.lr:g} ({recipe.schedule}), batches of {recipe.batch_size}"
    )


def describe_splits(splits: Splits) -> str:
    """How much there is to learn from, in a line."""
    classes = f", {len(splits.class_names)} classes" if splits.class_names else ""
    return (
        f"{len(splits.train.rows)} training and {len(splits.validation.rows)} validation "
        f"videos{classes}"
    )


def run_fit(
    model: nn.Module,
    config: TemporalConfig,
    recipe: Recipe,
    settings: FitSettings,
    splits: Splits,
    train: ClipDataset,
    *,
    validate: Callable[[nn.Module, Callable[[], bool]], Scored],
    save: Callable[[Path], None],
    folder: RunFolder,
    accelerator: Accelerator,
    console: Console,
    num_loaders: int,
    lr_scales: Mapping[str, float] | None = None,
) -> TrainReport:
    """Fits a model, shows how it goes, and stops on signals; for the arguments see `Fit`.

    Raises:
        SettingsError: the loss is not finite.
        StoppedError: a signal asked for it; the same call resumes.
    """
    for settings_of in (config, recipe):
        say_more(console, *(f"  {key}: {value}" for key, value in asdict(settings_of).items()))
    tensorboard = folder.tensorboard if accelerator.is_main_process else None
    with (
        StopOnSignals() as stop,
        TrainingLog(console, recipe.epochs, tensorboard, splits.class_names) as log,
    ):
        lines = Fit(
            model=model,
            config=config,
            train=train,
            validate=validate,
            validation_targets=splits.targets[1],
            save=save,
            class_names=splits.class_names,
            recipe=recipe,
            folder=folder,
            accelerator=accelerator,
            keeping=Keeping(
                checkpoint_minutes=settings.checkpoint_minutes,
                num_checkpoints=settings.keep_checkpoints,
                num_loaders=num_loaders,
            ),
            watch=Watch(
                on_step=log.on_step, on_epoch=log.on_epoch, should_stop=lambda: stop.is_asked
            ),
            lr_scales=lr_scales or {},
        ).run()
    decisive = METRICS[config.task].figures[0]
    best = [line for line in lines if line["is_best"]][-1]
    say(
        console,
        f"{folder.root}: {len(lines)} epochs; best {figure_text(decisive, best[decisive])} (epoch "
        f"{best['epoch']}), last {figure_text(decisive, lines[-1][decisive])}",
    )
    lost = sorted({fault for line in lines for fault in line["lost"]})
    return TrainReport(best=best, last=lines[-1], lost=lost)
