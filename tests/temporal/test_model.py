"""The temporal model: equality with the authors', what may and what may not change a logit."""

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.temporal.choices import ENCODERS
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.presets import PRESETS, preset, preset_for, preset_like


def _model(encoder: str = "longformer", **changes: object) -> TemporalClassifier:
    torch.manual_seed(0)
    values = {"feature_dim": 24, "num_classes": 5, "num_heads": 4, "intermediate_dim": 32}
    config = TemporalConfig(**{"head_dim": 16, "encoder": encoder, **values, **changes})  # type: ignore[arg-type]
    model = TemporalClassifier(config).eval()
    for parameter in model.parameters():  # as after some training: at the start, little matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _clips(*lengths: int) -> list[tuple[Tensor, Tensor]]:
    """Features [T, D] and positions [T] of each."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 24, generator=generator), torch.arange(n) * 3) for n in lengths]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_of_clips_equals_the_clips_alone(encoder: str) -> None:
    model = _model(encoder)
    clips = _clips(1, 17, 18, 40, 133)
    features, positions = (
        pad_sequence(column, batch_first=True) for column in zip(*clips, strict=True)
    )
    mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one, _ in clips], True)
    with torch.inference_mode():
        together = model(features, positions, mask)
        for row, clip in enumerate(clips):
            alone = model(clip[0][None], clip[1][None])
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_stands_in_the_padding_changes_no_logit(encoder: str) -> None:
    model = _model(encoder)
    (clip,) = _clips(29)
    features, positions = clip[0][None], clip[1][None]
    with torch.inference_mode():
        expected = model(features, positions)
        for padding in (1, 7, 18, 200):
            mask = torch.arange(29 + padding)[None] < 29
            found = model(
                torch.cat([features, torch.full((1, padding, 24), 50.0)], 1),
                torch.nn.functional.pad(positions, (0, padding), value=5),
                mask,
            )
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_order_changes_the_longformer_and_not_the_mean() -> None:
    (clip,) = _clips(40)
    positions = clip[1][None]
    with torch.inference_mode():
        for encoder, is_seen in (("longformer", True), ("mean", False)):
            model = _model(encoder)
            logits = model(clip[0][None], positions)
            backwards = model(clip[0].flip(0)[None], positions)
            assert torch.allclose(logits, backwards, atol=1e-5) != is_seen


def test_positions_wrap_below_the_last_two_rows() -> None:
    model = _model(max_positions=12)
    (clip,) = _clips(20)
    positions = torch.arange(20)[None]
    with torch.inference_mode():
        logits = model(clip[0][None], positions)
        torch.testing.assert_close(model(clip[0][None], positions + 10), logits)
        assert not torch.allclose(model(clip[0][None], positions + 1), logits)


def test_presets_have_the_papers_recipe() -> None:
    for found in PRESETS.values():
        is_resnet = found.backbone.startswith("resnet")
        assert found.batch_size == (32 if is_resnet else 16)
        assert found.schedule == ("cosine" if is_resnet else "steps")
    assert preset_for("resnet101") is PRESETS["r101-vtn"]
    assert preset_for("vit_base_patch16_224.augreg_in21k") is PRESETS["vit-b-vtn"]
    assert preset_for("nothing") is None
    for dim in (512, 1024, 1280, 7, 16):
        assert dim % preset_like(dim).temporal_config(num_classes=2).num_heads == 0
    with pytest.raises(SettingsError, match="vit-b-vtn"):
        preset("vit-c-vtn")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "--heads 5"),
        ({"attention_window": 17}, "--attention-window 17"),
        ({"attention_window": 0}, "--attention-window 0"),
        ({"max_positions": 2}, "--max-positions 2"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        _model(**changes)
