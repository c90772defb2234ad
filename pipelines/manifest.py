"""`vtnpipe manifest`: build, check, split and count video manifests."""

import csv
import random
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console

from ..manifests.annotations import (
    AnnotatedClip,
    VideoFinder,
    read_activitynet,
    read_class_names,
    read_hmdb51,
    read_kinetics,
    read_list,
    read_something_something,
    read_ucf101,
    split_named,
    videos_below,
)
from ..manifests.atomic import atomic_text
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, ManifestError, SettingsError, counted
from ..manifests.groups import check_group, group_of
from ..manifests.manifest import VideoRow, has_numbers_as_labels, nfc, read_manifest, write_manifest
from .console import say
from .options import console_options, settings_options
from .settings import between, check_settings, check_unset, setting

SPLITS = ("train", "val", "test")
Format = Literal[
    "folder", "kinetics", "ucf101", "hmdb51", "something-something-v2", "activitynet", "list"
]


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Settings of `vtnpipe manifest build`."""

    format: Format = setting(
        "folder",
        help="folder: one sub-folder per class; list: lines of path and class number, as in "
        "PySlowFast and MMAction; or a data set's own files.",
    )
    videos: str | None = setting(
        None, help="Folder of the videos, for all formats but folder.", metavar="FOLDER"
    )
    fold: int = setting(1, help="Number of UCF101's or HMDB51's split.", check=between(1, 3))
    classes: str | None = setting(
        None,
        help="For list: names of the classes, one per line from 0 on, or PySlowFast's JSON.",
        metavar="FILE",
    )
    multi_label: bool = setting(
        False, help="For list: every number behind a path is a label, not the last alone."
    )
    split: str | None = setting(
        None, help="Split of every row; by default the data set's own, or none."
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.format == "folder":
            check_unset(self, ["videos"], "with --format folder, the videos are in SOURCE")
        elif self.videos is None:
            raise SettingsError(f"--format {self.format}: needs --videos FOLDER, with the files")
        if self.classes is not None and self.format != "list":
            raise SettingsError(
                f"--classes with --format {self.format}: only list has class numbers; leave it out"
            )
        if self.multi_label and self.format != "list":
            raise SettingsError(
                f"--multi-label with --format {self.format}: only list has class numbers; leave "
                "it out"
            )


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Result of `vtnpipe manifest build`.

    Attributes:
        rows: rows of the new manifest.
        missing: clips whose files are missing, or whose spans are empty.
        num_repeated: number of clips left out because their id occurred before.
        num_left_out: number of hidden files, and of those in folders that systems make.
        output: path of the manifest.
    """

    rows: list[VideoRow]
    missing: list[AnnotatedClip]
    num_repeated: int
    num_left_out: int
    output: Path

    @property
    def missing_file(self) -> Path:
        """CSV of the missing clips; not written if there is none."""
        return self.output.with_name(f"{self.output.name}.missing.csv")

    @property
    def exit_code(self) -> int:
        """1 if files are missing."""
        return EXIT_WITH_FAILURES if self.missing else EXIT_OK

    @property
    def lines(self) -> Iterator[str]:
        """Lines of the summary."""
        num_labels = len({row.label for row in self.rows})
        counts = counted(len(self.rows), "video"), counted(num_labels, "class", "classes")
        yield f"{self.output}: {', '.join(counts)}"
        if num_spans := sum(row.end is not None for row in self.rows):
            yield f"  {num_spans:,} are spans of a longer video, by start and end"
        if self.num_repeated:
            yield f"  {self.num_repeated:,} repeated clips were left out"
        if self.num_left_out:
            yield (
                f"  {self.num_left_out:,} left out: hidden, or in a trash, thumbnail or other "
                "system folder"
            )
        if self.missing:
            first = ", ".join(clip.video_id for clip in self.missing[:3])
            yield (
                f"  missing: {len(self.missing):,} of {len(self.rows) + len(self.missing):,} clips "
                f"({first}{', …' if len(self.missing) > 3 else ''}); all in {self.missing_file}"
            )


def build_manifest(
    sources: Sequence[str | Path], output: str | Path, settings: BuildSettings | None = None
) -> BuildReport:
    """Write a manifest of a folder with one sub-folder per class, or of a data set's own files.

    In a folder, a video's id is its path, and its label the sub-folder's name. Clips whose files
    are missing, such as links that lead nowhere, are left out, and listed in OUTPUT.missing.csv.

    Args:
        sources: a folder, or annotation files (for UCF101 and HMDB51 the folder of splits).
        output: manifest to write, in an existing folder.
        settings: by default `BuildSettings()`.

    Raises:
        ManifestError: a file is missing or invalid, or no video is found.
    """
    settings = settings or BuildSettings()
    if settings.videos is None:
        report = _build_of_folder(sources, Path(output), settings.split)
        write_manifest(report.rows, output)
        _write_missing(report)
        return report
    clips = [clip for source in sources for clip in _clips(Path(source), settings)]
    if not clips:
        raise ManifestError(f"{sources[0]}: lists no clips; give the data set's own file")
    unique = {clip.video_id: clip for clip in reversed(clips)}  # keeps the first clip of an id
    finder = VideoFinder(Path(settings.videos))
    found = []
    missing: list[AnnotatedClip] = []
    for clip in reversed(unique.values()):
        row = None if clip.is_empty else finder.row(clip)
        if row is None:
            missing.append(clip)
        else:
            found.append(replace(row, split=settings.split or row.split))
    if not found:
        raise _none_found(missing, finder, settings)
    write_manifest(found, output)
    report = BuildReport(
        rows=found,
        missing=missing,
        num_repeated=len(clips) - len(unique),
        num_left_out=0,
        output=Path(output),
    )
    _write_missing(report)
    return report


def _none_found(
    missing: Sequence[AnnotatedClip], finder: VideoFinder, settings: BuildSettings
) -> ManifestError:
    name = missing[0].names[0]
    path, _, number = name.rpartition(" ")
    if settings.format == "list" and (finder.is_folder(path or name) or number.isdigit()):
        return ManifestError(
            f"--videos {settings.videos}: none of {len(missing):,} clips has its file there; lines "
            f"such as {name!r} and a class look like a list of frames: a folder, its number of "
            "frames, and a class; give the list of the videos: a path and a class number a line, "
            "or --multi-label if each number is a class"
        )
    return ManifestError(
        f"--videos {settings.videos}: none of {len(missing):,} clips has its file there, such "
        f"as {name}; give the folder with the videos"
    )


def _build_of_folder(sources: Sequence[str | Path], output: Path, split: str | None) -> BuildReport:
    if len(sources) != 1:
        raise SettingsError(f"{len(sources)} folders: give one, with one sub-folder per class")
    root = Path(sources[0])
    if not root.is_dir():
        raise ManifestError(
            f"{root}: no such folder; give one with one sub-folder per class, or --format for a "
            "data set's own files"
        )
    below = videos_below(root)
    videos, dangling = (
        [path.relative_to(root) for path in paths if path.parent != root]
        for paths in (below.videos, below.dangling)
    )
    has_splits = all(
        len(path.parts) > 2 and split_named(path.parts[0]) for path in (*videos, *dangling)
    )

    clips = {
        path: AnnotatedClip(
            video_id=nfc(path.as_posix()),
            names=(str((root / path).absolute()),),
            label=nfc(path.parts[1 if has_splits else 0]),
            split=split or (split_named(path.parts[0]) if has_splits else ""),
        )
        for path in (*videos, *dangling)
    }
    rows = [
        VideoRow(video_id=clip.video_id, path=clip.names[0], label=clip.label, split=clip.split)
        for clip in map(clips.__getitem__, videos)
    ]
    if not rows:
        raise ManifestError(
            f"{root}: no videos in sub-folders; expected "
            f"{root}/CLASS/VIDEO with an extension such as .mp4"
        )
    if len({row.video_id for row in rows}) < len(rows):
        ((name, _),) = Counter(row.video_id for row in rows).most_common(1)
        raise ManifestError(
            f"{root}: two files are named {name!r}, which differ only in how Unicode composes "
            "their letters; rename one"
        )
    return BuildReport(
        rows=rows,
        missing=[clips[path] for path in dangling],
        num_repeated=0,
        num_left_out=below.num_left_out,
        output=output,
    )


def _clips(source: Path, settings: BuildSettings) -> Iterator[AnnotatedClip]:
    names = read_class_names(Path(settings.classes)) if settings.classes else []
    return {
        "kinetics": lambda: read_kinetics(source),
        "ucf101": lambda: read_ucf101(source, settings.fold),
        "hmdb51": lambda: read_hmdb51(source, settings.fold),
        "something-something-v2": lambda: read_something_something(source),
        "activitynet": lambda: read_activitynet(source),
        "list": lambda: read_list(source, names, is_multi_label=settings.multi_label),
    }[settings.format]()


def _write_missing(report: BuildReport) -> None:
    path = report.missing_file
    if not report.missing:
        path.unlink(missing_ok=True)
        return
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_id", "label", "split", "why"))
        for clip in report.missing:
            why = f"no file named {' or '.join((*clip.cut_names, *clip.names))}"
            if any(Path(name).is_symlink() for name in clip.names):
                why = f"{clip.names[0]} is a link that leads to no file"
            if clip.is_empty:
                why = "its span is empty"
            writer.writerow((clip.video_id, clip.label, clip.split, why))


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
    Something-Something v2 or ActivityNet, or lists of paths and class numbers.
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
