"""Frame features as tokens: feature + position + token type, LayerNorm, dropout."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .blocks import in_blocks, joined
from .config import TemporalConfig

CLS_TYPE, FRAME_TYPE = 1, 0
LAYER_NORM_EPS = 1e-12  # the authors', and that of all layers
INIT_STD = 0.02  # as well


class FrameEmbeddings(nn.Module):
    """Tokens of [CLS] and frames, with the parameter names of transformers' LongformerModel.

    Embeddings begin as N(0, 0.02), padding's position as 0.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.kind = config.position_embedding
        self.num_positions = config.max_positions - 2  # without [CLS]'s and padding's
        if self.kind == "learned":
            padding = config.max_positions - 1
            self.position_embeddings = nn.Embedding(
                config.max_positions, config.feature_dim, padding_idx=padding
            )
        self.token_type_embeddings = nn.Embedding(2, config.feature_dim)
        self.LayerNorm = nn.LayerNorm(config.feature_dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.children():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])

    def forward(self, cls: Tensor | None, features: Tensor, positions: Tensor) -> Tensor:
        """Makes the tokens of a batch.

        Args:
            cls: [1, 1, D], the learned [CLS]; None for tokens of frames only.
            features: [B, T, D], of any floating dtype.
            positions: [B, T] int.

        Returns:
            [B, 1 + T, D], or [B, T, D] without [CLS], in the dtype of the parameters.
        """
        B, T, _ = features.shape
        types = self.token_type_embeddings.weight

        def blocks() -> Iterator[Tensor]:
            if cls is not None:
                own = (cls + self._cls_position()).expand(B, -1, -1)
                yield self._token(own, types[CLS_TYPE])
            for block, at in zip(in_blocks(features), in_blocks(positions), strict=True):
                block = block.to(types.dtype)
                yield self._token(block + self._position(at, block), types[FRAME_TYPE])

        return joined(blocks(), T if cls is None else 1 + T)

    def _token(self, vectors: Tensor, token_type: Tensor) -> Tensor:
        tokens: Tensor = self.dropout(self.LayerNorm(vectors + token_type))
        return tokens

    def _position(self, positions: Tensor, features: Tensor) -> Tensor | float:
        if self.kind == "learned":
            rows: Tensor = self.position_embeddings(positions % self.num_positions)
            return rows
        if self.kind == "sinusoidal":
            return sinusoids(positions, features.shape[-1]).to(features.dtype)
        return 0.0

    def _cls_position(self) -> Tensor | float:
        if self.kind == "learned":
            return self.position_embeddings.weight[self.num_positions]
        return 0.0


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """The fixed position embedding of arXiv 1706.03762, section 3.5.

    Element 2k of position p is sin(p / 10000^(2k / D)), element 2k + 1 its cosine.

    Args:
        positions: [...] int.
        dim: D.

    Returns:
        [..., D] float32.

    >>> sinusoids(torch.tensor([0, 1]), 4).round(decimals=4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.8414999842643738, 0.5403000116348267, 0.009999999776482582, 1.0]]
    """
    exponents = torch.arange(0, dim, 2, device=positions.device) / dim
    angles = positions[..., None].float() * torch.exp(-math.log(10_000) * exponents)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim]
