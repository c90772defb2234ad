"""Run folder: its paths, and its weights and checkpoints on disk.

    config.json  model.safetensors (kept epoch)  last.safetensors  backbone.safetensors
    settings.json  metrics.jsonl  tensorboard/  predictions/  report.html  checkpoints/
    index.safetensors  failures.csv (if the model was trained on videos)

The model is for users, the checkpoints are for resuming; docs/outputs.md describes the contents.
Weights are safetensors files. A checkpoint is one PyTorch file of plain tensors, numbers and texts,
loaded with `weights_only=True`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.atomic import atomic_path, write_bytes
from ..manifests.errors import FeaturesError, first_line


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder.

    Attributes:
        root: path of the folder.
    """

    root: Path

    @property
    def config(self) -> Path:
        """Model configuration; a folder with this file is a model folder."""
        return self.root / "config.json"

    @property
    def kept(self) -> Path:
        """Weights of the kept epoch: the last one, or the best one on the validation split."""
        return self.root / "model.safetensors"

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return self.root / "last.safetensors"

    @property
    def backbone(self) -> Path:
        """Weights of the frozen backbone; after training, a link to those in the feature folder."""
        return self.root / "backbone.safetensors"

    @property
    def baselines(self) -> Path:
        """Linear probes and nearest neighbors that stand beside the model."""
        return self.root / "baselines.safetensors"

    @property
    def index(self) -> Path:
        """Timelines of the videos, if the model was trained on videos."""
        return self.root / "index.safetensors"

    @property
    def failures(self) -> Path:
        """Table of videos that could not be read completely."""
        return self.root / "failures.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Training and validation metrics, one JSON line per epoch."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def predictions(self) -> Path:
        """Folder of predictions and metrics written by `vtnpipe evaluate`."""
        return self.root / "predictions"

    @property
    def settings(self) -> Path:
        """Settings, recipe and data digest with which the run began."""
        return self.root / "settings.json"

    @property
    def lock(self) -> Path:
        """Lock file of the run that writes to the folder; removed afterwards."""
        return self.root / ".lock"


def save_weights(
    module: nn.Module, path: Path, *, prefix: str = "", metadata: dict[str, str] | None = None
) -> None:
    """Write a module's state dict as safetensors, atomically.

    Args:
        module: the module.
        path: path of the file.
        prefix: prefix of each key.
        metadata: text entries of the file's header.
    """
    tensors = {
        f"{prefix}{key}": tensor.detach().cpu().clone().contiguous()
        for key, tensor in module.state_dict().items()
    }
    write_bytes(safetensors.torch.save(tensors, metadata), path)


def save_checkpoint(
    run: RunFolder, place: tuple[int, int], state: dict[str, Any], *, kept: int
) -> None:
    """Write a checkpoint, and remove all but the newest ones.

    Args:
        run: the run folder.
        place: number of finished epochs, and of finished steps of the next epoch.
        state: state to store, of plain tensors, numbers and texts.
        kept: number of checkpoints to keep.
    """
    epoch, step = place
    run.checkpoints.mkdir(exist_ok=True)
    with atomic_path(run.checkpoints / f"epoch-{epoch:06d}-step-{step:08d}.pt") as temporary:
        torch.save(state, temporary)
    for old in _checkpoints(run)[:-kept]:
        old.unlink()


def load_checkpoint(run: RunFolder) -> dict[str, Any] | None:
    """Return the newest checkpoint; None if there is none.

    Raises:
        FeaturesError: the checkpoint cannot be read.
    """
    paths = _checkpoints(run)
    if not paths:
        return None
    try:
        state: dict[str, Any] = torch.load(paths[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # a damaged file may raise any error
        raise FeaturesError(
            f"{paths[-1]}: cannot read the checkpoint ({first_line(error)}); remove it, and the "
            "same command resumes from the previous checkpoint, or from the beginning"
        ) from None
    return state


def _checkpoints(run: RunFolder) -> list[Path]:
    """Return the paths of the checkpoints, oldest first."""
    return sorted(run.checkpoints.glob("epoch-*.pt"))


def read_epochs(files: RunFolder) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, one per epoch; none if the file does not exist.

    A model that was imported has no such file.

    Raises:
        FeaturesError: the file cannot be read.
    """
    if not files.metrics.exists():
        return []
    try:
        text = files.metrics.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise FeaturesError(
            f"{files.metrics}: cannot be read ({error}); rerun the training command, which writes "
            "it again from its checkpoint"
        ) from None


def kept_epoch(epochs: Sequence[dict[str, Any]], keep: str) -> dict[str, Any]:
    """Return the record of the epoch that a run keeps, out of at least one.

    Args:
        epochs: records of metrics.jsonl.
        keep: `best` or `last`.
    """
    return [one for one in epochs if one["is_best"]][-1] if keep == "best" else epochs[-1]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        FeaturesError: the file is missing or damaged.
    """
    with _readable(path):
        return safetensors.torch.load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that `save_weights` wrote into a file's header.

    Raises:
        FeaturesError: the file is missing or damaged.
    """
    with _readable(path), safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors while a weights file is read into one that names the file.

    Raises:
        FeaturesError: the file is missing or damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise FeaturesError(
            f"{path}: missing; a run writes it at the end of its first epoch: continue the "
            "training, or restore the file"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise FeaturesError(
            f"{path}: cannot read the file ({error}); restore a copy, or create the model again"
        ) from None
