"""Longformer against transformers' LongformerModel: outputs, gradients and dropout."""

import pytest
import torch
from longformer_reference import (
    dense_cls_attention,
    longformer_model,
    run_longformer_model,
)
from temporal_models import random_clip, small_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LongformerModel
from vtnpipe.temporal import attention
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.longformer import Longformer, LongformerLayer, sinusoids

D, WINDOW = 24, 18
LENGTHS = (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 250, 1001)


def _config(**changes: object) -> TemporalConfig:
    values: dict[str, object] = {"num_heads": 4, "intermediate_dim": 40, "max_positions": 100}
    values |= {"dropout": 0.0, "attention_dropout": 0.0, "attention_window": WINDOW}
    return TemporalConfig(feature_dim=D, num_classes=5, **(values | changes))  # type: ignore[arg-type]


def _pair(config: TemporalConfig) -> tuple[LongformerModel, Longformer, Tensor]:
    """Both models with the same weights, as large as after training, and a [CLS] token."""
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
    monkeypatch.setitem(attention.BLOCK_TOKENS, "cpu", request.param)


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
    # The states of padding are never used.
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
        # A bias of keys changes no attention weight: its gradient is rounding.
        largest = scale if name.endswith(("key.bias", "key_global.bias")) else gradient.abs().max()
        # 2e-8 of the largest gradient is rounding of float32.
        assert error <= 1e-4 * largest + 2e-8 * scale, name
    for (one, other), name in zip(zip(*inputs, strict=True), ("cls", "features"), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        error = float((one.grad - other.grad).abs().max())
        assert error <= 1e-4 * float(one.grad.abs().max()), name


@pytest.mark.parametrize("window", [4, 18, 32, 70])
def test_state_dicts_are_interchangeable(window: int) -> None:
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
    num_groups = len(list(attention.in_groups(inputs[1])))
    assert num_again == 2 * num_plain - num_groups  # all but the last layer is computed twice
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


@pytest.mark.parametrize(
    ("dropout", "attention_dropout", "num_layers", "cls_only"),
    [(0.3, 0.0, 1, True), (0.0, 0.3, 1, True), (0.0, 0.3, 1, False), (0.0, 0.0, 2, False)],
)
def test_each_dropout_is_active_only_in_training(
    dropout: float, attention_dropout: float, num_layers: int, cls_only: bool
) -> None:
    values = {"dropout": dropout, "attention_dropout": attention_dropout, "num_layers": num_layers}
    _, model, cls = _pair(_config(**values))
    inputs = (cls, *_clips(30))

    def is_random() -> bool:
        states = [model(*inputs, cls_only=cls_only) for _ in range(2)]
        rows = (
            slice(1, None) if not cls_only else slice(None)
        )  # those of window attention, without [CLS]
        one, other = (state[:, rows] for state in states)
        return not torch.equal(one, other)

    assert not is_random()
    model.train()
    assert is_random() == (dropout + attention_dropout > 0)


def test_both_outputs_of_a_layer_have_dropout() -> None:
    _, model, cls = _pair(_config(dropout=0.3, num_layers=1))
    inputs = (cls, *_clips(30))
    model.train()
    model.embeddings.eval()
    for off in ("attention.output", "output"):
        layer = model.encoder["layer"][0]  # type: ignore[index]
        layer.get_submodule(off).eval()
        is_random = not torch.equal(model(*inputs), model(*inputs))
        assert is_random == (off == "attention.output")


def test_no_intermediate_tensor_is_larger_than_the_tokens() -> None:
    N = 20_000
    _, model, cls = _pair(_config(intermediate_dim=200))
    features, positions, mask = _clips(N)
    largest = 0

    class RecordLargest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            output = function(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                largest = max(largest, output.untyped_storage().nbytes())
            return output

    with torch.no_grad(), RecordLargest():
        model(cls, features, positions, mask)
    assert largest <= 4 * (N + 1) * D


def test_the_clips_of_a_batch_have_different_dropout() -> None:
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


@pytest.mark.parametrize("encoder", ["longformer", "full"])
def test_positions_change_the_logits_unless_there_is_no_embedding(encoder: str) -> None:
    features, positions = random_clip(40)
    with torch.inference_mode():
        for kind, is_seen in (("learned", True), ("sinusoidal", True), ("none", False)):
            model = small_model(encoder=encoder, position_embedding=kind, max_positions=500)
            changed = model(features, positions * 3) - model(features, positions)
            assert bool(changed.abs().max() > 2e-5) == is_seen, kind
        # Sinusoids have no last row after which positions wrap.
        model = small_model(encoder=encoder, position_embedding="sinusoidal", max_positions=22)
        changed = model(features, positions + 20) - model(features, positions)
        assert changed.abs().max() > 2e-5


def test_sinusoids_follow_the_formula() -> None:
    table = sinusoids(torch.arange(50), 7)
    assert table.shape == (50, 7)
    for position in (0, 1, 49):
        for k in range(4):
            angle = torch.tensor(position / 10_000 ** (2 * k / 7))
            assert table[position, 2 * k] == pytest.approx(float(angle.sin()), abs=1e-5)
            if 2 * k + 1 < 7:
                assert table[position, 2 * k + 1] == pytest.approx(float(angle.cos()), abs=1e-5)
