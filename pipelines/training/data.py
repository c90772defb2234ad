"""Training data: the usable rows of the training and validation splits, with their targets."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...manifests.errors import ManifestError
from ...manifests.feature_folder import digest_of
from ...manifests.manifest import VideoRow
from ...manifests.segments import read_segments
from ...temporal.frame_labels import (
    FrameLabels,
    label_frames,
    segment_classes,
    unknown_segments,
)
from ...temporal.splits import UsableRows, usable_rows
from ...temporal.tasks import read_targets, training_classes
from ...temporal.time_table import Times
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Usable rows of the training and the validation split, with their targets."""

    train: UsableRows
    validation: UsableRows
    targets: tuple[Tensor, Tensor] | tuple[FrameLabels, FrameLabels]
    class_names: list[str]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[VideoRow]:
        """All rows, training rows first."""
        return self.train.rows + self.validation.rows

    @property
    def gaps(self) -> list[str]:
        """Missing and partial videos of each split, and other notes, in words."""
        found = [part.gaps for part in (self.train, self.validation) if part.gaps]
        found += self.notes
        if len(self.class_names) == 1 and isinstance(self.targets[0], Tensor):
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
                for row, target in zip(part.rows, _plain(wanted), strict=True)
            ]
            for part, wanted in (
                (self.train, self.targets[0]),
                (self.validation, self.targets[1]),
            )
        ]
        return digest_of({"source": source, "rows": rows, "classes": self.class_names})


def _plain(targets: Tensor | FrameLabels) -> list[Any]:
    """Return the targets of each video as JSON values; a digest of the labels of frames."""
    if isinstance(targets, Tensor):
        return targets.tolist()
    return [hashlib.sha256(labels.numpy().tobytes()).hexdigest() for labels in targets.of_videos]


def read_splits(
    rows: list[VideoRow],
    statuses: Mapping[str, str],
    settings: TrainSettings,
    *,
    what: str,
    remedy: str,
    times: Callable[[str], Times],
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
        times: returns the timestamps [T] of a video's frames.
        drop_partial: leave out partial videos.
        class_names: classes of the model; None for those of the training split.

    Raises:
        ManifestError: a split is empty, or a label or segment is invalid.
    """
    train, validation = (
        usable_rows(statuses, rows, split, what=what, remedy=remedy, drop_partial=drop_partial)
        for split in (settings.train_split, settings.val_split)
    )
    if settings.segments is not None:
        segments = read_segments(settings.segments)
        notes = unknown_segments(segments, (row.video_id for row in rows))
        task, background = settings.task, settings.background
        classes = class_names or segment_classes(segments, train.video_ids, task, background)
        labels = [
            label_frames(
                segments,
                part.video_ids,
                times,
                classes,
                task,
                background,
                is_partial=lambda video_id: statuses[video_id] == "partial",
            )
            for part in (train, validation)
        ]
        for part, one in zip((train, validation), labels, strict=True):
            notes += one.notes(part.split)
        return Splits(
            train=train,
            validation=validation,
            targets=(labels[0], labels[1]),
            class_names=classes,
            notes=tuple(notes),
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
