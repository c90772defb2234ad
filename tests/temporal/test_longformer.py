"""The fast encoder against transformers' LongformerModel: outputs, gradients, what may differ."""

from functools import partial

import pytest
import torch
from longformer_reference import (
    dense_cls_attention,
    dense_window_attention,
    longformer_model,
    run_longformer_model,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LongformerModel
from vtnpipe.temporal import attention, blocks
from vtnpipe.temporal.attention import global_attention, window_attention
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.linear import Linear
from vtnpipe.temporal.longformer import Longformer, LongformerLayer

D, WINDOW = 24, 18
LENGTHS = (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 250, 1001)


def _config(**changes: object) -> TemporalConfig:
    values: dict[str, object] = {"num_heads": 4, "intermediate_dim": 40, "max_positions": 100}
    values |= {"dropout": 0.0, "attention_dropout": 0.0, "attention_window": WINDOW}
    return TemporalConfig(feature_dim=D, num_classes=5, **(values | changes))  # type: ignore[arg-type]


def _pair(config: TemporalConfig) -> tuple[LongformerModel, Longformer, Tensor]:
    """Both models with the same weights, such as training would make, and a [CLS] token."""
    torch.manual_seed(0)
    theirs, ours = longformer_model(config).eval(), Longformer(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(1, 1, D)


def _clips(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    T = max(lengths)
    mask = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), T, D), torch.arange(T).repeat(len(lengths), 1) * 2, mask


@pytest.fixture(params=[2048, 41, 7])  # 7: below half a window
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.BLOCK_TOKENS, "cpu", request.param)


def _gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("lengths", [*((n,) for n in LENGTHS), (1, 17, 250), (40, 3, 18, 19)])
@pytest.mark.parametrize("cls_only", [True, False])
def test_outputs_and_gradients_equal_longformer_models(
    lengths: tuple[int, ...], cls_only: bool
) -> None:
    theirs, ours, cls = _pair(_config())
    features, positions, mask = _clips(*lengths)
    inputs = [(cls.clone().requires_grad_(), features.clone().requires_grad_()) for _ in range(2)]
    expected = run_longformer_model(theirs, *inputs[0], positions, mask)
    expected = expected[:, 0] if cls_only else expected
    found = ours(*inputs[1], positions, mask, cls_only=cls_only)
    # States of padding are read by nobody.
    is_read = torch.nn.functional.pad(mask, (1, 0), value=True)[..., None]
    weights = torch.randn_like(expected) * (1 if cls_only else is_read)
    torch.testing.assert_close(found * weights, expected * weights, atol=2e-5, rtol=1e-4)
    with torch.inference_mode():
        quick = ours(cls, features, positions, mask, cls_only=cls_only)
    torch.testing.assert_close(quick * weights, found * weights, atol=2e-5, rtol=1e-4)

    grads = [
        _gradients(model, (output * weights).sum())
        for model, output in ((theirs, expected), (ours, found))
    ]
    scale = max(float(gradient.abs().max()) for gradient in grads[0].values())
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        error = float((grads[1][name] - gradient).abs().max())
        # A bias of keys changes no attention weight: what is there is rounding.
        largest = scale if name.endswith(("key.bias", "key_global.bias")) else gradient.abs().max()
        # A hundred-millionth of the largest gradient is float32's own rounding.
        assert error <= 1e-4 * largest + 2e-8 * scale, name
    for (one, other), name in zip(zip(*inputs, strict=True), ("cls", "features"), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        error = float((one.grad - other.grad).abs().max())
        assert error <= 1e-4 * float(one.grad.abs().max()), name


@pytest.mark.parametrize("window", [4, 18, 32, 70])
def test_a_state_dict_goes_both_ways(window: int) -> None:
    config = _config(attention_window=window)
    theirs, ours, cls = _pair(config)
    features, positions, mask = _clips(150)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.load_state_dict(ours.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.inference_mode():
        expected = run_longformer_model(theirs, cls, features, positions, mask)
        found = ours(cls, features, positions, mask, cls_only=False)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("num_queries", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("num_around", [2, 18, 32, 64, 66, 130])
@pytest.mark.parametrize("group", [1, 32])
def test_windows_equal_a_dense_mask(
    num_queries: int, num_around: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "GROUP", group)
    torch.manual_seed(0)
    B, H, d = 2, 3, 8
    query = torch.randn(B, num_queries, H, d)
    key, value = torch.randn(2, B, num_queries + num_around, H, d)
    is_key = torch.rand(B, num_queries + num_around) < 0.7
    is_key[0] = False  # nothing but [CLS] to look at
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


@pytest.mark.usefixtures("_blocks")
def test_gradient_checkpointing_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, cls = _pair(_config(dropout=0.2, attention_dropout=0.3))
    inputs = (cls, *_clips(300, 40))
    model.train()
    found, calls = [], []
    finish = LongformerLayer.finish
    counted = lambda *given: calls.append(1) or finish(*given)  # noqa: E731
    monkeypatch.setattr(LongformerLayer, "finish", counted)
    for is_checkpointed in (False, True):
        model.gradient_checkpointing = is_checkpointed
        calls.clear()
        torch.manual_seed(3)
        found.append((_gradients(model, model(*inputs).square().sum()), len(calls)))
    (plain, num_plain), (again, num_again) = found
    num_groups = len(list(blocks.in_groups(inputs[1])))
    assert num_again == 2 * num_plain - num_groups  # all is computed twice, but the last layer
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


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


@pytest.mark.parametrize(
    ("dropout", "attention_dropout", "num_layers", "cls_only"),
    [(0.3, 0.0, 1, True), (0.0, 0.3, 1, True), (0.0, 0.3, 1, False), (0.0, 0.0, 2, False)],
)
def test_each_dropout_is_on_in_training_alone(
    dropout: float, attention_dropout: float, num_layers: int, cls_only: bool
) -> None:
    values = {"dropout": dropout, "attention_dropout": attention_dropout, "num_layers": num_layers}
    _, model, cls = _pair(_config(**values))
    inputs = (cls, *_clips(30))

    def is_random() -> bool:
        states = [model(*inputs, cls_only=cls_only) for _ in range(2)]
        rows = slice(1, None) if not cls_only else slice(None)  # not [CLS]'s: the windows'
        one, other = (state[:, rows] for state in states)
        return not torch.equal(one, other)

    assert not is_random()
    model.train()
    assert is_random() == (dropout + attention_dropout > 0)


def test_hidden_dropout_is_in_layers_too() -> None:
    """With the embeddings' own left out, what is random is the layers' two outputs."""
    _, model, cls = _pair(_config(dropout=0.3, num_layers=1))
    inputs = (cls, *_clips(30))
    model.train()
    model.embeddings.eval()
    for off in ("attention.output", "output"):
        layer = model.encoder["layer"][0]  # type: ignore[index]
        layer.get_submodule(off).eval()
        is_random = not torch.equal(model(*inputs), model(*inputs))
        assert is_random == (off == "attention.output")


def test_a_long_sequence_is_never_held_more_than_whole() -> None:
    """No tensor on the way is larger than the tokens: neither scores nor inner layers are whole."""
    N = 20_000
    _, model, cls = _pair(_config(intermediate_dim=200))
    features, positions, mask = _clips(N)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            output = function(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                largest = max(largest, output.untyped_storage().nbytes())
            return output

    with torch.no_grad(), Watch():
        model(cls, features, positions, mask)
    assert largest <= 4 * (N + 1) * D


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    layer = Linear(3, 2)
    weight, x = layer.weight, torch.randn(4, 3, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    plain = torch.nn.functional.linear(x, weight, layer.bias)
    (expected,) = torch.autograd.grad(plain.pow(3).sum(), weight, create_graph=True)
    (expected,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(second, expected)
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None


def test_each_clip_of_a_batch_drops_its_own() -> None:
    model = Longformer(_config(dropout=0.3, attention_dropout=0.0, num_layers=1)).train()
    features, positions, mask = _clips(30)
    states = model(
        torch.randn(1, 1, D), features.repeat(2, 1, 1), positions.repeat(2, 1), mask.repeat(2, 1)
    )
    assert not torch.allclose(states[0], states[1])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16_is_near_float32(way: str) -> None:
    _, model, cls = _pair(_config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    features, positions, mask = _clips(250, 40)
    with torch.inference_mode():
        expected = model(cls, features, positions, mask, cls_only=False)
        if way == "weights":
            found = model.bfloat16()(cls.bfloat16(), features, positions, mask, cls_only=False)
            assert found.dtype == torch.bfloat16
        else:
            with torch.autocast("cpu", torch.bfloat16):
                found = model(cls, features, positions, mask, cls_only=False)
    is_read = torch.nn.functional.pad(mask, (1, 0), value=True)
    difference = (found.float() - expected)[is_read].abs().max()
    assert difference <= 0.02 * float(expected.abs().max())


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("lengths", [(1,), (250,), (40, 3, 18, 19)])
def test_cls_attention_equals_a_dense_computation(lengths: tuple[int, ...]) -> None:
    theirs, ours, cls = _pair(_config())
    features, positions, mask = _clips(*lengths)
    with torch.inference_mode():
        expected = dense_cls_attention(theirs, cls, features, positions, mask)
        found = ours.cls_attention(cls, features, positions, mask)
    B, T, _ = features.shape
    assert found.shape == (B, 3, 4, 1 + T)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(B, 3, 4), atol=1e-5, rtol=0)
    is_padding = ~torch.nn.functional.pad(mask, (1, 0), value=True)
    assert not found.masked_select(is_padding[:, None, None]).any()
