"""The encoders by name: each takes features [B, T, D], positions and mask [B, T], and gives one
vector a clip, [B, D].

    longformer  VTN's: windows for the frames, all of them for [CLS]; linear in T
    full        the same with exact attention of every token to every other; quadratic in T
    perceiver   transformers' Perceiver (arXiv 2103.03206): a few latents look at all frames, then
                at each other; linear in T
    mean        the mean of the frames' features: the baseline that sees no order

Any other is a factory of the user's, `package.module:function`, which is called with the
`TemporalConfig`.
"""

import torch
from torch import Tensor, nn

from ..manifests.errors import SettingsError, first_line
from ..manifests.user_module import module_from_factory
from .config import TemporalConfig
from .embeddings import FrameEmbeddings
from .longformer import Longformer

NUM_LATENTS = 64  # of the Perceiver


def build_encoder(config: TemporalConfig) -> nn.Module:
    """Makes the encoder that a configuration names, with random weights.

    Raises:
        SettingsError: a factory fails, or its module does not give [B, D].
    """
    if config.encoder in ("longformer", "full"):
        return ClsEncoder(config)
    if config.encoder == "perceiver":
        return PerceiverEncoder(config)
    if config.encoder == "mean":
        return MeanEncoder()
    module = module_from_factory(config.encoder, config, what="encoder", error_type=SettingsError)
    if torch.get_default_device().type == "meta":
        return module
    features = torch.zeros(1, 2, config.feature_dim)
    positions, mask = torch.arange(2)[None], torch.ones(1, 2, dtype=torch.bool)
    check_output(
        module, config.feature_dim, f"encoder {config.encoder!r}", features, positions, mask
    )
    return module


def check_output(module: nn.Module, dim: int, what: str, *inputs: Tensor) -> None:
    """Runs a module of the user's on one clip, and refuses it where it does not give [1, dim].

    Raises:
        SettingsError: it fails, or gives something else.
    """
    was_training = module.training
    try:
        with torch.no_grad():
            output = module.eval()(*inputs)
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise SettingsError(
            f"{what} fails on inputs of {shapes}: {type(error).__name__}: {first_line(error)}; an "
            "encoder takes features [B, T, D], positions and mask [B, T], and a head [B, D]"
        ) from error
    module.train(was_training)
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != [1, dim]:
        raise SettingsError(f"{what} gives {found} for one clip; it must give [1, {dim}]")


class ClsEncoder(nn.Module):
    """A learned [CLS] in front of the frames; gives its final state.

    [CLS] begins as a standard normal vector, as in the authors' code.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.feature_dim))
        self.model = Longformer(config)

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Features [B, T, D], positions and mask [B, T] → [B, D]."""
        state: Tensor = self.model(self.cls_token, features, positions, mask)
        return state

    def cls_attention(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """How much [CLS] attends to itself and to each frame: [B, L, H, 1 + T]."""
        return self.model.cls_attention(self.cls_token, features, positions, mask)


class PerceiverEncoder(nn.Module):
    """Learned latents look at the frames, then at each other, layer by layer; gives their mean.

    Its feed-forward networks are D wide, or the largest multiple of D up to `intermediate_dim`; it
    has no dropout but that of tokens and attention.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        from transformers import PerceiverConfig, PerceiverModel

        D = config.feature_dim
        self.embeddings = FrameEmbeddings(config)
        self.model = PerceiverModel(
            PerceiverConfig(
                num_latents=NUM_LATENTS,
                d_latents=D,
                d_model=D,
                num_blocks=1,
                num_self_attends_per_block=config.num_layers,
                num_self_attention_heads=config.num_heads,
                num_cross_attention_heads=config.num_heads,
                self_attention_widening_factor=max(1, config.intermediate_dim // D),
                attention_probs_dropout_prob=config.attention_dropout,
            )
        )

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Features [B, T, D], positions and mask [B, T] → [B, D]."""
        tokens = self.embeddings(None, features, positions)
        output = self.model(inputs=tokens, attention_mask=mask.long())
        latents: Tensor = output.last_hidden_state
        return latents.mean(1)


class MeanEncoder(nn.Module):
    """The mean of the frames' features."""

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Features [B, T, D], mask [B, T] → [B, D]."""
        kept = features.masked_fill(~mask.unsqueeze(-1), 0.0)
        counts = mask.sum(1, keepdim=True).clamp(min=1)
        mean = kept.sum(1, dtype=torch.promote_types(features.dtype, torch.float32)) / counts
        return mean.to(features.dtype)
