"""What a run folder keeps: the model for users, and checkpoints for resuming.

    config.json  model.safetensors (the best)  last.safetensors  backbone.safetensors  checkpoints/
    settings.json  metrics.jsonl  tensorboard/  predictions/  report.html
    index.safetensors  failures.csv (where the model was fitted on videos)

What is in them is told in docs/outputs.md.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The model's configuration; its presence makes a folder a model folder."""
        return self.root / "config.json"

    @property
    def best(self) -> Path:
        """Weights of the epoch that was the best on the validation split."""
        return self.root / "model.safetensors"

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return self.root / "last.safetensors"

    @property
    def backbone(self) -> Path:
        """The frozen backbone's weights; after training, linked to the feature folder's."""
        return self.root / "backbone.safetensors"

    @property
    def index(self) -> Path:
        """The timelines of the videos, where the model was fitted on them."""
        return self.root / "index.safetensors"

    @property
    def failures(self) -> Path:
        """Videos that could not be read, or not all of which could."""
        return self.root / "failures.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.root / "tensorboard"

    @property
    def predictions(self) -> Path:
        """Folder of what `vtnpipe evaluate` wrote."""
        return self.root / "predictions"

    @property
    def settings(self) -> Path:
        """What the run was begun with: settings, recipe, and a digest of its data."""
        return self.root / "settings.json"

    @property
    def lock(self) -> Path:
        """Held by the run that writes; gone afterwards."""
        return self.root / ".lock"
