"""Which rows of a manifest take part: those of a split that have features."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..manifests.errors import ManifestError
from ..manifests.store import FeatureStore
from ..manifests.videos import VideoRow


@dataclass(frozen=True, kw_only=True)
class UsableRows:
    """A split's rows that have features, and how many have not.

    Attributes:
        num_partial: of `rows`.
        num_dropped: partial ones that were left out.
    """

    split: str
    rows: list[VideoRow]
    num_expected: int
    num_partial: int
    num_dropped: int

    @property
    def num_missing(self) -> int:
        """Rows without features."""
        return self.num_expected - len(self.rows) - self.num_dropped

    @property
    def gaps(self) -> str:
        """What is not as it should be, in words; empty where all is."""
        counts = {
            "without features": self.num_missing,
            "partial": self.num_partial,
            "partial and left out": self.num_dropped,
        }
        found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"split {self.split}: of {self.num_expected} videos, {found}" if found else ""


def usable_rows(
    store: FeatureStore, rows: list[VideoRow], split: str, *, drop_partial: bool
) -> UsableRows:
    """The rows of a split that are in the store.

    Raises:
        ManifestError: the split has no rows, or none with features.
    """
    expected = rows_of_split(rows, split)
    statuses = store.statuses
    present = [row for row in expected if row.video_id in store]
    whole = [row for row in present if statuses[row.video_id] == "ok"]
    usable, num_partial = (whole if drop_partial else present), len(present) - len(whole)
    if not usable:
        raise ManifestError(
            f"split {split!r}: none of its {len(expected)} videos has usable features in "
            f"{store.folder.root}; extract them first"
        )
    return UsableRows(
        split=split,
        rows=usable,
        num_expected=len(expected),
        num_partial=0 if drop_partial else num_partial,
        num_dropped=num_partial if drop_partial else 0,
    )


def rows_of_split(rows: Sequence[VideoRow], split: str) -> list[VideoRow]:
    """The rows of one split.

    Raises:
        ManifestError: there are none.
    """
    found = [row for row in rows if row.split == split]
    if not found:
        splits = sorted({row.split for row in rows})
        raise ManifestError(
            f"split {split!r} has no rows; the manifest has {', '.join(map(repr, splits))}: draw "
            "splits with `vtnpipe manifest split`, or name another one"
        )
    return found
