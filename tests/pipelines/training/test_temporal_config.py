"""The configuration of a new temporal model."""

from dataclasses import replace

import pytest
import torch
from vtnpipe.manifests.errors import ManifestError, SettingsError
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.pipelines.training.temporal_config import choose_preset, new_temporal_config
from vtnpipe.temporal.presets import PRESETS

MEANS = "toy_backbones:block_means"


def test_the_preset_is_that_of_the_backbone_or_the_one_given() -> None:
    auto = TrainTemporalSettings(recipe="paper")
    assert choose_preset(auto, "resnet50.a1_in1k", 2048) is PRESETS["r50-vtn"]
    like = choose_preset(auto, MEANS, 16)
    assert (like.feature_dim, like.num_heads, like.num_layers) == (16, 8, 3)
    given = TrainTemporalSettings(preset="deit-ti-vtn")
    assert choose_preset(given, MEANS, 192) is PRESETS["deit-ti-vtn"]
    with pytest.raises(SettingsError, match=r"--preset 'deit-ti-vtn'.* 192 .* 16"):
        choose_preset(given, MEANS, 16)


def test_stored_features_get_a_model_for_the_size_of_the_training_split() -> None:
    settings = TrainTemporalSettings()
    small, large = (choose_preset(settings, "resnet50", 2048, n) for n in (100, 30_000))
    assert (small.head_dim, large.head_dim) == (128, 512)
    config = new_temporal_config(settings, small, 2048, torch.tensor([0]), list("abcde"))
    assert (config.feature_dim, config.token_dim, config.num_layers) == (2048, 128, 2)
    assert (config.standardize, config.position_embedding) == (True, "sinusoidal")
    mean = choose_preset(replace(settings, encoder="mean"), "resnet50", 2048, 100)
    assert (
        new_temporal_config(settings, mean, 2048, torch.tensor([0]), list("abcde")).token_dim
        == 2048
    )


def test_learned_positions_do_not_wrap_within_the_longest_video() -> None:
    settings = TrainTemporalSettings(position_embedding="learned")
    arguments = (PRESETS["vit-b-vtn"], 768, torch.tensor([0]), list("abcde"))
    rates = {
        seconds: new_temporal_config(settings, *arguments, longest_seconds=seconds).position_fps
        for seconds in (10.0, 600.0)
    }
    assert rates == {10.0: 25.0, 600.0: 285 / 600}
    given = replace(settings, position_fps=2.0)
    assert new_temporal_config(given, *arguments, longest_seconds=600.0).position_fps == 2.0
    paper = replace(settings, recipe="paper")
    assert new_temporal_config(paper, *arguments, longest_seconds=600.0).position_fps is None


def test_given_settings_replace_the_presets() -> None:
    settings = TrainTemporalSettings(
        layers=1, attention_window=4, dropout=0.2, head_dropout=0.0, max_positions=99
    )
    config = new_temporal_config(
        settings, PRESETS["vit-b-vtn"], 768, torch.tensor([0]), list("abcde")
    )
    assert (config.num_layers, config.attention_window, config.max_positions) == (1, 4, 99)
    assert (config.dropout, config.attention_dropout, config.head_dropout) == (0.2, 0.2, 0.0)
    assert (config.num_heads, config.num_classes, config.position_fps) == (12, 5, 25.0)
    frames = replace(settings, positions="frames")
    config = new_temporal_config(
        frames, PRESETS["vit-b-vtn"], 768, torch.tensor([0]), list("abcde")
    )
    assert config.position_fps is None


def test_regression_takes_mean_and_spread_of_the_training_labels() -> None:
    settings = TrainTemporalSettings(task="regression")
    preset = PRESETS["vit-b-vtn"]
    config = new_temporal_config(settings, preset, 768, torch.tensor([1.0, 3.0]), [])
    assert (config.target_mean, config.target_std, config.num_classes) == (2.0, 1.0, 1)
    constant = torch.full((3,), 0.1, dtype=torch.float64)
    assert new_temporal_config(settings, preset, 768, constant, []).target_std == 1.0
    with pytest.raises(ManifestError, match=r"standard deviation is (inf|nan)"):
        new_temporal_config(settings, preset, 768, torch.tensor([-1e308, 1e308]).double(), [])
