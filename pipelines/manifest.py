"""`vtnpipe manifest`: build, check, split and count video manifests."""

import random
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, ManifestError, SettingsError, counted
from ..manifests.groups import check_group, group_of
from ..manifests.manifest import VideoRow, has_numbers_as_labels, read_manifest, write_manifest
from .annotation.build import BuildSettings, build_manifest
from .console import say
from .options import console_options, settings_options
from .settings import check_settings, setting

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Settings of `vtnpipe manifest split`."""

    train: float = setting(0.8, help="Share of the training split.")
    val: float = setting(0.1, help="Share of the validation split.")
    test: float = setting(0.1, help="Share of the test split.")
    seed: int = setting(0, help="Seed; the same seed gives the same split.")
    group: str = setting(
        "file",
        help="Groups of rows that stay in one split: file (the same path), or a regular expression "
        "searched for in video_id, such as ^[^_]+ for what precedes a _, or .* for "
        "single rows.",
        metavar="file|REGEX",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not (min(self.shares) >= 0 and abs(sum(self.shares) - 1) <= 1e-6):
            raise SettingsError(
                f"--train {self.train:g} --val {self.val:g} --test {self.test:g}: shares must "
                "not be negative, and must add up to 1"
            )
        check_group(self.group)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares in the order of `SPLITS`."""
        return self.train, self.val, self.test


def check_manifest(manifest: str | Path) -> Iterator[str]:
    """Yield a line for each row of a manifest whose file is missing, empty or not a regular file.

    Raises:
        ManifestError: the manifest is invalid.
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
    """Assign a split to every row at random, class by class, and write the manifest.

    Raises:
        ManifestError: the manifest is invalid, or a row has no match for the group.
    """
    settings = settings or SplitSettings()
    rows = read_manifest(manifest)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[group_of(row, settings.group)].append(number)
    num_wanted = sum(share > 0 for share in settings.shares)
    if len(groups) < min(num_wanted, len(rows)):
        raise ManifestError(
            f"{manifest}: its rows form {len(groups)} groups by --group {settings.group!r}, which "
            f"cannot fill {num_wanted} splits; give another --group, such as '.*' for single rows"
        )
    splits = _draw(rows, list(groups.values()), settings)
    rows = [replace(row, split=split) for row, split in zip(rows, splits, strict=True)]
    write_manifest(rows, output)
    return rows


def _draw(rows: Sequence[VideoRow], groups: list[list[int]], settings: SplitSettings) -> list[str]:
    """Return the split of each row.

    Groups are assigned in random order, large ones first, each to the split that lacks most of its
    classes: a split lacks its share of a class's rows minus the rows that it has. The last groups
    go to splits that have none yet. If a row has several labels, each counts as a class.
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
    for number_of_group, group in enumerate(groups):
        labels = [label for number in group for label in classes[number]]
        empty = [split for split in open_splits if split not in splits]
        candidates = empty if len(groups) - number_of_group <= len(empty) else open_splits
        chosen = max(candidates, key=lambda s: sum(missing[s, label] for label in labels))
        for number in group:
            splits[number] = chosen
        for label in labels:
            missing[chosen, label] -= 1
    return splits


def _classes(rows: Sequence[VideoRow]) -> list[list[str]]:
    """Return the classes of each row; one class for all if labels are mostly distinct numbers."""
    if has_numbers_as_labels(rows):
        return [[""] for _ in rows]
    return [row.label.split("|") for row in rows]


def show_manifest(manifest: str | Path) -> Iterator[str]:
    """Yield lines that count a manifest's rows by label and split."""
    rows = read_manifest(manifest)
    found = {row.split for row in rows}
    splits = [s for s in SPLITS if s in found] + sorted(found.difference(SPLITS))
    counts = Counter((row.label, row.split) for row in rows)
    labels = sorted({row.label for row in rows})
    width = max(len("label"), *(len(label or "–") for label in labels))
    heads = [split or "–" for split in splits]
    yield f"{manifest}: {counted(len(rows), 'video')}, {counted(len(labels), 'label')}"
    yield "  ".join(["label".ljust(width), *(head.rjust(7) for head in heads)])
    for label in labels:
        numbers = (f"{counts[label, s]:,}".rjust(max(7, len(s))) for s in splits)
        yield "  ".join([(label or "–").ljust(width), *numbers])


@click.group("manifest")
def group() -> None:
    """Create, check, split and count video manifests."""


@group.command("build")
@click.argument("source", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="MANIFEST", help="CSV to write.")
@settings_options(BuildSettings)
def build_command(source: tuple[str, ...], output: str, console: Console, **options: Any) -> int:
    """Write a manifest of a folder with one sub-folder per class, or of a data set's own files.

    SOURCE is that folder, which may have train, val and test at its top, with the classes below; or
    Kinetics' CSV files, the folder of UCF101's or HMDB51's splits, the JSON files of
    Something-Something v2 or ActivityNet, or lists of paths and class numbers; or, for segments,
    ActivityNet's JSON, the folder of frame labels, label tracks or ELAN's texts, or BORIS' CSV.
    """
    report = build_manifest(source, output, BuildSettings(**options))
    say(console, *report.lines)
    return report.exit_code


@group.command("check")
@click.argument("manifest")
@console_options
def check_command(manifest: str, console: Console) -> int:
    """Check MANIFEST's rules and that every file exists; list those that do not."""
    faults = list(check_manifest(manifest))
    count = f"{len(faults):,} rows whose file is missing, empty or not a regular file"
    say(console, *faults, f"{manifest}: {count if faults else 'ok'}")
    return EXIT_WITH_FAILURES if faults else EXIT_OK


@group.command("split")
@click.argument("manifest")
@click.option("-o", "--output", required=True, metavar="MANIFEST", help="CSV to write.")
@settings_options(SplitSettings)
def split_command(manifest: str, output: str, console: Console, **options: Any) -> int:
    """Assign train, val and test to MANIFEST's rows at random, class by class.

    Existing splits are replaced. If a row has several labels, each counts as a class; rows with
    numeric labels are split as one class.
    """
    split_manifest(manifest, output, SplitSettings(**options))
    say(console, *show_manifest(output))
    return EXIT_OK


@group.command("show")
@click.argument("manifest")
@console_options
def show_command(manifest: str, console: Console) -> int:
    """Count MANIFEST's rows by label and split."""
    say(console, *show_manifest(manifest))
    return EXIT_OK
