"""The rows of a split, and which of them can be used."""

import pytest
from vtnpipe.manifests.errors import ManifestError
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.temporal.splits import rows_of_split, usable_rows

ROWS = [
    VideoRow(video_id=video_id, path="-", split=split)
    for video_id, split in zip("abcdx", ("train",) * 4 + ("val",), strict=True)
]
STATUSES = {"a": "ok", "b": "partial", "c": "failed", "x": "failed"}


def test_a_split_without_rows_is_an_error() -> None:
    assert rows_of_split(ROWS, "val") == ROWS[4:]
    with pytest.raises(ManifestError, match="split 'test' has no rows; the manifest has 'train'"):
        rows_of_split(ROWS, "test")


@pytest.mark.parametrize("drop_partial", [False, True])
def test_usable_rows_are_whole_or_partial(drop_partial: bool) -> None:
    found = usable_rows(
        STATUSES, ROWS, "train", what="features", remedy="-", drop_partial=drop_partial
    )
    assert found.video_ids == (["a"] if drop_partial else ["a", "b"])
    assert found.num_expected == 4
    assert found.num_missing == 2
    assert (found.num_partial, found.num_dropped) == ((0, 1) if drop_partial else (1, 0))
    assert found.gaps.startswith("split train: of 4 videos, 2 without features, 1 partial")


def test_a_split_without_usable_rows_is_an_error() -> None:
    with pytest.raises(ManifestError, match=r"split 'val': none of its 1 videos .* do this"):
        usable_rows(STATUSES, ROWS, "val", what="frames", remedy="do this")
