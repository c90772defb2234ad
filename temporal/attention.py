"""Attention of a Longformer (arXiv 2004.05150) whose only global token is [CLS].

- `window_attention`: each token attends to the tokens within half a window of it, and to [CLS]
- `global_attention`: [CLS] attends to all tokens, with its own projections

Window attention calls `scaled_dot_product_attention` on groups of `GROUP` queries, whose keys are
`GROUP + W` neighbors and [CLS]: linear in time and memory, on any device, in any precision. Global
attention never computes the keys and values of all tokens: for one query q, q·(K x) = (Kᵀq)·x and
Σ a (V x) = V (Σ a x), so a token costs 2 H D multiplications instead of 2 D².

The functions at the end divide long sequences into blocks and large batches into groups, so that
the wide tensors inside a layer stay small. Blocks come from `Tensor.split`, whose gradient is one
concatenation; each slice would have a gradient as long as the whole sequence.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32  # queries that share their keys; the fastest of 16 to 128 for windows of 18 and 32
BLOCK_TOKENS = {"cpu": 2048}  # by device type; the fastest of 512 to 4096
OTHER_BLOCK_TOKENS = 16_384  # enough to occupy all units of a GPU


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_key: Tensor,
    cls_key: Tensor,
    cls_value: Tensor,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Compute the attention of consecutive tokens to their neighbors and to [CLS].

    The keys cover the queries' tokens and h = W / 2 tokens more on either side: query i attends to
    keys i to i + 2h, both included.

    Args:
        query: [B, Q, H, d] queries.
        key: [B, h + Q + h, H, d] keys.
        value: [B, h + Q + h, H, d] values.
        is_key: [B, h + Q + h] bool; False for padding, which no query attends to.
        cls_key: [B, H, d] key of [CLS], which every query attends to regardless of `is_key`.
        cls_value: [B, H, d] value of [CLS].
        dropout: probability with which each attention weight becomes 0.

    Returns:
        [B, Q, H, d].
    """
    B, Q, H, d = query.shape
    num_around = key.shape[1] - Q  # W
    num_groups = -(-Q // GROUP)
    missing = num_groups * GROUP - Q
    band = _band(num_around, query.device)
    windows = F.pad(is_key, (0, missing)).unfold(
        1, GROUP + num_around, GROUP
    )  # [B, groups, GROUP + W]
    may_attend = F.pad(band & windows[:, :, None, :], (1, 0), value=True)
    grouped = F.scaled_dot_product_attention(
        F.pad(query, (0, 0, 0, 0, 0, missing)).reshape(B * num_groups, GROUP, H, d).transpose(1, 2),
        _windows(key, cls_key, missing, num_around),
        _windows(value, cls_value, missing, num_around),
        attn_mask=may_attend.reshape(B * num_groups, 1, GROUP, 1 + GROUP + num_around),
        dropout_p=dropout,
    )  # [B * groups, H, GROUP, d]
    return grouped.transpose(1, 2).reshape(B, num_groups * GROUP, H, d)[:, :Q]


def _band(num_around: int, device: torch.device) -> Tensor:
    """Return which keys of its group each query may attend to: [GROUP, GROUP + W] bool."""
    keys, queries = (torch.arange(n, device=device) for n in (GROUP + num_around, GROUP))
    ahead = keys - queries[:, None]
    return (ahead >= 0) & (ahead <= num_around)


def _windows(keys: Tensor, cls: Tensor, missing: int, num_around: int) -> Tensor:
    """Return the keys or values of each group, [CLS] first: [B * groups, H, 1 + GROUP + W, d]."""
    B, _, H, d = keys.shape
    num_more = -(-num_around // GROUP)  # following groups that a group's windows reach into
    end = num_more * GROUP - num_around
    groups = F.pad(keys, (0, 0, 0, 0, 0, missing + end)).unflatten(1, (-1, GROUP))
    num_groups = groups.shape[1] - num_more
    pieces = [groups[:, m : m + num_groups] for m in range(1 + num_more)]
    pieces[-1] = pieces[-1][:, :, : GROUP - end]
    cls = cls[:, None, None].expand(B, num_groups, 1, H, d)
    return torch.cat([cls, *pieces], dim=2).flatten(0, 1).transpose(1, 2)


def global_weights(query: Tensor, tokens: Tensor, mask: Tensor, key: nn.Linear) -> Tensor:
    """Return one token's attention weights over all tokens, softmax(q · key(tokens) / √d) per head.

    Args:
        query: [B, H, d] query of the one token.
        tokens: [B, N, D] tokens that it attends to.
        mask: [B, N] bool; False for padding, which gets a weight of 0.
        key: projection D → H d of tokens to keys.

    Returns:
        [B, H, N] in float32 or higher precision; the weights of each head add up to 1.
    """
    _, H, d = query.shape
    query = query * d**-0.5
    key_weight, key_bias = key.weight.unflatten(0, (H, d)), key.bias.unflatten(0, (H, d))
    scores = torch.einsum("bhe,hed->bhd", query, key_weight) @ tokens.transpose(1, 2)  # [B, H, N]
    # Adds the same to all tokens' scores, so no weight changes; but the bias gets its gradient.
    scores = scores + (query * key_bias).sum(-1, keepdim=True)
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights: Tensor = scores.softmax(-1, dtype=precise)
    return weights


def global_attention(
    query: Tensor,
    tokens: Tensor,
    mask: Tensor,
    key: nn.Linear,
    value: nn.Linear,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Compute one token's attention to all tokens: `global_weights` times value(tokens) per head.

    Args:
        query: [B, H, d] query of the one token.
        tokens: [B, N, D] tokens that it attends to.
        mask: [B, N] bool; False for padding, which gets a weight of 0.
        key: projection D → H d of tokens to keys.
        value: projection D → H d of tokens to values.
        dropout: probability with which each attention weight becomes 0.

    Returns:
        [B, H, d].
    """
    _, H, d = query.shape
    value_weight, value_bias = value.weight.unflatten(0, (H, d)), value.bias.unflatten(0, (H, d))
    weights = F.dropout(global_weights(query, tokens, mask, key), dropout).to(tokens.dtype)
    mean: Tensor = torch.einsum("bhd,hed->bhe", weights @ tokens, value_weight)
    attended: Tensor = mean + weights.sum(-1, keepdim=True) * value_bias
    return attended


def block_tokens(sequence: Tensor) -> int:
    """Return how many tokens a layer processes at once on the sequence's device."""
    return BLOCK_TOKENS.get(sequence.device.type, OTHER_BLOCK_TOKENS)


def in_blocks(sequences: Tensor, least: int = 1) -> tuple[Tensor, ...]:
    """Split sequences [B, N, ...] along N into blocks of equal length; the last may be shorter.

    A block contains about `block_tokens` tokens, those of all B sequences together.

    Args:
        sequences: [B, N, ...].
        least: minimum length of a block, except the last.

    >>> [block.shape[1] for block in in_blocks(torch.zeros(1, 5000, 8))]
    [2048, 2048, 904]
    """
    length = max(least, block_tokens(sequences) // max(1, len(sequences)))
    blocks: tuple[Tensor, ...] = sequences.split(length, dim=1)
    return blocks


def in_groups(sequences: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split a batch [B, N, ...] along B into groups that fit in one block.

    A sequence that is longer than a block becomes a group of its own.

    Args:
        sequences: [B, N, ...].
        others: tensors [B, ...] that are split in the same way.

    Returns:
        Iterator of tuples: a group of `sequences`, and that of each other tensor.

    >>> [len(group) for group, in in_groups(torch.zeros(16, 300, 8))]
    [6, 6, 4]
    """
    size = max(1, block_tokens(sequences) // max(1, sequences.shape[1]))
    return zip(*(tensor.split(size) for tensor in (sequences, *others)), strict=True)


def joined(blocks: Iterable[Tensor], length: int) -> Tensor:
    """Concatenate blocks [B, n, D] along n to a sequence [B, N, D].

    If gradients are disabled, only one block is in memory at a time.

    Args:
        blocks: [B, n, D] each, in order.
        length: N.
    """
    if torch.is_grad_enabled():
        return torch.cat(list(blocks), dim=1)
    sequence, stop = None, 0
    for block in blocks:
        if block.shape[1] == length:
            return block
        if sequence is None:
            sequence = block.new_empty(block.shape[0], length, *block.shape[2:])
        start, stop = stop, stop + block.shape[1]
        sequence[:, start:stop] = block
    assert sequence is not None
    assert stop == length
    return sequence
