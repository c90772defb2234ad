"""Splits: the rows of a manifest's split whose features, or frames, are available."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..manifests.errors import ManifestError
from ..manifests.feature_folder import FeatureFolder
from ..manifests.manifest import VideoRow
from .metrics import Counts


@dataclass(frozen=True, kw_only=True)
class UsableRows:
    """Usable rows of a split, and the number of those that are not usable.

    Attributes:
        split: name of the split.
        what: what a usable row has, in words: features, or frames.
        rows: usable rows.
        num_expected: number of all rows of the split.
        num_partial: number of partial videos in `rows`.
        num_dropped: number of partial videos that were left out.
    """

    split: str
    what: str
    rows: list[VideoRow]
    num_expected: int
    num_partial: int
    num_dropped: int

    @property
    def video_ids(self) -> list[str]:
        """Ids of the usable rows."""
        return [row.video_id for row in self.rows]

    @property
    def num_missing(self) -> int:
        """Number of rows without features, or frames."""
        return self.num_expected - len(self.rows) - self.num_dropped

    @property
    def counts(self) -> Counts:
        """Numbers of videos behind the metrics of the split."""
        return Counts(
            expected=self.num_expected,
            scored=len(self.rows),
            missing=self.num_missing,
            partial=self.num_partial,
            dropped=self.num_dropped,
        )

    @property
    def gaps(self) -> str:
        """Counts of missing and partial videos, in words; empty if there are none."""
        counts = {
            f"without {self.what}": self.num_missing,
            "partial": self.num_partial,
            "partial and left out": self.num_dropped,
        }
        found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"split {self.split}: of {self.num_expected} videos, {found}" if found else ""


def usable_rows(
    statuses: Mapping[str, str],
    rows: list[VideoRow],
    split: str,
    *,
    what: str,
    remedy: str,
    drop_partial: bool = False,
) -> UsableRows:
    """Return the usable rows of a split.

    Args:
        statuses: video_id → `ok`, `partial` or `failed`.
        rows: all rows of the manifest.
        split: name of the split.
        what: what a usable row has, in words: features, or frames.
        remedy: advice for the error message if no row is usable.
        drop_partial: leave out partial videos.

    Raises:
        ManifestError: the split has no rows, or no usable ones.
    """
    expected = rows_of_split(rows, split)
    present = [row for row in expected if statuses.get(row.video_id) in ("ok", "partial")]
    whole = [row for row in present if statuses[row.video_id] == "ok"]
    usable, num_partial = (whole if drop_partial else present), len(present) - len(whole)
    if not usable:
        raise ManifestError(
            f"split {split!r}: none of its {len(expected)} videos has usable {what}; {remedy}"
        )
    return UsableRows(
        split=split,
        what=what,
        rows=usable,
        num_expected=len(expected),
        num_partial=0 if drop_partial else num_partial,
        num_dropped=num_partial if drop_partial else 0,
    )


def remedy_for_features(folder: FeatureFolder) -> str:
    """Return the advice for a split in which no video has features."""
    return (
        f"extract them into {folder.root}, see {folder.failures} for those that failed, or "
        "leave out --drop-partial if it was given"
    )


def rows_of_split(rows: Sequence[VideoRow], split: str) -> list[VideoRow]:
    """Return the rows of one split.

    Raises:
        ManifestError: the split has no rows.
    """
    found = [row for row in rows if row.split == split]
    if not found:
        splits = sorted({row.split for row in rows})
        raise ManifestError(
            f"split {split!r} has no rows; the manifest has {', '.join(map(repr, splits))}: assign "
            "splits with `vtnpipe manifest split`, or give another one"
        )
    return found
