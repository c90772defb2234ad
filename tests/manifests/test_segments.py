"""Segment files: their rules, and the files for other programs."""

import json
from pathlib import Path

import pytest
from vtnpipe.manifests.errors import ManifestError
from vtnpipe.manifests.segments import (
    Segment,
    by_video,
    check_overlaps,
    read_segments,
    write_activitynet,
    write_audacity,
    write_segments,
)


def test_segments_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    segments = [Segment("a,b", 0.0, 1.5, "é, x"), Segment("v", 10 / 3, 4.0, "")]
    write_segments(segments, path)
    found = read_segments(path)
    assert [one[:4] for one in found] == [
        ("a,b", 0.0, 1.5, "é, x"),
        ("v", 10 / 3, 4.0, ""),
    ]
    assert [one.where for one in found] == [f"{path}:2", f"{path}:3"]
    write_segments([one._replace(score=0.5) for one in segments], path)
    assert path.read_text().splitlines()[0] == "video_id,start,end,label,score"
    assert [one[:4] for one in read_segments(path)] == [one[:4] for one in found]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("v,1,1,a", "s.csv:2: start 1 and end 1: a segment must begin at 0 or later"),
        ("v,2,1,a", "s.csv:2: start 2 and end 1"),
        ("v,x,1,a", "s.csv:2: start 'x' is not a time"),
        ("v,,1,a", "s.csv:2: start '' is not a time"),
        ("v,-1,1,a", "s.csv:2: start '-1' is not a time"),
        ("v,0,nan,a", "s.csv:2: end 'nan' is not a time"),
        ("v,0,1", "s.csv:2: 3 fields, but the header names 4 columns"),
    ],
)
def test_a_segment_that_breaks_a_rule_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(f"video_id,start,end,label\n{line}\n")
    with pytest.raises(ManifestError) as error:
        read_segments(path)
    assert message in str(error.value)


def test_files_that_are_no_segment_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such segment file; it is a CSV with the columns"):
        read_segments(tmp_path / "none.csv")
    (tmp_path / "m.csv").write_text("video_id,path,label,split\n")
    with pytest.raises(ManifestError, match="unknown column 'path'"):
        read_segments(tmp_path / "m.csv")


def test_overlaps_name_both_segments() -> None:
    of_video = by_video(
        [Segment("v", 2.0, 3.0, "b", where="f:3"), Segment("v", 0.0, 2.0, "a", where="f:2")]
    )["v"]
    check_overlaps(of_video)  # half open: one may begin where another ends
    overlapping = [of_video[0]._replace(end=2.5), of_video[1]]
    with pytest.raises(ManifestError, match=r"f:3: begins at 2 s, before the segment of f:2 ends"):
        check_overlaps(overlapping)


def test_other_programs_files(tmp_path: Path) -> None:
    segments = [Segment("v", 0.5, 2.25, "tab\tin", 0.75), Segment("v", 3.0, 4.0, "b", 0.5)]
    write_audacity(segments, tmp_path / "v.txt")
    assert (tmp_path / "v.txt").read_text() == (
        "0.500000\t2.250000\ttab in\n3.000000\t4.000000\tb\n"
    )
    write_activitynet(segments, tmp_path / "v.json", ["v", "w"])
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["results"]["w"] == []
    assert found["results"]["v"][0] == {"label": "tab\tin", "score": 0.75, "segment": [0.5, 2.25]}
