"""Presets: the paper's networks by name, and small models for stored features.

Sources: arXiv 2102.00719, sections 4 and 5, and the configurations in the authors' repository
(bomri/SlowFast).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..manifests.errors import SettingsError
from .config import TemporalConfig
from .optim import Recipe, Schedule


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Network of the paper.

    The defaults are those of ViT-B-VTN, which are also those of `TemporalConfig` and `Recipe`.

    Attributes:
        backbone: timm name of the backbone.
        feature_dim: dimensions of the backbone's features.
        num_layers: number of encoder layers.
        num_heads: number of attention heads.
        intermediate_dim: dimensions inside each layer's feed-forward network.
        head_dim: dimensions inside the MLP head.
        changes: other fields of the temporal model's configuration.
        batch_size: clips per training step.
        schedule: learning-rate schedule, see `temporal/optim.py`.
    """

    backbone: str
    feature_dim: int
    num_layers: int = TemporalConfig.num_layers
    num_heads: int = TemporalConfig.num_heads
    intermediate_dim: int = TemporalConfig.intermediate_dim
    head_dim: int = TemporalConfig.head_dim
    changes: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = Recipe.batch_size
    schedule: Schedule = Recipe.schedule

    def temporal_config(self, *, num_classes: int) -> TemporalConfig:
        """Return the configuration of the network's temporal model for C = `num_classes`."""
        return TemporalConfig(
            feature_dim=self.feature_dim,
            num_classes=num_classes,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            intermediate_dim=self.intermediate_dim,
            head_dim=self.head_dim,
            **self.changes,
        )


def _resnet(backbone: str) -> Preset:
    return Preset(
        backbone=backbone,
        feature_dim=2048,
        num_heads=16,
        intermediate_dim=4096,
        head_dim=2048,
        batch_size=32,
        schedule="cosine",
    )


PRESETS = {
    "vit-b-vtn": Preset(backbone="vit_base_patch16_224", feature_dim=768),
    "vit-b-vtn-1layer": Preset(backbone="vit_base_patch16_224", feature_dim=768, num_layers=1),
    "deit-b-vtn": Preset(backbone="deit_base_patch16_224", feature_dim=768),
    "deit-ti-vtn": Preset(backbone="deit_tiny_patch16_224", feature_dim=192),
    "r50-vtn": _resnet("resnet50"),
    "r101-vtn": _resnet("resnet101"),
}


# Training videos from which on → width of the tokens; largest first.
WIDTHS = {20_000: 512, 2_000: 256, 0: 128}


def preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        SettingsError: there is no such preset.
    """
    if name not in PRESETS:
        raise SettingsError(f"--preset {name!r}: it must be one of auto, {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_for(backbone: str) -> Preset | None:
    """Return the first preset with a backbone; None if there is none.

    Args:
        backbone: timm name, with or without pretraining tag, or `hf-hub:` name of the backbone.

    >>> preset_for("hf-hub:timm/resnet50.a1_in1k") is PRESETS["r50-vtn"]
    True
    """
    architecture = backbone.removeprefix("hf-hub:").removeprefix("timm/").partition(".")[0]
    return next((found for found in PRESETS.values() if found.backbone == architecture), None)


def preset_for_features(feature_dim: int, num_videos: int) -> Preset:
    """Return a small VTN for the stored features of a training split, wider for larger ones.

    Its first layer standardizes the features and projects them to the width of the tokens.

    Args:
        feature_dim: D, dimensions of the features.
        num_videos: number of training videos.

    >>> [preset_for_features(768, n).head_dim for n in (100, 5_000, 100_000)]
    [128, 256, 512]
    """
    width = next(width for least, width in WIDTHS.items() if num_videos >= least)
    return Preset(
        backbone="",
        feature_dim=feature_dim,
        num_layers=2,
        num_heads=width // 32,
        intermediate_dim=4 * width,
        head_dim=width,
        changes={
            "hidden_dim": width,
            "standardize": True,
            "input_dropout": 0.5,
            "head_dropout": 0.3,
            "position_embedding": "sinusoidal",
        },
    )


def preset_like(feature_dim: int) -> Preset:
    """Return `vit-b-vtn` adapted to other features, with the most heads, up to 12, that divide D.

    Args:
        feature_dim: D, dimensions of the features.

    >>> preset_like(512).num_heads, preset_like(768).num_heads
    (8, 12)
    """
    heads = max(count for count in range(1, 13) if feature_dim % count == 0)
    return replace(PRESETS["vit-b-vtn"], feature_dim=feature_dim, num_heads=heads)
