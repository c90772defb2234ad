"""What `vtnpipe evaluate` writes of a split into a run's folder `predictions/`, and reading it.

SPLIT.csv   a line a video: label, decision, each class's probability
SPLIT.npz   video_ids, logits, targets, classes
SPLIT.json  figures, intervals, counts, and how it was made
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ...manifests.atomic import atomic_path, atomic_text, read_json, write_json
from ...manifests.errors import FeaturesError
from ...manifests.manifest import VideoRow
from ...temporal.tasks import decision, probabilities
from ..models.model_folder import NetworkConfig
from ..settings import make_folder


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """A split's predictions as they lie on disk.

    Attributes:
        video_ids: [N].
        logits: [N, C].
        targets: [N] or [N, C], see `temporal/tasks.py`.
        record: what the JSON says.
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
    """Writes the three files of a split, the JSON last.

    Args:
        folder: for them.
        name: of them.
        predictions: of the split.
        rows: [N], whose labels stand in the CSV.
        config: of the model.

    Raises:
        SettingsError: the folder can't be made.
        StorageError: they can't be written.
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
    """What was written of a split; None where nothing was.

    Raises:
        FeaturesError: it is damaged.
    """
    path, remedy = folder / f"{name}.json", "remove it, and evaluate again"
    if not path.exists():
        return None
    record = read_json(path, remedy)
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            return Predictions(
                video_ids=arrays["video_ids"].tolist(),
                logits=torch.from_numpy(arrays["logits"]),
                targets=torch.from_numpy(arrays["targets"]),
                record=record,
            )
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise FeaturesError(
            f"{path.with_suffix('.npz')}: cannot be read ({error!r}); {remedy}"
        ) from None


def _write_csv(path: Path, rows: Sequence[VideoRow], logits: Tensor, config: NetworkConfig) -> None:
    task, classes = config.temporal.task, config.class_names
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_id", "label", "predicted", *classes))
        for row, one in zip(rows, logits, strict=True):
            shares = [f"{share:.6f}" for share in probabilities(one, task).tolist()]
            writer.writerow((row.video_id, row.label, decision(one, classes, task), *shares))
