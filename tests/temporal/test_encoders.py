"""Full attention, the mean, and the initial weights."""

import pytest
import torch
from temporal_models import D, random_clip, small_config, small_model
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.temporal.longformer import Longformer
from vtnpipe.temporal.model import TemporalClassifier


def test_full_attention_is_a_longformer_whose_window_contains_all_tokens() -> None:
    torch.manual_seed(0)
    full = Longformer(small_config(encoder="full")).eval()
    wide = Longformer(small_config(attention_window=100)).eval()
    for parameter in full.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = full.state_dict()
    for key in wide.state_dict():
        state[key] = state[key.replace("_global", "")]
    wide.load_state_dict(state)
    features, positions = random_clip(45)
    mask = torch.arange(45)[None] < 41
    for cls_only in (True, False):
        inputs = (torch.randn(1, 1, D), features, positions, mask)
        found = [model(*inputs, cls_only=cls_only) for model in (full, wide)]
        read = (slice(None),) if cls_only else (slice(None), slice(0, 42))
        torch.testing.assert_close(found[0][read], found[1][read], atol=2e-5, rtol=1e-4)


def test_full_attention_without_positions_ignores_the_order() -> None:
    model = small_model(encoder="full", position_embedding="none")
    features, positions = random_clip(40)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(features, positions), model(features.flip(1), positions), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("encoder", ["uniform", "attentive", "hf:modernbert", "hf:longformer"])
def test_encoders_see_all_frames_and_no_padding(encoder: str) -> None:
    model = small_model(encoder=encoder)
    features, positions = random_clip(40)
    mask = torch.ones(1, 40, dtype=torch.bool)
    padded = torch.cat([features, torch.randn(1, 25, D)], dim=1)
    is_frame = torch.arange(65)[None] < 40
    changed = features.clone()
    changed[0, 39] = torch.randn(D)
    with torch.inference_mode():
        found = model(features, positions, mask)
        again = model(padded, torch.arange(65)[None], is_frame)
        other = model(changed, positions, mask)
    torch.testing.assert_close(again, found, atol=1e-4, rtol=0)
    assert float((other - found).abs().max()) > 1e-6


def test_uniform_attention_is_the_mean_and_so_says_its_attention() -> None:
    model = small_model(encoder="uniform", num_layers=2)
    features, positions = random_clip(12)
    weights = model.cls_attention(features, positions)
    assert weights is not None
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 13))
    model = small_model(encoder="uniform", position_embedding="none")
    with torch.inference_mode():
        torch.testing.assert_close(
            model(features, positions), model(features.flip(1), positions), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("encoder", "fault"),
    [
        ("hf:gpt2", "does not see the later ones"),
        ("hf:fnet", "padding changes its output"),
        ("hf:no-such-model", "cannot be used here"),
    ],
)
def test_transformers_that_do_not_fit_are_refused_by_name(encoder: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=f"--encoder {encoder}.*{fault}"):
        small_model(encoder=encoder)


def test_the_mean_of_many_large_half_precision_features_is_finite() -> None:
    model = small_model(encoder="mean").bfloat16()
    features = torch.full((1, 4001, D), 3e4)
    states = model.encoder(features.half(), None, torch.ones(1, 4001, dtype=torch.bool))
    torch.testing.assert_close(states.float(), torch.full((1, D), 3e4), atol=30, rtol=0)


@pytest.mark.parametrize("encoder", ["longformer", "full"])
def test_weights_are_initialized_as_the_authors_do(encoder: str) -> None:
    torch.manual_seed(0)
    state = TemporalClassifier(small_config(encoder=encoder)).encoder.state_dict()
    positions = state["model.embeddings.position_embeddings.weight"]
    assert tuple(positions.shape) == (288, D)
    assert float(positions[:-1].std()) == pytest.approx(0.02, rel=0.05)
    assert not positions[-1].any()
    for key, tensor in state.items():
        if key.endswith("query.weight"):
            assert float(tensor.std()) == pytest.approx(0.02, rel=0.1)
        if key.endswith("dense.bias"):
            assert not tensor.any()
