"""What a training begins with: which videos, which targets, the model's shape, the recipe."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..manifests.errors import ManifestError, SettingsError
from ..manifests.store import FeatureStore
from ..manifests.videos import read_manifest
from ..temporal.config import TemporalConfig
from ..temporal.presets import Preset, preset, preset_for, preset_like
from ..temporal.recipe import Recipe
from ..temporal.splits import UsableRows, usable_rows
from ..temporal.tasks import read_targets, training_classes
from .runs import data_digest

if TYPE_CHECKING:
    from .train_temporal import TrainTemporalSettings


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The rows to learn from and those to validate on, with their targets."""

    train: UsableRows
    validation: UsableRows
    targets: tuple[Tensor, Tensor]
    class_names: list[str]

    @property
    def video_ids(self) -> list[str]:
        """Of both."""
        return [row.video_id for part in (self.train, self.validation) for row in part.rows]

    @property
    def gaps(self) -> list[str]:
        """What is missing or partial, in words."""
        return [part.gaps for part in (self.train, self.validation) if part.gaps]

    def digest(self, store: FeatureStore) -> str:
        """What is learnt from, as 16 hexadecimal digits."""
        return data_digest(store, (self.train, self.validation), self.targets, self.class_names)


def read_splits(store: FeatureStore, settings: "TrainTemporalSettings") -> Splits:
    """The rows of the two splits that have features.

    Raises:
        ManifestError: a rule is broken, or a label can't be learned.
    """
    rows = read_manifest(settings.manifest or store.folder.manifest)
    train, validation = (
        usable_rows(store, rows, split, drop_partial=settings.drop_partial)
        for split in (settings.train_split, settings.val_split)
    )
    names = training_classes(rows, train.rows, settings.train_split, settings.task)
    return Splits(
        train=train,
        validation=validation,
        targets=(
            read_targets(train.rows, names, settings.task),
            read_targets(validation.rows, names, settings.task),
        ),
        class_names=names,
    )


def resolve(
    settings: "TrainTemporalSettings", store: FeatureStore, splits: Splits
) -> tuple[TemporalConfig, Recipe]:
    """The model's shape and the recipe: what is set, else the preset's.

    Raises:
        SettingsError: a setting does not fit the features or the task.
    """
    chosen = _preset(settings, store)
    targets, num_classes = splits.targets[0], len(splits.class_names)

    def own_or(value: Any, of_preset: Any) -> Any:
        return of_preset if value is None else value

    is_regression = settings.task == "regression"
    if is_regression and (settings.label_smoothing or settings.class_weights != "none"):
        raise SettingsError(
            "--task regression has no classes: leave out --label-smoothing and --class-weights"
        )
    config = TemporalConfig(
        feature_dim=store.row_shape[-1],
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
        gradient_accumulation=settings.gradient_accumulation,
        optimizer=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=own_or(settings.schedule, chosen.schedule),
        warm_up_epochs=settings.warm_up_epochs,
        clip_gradients=settings.clip_gradients,
        label_smoothing=settings.label_smoothing,
        class_weights=settings.class_weights,
        patience=settings.patience,
        precision=settings.precision,
        seed=settings.seed,
    )
    return config, recipe


def _spread(targets: Tensor) -> float:
    """The labels' standard deviation; 1 where they are all the same."""
    spread = 1.0 if bool((targets == targets[0]).all()) else float(targets.std(correction=0))
    if not 0 < spread < math.inf:
        raise ManifestError(
            f"the training labels spread by {spread:g}, which is no number to learn with; give "
            "them in another unit"
        )
    return spread


def _preset(settings: "TrainTemporalSettings", store: FeatureStore) -> Preset:
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
