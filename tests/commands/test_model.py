"""`vtnpipe model show`: the paper's parameters and GMACs."""

from pathlib import Path

import pytest
import torch
from command_line import run_cli
from vtnpipe.extract.create_backbone import create_module
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.pipelines.model import backbone_macs, show_model
from vtnpipe.temporal.presets import PRESETS


def test_through_the_command_line(tmp_path: Path) -> None:
    lines = run_cli(tmp_path, "model", "show", "vit-b-vtn").stdout.splitlines()
    assert lines[0] == "vit-b-vtn: 114M parameters"
    assert "250 frames: 4218 GMACs (backbone 250 x 16.85, temporal 6.22;" in lines[3]
    assert any(line.split() == ["attention_window", "18"] for line in lines)
    assert "neither a preset (vit-b-vtn" in run_cli(tmp_path, "model", "show", "x", code=2).stderr


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [
        ("vit-b-vtn", 114, 4218),
        ("vit-b-vtn-1layer", 96, 4214),
        ("deit-b-vtn", 114, 4218),
        ("deit-ti-vtn", 10, None),
        ("r50-vtn", 168, None),
        ("r101-vtn", 187, None),
    ],
)
def test_presets_have_the_papers_size(name: str, millions: int, gmacs: int | None) -> None:
    assert name in PRESETS
    lines = list(show_model(name))
    assert lines[0] == f"{name}: {millions}M parameters"
    if gmacs is not None:
        assert f"250 frames: {gmacs} GMACs" in lines[3]


def test_gmacs_grow_with_the_frames() -> None:
    assert "1 frames: 17 GMACs" in list(show_model("vit-b-vtn", num_frames=1))[3]
    with pytest.raises(SettingsError, match="neither a preset"):
        list(show_model("no/such"))


def test_gmacs_of_a_backbone_that_pools_by_attention() -> None:
    with torch.device("meta"):
        module = create_module("vit_base_patch16_siglip_224", pretrained=False)
    assert round(backbone_macs(module, (3, 224, 224)) / 1e9, 1) == 17.0


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="not a model or run folder"):
        list(show_model(str(tmp_path)))
