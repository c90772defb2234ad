"""Window and global attention against dense attention."""

from functools import partial

import pytest
import torch
from longformer_reference import dense_window_attention
from vtnpipe.temporal import attention
from vtnpipe.temporal.attention import global_attention, window_attention


@pytest.mark.parametrize("num_queries", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("num_around", [2, 18, 32, 64, 66, 130])
@pytest.mark.parametrize("group", [1, 32])
def test_window_attention_equals_attention_with_a_dense_mask(
    num_queries: int, num_around: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "GROUP", group)
    torch.manual_seed(0)
    B, H, d = 2, 3, 8
    query = torch.randn(B, num_queries, H, d)
    key, value = torch.randn(2, B, num_queries + num_around, H, d)
    is_key = torch.rand(B, num_queries + num_around) < 0.7
    is_key[0] = False  # [CLS] is the only key
    cls_key, cls_value = torch.randn(2, B, H, d)
    arguments = (query, key, value, is_key, cls_key, cls_value)
    torch.testing.assert_close(
        window_attention(*arguments), dense_window_attention(*arguments), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        window_attention(*arguments)[0], cls_value[0].expand(num_queries, -1, -1)
    )


def test_global_attention_equals_attention_over_projected_tokens() -> None:
    torch.manual_seed(0)
    B, N, H, d = 3, 50, 4, 6
    query, tokens = torch.randn(B, H, d), torch.randn(B, N, H * d)
    key, value = torch.nn.Linear(H * d, H * d), torch.nn.Linear(H * d, H * d)
    mask = torch.rand(B, N) < 0.5
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, None],
        *(layer(tokens).unflatten(2, (H, d)).transpose(1, 2) for layer in (key, value)),
        attn_mask=mask[:, None, None],
    )[:, :, 0]
    found = global_attention(query, tokens, mask, key, value)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["windows", "global"])
def test_attention_dropout_keeps_the_mean(kind: str) -> None:
    torch.manual_seed(0)
    B, Q, H, d, num_around = 600, 4, 2, 8, 6
    key, value = torch.randn(2, 1, Q + num_around, H, d).expand(2, B, -1, -1, -1)
    query = torch.randn(1, Q, H, d).expand(B, -1, -1, -1)
    if kind == "windows":
        is_key = torch.ones(B, Q + num_around, dtype=torch.bool)
        cls_key, cls_value = torch.randn(2, 1, H, d).expand(2, B, -1, -1)
        attend = partial(window_attention, query, key, value, is_key, cls_key, cls_value)
    else:
        tokens, mask = key.flatten(2), torch.ones(B, Q + num_around, dtype=torch.bool)
        layers = [torch.nn.Linear(H * d, H * d).requires_grad_(False) for _ in range(2)]
        attend = partial(global_attention, query[:, 0], tokens, mask, *layers)
    expected, dropped = attend()[0], attend(dropout=0.3)
    off = (dropped.mean(0) - expected) / (dropped.std(0) / B**0.5)
    assert float(off.abs().max()) < 5
    assert float(off.square().mean()) < 4
    # The variance of a weight that is 0 with probability p, and else divided by 1 - p.
    ratio = dropped.std(0).mean() / attend(dropout=0.6).std(0).mean()
    assert float(ratio) == pytest.approx((0.3 / 0.7) ** 0.5 / (0.6 / 0.4) ** 0.5, rel=0.1)
