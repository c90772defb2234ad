"""Readers of other programs' annotations, on small files in their true formats, and broken ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vtnpipe.manifests.errors import ManifestError
from vtnpipe.manifests.segment_formats import (
    AnnotatedVideo,
    read_activitynet_segments,
    read_audacity,
    read_boris,
    read_elan,
    read_frame_labels,
)


def _times(video: AnnotatedVideo) -> list[tuple[float, float, str]]:
    return [(one.start, one.end, one.label) for one in video.segments]


def test_activitynet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    annotations = [{"segment": [1.5, 3], "label": "Long jump"}, {"segment": [0, 1], "label": "Run"}]
    database = {
        "one": {"subset": "training", "duration": 9.0, "annotations": annotations},
        "two": {"subset": "testing", "duration": 5.0, "annotations": []},
    }
    path.write_text(json.dumps({"version": "VERSION 1.3", "database": database}))
    one, two = read_activitynet_segments(path)
    assert (one.video_id, one.names, one.split) == ("one", ("v_one", "one"), "train")
    assert _times(one) == [(1.5, 3.0, "Long jump"), (0.0, 1.0, "Run")]
    assert (two.split, two.segments) == ("test", [])
    path.write_text(
        json.dumps({"database": {"x": {"annotations": [{"segment": [1], "label": 1}]}}})
    )
    with pytest.raises(ManifestError, match="'x' is not an ActivityNet entry"):
        list(read_activitynet_segments(path))
    path.write_text("[]")
    with pytest.raises(ManifestError, match="contains a list"):
        list(read_activitynet_segments(path))


def test_frame_labels_in_the_layout_of_breakfast(tmp_path: Path) -> None:
    (tmp_path / "groundTruth").mkdir()
    (tmp_path / "splits").mkdir()
    (tmp_path / "groundTruth/P03_cam01_tea.txt").write_text("SIL\n\nSIL\nadd_teabag\n\n")
    (tmp_path / "groundTruth/P04_cam01_tea.txt").write_text("0\n1\n1\n")
    (tmp_path / "mapping.txt").write_text("0 SIL\n1 add_teabag\n")
    (tmp_path / "splits/train.split2.bundle").write_text("P03_cam01_tea.txt\n")
    (tmp_path / "splits/test.split2.bundle").write_text("P04_cam01_tea.txt\n")
    first, second = read_frame_labels(tmp_path, 2, None)
    assert (first.video_id, first.split) == ("P03_cam01_tea", "train")
    assert first.frame_labels == ["SIL", "", "SIL", "add_teabag"]
    assert (second.split, second.frame_labels) == ("test", ["SIL", "add_teabag", "add_teabag"])
    assert [one.split for one in read_frame_labels(tmp_path, 1, None)] == ["", ""]
    (tmp_path / "groundTruth/P04_cam01_tea.txt").write_text("0\n7\n")
    with pytest.raises(ManifestError, match=r"P04_cam01_tea\.txt:2: class 7 is not in .*mapping"):
        list(read_frame_labels(tmp_path, 1, None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no text files with a label per frame"):
        list(read_frame_labels(tmp_path / "empty", 1, None))


def test_audacity(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("0.500000\t2.250000\tgive it\n\\\t100.0\t200.0\n3\t3\tx\n")
    (video,) = read_audacity(tmp_path)
    assert video.video_id == "clip"
    assert _times(video) == [(0.5, 2.25, "give it"), (3.0, 3.0, "x")]
    assert video.segments[1].where == f"{tmp_path}/clip.txt:3"
    (tmp_path / "clip.txt").write_text("0.5 2.25 give\n")
    with pytest.raises(ManifestError, match=r"clip\.txt:1: .* separated by tabs"):
        list(read_audacity(tmp_path))
    (tmp_path / "clip.txt").write_text("a\tb\tgive\n")
    with pytest.raises(ManifestError, match=r"clip\.txt:1: 'a' is not a time in seconds"):
        list(read_audacity(tmp_path))


BORIS = {
    "Observation id": "o1", "Observation date": "2026-01-02 10:00:00", "Description": "",
    "Media file name": "/data/day 1/hen.mp4", "Total length": "60", "FPS (frame/s)": "25",
    "Subject": "No focal subject", "Behavior": "peck", "Behavioral category": "Not defined",
    "Modifiers": "", "Behavior type": "STATE", "Start (s)": "1.5", "Stop (s)": "4.25",
    "Duration (s)": "2.75", "Comment start": "", "Comment stop": "",
}  # fmt: skip


@pytest.mark.parametrize("separator", [",", "\t"])
def test_boris(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "b.csv"
    rows = [BORIS, {**BORIS, "Behavior": "run", "Start (s)": "5", "Stop (s)": "5"}]
    lines = [separator.join(BORIS), *(separator.join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    (video,) = read_boris(path)
    assert (video.video_id, video.names) == ("hen", ("/data/day 1/hen.mp4", "hen.mp4"))
    assert _times(video) == [(1.5, 4.25, "peck"), (5.0, 5.0, "run")]
    assert video.segments[1].where == f"{path}:3"
    path.write_text("\n".join([*lines, separator.join({**BORIS, "Stop (s)": "NA"}.values())]))
    with pytest.raises(ManifestError, match=r"b\.csv:4: 'NA' is not a time"):
        list(read_boris(path))
    cameras = [{**BORIS, "Media file name": f"/data/day{n}/cam.mp4"} for n in (1, 2)]
    path.write_text("\n".join([lines[0], *(separator.join(row.values()) for row in cameras)]))
    assert [one.video_id for one in read_boris(path)] == ["/data/day1/cam", "/data/day2/cam"]
    path.write_text("time,behavior\n1,peck\n")
    with pytest.raises(ManifestError, match="no columns 'Media file name'"):
        list(read_boris(path))


@pytest.mark.parametrize(
    "text",
    [
        "hands\t\t00:00:01.500\t1.5\t00:00:04.250\t4.25\t00:00:02.750\t2.75\tgive\n",
        "hands\t\t1500\t4250\t2750\tgive\n",
        "Tier\tBegin Time - ss.msec\tEnd Time - ss.msec\tAnnotation\nhands\t1.5\t4.25\tgive\n",
        "Tier\tAnnotation\tBegin Time - hh:mm:ss.ms\tEnd Time - hh:mm:ss.ms\n"
        "hands\tgive\t00:00:01.500\t00:00:04.250\n",
        "Begin Time - msec\tEnd Time - msec\tAnnotation\n1500\t4250\tgive\n",
    ],
)
def test_elan(tmp_path: Path, text: str) -> None:
    (tmp_path / "talk.txt").write_text(text)
    (video,) = read_elan(tmp_path / "talk.txt")
    assert (video.video_id, _times(video)) == ("talk", [(1.5, 4.25, "give")])


def test_elan_without_times(tmp_path: Path) -> None:
    (tmp_path / "talk.txt").write_text("hands\tgive\n")
    with pytest.raises(ManifestError, match=r"talk\.txt:1: .* has no begin and end time"):
        list(read_elan(tmp_path))


@pytest.mark.parametrize("reader", [read_audacity, read_elan])
def test_folders_without_files(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    with pytest.raises(ManifestError, match="give their folder"):
        list(reader(tmp_path))
