"""Segments: what happens from when to when in a video; their file, and the files for other tools.

    video_id,start,end,label[,score]

`start` and `end` are seconds on the video's own clock, half open. Frames that no segment covers are
background. A segment with an empty label covers frames that are not labeled: they count neither in
the loss nor in a metric. Formats of other programs are read by `segment_formats.py`.
"""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from .atomic import atomic_text
from .errors import ManifestError
from .manifest import nfc, parse_seconds, read_records

COLUMNS = ("video_id", "start", "end", "label")
BACKGROUND = "background"  # default name of the class of frames that no segment covers


class Segment(NamedTuple):
    """Segment of a video.

    Attributes:
        video_id: id of the video's row in the manifest.
        start: first second.
        end: second before which it stops.
        label: class name; empty if the frames are not labeled.
        score: probability of a predicted segment; None for a true one.
        where: file and line, for messages.
    """

    video_id: str
    start: float
    end: float
    label: str
    score: float | None = None
    where: str = ""


def read_segments(path: str | os.PathLike[str]) -> list[Segment]:
    """Read a segment file; a column `score` is optional and ignored.

    Raises:
        ManifestError: the file is missing or not UTF-8, a column is missing, or a segment is
            invalid. The message begins with `FILE:LINE:`.
    """
    path = Path(path)
    found = []
    what = f"segment file; it is a CSV with the columns {','.join(COLUMNS)}"
    for line, fields in read_records(path, COLUMNS, ("score",), what=what):
        where = f"{path}:{line}"
        try:
            start, end = (parse_seconds(name, fields[name]) for name in ("start", "end"))
        except ManifestError as error:
            raise ManifestError(f"{where}: {error}") from None
        if fault := time_fault(start, end):
            raise ManifestError(f"{where}: {fault}; correct or remove the segment")
        label = nfc(fields["label"].strip())
        found.append(Segment(fields["video_id"], start, end, label, where=where))
    return found


def time_fault(start: float, end: float, duration: float | None = None) -> str:
    """Return what is wrong with the times of a segment, in words; "" if nothing is.

    Args:
        start: first second.
        end: second before which it stops.
        duration: duration of the video in seconds, if it is known.

    >>> time_fault(2.0, 2.0)
    'start 2 and end 2: a segment must begin at 0 or later, and end after its beginning'
    >>> time_fault(2.0, 5.0, 4.5)
    'end 5 is beyond the end of the video, 4.5 s'
    """
    if not 0 <= start < end:
        return (
            f"start {start:.6g} and end {end:.6g}: a segment must begin at 0 or later, and end "
            "after its beginning"
        )
    if duration is not None and end > duration:
        return f"end {end:.6g} is beyond the end of the video, {duration:.6g} s"
    return ""


def by_video(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    """Return video_id → its segments by their start."""
    found: defaultdict[str, list[Segment]] = defaultdict(list)
    for one in segments:
        found[one.video_id].append(one)
    return {name: sorted(of_video, key=lambda one: one.start) for name, of_video in found.items()}


def check_overlaps(segments: Sequence[Segment]) -> None:
    """Refuse segments of one video, sorted by start, that overlap.

    Raises:
        ManifestError: two of them overlap.
    """
    for one, following in pairwise(segments):
        if following.start < one.end:
            raise ManifestError(
                f"{following.where}: begins at {following.start:.6g} s, before the segment of "
                f"{one.where} ends, at {one.end:.6g} s; correct one, or train with --task "
                "frames-multi-label"
            )


def write_segments(segments: Iterable[Segment], path: Path) -> None:
    """Write a segment file, atomically; with a column `score` if segments have one."""
    segments = list(segments)
    has_scores = any(one.score is not None for one in segments)
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, "score") if has_scores else COLUMNS)
        for one in segments:
            score = (f"{one.score:.4f}",) if one.score is not None else ()
            writer.writerow((one.video_id, float(one.start), float(one.end), one.label, *score))


def write_activitynet(segments: Iterable[Segment], path: Path, video_ids: Sequence[str]) -> None:
    """Write predicted segments as the JSON that ActivityNet's evaluation reads."""
    results: Mapping[str, list[object]] = {video_id: [] for video_id in video_ids}
    for one in segments:
        segment = [float(one.start), float(one.end)]
        score = round(one.score or 0.0, 6)
        results[one.video_id].append({"label": one.label, "score": score, "segment": segment})
    with atomic_text(path) as file:
        json.dump({"version": "VERSION 1.3", "results": results, "external_data": {}}, file)


def write_audacity(segments: Iterable[Segment], path: Path) -> None:
    """Write the segments of one video as an Audacity label track."""
    with atomic_text(path) as file:
        for one in segments:
            label = " ".join(one.label.split())
            file.write(f"{one.start:.6f}\t{one.end:.6f}\t{label}\n")
