"""Temporal model: frame features in, class logits out.

An encoder computes one vector per clip, and a head computes logits from it; with the default
encoder and head, this is the temporal half of VTN (arXiv 2102.00719, section 3). For a task on
frames, the head takes the encoder's state of each frame instead.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..manifests.errors import SettingsError
from ..manifests.user_module import call_factory
from .config import Shortcut as ShortcutKind
from .config import TemporalConfig
from .encoders import ClsEncoder, build_encoder, check_output
from .presets import preset
from .shortcut import Shortcut


class TemporalClassifier(nn.Module):
    """Classifier of clips: features [B, T, D], positions and mask [B, T] → logits [B, C].

    Attributes:
        config: configuration of the model.
        input: features [B, T, D] → tokens [B, T, W].
        encoder: tokens, positions and mask → [B, W]; its `frame_states` → [B, T, W].
        head: [B, W] → [B, C].
        shortcut: linear probe that adds to the logits; None without one.
    """

    def __init__(self, config: TemporalConfig) -> None:
        """Create a model with random weights.

        Raises:
            SettingsError: a user module's factory fails, or the module returns other shapes.
        """
        super().__init__()
        self.config = config
        self.input = FrameInput(config)
        self.encoder = build_encoder(config)
        self.head = build_head(config)
        self.shortcut = None if config.shortcut == "none" else Shortcut(config)

    @classmethod
    def from_preset(cls, name: str, *, num_classes: int) -> "TemporalClassifier":
        """Create the temporal model of one of the paper's networks, with random weights.

        Args:
            name: name of the network, see `temporal/presets.py`.
            num_classes: C, number of classes.

        Raises:
            SettingsError: there is no such preset.
        """
        return cls(preset(name).temporal_config(num_classes=num_classes))

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify clips.

        Args:
            features: [B, T, D], of any floating dtype.
            positions: [B, T] int, see `frame_positions`.
            mask: [B, T] bool, True for frames, False for padding; None if there is no padding.

        Returns:
            [B, C] logits, or [B, T, C] of a task on frames; for regression [B, 1] float64, in the
            unit of the labels.
        """
        features, positions, mask = self._inputs(features, positions, mask)
        tokens = self.input(features)
        if self.config.is_per_frame:
            states: Tensor = self.encoder.frame_states(tokens, positions, mask)  # type: ignore[operator]
            states = states.flatten(0, 1)
            of_frames: Tensor = self.head(states)
            return of_frames.view(*tokens.shape[:2], -1)
        logits: Tensor = self.head(self.encoder(tokens, positions, mask))
        if self.shortcut is not None and not (self.training and self.shortcut.is_held_out):
            logits = self.shortcut(logits, features, mask)
        if self.config.task == "regression":
            return logits.double() * self.config.target_std + self.config.target_mean
        return logits

    def add_shortcut(self, kind: ShortcutKind) -> Shortcut:
        """Add a shortcut, whose probe is to be set, and return it."""
        self.config = replace(self.config, shortcut=kind)
        self.shortcut = Shortcut(self.config)
        return self.shortcut

    def cls_attention(
        self, features: Tensor, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor | None:
        """Return the attention of [CLS] to each token, in each layer and head.

        Args:
            features: [B, T, D], of any floating dtype.
            positions: [B, T] int, see `frame_positions`.
            mask: [B, T] bool, True for frames, False for padding; None if there is no padding.

        Returns:
            [B, L, H, 1 + T], the attention to [CLS] itself first; the weights of each head add up
            to 1. None if the encoder has no [CLS].
        """
        if not isinstance(self.encoder, ClsEncoder):
            return None
        features, positions, mask = self._inputs(features, positions, mask)
        return self.encoder.cls_attention(self.input(features), positions, mask)

    def _inputs(
        self, features: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the encoder's inputs: features of the weights' dtype, and always a mask."""
        mask = torch.ones_like(positions) if mask is None else mask
        return features.to(next(self.parameters()).dtype), positions, mask.bool()

    def use_gradient_checkpointing(self) -> None:
        """Trade time for memory in training: recompute a layer's intermediate tensors.

        From this call on, training computes them a second time for the backward pass instead of
        storing them.

        Raises:
            SettingsError: the encoder does not support gradient checkpointing.
        """
        if not isinstance(self.encoder, ClsEncoder):
            raise SettingsError(
                f"--gradient-checkpointing: the encoder {self.config.encoder!r} does not support "
                "it; leave it out, or give --encoder longformer or full"
            )
        self.encoder.model.gradient_checkpointing = True


class FrameInput(nn.Module):
    """Features → tokens: standardization, dropout and a projection, each only if configured.

    Args:
        config: configuration of the temporal model.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.is_standardized = config.standardize
        if config.standardize:
            self.register_buffer("center", torch.zeros(config.feature_dim))
            self.register_buffer("scale", torch.ones(config.feature_dim))
        self.dropout = nn.Dropout(config.input_dropout)
        self.projection = (
            nn.Linear(config.feature_dim, config.hidden_dim)
            if config.hidden_dim is not None
            else nn.Identity()
        )

    def set_statistics(self, center: Tensor, scale: Tensor) -> None:
        """Set mean [D] and standard deviation [D] of the training split's features."""
        self.center.copy_(center)
        self.scale.copy_(scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return the tokens [B, T, W] of features [B, T, D]."""
        if self.is_standardized:
            features = (features - self.center) / self.scale
        tokens: Tensor = self.projection(self.dropout(features))
        return tokens


def build_head(config: TemporalConfig) -> nn.Module:
    """Create the head that a configuration names, [B, W] → [B, C], with random weights.

    Raises:
        SettingsError: a user module's factory fails, or the module does not return [B, C].
    """
    if config.head == "mlp":
        return nn.Sequential(
            nn.LayerNorm(config.token_dim),
            nn.Linear(config.token_dim, config.head_dim),
            nn.GELU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(config.head_dim, config.num_classes),
        )
    module = call_factory(
        config.head, config, returns=nn.Module, role="head", error_type=SettingsError
    )
    if torch.get_default_device().type == "meta":
        return module
    state = torch.zeros(1, config.token_dim)
    check_output(module, [1, config.num_classes], f"head {config.head!r}", state)
    return module
