"""The temporal model: frame features in, class logits out.

An encoder makes one vector of a clip's frames, and a head reads it: with the default ones, the
temporal half of VTN (arXiv 2102.00719, section 3).
"""

import torch
from torch import Tensor, nn

from ..manifests.errors import SettingsError
from ..manifests.user_module import module_from_factory
from .config import TemporalConfig
from .encoders import ClsEncoder, build_encoder, check_output


class TemporalClassifier(nn.Module):
    """Features [B, T, D] with positions and a mask [B, T] → logits [B, C]."""

    def __init__(self, config: TemporalConfig) -> None:
        """Makes a model with random weights.

        Raises:
            SettingsError: a factory of the user's fails, or its module gives other shapes.
        """
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.head = build_head(config)

    @classmethod
    def from_preset(cls, name: str, *, num_classes: int) -> "TemporalClassifier":
        """The temporal model of one of the paper's networks, see `temporal/presets.py`."""
        from .presets import preset

        return cls(preset(name).temporal_config(num_classes=num_classes))

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classifies clips.

        Args:
            features: [B, T, D] of any floating dtype.
            positions: [B, T] int, see `frame_positions`.
            mask: [B, T] bool, True where there is a frame; None for everywhere.

        Returns:
            [B, C] logits; for regression [B, 1] float64, in the labels' unit.
        """
        if mask is None:
            mask = torch.ones_like(positions)
        dtype = next(self.parameters()).dtype
        logits: Tensor = self.head(self.encoder(features.to(dtype), positions, mask.bool()))
        if self.config.task == "regression":
            return logits.double() * self.config.target_std + self.config.target_mean
        return logits

    def cls_attention(
        self, features: Tensor, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor | None:
        """How much [CLS] attends to each token, in each layer and head.

        Args:
            features: as `forward` takes them.
            positions: likewise.
            mask: likewise.

        Returns:
            [B, L, H, 1 + T], [CLS]'s attention to itself first; each head's adds up to 1. None
            where the encoder has no [CLS].
        """
        if not isinstance(self.encoder, ClsEncoder):
            return None
        if mask is None:
            mask = torch.ones_like(positions)
        dtype = next(self.parameters()).dtype
        return self.encoder.cls_attention(features.to(dtype), positions, mask.bool())

    def use_gradient_checkpointing(self) -> None:
        """From now on, training computes what lies inside a layer twice instead of keeping it.

        Raises:
            SettingsError: the encoder has no such way.
        """
        if not isinstance(self.encoder, ClsEncoder):
            raise SettingsError(
                f"--gradient-checkpointing: the encoder {self.config.encoder!r} can't do that; "
                "leave it out, or take longformer or full"
            )
        self.encoder.model.gradient_checkpointing = True


def build_head(config: TemporalConfig) -> nn.Module:
    """Makes the head that a configuration names: [B, D] → [B, C].

    Raises:
        SettingsError: a factory fails, or its module does not give [B, C].
    """
    if config.head == "mlp":
        return nn.Sequential(
            nn.LayerNorm(config.feature_dim),
            nn.Linear(config.feature_dim, config.head_dim),
            nn.GELU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(config.head_dim, config.num_classes),
        )
    module = module_from_factory(config.head, config, what="head", error_type=SettingsError)
    if torch.get_default_device().type == "meta":
        return module
    state = torch.zeros(1, config.feature_dim)
    check_output(module, config.num_classes, f"head {config.head!r}", state)
    return module
