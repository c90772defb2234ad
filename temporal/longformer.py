"""Longformer whose only global token is [CLS]: token embeddings, layers, and the whole model.

It has the parameters of transformers' LongformerModel and, from the same state dict, its outputs.
`FrameEmbeddings` computes tokens as feature + position + token type, LayerNorm, dropout.

Only results that are never used are not computed: with `cls_only`, the last layer's output for
every token but [CLS]; in every layer, the global keys and values of all tokens (see
`attention.py`). A layer processes its tokens in blocks, so memory beyond the features is two
sequences and one block, whatever the length; a batch of many short clips is processed in groups of
a block's size.

`FullLayer` replaces `LongformerLayer` if every token is to attend to every other, and
`UniformLayer` if to all of them alike.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import (
    global_attention,
    global_weights,
    in_blocks,
    in_groups,
    joined,
    window_attention,
)
from .config import TemporalConfig

CLS_TYPE, FRAME_TYPE = 1, 0  # token types
LAYER_NORM_EPS = 1e-12  # value of the paper's authors, in the embeddings and in all layers
KERNEL_SIZE = 15  # frames that the convolution of a position embedding sees
INIT_STD = 0.02  # value of the paper's authors, for embeddings and weights

Run = Callable[..., Tensor]  # calls its first argument with the others


class FrameEmbeddings(nn.Module):
    """Token embeddings of [CLS] and frames, named as in transformers' LongformerModel.

    Embeddings are initialized from N(0, 0.02), the position embedding of padding with 0.

    Args:
        config: configuration of the temporal model.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.kind = config.position_embedding
        self.num_positions = config.max_positions - 2  # the last two are [CLS] and padding
        if self.kind == "learned":
            padding = config.max_positions - 1
            self.position_embeddings = nn.Embedding(
                config.max_positions, config.token_dim, padding_idx=padding
            )
        if self.kind == "convolution":
            D = config.token_dim
            self.convolution = nn.Conv1d(D, D, KERNEL_SIZE, padding="same", groups=D)
        self.token_type_embeddings = nn.Embedding(2, config.token_dim)
        self.LayerNorm = nn.LayerNorm(config.token_dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.children():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])

    def forward(
        self, cls: Tensor | None, features: Tensor, positions: Tensor, mask: Tensor
    ) -> Tensor:
        """Compute the tokens of a batch.

        Args:
            cls: [1, 1, D], the learned [CLS]; None for tokens of frames only.
            features: [B, T, D], of any floating dtype.
            positions: [B, T] int, frame positions.
            mask: [B, T] bool, True for frames, False for padding.

        Returns:
            [B, 1 + T, D], or [B, T, D] without [CLS], in the dtype of the parameters.
        """
        B, T, _ = features.shape
        types = self.token_type_embeddings.weight
        if self.kind == "convolution":
            frames = features.to(types.dtype) * mask[..., None]
            features = frames + self.convolution(frames.transpose(1, 2)).transpose(1, 2)

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
    """Return the fixed position embedding of arXiv 1706.03762, section 3.5.

    Element 2k of position p is sin(p / 10000^(2k / D)); element 2k + 1 is the cosine of the same
    angle.

    Args:
        positions: [...] int.
        dim: D, number of elements.

    Returns:
        [..., D] float32.

    >>> sinusoids(torch.tensor([0, 1]), 4).round(decimals=4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.8414999842643738, 0.5403000116348267, 0.009999999776482582, 1.0]]
    """
    exponents = torch.arange(0, dim, 2, device=positions.device) / dim
    angles = positions[..., None].float() * torch.exp(-math.log(10_000) * exponents)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim]


class Longformer(nn.Module):
    """Embeddings of [CLS] and frames, followed by `num_layers` layers.

    Weights are initialized from N(0, 0.02), biases with 0.

    With `cls_only`, the last layer's query, key and value projections get no gradient, since no
    logit depends on them: DistributedDataParallel needs `find_unused_parameters=True`.

    Args:
        config: configuration of the temporal model.

    Attributes:
        gradient_checkpointing: in training, do not store the intermediate tensors of a layer's
            blocks, but compute them again in the backward pass.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.embeddings = FrameEmbeddings(config)
        kinds = {"full": FullLayer, "uniform": UniformLayer}
        layer = kinds.get(config.encoder, LongformerLayer)
        layers = nn.ModuleList(layer(config) for _ in range(config.num_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.apply(_init_weights)

    def forward(
        self,
        cls: Tensor,
        features: Tensor,
        positions: Tensor,
        mask: Tensor,
        *,
        cls_only: bool = True,
    ) -> Tensor:
        """Run all layers.

        Args:
            cls: [1, 1, D], the learned [CLS].
            features: [B, T, D], of any floating dtype.
            positions: [B, T] int, frame positions.
            mask: [B, T] bool, True for frames, False for padding.
            cls_only: skip the computation that only the final states of the other tokens need.

        Returns:
            [B, D], the final state of [CLS]; without `cls_only`, [B, 1 + T, D], the final states of
            all tokens.
        """
        if len(groups := list(in_groups(features, positions, mask))) > 1:
            return torch.cat([self(cls, *group, cls_only=cls_only) for group in groups])
        run: Run = _call
        if self.training and self.gradient_checkpointing:
            run = partial(checkpoint, use_reentrant=False)
        tokens = self.embeddings(cls, features, positions, mask)
        mask = F.pad(mask, (1, 0), value=True)
        layers: Any = self.encoder["layer"]
        for layer in layers[:-1]:
            tokens = layer(tokens, mask, run)
        last = layers[-1]
        final: Tensor = last.final_cls(tokens, mask) if cls_only else last(tokens, mask, run)
        return final

    def cls_attention(
        self, cls: Tensor, features: Tensor, positions: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the attention of [CLS] to itself and to each frame, in each layer and head.

        The weights are computed here, separately from `forward`, which is not slowed down.

        Args:
            cls: [1, 1, D], the learned [CLS].
            features: [B, T, D], of any floating dtype.
            positions: [B, T] int, frame positions.
            mask: [B, T] bool, True for frames, False for padding.

        Returns:
            [B, L, H, 1 + T], the attention to [CLS] itself first.
        """
        tokens = self.embeddings(cls, features, positions, mask)
        mask = F.pad(mask, (1, 0), value=True)
        layers: Any = self.encoder["layer"]
        found = [layers[0].cls_weights(tokens, mask)]
        for layer, following in pairwise(layers):
            tokens = layer(tokens, mask, _call)
            found.append(following.cls_weights(tokens, mask))
        return torch.stack(found, dim=1)


def _call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return function(*arguments)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)


class _Layer(nn.Module):
    """Base of both layer types: projections, feed-forward network, residual connections.

    Args:
        config: configuration of the temporal model.
        projections: names of the attention projections, separated by spaces.

    Attributes:
        cls_kind: suffix of the names of the projections that [CLS] uses.
        num_heads: number of attention heads.
    """

    cls_kind = ""

    def __init__(self, config: TemporalConfig, projections: str) -> None:
        super().__init__()
        D = config.token_dim
        self.num_heads = config.num_heads
        self._attention_dropout = config.attention_dropout
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(D, D) for name in projections.split()}),
                "output": _AddAndNorm(D, config),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(D, config.intermediate_dim)})
        self.output = _AddAndNorm(config.intermediate_dim, config)

    @property
    def attention_dropout(self) -> float:
        """Dropout of the attention weights in the current mode; 0 in evaluation mode."""
        return self._attention_dropout if self.training else 0.0

    def projection(self, name: str) -> nn.Linear:
        """Return an attention projection by name."""
        found: nn.Linear = self.attention["self"][name]  # type: ignore[index]
        return found

    def project(self, name: str, tokens: Tensor) -> Tensor:
        """Apply a projection to tokens [..., D] and return one vector per head, [..., H, d]."""
        heads: Tensor = self.projection(name)(tokens).unflatten(-1, (self.num_heads, -1))
        return heads

    def attend_to_all(self, cls: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute the attention of [CLS] to all tokens.

        Args:
            cls: [B, D] state of [CLS].
            tokens: [B, N, D] tokens, [CLS] first.
            mask: [B, N] bool; False for padding.

        Returns:
            [B, D].
        """
        return global_attention(
            self.project(f"query{self.cls_kind}", cls),
            tokens,
            mask,
            self.projection(f"key{self.cls_kind}"),
            self.projection(f"value{self.cls_kind}"),
            dropout=self.attention_dropout,
        ).flatten(1)

    def cls_weights(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the attention weights of [CLS] over all tokens, [B, H, N].

        Args:
            tokens: [B, N, D] tokens, [CLS] first.
            mask: [B, N] bool; False for padding.
        """
        query = self.project(f"query{self.cls_kind}", tokens[:, 0])
        return global_weights(query, tokens, mask, self.projection(f"key{self.cls_kind}"))

    def final_cls(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the layer's output for [CLS] alone, [B, D].

        Args:
            tokens: [B, N, D] tokens, [CLS] first.
            mask: [B, N] bool; False for padding.
        """
        cls = tokens[:, 0]
        return self.finish(self.attend_to_all(cls, tokens, mask), cls)

    def finish(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Apply all of the layer that follows attention.

        Args:
            context: [..., D] output of attention.
            tokens: [..., D] input of the layer.

        Returns:
            [..., D] output of the layer.
        """
        tokens = self.attention["output"](context, tokens)
        inner = F.gelu(self.intermediate["dense"](tokens))
        finished: Tensor = self.output(inner, tokens)
        return finished


class _AddAndNorm(nn.Module):
    """Residual connection: LayerNorm(dropout(dense(x)) + residual)."""

    def __init__(self, in_dim: int, config: TemporalConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_dim, config.token_dim)
        self.LayerNorm = nn.LayerNorm(config.token_dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return normed


class LongformerLayer(_Layer):
    """Layer with global attention for [CLS] and window attention for all other tokens.

    [CLS] attends to all tokens; each other token to those within half a window of it, and to [CLS].

    Args:
        config: configuration of the temporal model.
    """

    cls_kind = "_global"

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__(config, "query key value query_global key_global value_global")
        self.half_window = config.attention_window // 2

    def forward(self, tokens: Tensor, mask: Tensor, run: Run) -> Tensor:
        """Run the layer, block by block.

        Args:
            tokens: [B, N, D] tokens, [CLS] first.
            mask: [B, N] bool; False for padding.
            run: calls its first argument with the others, perhaps with gradient checkpointing.

        Returns:
            [B, N, D].
        """
        half = self.half_window
        blocks = in_blocks(tokens, least=half)
        cls = blocks[0][:, 0]
        cls_seen = (self.project("key", cls), self.project("value", cls))
        cls_context = self.attend_to_all(cls, tokens, mask)[:, None]
        # Every token attends to [CLS] by a key of its own, so [CLS] is no neighbor of any token.
        is_key = F.pad(mask[:, 1:], (1 + half, half), value=False)
        nothing = blocks[0][:, :0]

        def outputs() -> Iterator[Tensor]:
            start = 0
            for number, block in enumerate(blocks):
                stop = start + block.shape[1]
                before = blocks[number - 1][:, -half:] if number else nothing
                after = blocks[number + 1][:, :half] if number + 1 < len(blocks) else nothing
                keys = is_key[:, start : stop + 2 * half]
                own = cls_context if number == 0 else cls_context[:, :0]
                yield run(self._block, before, block, after, keys, *cls_seen, own)
                start = stop

        return joined(outputs(), tokens.shape[1])

    def _block(
        self,
        before: Tensor,
        block: Tensor,
        after: Tensor,
        is_key: Tensor,
        cls_key: Tensor,
        cls_value: Tensor,
        cls_context: Tensor,
    ) -> Tensor:
        """Return the output for one block of tokens, [B, n, D].

        Args:
            before: [B, <= h, D] tokens before the block, h being half a window.
            block: [B, n, D] tokens of the block.
            after: [B, <= h, D] tokens after the block.
            is_key: [B, h + n + h] bool; False for padding and for [CLS].
            cls_key: [B, H, d] key of [CLS].
            cls_value: [B, H, d] value of [CLS].
            cls_context: [B, 1, D], the attention output of [CLS], which replaces that of the
                block's first token; [B, 0, D] in blocks without [CLS].
        """
        half = self.half_window
        near = torch.cat([before, block, after], dim=1)
        missing = (half - before.shape[1], half - after.shape[1])
        key, value = (
            F.pad(self.project(name, near), (0, 0, 0, 0, *missing)) for name in ("key", "value")
        )
        query = self.project("query", block)
        dropout = self.attention_dropout
        context = window_attention(query, key, value, is_key, cls_key, cls_value, dropout=dropout)
        context = torch.cat([cls_context, context.flatten(2)[:, cls_context.shape[1] :]], dim=1)
        return self.finish(context, block)


class FullLayer(_Layer):
    """Layer in which each token attends to all tokens: exact attention, quadratic time in N.

    On a CPU, training with attention dropout also takes quadratic memory, since no fast kernel
    supports the dropout there.

    Args:
        config: configuration of the temporal model.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__(config, "query key value")

    def forward(self, tokens: Tensor, mask: Tensor, run: Run) -> Tensor:
        """Run the layer, block by block.

        Args:
            tokens: [B, N, D] tokens.
            mask: [B, N] bool; False for padding.
            run: calls its first argument with the others, perhaps with gradient checkpointing.

        Returns:
            [B, N, D].
        """
        key, value = (self.project(name, tokens).transpose(1, 2) for name in ("key", "value"))
        seen = (mask[:, None, None], key, value)
        blocks = (run(self._block, block, *seen) for block in in_blocks(tokens))
        return joined(blocks, tokens.shape[1])

    def _block(self, block: Tensor, mask: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self.project("query", block).transpose(1, 2)
        dropout = self.attention_dropout
        context = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.finish(context.transpose(1, 2).flatten(2), block)


class UniformLayer(_Layer):
    """Layer in which each token attends to all tokens alike: their mean value.

    Args:
        config: configuration of the temporal model.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__(config, "value")

    def forward(self, tokens: Tensor, mask: Tensor, run: Run) -> Tensor:
        """Run the layer, block by block.

        Args:
            tokens: [B, N, D] tokens.
            mask: [B, N] bool; False for padding.
            run: calls its first argument with the others, perhaps with gradient checkpointing.

        Returns:
            [B, N, D].
        """
        context = self.attend_to_all(tokens[:, 0], tokens, mask)[:, None]
        blocks = (run(self._block, block, context) for block in in_blocks(tokens))
        return joined(blocks, tokens.shape[1])

    def _block(self, block: Tensor, context: Tensor) -> Tensor:
        return self.finish(context.expand_as(block), block)

    def attend_to_all(self, cls: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the mean value of all tokens, [B, D]."""
        weights = F.dropout(_uniform_weights(mask, tokens), self.attention_dropout)
        mean: Tensor = self.projection("value")((weights[..., None] * tokens).sum(1))
        return mean

    def cls_weights(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the attention weights of [CLS] over all tokens, [B, H, N]."""
        return _uniform_weights(mask, tokens)[:, None].expand(-1, self.num_heads, -1)


def _uniform_weights(mask: Tensor, tokens: Tensor) -> Tensor:
    """Return equal weights [B, N] of all tokens but padding, in the dtype of the tokens."""
    return mask.to(tokens.dtype) / mask.sum(1, keepdim=True)
