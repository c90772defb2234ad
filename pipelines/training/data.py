"""Training data: the usable rows of the training and validation splits, with their targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...manifests.errors import ManifestError
from ...manifests.feature_folder import digest_of
from ...manifests.manifest import VideoRow
from ...temporal.splits import UsableRows, usable_rows
from ...temporal.tasks import read_targets, training_classes
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Usable rows of the training and the validation split, with their targets."""

    train: UsableRows
    validation: UsableRows
    targets: tuple[Tensor, Tensor]
    class_names: list[str]

    @property
    def rows(self) -> list[VideoRow]:
        """All rows, training rows first."""
        return self.train.rows + self.validation.rows

    @property
    def gaps(self) -> list[str]:
        """Missing and partial videos of each split, in words."""
        found = [part.gaps for part in (self.train, self.validation) if part.gaps]
        if len(self.class_names) == 1:
            found.append(
                f"{self.class_names[0]!r} is the only class of split {self.train.split}: every "
                "prediction is that class, and accuracy says nothing"
            )
        return found

    def digest(self, source: Any, row_state: Callable[[VideoRow], Any]) -> str:
        """Return the digest of the training data, 16 hexadecimal digits.

        Args:
            source: JSON value that all videos have in common.
            row_state: returns a JSON value that changes when a row's frames change.
        """
        rows = [
            [
                (row.video_id, target, row_state(row))
                for row, target in zip(part.rows, wanted.tolist(), strict=True)
            ]
            for part, wanted in zip((self.train, self.validation), self.targets, strict=True)
        ]
        return digest_of({"source": source, "rows": rows, "classes": self.class_names})


def read_splits(
    rows: list[VideoRow],
    statuses: Mapping[str, str],
    settings: TrainSettings,
    *,
    what: str,
    remedy: str,
    drop_partial: bool = False,
    class_names: list[str] | None = None,
) -> Splits:
    """Return the usable rows of the two splits.

    Args:
        rows: rows of the manifest.
        statuses: video_id → `ok`, `partial` or `failed`.
        settings: names of the splits, and task.
        what: what usable videos have, for messages: features or frames.
        remedy: what to do if no video is usable, for messages.
        drop_partial: leave out partial videos.
        class_names: classes of the model; None for those of the training split.

    Raises:
        ManifestError: a split is empty, or a label is invalid.
    """
    train, validation = (
        usable_rows(statuses, rows, split, what=what, remedy=remedy, drop_partial=drop_partial)
        for split in (settings.train_split, settings.val_split)
    )
    names = class_names
    if names is None:
        names = training_classes(rows, train.rows, settings.train_split, settings.task)
    try:
        targets = [read_targets(part.rows, names, settings.task) for part in (train, validation)]
    except ManifestError as error:
        if class_names is None or settings.task == "regression":
            raise
        raise ManifestError(f"{error}; or give --new-head, for the manifest's classes") from None
    return Splits(
        train=train, validation=validation, targets=(targets[0], targets[1]), class_names=names
    )


def describe_splits(splits: Splits) -> str:
    """Return the sizes of the splits in words."""
    classes = f", {len(splits.class_names)} classes" if splits.class_names else ""
    return (
        f"{len(splits.train.rows)} training and {len(splits.validation.rows)} validation "
        f"videos{classes}"
    )
