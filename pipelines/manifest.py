"""`vtnpipe manifest check/split/show`: check a manifest, split it, count it."""

import random
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..manifests.errors import ManifestError, SettingsError
from ..manifests.manifest import VideoRow, read_manifest, write_manifest
from .settings import check_settings, setting

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """The settings of `vtnpipe manifest split`."""

    train: float = setting(0.8, help="Share of the videos.")
    val: float = setting(0.1, help="Share of the videos.")
    test: float = setting(0.1, help="Share of the videos.")
    seed: int = setting(0, help="Seed of the draw; the same seed gives the same split.")
    group: str | None = setting(
        None,
        help="A regular expression searched for in video_id: rows with the same match (its groups, "
        "if it has some) stay on one side.",
        metavar="REGEX",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not (min(self.shares) >= 0 and abs(sum(self.shares) - 1) <= 1e-6):
            raise SettingsError(
                f"--train {self.train:g} --val {self.val:g} --test {self.test:g}: the shares must "
                "not be negative and must add up to 1"
            )
        try:
            re.compile(self.group or "")
        except re.error as error:
            raise SettingsError(
                f"--group {self.group!r}: not a regular expression ({error}); correct it"
            ) from None

    @property
    def shares(self) -> tuple[float, float, float]:
        """In the order of `SPLITS`."""
        return self.train, self.val, self.test


def check_manifest(manifest: str | Path) -> Iterator[str]:
    """Reads a manifest, looks for each file, and yields a line for each row that will fail.

    Raises:
        ManifestError: the manifest breaks a rule.
    """
    for row in read_manifest(manifest):
        try:
            found = Path(row.path).stat()
        except OSError as error:
            yield f"{row.video_id}: {row.path}: {error.strerror}"
            continue
        if not stat.S_ISREG(found.st_mode):
            yield f"{row.video_id}: {row.path}: not a regular file"
        elif found.st_size == 0:
            yield f"{row.video_id}: {row.path}: 0 bytes"


def split_manifest(
    manifest: str | Path, output: str | Path, settings: SplitSettings | None = None
) -> list[VideoRow]:
    """Draws a split for every row, each class by itself, and writes the manifest anew.

    Raises:
        ManifestError: the manifest breaks a rule, or a row has no match for the group.
    """
    settings = settings or SplitSettings()
    rows = read_manifest(manifest)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[_group(row, settings.group)].append(number)
    splits = _draw(rows, list(groups.values()), settings)
    rows = [replace(row, split=split) for row, split in zip(rows, splits, strict=True)]
    write_manifest(rows, output)
    return rows


def _group(row: VideoRow, pattern: str | None) -> str:
    if pattern is None:
        return row.video_id
    match = re.search(pattern, row.video_id)
    if match is None:
        raise ManifestError(
            f"video_id {row.video_id!r} has no match for --group {pattern!r}; every row "
            "needs one; widen it"
        )
    return "\0".join(part or "" for part in match.groups()) if match.groups() else match[0]


def _draw(rows: Sequence[VideoRow], groups: list[list[int]], settings: SplitSettings) -> list[str]:
    """The split of each row: groups in random order, the large ones first, each to where its class
    lacks most.

    What a split lacks is its share of a class's rows less what it has of them, summed over the
    group's rows. Of several labels a row, each is a class.
    """
    classes = _classes(rows)
    totals = Counter(label for labels in classes for label in labels)
    missing = {
        (split, label): share * total
        for split, share in zip(SPLITS, settings.shares, strict=True)
        for label, total in totals.items()
    }
    open_splits = [s for s, share in zip(SPLITS, settings.shares, strict=True) if share > 0]
    random.Random(settings.seed).shuffle(groups)
    groups.sort(key=len, reverse=True)
    splits = [""] * len(rows)
    for group in groups:
        labels = [label for number in group for label in classes[number]]
        chosen = max(open_splits, key=lambda s: sum(missing[s, label] for label in labels))
        for number in group:
            splits[number] = chosen
        for label in labels:
            missing[chosen, label] -= 1
    return splits


def _classes(rows: Sequence[VideoRow]) -> list[list[str]]:
    """Those of each row; of labels that are numbers, and mostly different ones, all the same."""
    labels = {row.label for row in rows}
    if len(labels) > len(rows) / 2 and all(map(_is_number, labels)):
        return [[""] for _ in rows]
    return [row.label.split("|") for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def show_manifest(manifest: str | Path) -> Iterator[str]:
    """Yields lines that count a manifest's rows by label and split."""
    rows = read_manifest(manifest)
    found = {row.split for row in rows}
    splits = [s for s in SPLITS if s in found] + sorted(found.difference(SPLITS))
    counts = Counter((row.label, row.split) for row in rows)
    labels = sorted({row.label for row in rows})
    width = max(len("label"), *(len(label or "–") for label in labels))
    heads = [split or "–" for split in splits]
    yield f"{manifest}: {len(rows):,} videos, {len(labels):,} labels"
    yield "  ".join(["label".ljust(width), *(head.rjust(7) for head in heads)])
    for label in labels:
        numbers = (f"{counts[label, s]:,}".rjust(max(7, len(s))) for s in splits)
        yield "  ".join([(label or "–").ljust(width), *numbers])
