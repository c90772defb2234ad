"""The temporal model: frame features in, class logits out.

Frames become the tokens of a sequence behind a learned [CLS] token; a Longformer looks over them; a
head reads the final [CLS] state. This is the temporal half of VTN (arXiv 2102.00719, section 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LongformerConfig, LongformerModel

from ..manifests.errors import SettingsError
from .batch import pad_tokens
from .choices import Encoder


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """The shape of a temporal model; the defaults are those of the authors' ViT-B-VTN."""

    feature_dim: int  # D, of the backbone's features and of the tokens
    num_classes: int  # C
    encoder: Encoder = "longformer"
    num_layers: int = 3
    num_heads: int = 12
    attention_window: int = 18  # tokens, half to each side
    intermediate_dim: int = 3072
    head_dim: int = 768
    max_positions: int = (
        288  # rows of the position embedding; the last two are [CLS]'s and padding's
    )
    position_fps: float | None = 25.0  # positions a second; None: positions are frame indices
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.encoder != "longformer":
            return
        if self.feature_dim % self.num_heads:
            raise SettingsError(
                f"--heads {self.num_heads}: the features have {self.feature_dim} dimensions, "
                "which heads must divide; give a divisor"
            )
        if self.attention_window < 4 or self.attention_window % 2:
            raise SettingsError(
                f"--window {self.attention_window}: it must be even, "
                "half to each side, and at least 4"
            )
        if self.max_positions < 3:
            raise SettingsError(f"--max-positions {self.max_positions}: it must be at least 3")


class TemporalClassifier(nn.Module):
    """Features [B, T, D] with positions and a mask [B, T] → logits [B, C]."""

    def __init__(self, config: TemporalConfig) -> None:
        """Makes a model with random weights, see `LongformerPool` for their distribution."""
        super().__init__()
        self.config = config
        self.encoder: nn.Module = (
            LongformerPool(config) if config.encoder == "longformer" else MeanPool()
        )
        self.head = nn.Sequential(
            nn.LayerNorm(config.feature_dim),
            nn.Linear(config.feature_dim, config.head_dim),
            nn.GELU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(config.head_dim, config.num_classes),
        )

    @classmethod
    def from_preset(cls, name: str, *, num_classes: int) -> "TemporalClassifier":
        """The temporal model of one of the paper's networks, see `temporal/presets.py`."""
        from .presets import preset

        return cls(preset(name).temporal_config(num_classes=num_classes))

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classifies clips.

        Args:
            features: [B, T, D] float.
            positions: [B, T] int, see `frame_positions`.
            mask: [B, T] bool, True where there is a frame; None for everywhere.

        Returns:
            [B, C] logits.
        """
        if mask is None:
            mask = torch.ones_like(positions, dtype=torch.bool)
        logits: Tensor = self.head(self.encoder(features, positions, mask))
        return logits


class LongformerPool(nn.Module):
    """A Longformer over [CLS] and the frames; gives the final [CLS] state.

    Weights begin as N(0, 0.02) in linear layers and embeddings, 0 in biases and in padding's
    position, and a standard normal [CLS] token, as in the authors' code.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.max_positions = config.max_positions
        self.window = config.attention_window
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.feature_dim))
        self.model = LongformerModel(
            LongformerConfig(
                vocab_size=config.max_positions,  # unused: tokens are given as vectors
                pad_token_id=config.max_positions - 1,
                bos_token_id=None,
                eos_token_id=None,
                sep_token_id=None,
                type_vocab_size=2,
                hidden_size=config.feature_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                attention_window=[config.attention_window] * config.num_layers,
                intermediate_size=config.intermediate_dim,
                max_position_embeddings=config.max_positions,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.attention_dropout,
            ),
            add_pooling_layer=False,
        )
        del self.model.embeddings.word_embeddings

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Features [B, T, D], positions and mask [B, T] → [B, D]."""
        B, _, _ = features.shape
        cls_position, padding_position = self.max_positions - 2, self.max_positions - 1
        tokens, token_positions, token_mask = pad_tokens(
            torch.cat([self.cls_token.expand(B, -1, -1).to(features.dtype), features], dim=1),
            nn.functional.pad(positions % cls_position, (1, 0), value=cls_position),
            nn.functional.pad(mask, (1, 0), value=True),
            multiple=self.window,
            padding_position=padding_position,
        )
        is_cls = torch.zeros_like(token_positions)
        is_cls[:, 0] = 1
        output = self.model(
            inputs_embeds=tokens,
            position_ids=token_positions.masked_fill(~token_mask, padding_position),
            token_type_ids=is_cls,
            attention_mask=token_mask.long(),
            global_attention_mask=is_cls,
        )
        state: Tensor = output.last_hidden_state[:, 0]
        return state


class MeanPool(nn.Module):
    """The mean of the frames' features: the baseline that sees no order."""

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Features [B, T, D], mask [B, T] → [B, D]."""
        weights = mask.unsqueeze(-1).to(features.dtype)
        return (features * weights).sum(1) / weights.sum(1)
