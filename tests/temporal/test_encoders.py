"""Encoders and heads by name, positions by kind, and modules of the user's own."""

import pytest
import torch
from torch import Tensor
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.temporal.choices import ENCODERS
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.embeddings import sinusoids
from vtnpipe.temporal.longformer import Longformer
from vtnpipe.temporal.model import TemporalClassifier

D = 24


def _config(**changes: object) -> TemporalConfig:
    values = {"num_classes": 5, "num_heads": 4, "intermediate_dim": 40, "head_dim": 16}
    return TemporalConfig(feature_dim=D, **(values | changes))  # type: ignore[arg-type]


def _model(**changes: object) -> TemporalClassifier:
    torch.manual_seed(0)
    model = TemporalClassifier(_config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _clip(length: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, length, D), torch.arange(length)[None]


def test_full_attention_is_a_longformer_whose_window_holds_everything() -> None:
    torch.manual_seed(0)
    full = Longformer(_config(encoder="full")).eval()
    wide = Longformer(_config(attention_window=100)).eval()
    for parameter in full.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = full.state_dict()
    for key in wide.state_dict():
        state[key] = state[key.replace("_global", "")]
    wide.load_state_dict(state)
    features, positions = _clip(45)
    mask = torch.arange(45)[None] < 41
    for cls_only in (True, False):
        inputs = (torch.randn(1, 1, D), features, positions, mask)
        found = [model(*inputs, cls_only=cls_only) for model in (full, wide)]
        read = (slice(None),) if cls_only else (slice(None), slice(0, 42))
        torch.testing.assert_close(found[0][read], found[1][read], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["longformer", "full", "perceiver"])
def test_positions_by_kind(encoder: str) -> None:
    features, positions = _clip(40)
    with torch.inference_mode():
        for kind, is_seen in (("learned", True), ("sinusoidal", True), ("none", False)):
            model = _model(encoder=encoder, position_embedding=kind, max_positions=500)
            changed = model(features, positions * 3) - model(features, positions)
            assert bool(changed.abs().max() > 2e-5) == is_seen, kind
        # Without a table, there is no end to wrap at.
        model = _model(encoder=encoder, position_embedding="sinusoidal", max_positions=22)
        changed = model(features, positions + 20) - model(features, positions)
        assert changed.abs().max() > 2e-5


@pytest.mark.parametrize("encoder", ["full", "perceiver"])
def test_without_positions_the_order_is_not_seen(encoder: str) -> None:
    model = _model(encoder=encoder, position_embedding="none")
    features, positions = _clip(40)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(features, positions), model(features.flip(1), positions), atol=1e-5, rtol=1e-4
        )


def test_sinusoids_are_those_of_the_formula() -> None:
    table = sinusoids(torch.arange(50), 7)
    assert table.shape == (50, 7)
    for position in (0, 1, 49):
        for k in range(4):
            angle = torch.tensor(position / 10_000 ** (2 * k / 7))
            assert table[position, 2 * k] == pytest.approx(float(angle.sin()), abs=1e-5)
            if 2 * k + 1 < 7:
                assert table[position, 2 * k + 1] == pytest.approx(float(angle.cos()), abs=1e-5)


def test_modules_of_the_users_own() -> None:
    model = _model(encoder="toy_encoders:recurrent", head="toy_encoders:one_layer")
    assert type(model.encoder).__name__ == "Recurrent"
    assert isinstance(model.head, torch.nn.Linear)
    features, positions = _clip(9)
    assert model(features, positions).shape == (1, 5)
    assert TemporalClassifier(model.config).encoder.training  # checked, and left as it was made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "bert"}, "--encoder 'bert': there are longformer, full, perceiver, mean and"),
        ({"head": "linear"}, "--head 'linear': there are mlp and package.module:factory"),
        ({"task": "ranking"}, "--task 'ranking': there are classification, multi-label"),
        ({"position_embedding": "rotary"}, "--position-embedding 'rotary': there are learned"),
        ({"encoder": "toy_encoders:none"}, "encoder 'toy_encoders:none': AttributeError"),
        ({"encoder": "toy_encoders:fails"}, "ZeroDivisionError: no layers; a factory is"),
        ({"encoder": "toy_encoders:no_module"}, "returned a TemporalConfig; it must return a"),
        ({"encoder": "toy_encoders:too_wide"}, r"gives \[1, 48\] for one clip; it must .* \[1, 24"),
        ({"encoder": "toy_encoders:one_layer"}, "fails on inputs of .*: TypeError"),
        ({"head": "toy_encoders:recurrent"}, "head 'toy_encoders:recurrent' fails on inputs"),
        ({"num_layers": 0}, "--layers 0: it must be a whole number, at least 1"),
        ({"num_heads": 0}, "--heads 0: it must be"),
        ({"attention_window": 18.0}, "--attention-window 18.0: it must be a whole number"),
        ({"attention_dropout": 1.5}, "--attention-dropout 1.5: it must be between 0 and 1"),
        ({"task": "regression"}, "--task regression: 5 outputs"),
        ({"task": "regression", "num_classes": 1, "target_std": 0.0}, "labels that differ"),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        _model(**changes)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_reach_what_the_logits_depend_on(encoder: str) -> None:
    model = _model(encoder=encoder, num_layers=2)
    features, positions = _clip(30)
    features.requires_grad_()
    model(features, positions).square().sum().backward()
    assert features.grad is not None
    assert bool((features.grad.abs().amax(-1) > 0).all())
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    # [CLS] alone is read of the last layer, and it looks with projections of its own.
    own = ("query", "key", "value")
    last = {f"encoder.model.encoder.layer.1.attention.self.{name}" for name in own}
    expected = {f"{name}.{kind}" for name in last for kind in ("weight", "bias")}
    assert unused == (expected if encoder == "longformer" else set())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_and_models_of_any_precision(encoder: str, dtype: torch.dtype) -> None:
    model = _model(encoder=encoder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    features, positions = _clip(40)
    with torch.inference_mode():
        expected = model(features.to(dtype).float(), positions)
        torch.testing.assert_close(model(features.to(dtype), positions), expected)
        if dtype != torch.float16:  # which a CPU has no kernels for
            found = model.to(dtype)(features, positions)
            assert found.dtype == dtype
            tolerance = 0.02 if dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


def test_the_mean_of_many_large_halves_is_finite() -> None:
    model = _model(encoder="mean").bfloat16()
    features = torch.full((1, 4001, D), 3e4)
    states = model.encoder(features.half(), None, torch.ones(1, 4001, dtype=torch.bool))
    torch.testing.assert_close(states.float(), torch.full((1, D), 3e4), atol=30, rtol=0)


@pytest.mark.parametrize("encoder", ["longformer", "full", "perceiver"])
def test_weights_begin_as_the_authors(encoder: str) -> None:
    torch.manual_seed(0)
    model = TemporalClassifier(_config(encoder=encoder))
    state = model.encoder.state_dict()
    (name,) = (
        key
        for key in state
        if key.endswith("position_embeddings.weight") and tuple(state[key].shape) == (288, D)
    )
    assert float(state[name][:-1].std()) == pytest.approx(0.02, rel=0.05)
    assert not state[name][-1].any()
    if encoder != "perceiver":
        for key, tensor in state.items():
            if key.endswith("query.weight"):
                assert float(tensor.std()) == pytest.approx(0.02, rel=0.1)
            if key.endswith("dense.bias"):
                assert not tensor.any()


def test_a_batch_of_none() -> None:
    for encoder in ENCODERS:
        model = _model(encoder=encoder)
        assert model(torch.zeros(0, 7, D), torch.zeros(0, 7, dtype=torch.long)).shape == (0, 5)


def test_gradient_checkpointing_is_for_layers() -> None:
    model = _model()
    model.use_gradient_checkpointing()
    assert model.encoder.model.gradient_checkpointing
    with pytest.raises(SettingsError, match="the encoder 'mean' can't do that"):
        _model(encoder="mean").use_gradient_checkpointing()
