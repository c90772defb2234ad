"""Presets have the values of the paper."""

import pytest
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.temporal.presets import PRESETS, preset, preset_for, preset_like


def test_presets_have_the_papers_recipe() -> None:
    for found in PRESETS.values():
        is_resnet = found.backbone.startswith("resnet")
        assert found.batch_size == (32 if is_resnet else 16)
        assert found.schedule == ("cosine" if is_resnet else "steps")
    with pytest.raises(SettingsError, match="vit-b-vtn"):
        preset("vit-c-vtn")


def test_a_preset_is_found_by_its_backbone() -> None:
    assert preset_for("resnet101") is PRESETS["r101-vtn"]
    assert preset_for("vit_base_patch16_224.augreg_in21k") is PRESETS["vit-b-vtn"]
    assert preset_for("nothing") is None


def test_the_heads_of_an_adapted_preset_divide_the_features() -> None:
    for dim in (512, 1024, 1280, 7, 16):
        assert dim % preset_like(dim).temporal_config(num_classes=2).num_heads == 0
