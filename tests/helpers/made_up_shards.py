"""Shards of random features, made without videos and without a backbone."""

from pathlib import Path
from typing import Any

import numpy as np
from vtnpipe.manifests.feature_folder import (
    Extraction,
    FeatureFolder,
    FeatureSpec,
    read_extraction,
    write_extraction,
)
from vtnpipe.manifests.shards import VideoPart, write_shard

DIM = 6


def write_spec(folder: FeatureFolder, *row_shape: int, **spec: Any) -> None:
    """Make it a feature folder of features of that shape."""
    found = FeatureSpec(**{"backbone": "toy", "feature_dtype": "float16", **spec})
    write_extraction(
        folder,
        Extraction(spec=found, fingerprint=found.fingerprint, row_shape=row_shape, weights="none"),
    )


def video_part(
    video_id: str, length: int, *, seed: int = 0, first: int = 0, **fields: Any
) -> VideoPart:
    """Features [length, DIM] float16, at 30 frames/s from frame `first` on."""
    generator = np.random.default_rng(seed)
    index = np.arange(first, first + length)
    return VideoPart(
        video_id=video_id,
        features=generator.standard_normal((length, DIM)).astype(np.float16),
        frame_index=index,
        timestamps=index / 30,
        status=fields.pop("status", "ok" if length else "failed"),
        **fields,
    )


def write_parts(folder: FeatureFolder, name: str, *parts: VideoPart, **changes: Any) -> Path:
    """Write the shard of task `name`; `changes` are other arguments of `write_shard`."""
    path = folder.shards / f"{name}.h5"
    arguments: dict[str, Any] = {
        "row_shape": (DIM,),
        "dtype": "float16",
        "fingerprint": read_extraction(folder).fingerprint,
        "views": ["center"],
        "settings": {"batch_size": 32},
    }
    write_shard(path, parts, **{**arguments, **changes})
    return path
