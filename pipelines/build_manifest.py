"""`vtnpipe manifest build`: a manifest of a folder of classes, or of a data set's own files."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..manifests.annotations import (
    Clip,
    VideoIndex,
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
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, ManifestError, SettingsError
from ..manifests.manifest import VideoRow, write_manifest
from .settings import between, check_settings, check_unset, setting

Format = Literal[
    "folder", "kinetics", "ucf101", "hmdb51", "something-something-v2", "activitynet", "list"
]


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """The settings of `vtnpipe manifest build`."""

    format: Format = setting(
        "folder",
        help="folder: a sub-folder per class; list: lines of path and class number, as PySlowFast "
        "and MMAction have; or a data set's own files.",
    )
    videos: str | None = setting(
        None, help="Folder of the videos, for all but folder.", metavar="FOLDER"
    )
    fold: int = setting(1, help="Of UCF101's and HMDB51's splits.", check=between(1, 3))
    classes: str | None = setting(
        None,
        help="For list: names of the classes, one a line from 0 on, or PySlowFast's JSON.",
        metavar="FILE",
    )
    split: str | None = setting(
        None, help="Split to write into every row; by default the data set's own, or none."
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.format == "folder":
            check_unset(self, ["videos"], "--format folder has the videos in the folder itself")
        elif self.videos is None:
            raise SettingsError(
                f"--format {self.format}: give --videos FOLDER, too, with the files"
            )
        if self.classes is not None and self.format != "list":
            raise SettingsError(
                f"--classes with --format {self.format}: only list has numbers; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a manifest was made of, and the clips whose files are missing."""

    rows: list[VideoRow]
    missing: list[Clip]
    num_repeated: int
    output: Path

    @property
    def missing_file(self) -> Path:
        """Lists the missing ones; there is none where all were found."""
        return self.output.with_name(f"{self.output.name}.missing.csv")

    @property
    def exit_code(self) -> int:
        """1 where files are missing."""
        return EXIT_WITH_FAILURES if self.missing else EXIT_OK

    @property
    def lines(self) -> Iterator[str]:
        """For people."""
        num_labels = len({row.label for row in self.rows})
        yield f"{self.output}: {len(self.rows):,} videos, {num_labels:,} classes"
        if num_spans := sum(row.end is not None for row in self.rows):
            yield f"  {num_spans:,} are spans of a longer video, by start and end"
        if self.num_repeated:
            yield f"  {self.num_repeated:,} clips were listed again, and left out"
        if self.missing:
            first = ", ".join(clip.video_id for clip in self.missing[:3])
            yield (
                f"  missing: {len(self.missing):,} of {len(self.rows) + len(self.missing):,} clips "
                f"({first}{', …' if len(self.missing) > 3 else ''}); all in {self.missing_file}"
            )


def build_manifest(
    sources: Sequence[str | Path], output: str | Path, settings: BuildSettings | None = None
) -> BuildReport:
    """Writes a manifest of a folder with one sub-folder per class, or of a data set's own files.

    Of a folder, a video's id is its path below it, and its label the sub-folder's name. Clips of a
    data set whose files are missing are left out, and listed in OUTPUT.missing.csv.

    Args:
        sources: a folder, or annotation files (for UCF101 and HMDB51 the folder of splits).
        output: the manifest; its folder exists.
        settings: by default, `BuildSettings()`.

    Raises:
        ManifestError: something is missing, is not in its format, or no video is found.
    """
    settings = settings or BuildSettings()
    if settings.videos is None:
        found = _rows_of_folder(sources, settings.split)
        write_manifest(found, output)
        return BuildReport(rows=found, missing=[], num_repeated=0, output=Path(output))
    clips = [clip for source in sources for clip in _clips(Path(source), settings)]
    if not clips:
        raise ManifestError(f"{sources[0]}: lists no clips; give the data set's own file")
    unique = {clip.video_id: clip for clip in reversed(clips)}  # the first of an id counts
    index = VideoIndex(Path(settings.videos))
    found = []
    missing: list[Clip] = []
    for clip in reversed(unique.values()):
        row = None if clip.is_empty else index.row(clip)
        if row is None:
            missing.append(clip)
        else:
            found.append(replace(row, split=settings.split or row.split))
    if not found:
        raise ManifestError(
            f"--videos {settings.videos}: none of {len(unique):,} clips has its file there, such "
            f"as {missing[0].names[0]}; give the folder with the videos"
        )
    write_manifest(found, output)
    report = BuildReport(
        rows=found, missing=missing, num_repeated=len(clips) - len(unique), output=Path(output)
    )
    _write_missing(report)
    return report


def _rows_of_folder(sources: Sequence[str | Path], split: str | None) -> list[VideoRow]:
    if len(sources) != 1:
        raise SettingsError(f"{len(sources)} folders: give one with a sub-folder per class")
    root = Path(sources[0])
    if not root.is_dir():
        raise ManifestError(
            f"{root}: no such folder; give one with a sub-folder per class, or --format for a "
            "data set's own files"
        )
    paths = [path.relative_to(root) for path in videos_below(root) if path.parent != root]
    has_splits = all(len(path.parts) > 2 and split_named(path.parts[0]) for path in paths)
    rows = [
        VideoRow(
            video_id=path.as_posix(),
            path=str((root / path).absolute()),
            label=path.parts[1 if has_splits else 0],
            split=split or (split_named(path.parts[0]) if has_splits else ""),
        )
        for path in paths
    ]
    if not rows:
        raise ManifestError(
            f"{root}: no videos in sub-folders; expected "
            f"{root}/CLASS/VIDEO with an extension such as .mp4"
        )
    return rows


def _clips(source: Path, settings: BuildSettings) -> Iterator[Clip]:
    names = read_class_names(Path(settings.classes)) if settings.classes else []
    return {
        "kinetics": lambda: read_kinetics(source),
        "ucf101": lambda: read_ucf101(source, settings.fold),
        "hmdb51": lambda: read_hmdb51(source, settings.fold),
        "something-something-v2": lambda: read_something_something(source),
        "activitynet": lambda: read_activitynet(source),
        "list": lambda: read_list(source, names),
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
            if clip.is_empty:
                why = "its span is empty"
            writer.writerow((clip.video_id, clip.label, clip.split, why))
