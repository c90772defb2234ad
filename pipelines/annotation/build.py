"""Building of manifests: from a folder of classes, or from annotation files of data sets."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...manifests.annotations import (
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
from ...manifests.atomic import atomic_text
from ...manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, ManifestError, SettingsError, counted
from ...manifests.manifest import (
    VideoRow,
    nfc,
    write_manifest,
)
from ...manifests.segment_formats import READERS
from ...manifests.segments import write_segments
from ..settings import between, check_settings, check_unset, setting
from .build_segments import SegmentedVideos, fit_to_videos, read_annotated

MAX_FAULTS_LISTED = 10
Format = Literal[
    "folder", "kinetics", "ucf101", "hmdb51", "something-something-v2", "activitynet", "list",
    "activitynet-segments", "frame-labels", "audacity", "boris", "elan"
]  # fmt: skip
SEGMENT_FORMATS = ("frame-labels", *READERS)


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Settings of `vtnpipe manifest build`."""

    format: Format = setting(
        "folder",
        help="folder: one sub-folder per class; list: lines of path and class number, as in "
        "PySlowFast and MMAction; or a data set's own files. The last five also write a segment "
        "file, for the tasks on frames.",
    )
    videos: str | None = setting(
        None, help="Folder of the videos, for all formats but folder.", metavar="FOLDER"
    )
    fold: int = setting(
        1, help="Number of the split of UCF101, HMDB51 or frame-labels.", check=between(1, 5)
    )
    classes: str | None = setting(
        None,
        help="For list: names of the classes, one per line from 0 on, or PySlowFast's JSON; for "
        "frame-labels: number and name of each class, one per line.",
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
        if self.classes is not None and self.format not in ("list", "frame-labels"):
            raise SettingsError(
                f"--classes with --format {self.format}: only list and frame-labels have class "
                "numbers; leave it out"
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
        segmented: segments of the videos; None for manifests of clips.
    """

    rows: list[VideoRow]
    missing: list[AnnotatedClip]
    num_repeated: int
    num_left_out: int
    output: Path
    segmented: SegmentedVideos | None = None

    @property
    def segments_file(self) -> Path:
        """Segment file beside the manifest."""
        return self.output.with_suffix(".segments.csv")

    @property
    def missing_file(self) -> Path:
        """CSV of the missing clips; not written if there is none."""
        return self.output.with_name(f"{self.output.name}.missing.csv")

    @property
    def exit_code(self) -> int:
        """1 if files are missing, or segments do not fit their videos."""
        has_faults = self.segmented is not None and bool(self.segmented.faults)
        return EXIT_WITH_FAILURES if self.missing or has_faults else EXIT_OK

    @property
    def lines(self) -> Iterator[str]:
        """Lines of the summary."""
        if self.segmented is not None:
            yield from self._segment_lines(self.segmented)
            return
        num_labels = len({row.label for row in self.rows} - {""})
        classes = counted(num_labels, "class", "classes") if num_labels else "without labels"
        yield f"{self.output}: {counted(len(self.rows), 'video')}, {classes}"
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

    def _segment_lines(self, found: SegmentedVideos) -> Iterator[str]:
        labels = {one.label for one in found.segments if one.label}
        yield f"{self.output}: {counted(len(self.rows), 'video')}"
        yield (
            f"{self.segments_file}: {counted(len(found.segments), 'segment')}, "
            f"{counted(len(labels), 'class', 'classes')}"
        )
        if found.num_unlabeled:
            yield f"  {counted(found.num_unlabeled, 'video')} without a segment"
        for _, _, _, why in found.faults[:MAX_FAULTS_LISTED]:
            yield f"  {why}"
        if found.faults:
            yield f"  {counted(len(found.faults), 'fault')}, all in {self.missing_file}"


def build_manifest(
    sources: Sequence[str | Path], output: str | Path, settings: BuildSettings | None = None
) -> BuildReport:
    """Write a manifest of a folder with one sub-folder per class, or of a data set's own files.

    In a folder, a video's id is its path, and its label the sub-folder's name; without sub-folders,
    it has no label. A folder of images alone is a video. Clips whose files are missing, such as
    links that lead nowhere, are left out, and listed in OUTPUT.missing.csv.

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
    if settings.format in SEGMENT_FORMATS:
        return _build_segments(sources, Path(output), settings, settings.videos)
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


def _build_segments(
    sources: Sequence[str | Path], output: Path, settings: BuildSettings, folder: str
) -> BuildReport:
    """Write a manifest of whole videos, and a segment file beside it."""
    videos = [
        video
        for source in sources
        for video in read_annotated(
            Path(source), settings.format, fold=settings.fold, classes=settings.classes
        )
    ]
    if len({video.video_id for video in videos}) < len(videos):
        ((name, count),) = Counter(video.video_id for video in videos).most_common(1)
        raise ManifestError(f"{sources[0]}: {name!r} is annotated {count} times; keep one of them")
    found = fit_to_videos(videos, VideoFinder(Path(folder)), settings.split)
    if not found.rows:
        first = found.faults[0][3] if found.faults else "no video is annotated"
        raise ManifestError(
            f"--videos {folder}: none of {len(videos):,} videos can be used, the first because of: "
            f"{first}"
        )
    report = BuildReport(
        rows=found.rows,
        missing=[],
        num_repeated=0,
        num_left_out=0,
        output=output,
        segmented=found,
    )
    write_manifest(found.rows, output)
    write_segments(found.segments, report.segments_file)
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
    is_flat = all(path.parent == root for path in (*below.videos, *below.dangling))
    videos, dangling = (
        [path.relative_to(root) for path in paths if is_flat or path.parent != root]
        for paths in (below.videos, below.dangling)
    )
    has_splits = all(
        len(path.parts) > 2 and split_named(path.parts[0]) for path in (*videos, *dangling)
    )

    clips = {
        path: AnnotatedClip(
            video_id=nfc(path.as_posix()),
            names=(str((root / path).absolute()),),
            label="" if is_flat else nfc(path.parts[1 if has_splits else 0]),
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
            f"{root}: no videos; expected {root}/CLASS/VIDEO with an extension such as .mp4"
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
    faults = [] if report.segmented is None else report.segmented.faults
    if not report.missing and not faults:
        path.unlink(missing_ok=True)
        return
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_id", "label", "split", "why"))
        writer.writerows(faults)
        for clip in report.missing:
            why = f"no file named {' or '.join((*clip.cut_names, *clip.names))}"
            if any(Path(name).is_symlink() for name in clip.names):
                why = f"{clip.names[0]} is a link that leads to no file"
            if clip.is_empty:
                why = "its span is empty"
            writer.writerow((clip.video_id, clip.label, clip.split, why))
