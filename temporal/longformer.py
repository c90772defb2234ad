"""A Longformer whose only global token is [CLS], with the parameters of transformers'
LongformerModel and, from the same state dict, its outputs.

What it leaves out is only what nobody reads: with `cls_only`, the last layer's work for every token
but [CLS]; and in every layer the global keys and values of all tokens (see `attention.py`). A layer
goes through its tokens in blocks, so memory beyond the features is two sequences and a block,
whatever the length; and a batch of many short clips in groups of a block's size.

`FullLayer` takes the place of `LongformerLayer` where every token shall look at every other.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import global_attention, global_weights, window_attention
from .blocks import in_blocks, in_groups, joined
from .config import TemporalConfig
from .embeddings import INIT_STD, LAYER_NORM_EPS, FrameEmbeddings
from .linear import Linear

Run = Callable[..., Tensor]  # calls its first argument with the others


class Longformer(nn.Module):
    """[CLS] and frames through `num_layers` layers.

    Weights begin as N(0, 0.02), biases as 0. With `gradient_checkpointing`, training does not keep
    what lies inside a layer's blocks, and computes it again for the backward pass.

    With `cls_only`, the last layer's query, key and value get no gradient, as no logit depends on
    them: DistributedDataParallel needs `find_unused_parameters=True`.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.embeddings = FrameEmbeddings(config)
        layer = FullLayer if config.encoder == "full" else LongformerLayer
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
        """Runs all layers.

        Args:
            cls: [1, 1, D].
            features: [B, T, D].
            positions: [B, T] int.
            mask: [B, T] bool, True where there is a frame.
            cls_only: leave out what only the other tokens' final states need.

        Returns:
            [B, D], the final state of [CLS]; without `cls_only`, all tokens' [B, 1 + T, D].
        """
        if len(groups := list(in_groups(features, positions, mask))) > 1:
            return torch.cat([self(cls, *group, cls_only=cls_only) for group in groups])
        run: Run = _call
        if self.training and self.gradient_checkpointing:
            run = partial(checkpoint, use_reentrant=False)
        tokens = self.embeddings(cls, features, positions)
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
        """How much [CLS] attends to itself and to each frame: [B, L, H, 1 + T], for the arguments
        of `forward`. No call of that one is made slower by it: the weights are computed again here.
        """
        tokens = self.embeddings(cls, features, positions)
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
    """What both kinds of layer have: projections, feed-forward network, residual connections.

    Attributes:
        cls_kind: what the names of [CLS]'s own projections end with.
    """

    cls_kind = ""

    def __init__(self, config: TemporalConfig, projections: str) -> None:
        super().__init__()
        D = config.feature_dim
        self.num_heads = config.num_heads
        self._attention_dropout = config.attention_dropout
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: Linear(D, D) for name in projections.split()}),
                "output": _AddAndNorm(D, config),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": Linear(D, config.intermediate_dim)})
        self.output = _AddAndNorm(config.intermediate_dim, config)

    @property
    def attention_dropout(self) -> float:
        """In force now."""
        return self._attention_dropout if self.training else 0.0

    def projection(self, name: str) -> nn.Linear:
        """One of attention's projections."""
        found: nn.Linear = self.attention["self"][name]  # type: ignore[index]
        return found

    def project(self, name: str, tokens: Tensor) -> Tensor:
        """Tokens [..., D] → heads [..., H, d]."""
        heads: Tensor = self.projection(name)(tokens).unflatten(-1, (self.num_heads, -1))
        return heads

    def look_at_all(self, cls: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """What [CLS], [B, D], gets to see of all tokens [B, N, D]: [B, D]."""
        return global_attention(
            self.project(f"query{self.cls_kind}", cls),
            tokens,
            mask,
            self.projection(f"key{self.cls_kind}"),
            self.projection(f"value{self.cls_kind}"),
            dropout=self.attention_dropout,
        ).flatten(1)

    def cls_weights(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """How much [CLS] attends to each of all tokens [B, N, D], itself first: [B, H, N]."""
        query = self.project(f"query{self.cls_kind}", tokens[:, 0])
        return global_weights(query, tokens, mask, self.projection(f"key{self.cls_kind}"))

    def final_cls(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The output for [CLS] alone: [B, D]."""
        cls = tokens[:, 0]
        return self.finish(self.look_at_all(cls, tokens, mask), cls)

    def finish(self, context: Tensor, tokens: Tensor) -> Tensor:
        """The layer's output from what attention gave, [..., D], and its input, [..., D]."""
        tokens = self.attention["output"](context, tokens)
        inner = F.gelu(self.intermediate["dense"](tokens))
        finished: Tensor = self.output(inner, tokens)
        return finished


class _AddAndNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual)."""

    def __init__(self, in_dim: int, config: TemporalConfig) -> None:
        super().__init__()
        self.dense = Linear(in_dim, config.feature_dim)
        self.LayerNorm = nn.LayerNorm(config.feature_dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return normed


class LongformerLayer(_Layer):
    """[CLS] looks at all tokens; each other token at those within half a window, and at [CLS]."""

    cls_kind = "_global"

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__(config, "query key value query_global key_global value_global")
        self.half_window = config.attention_window // 2

    def forward(self, tokens: Tensor, mask: Tensor, run: Run) -> Tensor:
        """Tokens [B, N, D], [CLS] first, and mask [B, N] → [B, N, D]."""
        half = self.half_window
        blocks = in_blocks(tokens, least=half)
        cls = blocks[0][:, 0]
        cls_seen = (self.project("key", cls), self.project("value", cls))
        cls_context = self.look_at_all(cls, tokens, mask)[:, None]
        # [CLS] is looked at as what it is, and not as a neighbour.
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
        """The output for one block of tokens [B, n, D] with those before and after it.

        `cls_context`, [B, 1, D] or [B, 0, D], takes the place of what its first token saw.
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
    """Each token looks at all tokens: exact attention, whose time grows with the square of N.

    So does the memory of training with attention dropout on a CPU, where no fast kernel has it.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__(config, "query key value")

    def forward(self, tokens: Tensor, mask: Tensor, run: Run) -> Tensor:
        """Tokens [B, N, D] and mask [B, N] → [B, N, D]."""
        key, value = (self.project(name, tokens).transpose(1, 2) for name in ("key", "value"))
        seen = (mask[:, None, None], key, value)
        blocks = (run(self._block, block, *seen) for block in in_blocks(tokens))
        return joined(blocks, tokens.shape[1])

    def _block(self, block: Tensor, mask: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self.project("query", block).transpose(1, 2)
        dropout = self.attention_dropout
        context = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.finish(context.transpose(1, 2).flatten(2), block)
