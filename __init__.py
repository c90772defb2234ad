"""vtnpipe: Video Transformer Networks on long videos, with the backbone run once.

The names below load on first use, so that `import vtnpipe` and `vtnpipe --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifests.feature_store import open_features
    from .manifests.manifest import read_manifest
    from .pipelines.models.network import VideoTransformerNetwork
    from .temporal.model import TemporalClassifier

__all__ = [
    "TemporalClassifier",
    "VideoTransformerNetwork",
    "__version__",
    "open_features",
    "read_manifest",
]

_HOMES = {
    "read_manifest": ".manifests.manifest",
    "open_features": ".manifests.feature_store",
    "TemporalClassifier": ".temporal.model",
    "VideoTransformerNetwork": ".pipelines.models.network",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("vtnpipe")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'vtnpipe' has no attribute {name!r}")
