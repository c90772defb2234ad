"""vtnpipe: Video Transformer Networks on long videos, with the backbone run once.

The names below load on first use, so that `import vtnpipe` and `vtnpipe --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifests.feature_store import FeatureStore, open_features
    from .manifests.manifest import VideoRow, read_manifest
    from .pipelines.api import evaluate, extract_features, predict, train_temporal
    from .pipelines.models.network import VideoTransformerNetwork
    from .temporal.feature_dataset import FeatureDataset
    from .temporal.model import TemporalClassifier

__all__ = [
    "FeatureDataset",
    "FeatureStore",
    "TemporalClassifier",
    "VideoRow",
    "VideoTransformerNetwork",
    "__version__",
    "evaluate",
    "extract_features",
    "open_features",
    "predict",
    "read_manifest",
    "train_temporal",
]

_HOMES = {
    "FeatureDataset": ".temporal.feature_dataset",
    "FeatureStore": ".manifests.feature_store",
    "TemporalClassifier": ".temporal.model",
    "VideoRow": ".manifests.manifest",
    "evaluate": ".pipelines.api",
    "extract_features": ".pipelines.api",
    "open_features": ".manifests.feature_store",
    "predict": ".pipelines.api",
    "read_manifest": ".manifests.manifest",
    "train_temporal": ".pipelines.api",
    "VideoTransformerNetwork": ".pipelines.models.network",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("vtnpipe")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'vtnpipe' has no attribute {name!r}")
