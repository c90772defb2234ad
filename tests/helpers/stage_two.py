"""What tests of stage two share: a small model, and what they do to runs and manifests."""

from pathlib import Path

import torch
from vtnpipe.pipelines.models.model_folder import load_temporal, read_config
from vtnpipe.pipelines.predict import PredictSettings
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import save_weights
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.run_folder import RunFolder

SMALL = ("--layers", 1, "--heads", 2, "--intermediate", 16, "--head-dim", 8, "--epochs", 2)
SETTINGS = TrainTemporalSettings(layers=1, heads=2, intermediate=16, head_dim=8, epochs=2)


def of_features(features: Path) -> PredictSettings:
    return PredictSettings(mode="features", features=str(features))


def make_sensitive(files: RunFolder) -> TemporalClassifier:
    """Gives a run's model weights such that order, positions and frames matter."""
    temporal = load_temporal(files, read_config(files))
    torch.manual_seed(4)
    for parameter in temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    save_weights(temporal, files.best, prefix="temporal.")
    return temporal


def edit(manifest: Path, old: str, new: str) -> str:
    """A copy of a manifest with some text replaced."""
    text = manifest.read_text()
    assert old in text
    path = manifest.with_name("edited.csv")
    path.write_text(text.replace(old, new))
    return str(path)
