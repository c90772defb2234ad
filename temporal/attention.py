"""The two attentions of a Longformer (arXiv 2004.05150) whose only global token is [CLS].

- `window_attention`: each token looks at the tokens within half a window of it, and at [CLS]
- `global_attention`: [CLS] looks at all tokens, with projections of its own

The first goes through `scaled_dot_product_attention` in groups of `GROUP` queries, whose keys are
`GROUP + W` neighbours and [CLS]: linear in time and memory, on any device, in any precision. The
second never computes the keys and values of all tokens: for one query q, q·(K x) = (Kᵀq)·x and
Σ a (V x) = V (Σ a x), so a token costs 2 H D multiplications instead of 2 D².
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32  # queries that share their keys; measured best of 16 to 128 for windows of 18 and 32


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
    """Attention of a run of tokens to their neighbours and to [CLS].

    The keys are those of the queries with h = W / 2 more on either side: query i looks at keys i to
    i + 2h.

    Args:
        query: [B, Q, H, d].
        key: [B, h + Q + h, H, d].
        value: as `key`.
        is_key: [B, h + Q + h] bool; False where there is nothing to look at.
        cls_key: [B, H, d], which every query looks at, whatever `is_key` says.
        cls_value: as `cls_key`.
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
    may_look = F.pad(band & windows[:, :, None, :], (1, 0), value=True)
    grouped = F.scaled_dot_product_attention(
        F.pad(query, (0, 0, 0, 0, 0, missing)).reshape(B * num_groups, GROUP, H, d).transpose(1, 2),
        _windows(key, cls_key, missing, num_around),
        _windows(value, cls_value, missing, num_around),
        attn_mask=may_look.reshape(B * num_groups, 1, GROUP, 1 + GROUP + num_around),
        dropout_p=dropout,
    )  # [B * groups, H, GROUP, d]
    return grouped.transpose(1, 2).reshape(B, num_groups * GROUP, H, d)[:, :Q]


def _band(num_around: int, device: torch.device) -> Tensor:
    """Which of its group's keys each query may look at: [GROUP, GROUP + W] bool."""
    keys, queries = (torch.arange(n, device=device) for n in (GROUP + num_around, GROUP))
    ahead = keys - queries[:, None]
    return (ahead >= 0) & (ahead <= num_around)


def _windows(keys: Tensor, cls: Tensor, missing: int, num_around: int) -> Tensor:
    """Each group's keys or values, [CLS]'s first: [B * groups, H, 1 + GROUP + W, d]."""
    B, _, H, d = keys.shape
    num_more = -(-num_around // GROUP)  # groups that a window reaches into beyond its own
    end = num_more * GROUP - num_around
    groups = F.pad(keys, (0, 0, 0, 0, 0, missing + end)).unflatten(1, (-1, GROUP))
    num_groups = groups.shape[1] - num_more
    pieces = [groups[:, m : m + num_groups] for m in range(1 + num_more)]
    pieces[-1] = pieces[-1][:, :, : GROUP - end]
    cls = cls[:, None, None].expand(B, num_groups, 1, H, d)
    return torch.cat([cls, *pieces], dim=2).flatten(0, 1).transpose(1, 2)


def global_weights(query: Tensor, tokens: Tensor, mask: Tensor, key: nn.Linear) -> Tensor:
    """How much one token attends to each of all: softmax(q · key(tokens) / √d), for each head.

    Args:
        query: [B, H, d].
        tokens: [B, N, D].
        mask: [B, N] bool; False where there is nothing to look at.
        key: a projection D → H d.

    Returns:
        [B, H, N], at least float32; each head's weights add up to 1.
    """
    _, H, d = query.shape
    query = query * d**-0.5
    key_weight, key_bias = key.weight.unflatten(0, (H, d)), key.bias.unflatten(0, (H, d))
    scores = torch.einsum("bhe,hed->bhd", query, key_weight) @ tokens.transpose(1, 2)  # [B, H, N]
    # The same for all tokens, so it changes no weight; but its parameter shall have its gradient.
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
    """Attention of one token to all: its `global_weights` times value(tokens), for each head.

    Args:
        query: [B, H, d].
        tokens: [B, N, D].
        mask: [B, N] bool; False where there is nothing to look at.
        key: a projection D → H d.
        value: as `key`.
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
