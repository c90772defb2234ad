"""The configuration of a new temporal model, from settings, preset, features and labels."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...manifests.errors import ManifestError, SettingsError
from ...manifests.user_module import is_factory
from ...temporal.config import FRAME_TASKS, TemporalConfig
from ...temporal.frame_labels import FrameLabels
from ...temporal.presets import (
    Preset,
    preset,
    preset_for,
    preset_for_features,
    preset_like,
)
from .settings import TrainSettings

# Setting → field of the temporal model's configuration.
SHAPE = {
    "encoder": "encoder",
    "hidden_dim": "hidden_dim",
    "layers": "num_layers",
    "heads": "num_heads",
    "attention_window": "attention_window",
    "intermediate": "intermediate_dim",
    "head": "head",
    "head_dim": "head_dim",
    "position_embedding": "position_embedding",
    "max_positions": "max_positions",
    "position_fps": "position_fps",
}
# Default shape for tasks on frames: states that depend on what is near, wherever in the video.
FRAME_SHAPE: dict[str, Any] = {"attention_window": 64, "position_embedding": "convolution"}
DROPOUT = {
    "dropout": ("dropout", "attention_dropout"),
    "input_dropout": ("input_dropout",),
    "head_dropout": ("head_dropout",),
}


def choose_preset(settings: TrainSettings, backbone: str, dim: int, num_videos: int = 0) -> Preset:
    """Return the preset for features of a backbone, and a number of training videos.

    Raises:
        SettingsError: the preset that was given is for other features.
    """
    if settings.preset == "auto" and settings.recipe_name == "features":
        chosen = preset_for_features(dim, num_videos)
        encoder = settings.encoder or "longformer"
        if encoder != "mean" and not is_factory(encoder):
            return chosen
        heads = max(count for count in range(1, 9) if dim % count == 0)
        return replace(chosen, num_heads=heads, changes={**chosen.changes, "hidden_dim": None})
    if settings.preset == "auto":
        return preset_for(backbone) or preset_like(dim)
    chosen = preset(settings.preset)
    if chosen.feature_dim != dim:
        raise SettingsError(
            f"--preset {settings.preset!r} is for features of {chosen.feature_dim} dimensions, "
            f"but those of {backbone} have {dim}; give --preset auto"
        )
    return chosen


def new_temporal_config(
    settings: TrainSettings,
    preset_shape: Preset,
    dim: int,
    targets: Tensor | FrameLabels,
    class_names: Sequence[str],
    *,
    longest_seconds: float = 0.0,
    window_frames: int | None = None,
) -> TemporalConfig:
    """Return the configuration of a new temporal model: as given, else the preset's.

    Args:
        settings: settings of the training.
        preset_shape: the preset.
        dim: number of features, D.
        targets: training targets.
        class_names: [C]; empty for regression.
        longest_seconds: duration of the longest training video.
        window_frames: for tasks on frames, frames of the windows that the model is trained on.

    Raises:
        SettingsError: a setting does not fit the features or the task.
    """
    outputs = output_fields(settings, targets, class_names)
    base = preset_shape.temporal_config(num_classes=outputs["num_classes"])
    changes = {
        field: getattr(settings, name)
        for name, field in SHAPE.items()
        if getattr(settings, name) is not None
    }
    is_paper = settings.follows_authors
    if settings.task in FRAME_TASKS and not is_paper:
        changes = {**FRAME_SHAPE, **changes}
    if settings.positions == "frames" or (
        is_paper and settings.positions is None and settings.position_fps is None
    ):
        changes["position_fps"] = None
    config = replace(
        base,
        feature_dim=dim,
        **outputs,
        window_frames=window_frames,
        **given_dropouts(settings),
        **changes,
    )
    is_given = settings.position_fps is not None or is_paper
    if is_given or config.position_fps is None or config.position_embedding != "learned":
        return config
    # As many positions as there are, if they would wrap around within the longest video.
    most = (config.max_positions - 3) / max(longest_seconds, 1e-9)
    return replace(config, position_fps=min(config.position_fps, most))


def output_fields(
    settings: TrainSettings, targets: Tensor | FrameLabels, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of a configuration that depend on task and labels.

    Args:
        settings: settings of the training.
        targets: training targets.
        class_names: [C]; empty for regression.

    Raises:
        ManifestError: the standard deviation of a regression's labels is out of range.
    """
    fields: dict[str, Any] = {"target_mean": 0.0, "target_std": 1.0, "background_class": None}
    if settings.task == "regression":
        assert isinstance(targets, Tensor)
        fields |= {"target_mean": float(targets.mean()), "target_std": _target_std(targets)}
    if settings.task == "frames":
        fields["background_class"] = class_names.index(settings.background)
    return {"task": settings.task, "num_classes": len(class_names) or 1, **fields}


def given_dropouts(settings: TrainSettings) -> dict[str, Any]:
    """Return the given dropouts as fields of a configuration."""
    return {
        field: getattr(settings, name)
        for name, fields in DROPOUT.items()
        for field in fields
        if getattr(settings, name) is not None
    }


def _target_std(targets: Tensor) -> float:
    """Return the standard deviation of the training labels; 1 if they are all the same."""
    is_constant = bool((targets == targets[0]).all())
    std = 1.0 if is_constant else float(targets.std(correction=0))
    if not 0 < std < math.inf:
        raise ManifestError(
            f"the training labels' standard deviation is {std:g}, which is out of range; give the "
            "labels in another unit"
        )
    return std
