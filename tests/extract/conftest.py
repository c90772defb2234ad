"""Fixtures of stage one: rows of the numbered clips, and a preprocessing of small crops."""

from pathlib import Path

import pytest
from vtnpipe.extract.preprocessing import Preprocessing
from vtnpipe.manifests.manifest import VideoRow


@pytest.fixture
def rows(clips: dict[str, Path]) -> list[VideoRow]:
    return [VideoRow(video_id=name, path=str(path)) for name, path in clips.items()]


@pytest.fixture
def preprocessing() -> Preprocessing:
    """Crops of 32 pixels, without a resize for frames of that height or width."""
    return Preprocessing(
        input_size=(3, 32, 32),
        interpolation="bilinear",
        crop_pct=1.0,
        crop_mode="center",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
