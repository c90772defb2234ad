"""Predictions of a split, which `vtnpipe evaluate` writes into `predictions/` of a run folder.

SPLIT.csv   one line per video: label, prediction, each class's probability
SPLIT.npz   video_ids, logits, targets, classes
SPLIT.json  metrics, intervals, counts, settings, model and source
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...manifests.atomic import atomic_path, atomic_text, read_json, write_json
from ...manifests.errors import FeaturesError
from ...manifests.manifest import VideoRow
from ...temporal.tasks import decision, probabilities
from ..models.model_folder import NetworkConfig
from ..settings import make_folder

REMEDY = "remove it, and evaluate again"  # for a damaged file


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predictions of a split, as stored.

    Attributes:
        video_ids: [N] ids of the videos.
        logits: [N, C].
        targets: [N] or [N, C], see `temporal/tasks.py`.
        record: contents of the JSON file.
    """

    video_ids: list[str]
    logits: Tensor
    targets: Tensor
    record: dict[str, Any]


def write_predictions(
    folder: Path,
    name: str,
    predictions: Predictions,
    rows: Sequence[VideoRow],
    config: NetworkConfig,
) -> None:
    """Write the three files of a split, the JSON file last.

    Args:
        folder: folder of the files; created if missing.
        name: file name without extension.
        predictions: predictions of the split.
        rows: manifest rows of the N videos.
        config: configuration of the model.

    Raises:
        SettingsError: the folder cannot be created.
        StorageError: a file cannot be written.
    """
    make_folder(folder)
    _write_csv(folder / f"{name}.csv", rows, predictions.logits, config)
    with atomic_path(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            video_ids=np.array(predictions.video_ids),
            logits=predictions.logits.numpy(),
            targets=predictions.targets.numpy(),
            classes=np.array(config.class_names, dtype=np.str_),
        )
    write_json(predictions.record, folder / f"{name}.json")


def read_predictions(folder: Path, name: str) -> Predictions | None:
    """Return the stored predictions of a split; None if there are none.

    Args:
        folder: folder of the files.
        name: file name without extension.

    Raises:
        FeaturesError: a file is damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    record = read_json(path, REMEDY)
    with stored_arrays(path.with_suffix(".npz")) as arrays:
        return Predictions(
            video_ids=arrays["video_ids"].tolist(),
            logits=torch.from_numpy(arrays["logits"]),
            targets=torch.from_numpy(arrays["targets"]),
            record=record,
        )


@contextmanager
def stored_arrays(path: Path) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Open an NPZ file of predictions, to read its arrays in the block.

    Raises:
        FeaturesError: the file is damaged, or an array does not fit the others.
    """
    try:
        # Opened here, as np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, RuntimeError) as error:
        raise FeaturesError(f"{path}: cannot be read ({error!r}); {REMEDY}") from None


def _write_csv(path: Path, rows: Sequence[VideoRow], logits: Tensor, config: NetworkConfig) -> None:
    task, classes = config.temporal.task, config.class_names
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_id", "label", "predicted", *classes))
        for row, one in zip(rows, logits, strict=True):
            shares = [f"{share:.6f}" for share in probabilities(one, task).tolist()]
            writer.writerow((row.video_id, row.label, decision(one, classes, task), *shares))
