"""Readers of other programs' annotations of segments: what people have before they have a CSV.

activitynet-segments  ActivityNet's JSON
frame-labels          a text file per video with a label per frame: Breakfast, 50Salads, GTEA
audacity              a label track per video, as Audacity exports it
boris                 aggregated events of BORIS, as CSV or TSV
elan                  tab-delimited text per video, as ELAN exports it

Each reader yields the videos with their segments as they stand in the files; what does not fit the
videos is found when they have been opened (`pipelines/annotation/build_segments.py`).
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .annotations import open_text, read_json_of, seconds_of, split_named, text_lines
from .errors import ManifestError
from .manifest import nfc
from .segments import Segment

# Column of BORIS' files → its names in versions 7 to 9, in lower case.
_BORIS = {
    "file": ("media file name", "media file", "media file path"),
    "label": ("behavior",),
    "start": ("start (s)",),
    "end": ("stop (s)",),
}
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_ELAN_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class AnnotatedVideo(NamedTuple):
    """A video and its segments, as an annotation file has them.

    Attributes:
        video_id: id, unique in its data set.
        names: possible names of its file, the likeliest first.
        split: train, val or test; empty if the files do not say.
        segments: its segments, whose times have not been checked.
        frame_labels: label of each frame, in place of segments; None with segments.
        source: file of the frame labels, for messages.
    """

    video_id: str
    names: tuple[str, ...]
    split: str
    segments: list[Segment]
    frame_labels: list[str] | None = None
    source: str = ""


def read_activitynet_segments(path: Path) -> Iterator[AnnotatedVideo]:
    """Read ActivityNet's JSON: `database` → id → `subset`, `annotations` with `segment`, `label`.

    A video's file is named v_ID or ID.
    """
    database = read_json_of(path, dict).get("database")
    if not isinstance(database, dict):
        raise ManifestError(f"{path}: no 'database'; give ActivityNet's JSON")
    for name, video in database.items():
        segments = []
        where = f"{path}: {name!r}"
        try:
            split = split_named(video.get("subset", ""))
            for number, one in enumerate(video.get("annotations", ())):
                at = f"{where}, annotation {number}"
                start, end = (seconds_of(s, at) for s in one["segment"])
                segments.append(Segment(name, start, end, nfc(str(one["label"])), where=at))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ManifestError(
                f"{where} is not an ActivityNet entry ({error!r}); correct or remove it"
            ) from None
        yield AnnotatedVideo(name, (f"v_{name}", name), split, segments)


def read_frame_labels(source: Path, fold: int, classes: Path | None) -> Iterator[AnnotatedVideo]:
    """Read one text file per video, with one label per frame.

    The folder may have the layout of Breakfast, 50Salads and GTEA: `groundTruth/VIDEO.txt`,
    `mapping.txt` (number and name of each class) and `splits/train.split1.bundle`. Labels are names
    or, with a mapping, numbers.

    Args:
        source: that folder, or one with only the text files.
        fold: number of the split.
        classes: file with the names of the classes by number; None for `mapping.txt`, if it exists.
    """
    texts = source / "groundTruth" if (source / "groundTruth").is_dir() else source
    paths = _files_below(texts, ".txt", "text files with a label per frame")
    mapping = classes or source / "mapping.txt"
    names = _read_mapping(mapping) if classes is not None or mapping.exists() else {}
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        bundle = source / "splits" / f"{split}.split{fold}.bundle"
        if bundle.exists():
            splits |= {Path(line).stem: split for _, line in text_lines(bundle)}
    for path in paths:
        if path == mapping:
            continue
        with open_text(path) as file:
            lines = file.read().rstrip().splitlines()
        lines = [line.strip() for line in lines]  # an empty one: not labeled
        if names and all(line.isdigit() for line in lines if line):
            unknown = next((line for line in lines if line and int(line) not in names), None)
            if unknown is not None:
                raise ManifestError(
                    f"{path}:{lines.index(unknown) + 1}: class {unknown} is not in {mapping}; name "
                    "it there"
                )
            lines = [names[int(line)] if line else "" for line in lines]
        video_id = path.stem
        labels = [nfc(line) for line in lines]
        yield AnnotatedVideo(video_id, (video_id,), splits.get(video_id, ""), [], labels, str(path))


def _read_mapping(path: Path) -> dict[int, str]:
    """Return number → name of a file with lines of both, or of names alone."""
    lines = [line for _, line in text_lines(path)]
    pairs = [re.fullmatch(r"(\d+)\s+(.+)", line) for line in lines]
    if all(pairs):
        return {int(pair[1]): pair[2].strip() for pair in pairs if pair is not None}
    return dict(enumerate(lines))


def read_audacity(source: Path) -> Iterator[AnnotatedVideo]:
    """Read label tracks, VIDEO.txt: start, end and label, separated by tabs.

    Lines that begin with a backslash, the frequencies of a spectral selection, are skipped.
    """
    for path in _files_below(source, ".txt", "label tracks"):
        segments = []
        for number, line in text_lines(path):
            if line.startswith("\\"):
                continue
            where = f"{path}:{number}"
            fields = line.split("\t", 2)
            if len(fields) < 2:
                raise ManifestError(
                    f"{where}: {line!r} is not start, end and label, separated by tabs; export the "
                    "labels from Audacity again"
                )
            start, end = (seconds_of(text, where) for text in fields[:2])
            label = nfc(fields[2].strip()) if len(fields) > 2 else ""
            segments.append(Segment(path.stem, start, end, label, where=where))
        yield AnnotatedVideo(path.stem, (path.stem,), "", segments)


def read_boris(path: Path) -> Iterator[AnnotatedVideo]:
    """Read BORIS' aggregated events: media file, behavior, start and stop in seconds."""
    found: dict[str, list[Segment]] = {}  # by media file
    with open_text(path) as file:
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter="\t" if "\t" in first else ",")
        columns: dict[str, int] = {}
        for row in reader:
            names = [name.strip().lower() for name in row]
            if not columns:  # lines about the project may precede the header
                columns = {
                    key: names.index(known[0])
                    for key, candidates in _BORIS.items()
                    if (known := [one for one in candidates if one in names])
                }
                if len(columns) < len(_BORIS):
                    columns = {}
                continue
            if not any(names):
                continue
            where = f"{path}:{reader.line_num}"
            if len(row) <= max(columns.values()):
                raise ManifestError(f"{where}: has only {len(row)} fields; export the file again")
            media, label = row[columns["file"]].strip(), nfc(row[columns["label"]].strip())
            start, end = (seconds_of(row[columns[name]], where) for name in ("start", "end"))
            found.setdefault(media, []).append(Segment(media, start, end, label, where=where))
    if not columns:
        raise ManifestError(
            f"{path}: no columns 'Media file name', 'Behavior', 'Start (s)' and 'Stop (s)'; export "
            "aggregated events from BORIS"
        )
    files = {media: Path(media.replace("\\", "/")) for media in found}
    stems = Counter(file.stem for file in files.values())
    for media, file in files.items():
        is_unique = stems[file.stem] == 1
        video_id = file.stem if is_unique else file.with_suffix("").as_posix()
        possible = (file.as_posix(), file.name) if is_unique else (file.as_posix(),)
        yield AnnotatedVideo(video_id, possible, "", found[media])


def read_elan(source: Path) -> Iterator[AnnotatedVideo]:
    """Read tab-delimited text as ELAN exports it, one file per video, with or without a header.

    Times may be hh:mm:ss.ms, seconds or milliseconds; the label is the annotation, the last column.
    """
    for path in _files_below(source, ".txt", "tab-delimited texts of ELAN"):
        segments, header = [], list[str]()
        for number, line in text_lines(path, keep_tabs=True):
            fields = [field.strip() for field in line.split("\t")]
            lowered = [field.lower() for field in fields]
            if any(name.startswith("begin time") for name in lowered):
                header = lowered
                continue
            where = f"{path}:{number}"
            times = _elan_times(fields, header)
            if len(times) < 2:
                raise ManifestError(
                    f"{where}: {line!r} has no begin and end time; export tab-delimited text with "
                    "both from ELAN"
                )
            label = fields[header.index("annotation")] if "annotation" in header else fields[-1]
            segments.append(Segment(path.stem, times[0], times[1], nfc(label), where=where))
        yield AnnotatedVideo(path.stem, (path.stem,), "", segments)


def _elan_times(fields: Sequence[str], header: Sequence[str]) -> list[float]:
    """Return begin and end of an annotation in seconds, from the most precise columns there are.

    >>> _elan_times(["tier", "", "00:00:01.500", "1.5", "00:01:02.000", "62.0", "a"], [])
    [1.5, 62.0]
    >>> _elan_times(["tier", "12", "1500", "62000", "60500", "a"], [])
    [1.5, 62.0]
    """
    if header:
        begin, end = (
            next((n for n, name in enumerate(header) if name.startswith(word)), None)
            for word in ("begin time", "end time")
        )
        if begin is None or end is None or max(begin, end) >= len(fields):
            return []
        fields, is_milliseconds = [fields[begin], fields[end]], "msec" in header[begin].split()[-1:]
    else:
        fields, is_milliseconds = fields[1:-1], False
    clocks = [match for field in fields if (match := _CLOCK.fullmatch(field))][:2]
    if clocks:
        return [3600 * int(one[1]) + 60 * int(one[2]) + float(one[3]) for one in clocks]
    numbers = [field for field in fields if _ELAN_NUMBER.fullmatch(field)]
    is_milliseconds |= bool(numbers) and not any("." in number for number in numbers)
    times = [float(number) / (1000 if is_milliseconds else 1) for number in numbers]
    for first in range(len(times) - 2):  # begin, end and duration; other columns may be numbers
        if abs(times[first + 1] - times[first] - times[first + 2]) < 0.002:
            return times[first : first + 2]
    return times[:2]


READERS: dict[str, Callable[[Path], Iterator[AnnotatedVideo]]] = {
    "activitynet-segments": read_activitynet_segments,
    "audacity": read_audacity,
    "boris": read_boris,
    "elan": read_elan,
}


def _files_below(source: Path, extension: str, what: str) -> list[Path]:
    """Return a file, or the files of a folder with an extension, sorted.

    Raises:
        ManifestError: there is none.
    """
    paths = [source] if source.is_file() else sorted(source.glob(f"*{extension}"))
    if not paths:
        raise ManifestError(f"{source}: no {what} (*{extension}) there; give their folder")
    return paths
