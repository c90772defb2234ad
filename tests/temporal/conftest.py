"""A small feature folder without videos; the first half of a video's features tells its class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vtnpipe.manifests.feature_folder import (
    Extraction,
    FeatureFolder,
    FeatureSpec,
    write_extraction,
)
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.shards import VideoPart, write_shard

DIM = 12


def _video(number: int, length: int, row_shape: tuple[int, ...]) -> VideoPart:
    generator = np.random.default_rng(number)
    features = generator.standard_normal((length, *row_shape)).astype(np.float32)
    features[..., number % 2] += np.where(
        np.arange(length).reshape(-1, *[1] * (len(row_shape) - 1)) < length // 2, 3, 0
    )
    return VideoPart(
        video_id=f"v{number:02}",
        features=features,
        frame_index=np.arange(length),
        timestamps=np.arange(length) / 10,
        status="ok",
    )


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., FeatureStore]:
    def make(num_videos: int = 24, *extra: VideoPart, num_views: int = 1) -> FeatureStore:
        row_shape = (DIM,) if num_views == 1 else (num_views, DIM)
        folder = FeatureFolder(tmp_path / "features")
        folder.shards.mkdir(parents=True)
        spec = FeatureSpec(backbone="toy")
        write_extraction(
            folder,
            Extraction(
                spec=spec, fingerprint=spec.fingerprint, row_shape=row_shape, weights="none"
            ),
        )
        store = FeatureStore(folder.root)
        write_shard(
            folder.shards / "000-00000.h5",
            [*(_video(n, 20 + n, row_shape) for n in range(num_videos)), *extra],
            row_shape=row_shape,
            dtype="float32",
            fingerprint=store.fingerprint,
            views=[str(number) for number in range(num_views)],
            settings={},
        )
        return FeatureStore(folder.root)

    return make


@pytest.fixture
def rows() -> list[VideoRow]:
    return [VideoRow(video_id=f"v{n:02}", path="-", label="ab"[n % 2]) for n in range(24)]
