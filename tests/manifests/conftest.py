"""A feature folder without features."""

from pathlib import Path

import pytest
from made_up_shards import DIM, write_spec
from vtnpipe.manifests.feature_folder import FeatureFolder


@pytest.fixture
def folder(tmp_path: Path) -> FeatureFolder:
    folder = FeatureFolder(tmp_path / "features")
    folder.shards.mkdir(parents=True)
    folder.plans.mkdir()
    write_spec(folder, DIM)
    return folder
