"""The shape of a model to be fitted: of a preset, of the settings, and of what it is to learn."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...manifests.errors import ManifestError, SettingsError
from ...temporal.config import TemporalConfig
from ...temporal.presets import Preset, preset, preset_for, preset_like
from ..settings import check_unset
from .settings import FitSettings

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


def _spread(targets: Tensor) -> float:
    """The labels' standard deviation; 1 where they are all the same."""
    spread = 1.0 if bool((targets == targets[0]).all()) else float(targets.std(correction=0))
    if not 0 < spread < math.inf:
        raise ManifestError(
            f"the training labels' standard deviation is {spread:g}, which can't be learned from; "
            "give them in another unit"
        )
    return spread
