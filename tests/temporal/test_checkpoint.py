"""Weights and checkpoints on disk."""

from pathlib import Path

import pytest
import torch
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.temporal.checkpoint import (
    RunFolder,
    load_checkpoint,
    read_metadata,
    read_weights,
    save_checkpoint,
    save_weights,
)


def test_weights_are_read_as_they_were_saved(tmp_path: Path) -> None:
    module, path = torch.nn.Linear(3, 2), tmp_path / "model.safetensors"
    save_weights(module, path, prefix="temporal.", metadata={"digest": "abc"})
    found = read_weights(path)
    assert found.keys() == {"temporal.weight", "temporal.bias"}
    assert torch.equal(found["temporal.weight"], module.weight)
    assert read_metadata(path) == {"digest": "abc"}


@pytest.mark.parametrize("read", [read_weights, read_metadata])
def test_a_missing_or_damaged_weights_file_is_an_error(read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.safetensors"
    with pytest.raises(FeaturesError, match=r"model\.safetensors: missing"):
        read(path)
    path.write_bytes(b"damaged")
    with pytest.raises(FeaturesError, match=r"model\.safetensors: cannot read"):
        read(path)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert load_checkpoint(run) is None
    for place in ((0, 5), (1, 0), (1, 12)):
        save_checkpoint(run, place, {"place": list(place)}, kept=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "epoch-000001-step-00000000.pt",
        "epoch-000001-step-00000012.pt",
    ]
    assert load_checkpoint(run) == {"place": [1, 12]}
