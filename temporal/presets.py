"""The paper's networks by name: backbone, temporal model, and the recipe that each was trained
with.

Sources: arXiv 2102.00719, sections 4 and 5, and the configurations in the authors' repository
    (bomri/SlowFast).
"""

from dataclasses import dataclass, replace

from ..manifests.errors import SettingsError
from .choices import Schedule
from .config import TemporalConfig
from .optim import Recipe


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A network of the paper.

    Attributes:
        backbone: its timm name.
        feature_dim: of that backbone.
        batch_size: clips a training step.
        schedule: of the learning rate, see `temporal/optim.py`.

    Defaults are ViT-B-VTN's, which are those of `TemporalConfig` and `Recipe`.
    """

    backbone: str
    feature_dim: int
    num_layers: int = TemporalConfig.num_layers
    num_heads: int = TemporalConfig.num_heads
    intermediate_dim: int = TemporalConfig.intermediate_dim
    head_dim: int = TemporalConfig.head_dim
    batch_size: int = Recipe.batch_size
    schedule: Schedule = Recipe.schedule

    def temporal_config(self, *, num_classes: int) -> TemporalConfig:
        """The configuration of its temporal model."""
        return TemporalConfig(
            feature_dim=self.feature_dim,
            num_classes=num_classes,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            intermediate_dim=self.intermediate_dim,
            head_dim=self.head_dim,
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


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        SettingsError: there is no such preset.
    """
    if name not in PRESETS:
        raise SettingsError(f"--preset {name!r}: give auto, {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_for(backbone: str) -> Preset | None:
    """The first preset with this backbone, if there is one.

    >>> preset_for("hf-hub:timm/resnet50.a1_in1k") is PRESETS["r50-vtn"]
    True
    """
    architecture = backbone.removeprefix("hf-hub:").removeprefix("timm/").partition(".")[0]
    return next((found for found in PRESETS.values() if found.backbone == architecture), None)


def preset_like(feature_dim: int) -> Preset:
    """The shape of `vit-b-vtn` on other features: with the most heads, up to 12, that divide them.

    >>> preset_like(512).num_heads, preset_like(768).num_heads
    (8, 12)
    """
    heads = max(count for count in range(1, 13) if feature_dim % count == 0)
    return replace(PRESETS["vit-b-vtn"], feature_dim=feature_dim, num_heads=heads)
