"""Training data: usable rows of the two splits, targets, and the digest that tells runs apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vtnpipe.manifests.errors import ManifestError
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.pipelines.training.data import Splits, describe_splits, read_splits
from vtnpipe.pipelines.training.settings import TrainTemporalSettings

ROWS = [
    VideoRow(video_id=f"v{n}", path=f"{n}.mp4", label="ba"[n % 2], split=("train", "val")[n // 4])
    for n in range(8)
]
STATUSES = {**{row.video_id: "ok" for row in ROWS}, "v0": "partial", "v5": "failed"}


def _read(
    rows: list[VideoRow] = ROWS, settings: dict[str, Any] | None = None, **options: Any
) -> Splits:
    named = TrainTemporalSettings(**(settings or {}))
    return read_splits(
        rows,
        STATUSES,
        named,
        what="features",
        remedy="extract them",
        times=lambda _: np.arange(40) / 10,
        **options,
    )


def test_rows_without_features_are_left_out_and_counted() -> None:
    splits = _read()
    assert splits.class_names == ["a", "b"]
    assert splits.train.video_ids == ["v0", "v1", "v2", "v3"]
    assert splits.validation.video_ids == ["v4", "v6", "v7"]
    assert [targets.tolist() for targets in splits.targets] == [[1, 0, 1, 0], [1, 1, 0]]
    assert splits.gaps == [
        "split train: of 4 videos, 1 partial",
        "split val: of 4 videos, 1 without features",
    ]
    assert describe_splits(splits) == "4 training and 3 validation videos, 2 classes"
    dropped = _read(drop_partial=True)
    assert dropped.train.video_ids == ["v1", "v2", "v3"]
    assert dropped.gaps[0] == "split train: of 4 videos, 1 partial and left out"


def test_the_digest_depends_on_data_and_labels_and_not_on_paths() -> None:
    digest = _read().digest("source", lambda row: row.video_id)
    moved = [replace(row, path=f"elsewhere/{row.path}") for row in ROWS]
    assert _read(moved).digest("source", lambda row: row.video_id) == digest
    relabelled = [replace(row, label="b" if row.video_id == "v1" else row.label) for row in ROWS]
    others = [
        _read(relabelled).digest("source", lambda row: row.video_id),
        _read().digest("other source", lambda row: row.video_id),
        _read().digest("source", lambda row: 0),
        _read(ROWS[::-1]).digest("source", lambda row: row.video_id),
        _read(drop_partial=True).digest("source", lambda row: row.video_id),
    ]
    assert len({digest, *others}) == 6


def test_classes_are_those_of_the_training_split_or_of_the_model() -> None:
    new = replace(ROWS[7], label="c")
    with pytest.raises(ManifestError, match=r"video_id 'v7': label 'c' .* 2 classes \(a, b\)"):
        _read([*ROWS[:7], new])
    assert _read(class_names=["b", "a"]).targets[0].tolist() == [0, 1, 0, 1]
    with pytest.raises(ManifestError, match=r"label 'a' .* 1 classes \(b\).*; or give --new-head"):
        _read(class_names=["b"])


def test_regression_reads_numbers_and_has_no_classes() -> None:
    rows = [replace(row, label=str(n / 2)) for n, row in enumerate(ROWS)]
    splits = _read(rows, {"task": "regression"})
    assert splits.class_names == []
    assert splits.targets[0].tolist() == [0.0, 0.5, 1.0, 1.5]
    assert describe_splits(splits) == "4 training and 3 validation videos"
    with pytest.raises(ManifestError, match="video_id 'v0': label 'b'") as caught:
        _read(settings={"task": "regression"}, class_names=[])
    assert "--new-head" not in str(caught.value)


def test_splits_and_classes_without_usable_rows_are_refused() -> None:
    with pytest.raises(ManifestError, match="split 'test' has no rows"):
        _read(settings={"val_split": "test"})
    failed = [replace(row, split="rare" if row.video_id == "v5" else row.split) for row in ROWS]
    with pytest.raises(ManifestError, match=r"split 'rare': none of its 1 videos.*; extract them"):
        _read(failed, {"val_split": "rare"})
    unusable = [replace(ROWS[5], label="c", split="train"), *ROWS[:5], *ROWS[6:]]
    with pytest.raises(ManifestError, match="no video of class 'c' can be used"):
        _read(unusable)
