"""Reading and writing manifests: every rule, with file and line."""

from pathlib import Path

import pytest
from vtnpipe.manifests.errors import ManifestError, VtnpipeError
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "m.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_reads_rows_with_paths_relative_to_the_manifest(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "\ufeffvideo_id,path,label,split,start,end\n"
        "v1,clips/a b.mp4,run,train,,\n"
        '\n"v,2",/abs/ü.mkv,"a|b",val,1.5,2\n',
    )
    assert read_manifest(path) == [
        VideoRow(video_id="v1", path=f"{tmp_path}/clips/a b.mp4", label="run", split="train"),
        VideoRow(video_id="v,2", path="/abs/ü.mkv", label="a|b", split="val", start=1.5, end=2.0),
    ]


HEADER = "video_id,path,label,split"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv: empty"),
        (f"{HEADER}\n", "m.csv: no rows"),
        ("video_id,path,label\nv,p,l\n", "m.csv:1: column 'split' is missing"),
        (f"{HEADER},color\nv,p,l,s,red\n", "m.csv:1: unknown column 'color'"),
        (f"{HEADER},path\nv,p,l,s,p\n", "m.csv:1: column 'path' appears more than once"),
        (f"{HEADER}\nv,p,l,s\nw,q,l\n", "m.csv:3: 3 fields, but the header names 4"),
        (f"{HEADER}\nv,p,l,s\n\nv,q,l,s\n", "m.csv:4: video_id 'v' is also on line 2"),
        (f"{HEADER}\n,p,l,s\n", "m.csv:2: video_id is empty"),
        (f"{HEADER}\nv, ,l,s\n", "m.csv:2: path is empty"),
        (f"{HEADER}\nv,a\0b,l,s\n", "NUL"),
        (f'{HEADER}\nv,"p,l,s\n', "m.csv:2: not CSV"),
        (f"{HEADER}\nv,p,l,s\n".encode() + b"w,\xff,l,s\n", "m.csv:3: not UTF-8"),
        (f"{HEADER},start\nv,p,l,s,soon\n", "m.csv:2: start 'soon' is not a time"),
        (f"{HEADER},start\nv,p,l,s,-1\n", "m.csv:2: start '-1' is not a time"),
        (f"{HEADER},end\nv,p,l,s,nan\n", "m.csv:2: end 'nan' is not a time"),
        (f"{HEADER},start,end\nv,p,l,s,2,2\n", "m.csv:2: end 2 is not after start 2"),
        (f"{HEADER},start,end\nv,p,l,s,,0\n", "m.csv:2: end 0 is not after start 0"),
    ],
)
def test_each_rule_has_its_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(_write(tmp_path, text))
    assert message in str(caught.value)
    assert isinstance(caught.value, VtnpipeError)
    assert not isinstance(caught.value, ValueError)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv: no such manifest"):
        read_manifest(tmp_path / "none.csv")


def test_round_trip(tmp_path: Path) -> None:
    rows = [
        VideoRow(video_id="a\nb", path=f"{tmp_path}/x.mp4", label="l,1", split="train"),
        VideoRow(video_id="-c", path="/else/where.mp4", start=0.1, end=1 / 3),
    ]
    write_manifest(rows, tmp_path / "out.csv")
    assert read_manifest(tmp_path / "out.csv") == rows
    assert "x.mp4" in (tmp_path / "out.csv").read_text()
    assert str(tmp_path) not in (tmp_path / "out.csv").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_manifest_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    row = VideoRow(video_id="a", path="/a.mp4")
    with pytest.raises(ManifestError, match=r"none/m\.csv: its folder does not exist"):
        write_manifest([row], tmp_path / "none" / "m.csv")
    undecodable = VideoRow(video_id="\udcff", path="/a.mp4")
    with pytest.raises(ManifestError, match="not valid UTF-8"):
        write_manifest([undecodable], tmp_path / "m.csv")
    assert list(tmp_path.iterdir()) == []
