"""Which rows of a manifest take part: those of a split whose features, or frames, can be had."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..manifests.errors import ManifestError
from ..manifests.feature_folder import FeatureFolder
from ..manifests.manifest import VideoRow


@dataclass(frozen=True, kw_only=True)
class UsableRows:
    """A split's rows that can be used, and how many can't.

    Attributes:
        what: they must have: features, or frames.
        num_partial: of `rows`.
        num_dropped: partial ones that were left out.
    """

    split: str
    what: str
    rows: list[VideoRow]
    num_expected: int
    num_partial: int
    num_dropped: int

    @property
    def video_ids(self) -> list[str]:
        """Of the rows."""
        return [row.video_id for row in self.rows]

    @property
    def num_missing(self) -> int:
        """Rows that have none."""
        return self.num_expected - len(self.rows) - self.num_dropped

    @property
    def gaps(self) -> str:
        """What is not as it should be, in words; empty where all is."""
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
    """The rows of a split that can be used.

    Args:
        statuses: video_id → `ok`, `partial` or `failed`.
        rows: of the manifest.
        split: which of them.
        what: they must have, in words.
        remedy: where none has it.
        drop_partial: leave out partial ones.

    Raises:
        ManifestError: the split has no rows, or none that can be used.
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
    """What helps where none of a split's videos has features."""
    return (
        f"extract them into {folder.root}, see {folder.failures} for those that failed, or "
        "leave out --drop-partial if it was given"
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
