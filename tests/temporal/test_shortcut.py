"""The linear shortcut: statistics with padding, its logits, training mode, the blend."""

import numpy as np
import pytest
import torch
from vtnpipe.temporal.baselines import feature_statistics
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.shortcut import choose_blend, clip_statistics

CONFIG = TemporalConfig(
    feature_dim=6,
    num_classes=3,
    hidden_dim=8,
    num_heads=2,
    num_layers=1,
    intermediate_dim=8,
    head_dim=8,
    standardize=True,
    shortcut="motion",
)


def test_statistics_of_a_padded_batch_are_those_of_each_video() -> None:
    features, mask = torch.randn(3, 9, 6), torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    found = clip_statistics(features, mask)
    for row, length in enumerate((9, 4, 1)):
        expected = feature_statistics(features[row, :length].numpy())
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shortcut", ["mean", "motion"])
def test_the_shortcut_adds_its_probe_and_padding_changes_nothing(shortcut: str) -> None:
    values = {**vars(CONFIG), "shortcut": shortcut}
    model = TemporalClassifier(TemporalConfig(**values)).eval()
    assert model.shortcut is not None
    model.input.set_statistics(torch.randn(6), torch.rand(6) + 0.5)
    weight, bias = torch.randn_like(model.shortcut.weight), torch.randn(3)
    center = torch.randn(weight.shape[1])
    features, positions = torch.randn(2, 5, 6), torch.arange(5).expand(2, -1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    with torch.inference_mode():
        plain = model(features, positions)
        model.shortcut.set_probe(weight, center, bias)
        model.shortcut.blend.fill_(0.5)
        found = model(features, positions)
        statistics = clip_statistics(features, mask)[:, : weight.shape[1]]
        torch.testing.assert_close(found, 0.5 * plain + (statistics - center) @ weight.T + bias)
        padded = torch.cat([features, torch.randn(2, 3, 6)], dim=1)
        is_frame = torch.arange(8).expand(2, -1) < 5
        again = model(padded, torch.arange(8).expand(2, -1), is_frame)
        torch.testing.assert_close(again, found, atol=1e-4, rtol=0)


def test_held_out_shortcuts_take_no_part_in_training() -> None:
    torch.manual_seed(0)
    model = TemporalClassifier(CONFIG)
    assert model.shortcut is not None
    model.shortcut.set_probe(
        torch.randn_like(model.shortcut.weight), torch.zeros(18), torch.randn(3)
    )
    features, positions = torch.randn(2, 5, 6), torch.arange(5).expand(2, -1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    with_probe = model(features, positions)
    model.shortcut.is_held_out = True
    without = model(features, positions)
    assert not torch.equal(with_probe, without)
    assert not any(name.startswith("shortcut") for name, _ in model.named_parameters())


def test_the_blend_minimizes_the_loss() -> None:
    targets = torch.arange(40) % 2
    right = 4.0 * torch.nn.functional.one_hot(targets, 2)
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert choose_blend(right, 20 * noise, targets) < 0.1
    assert choose_blend(0.01 * noise, right, targets) == 1.0
    assert choose_blend(torch.zeros(40, 2), noise, targets) == 1.0  # no probe: nothing to choose
