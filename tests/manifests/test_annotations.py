"""Annotation files of data sets: small files in their true formats, and the manifests they give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vtnpipe.manifests.annotations import read_hmdb51, read_ucf101
from vtnpipe.manifests.errors import ManifestError, SettingsError
from vtnpipe.manifests.manifest import VideoRow, read_manifest
from vtnpipe.pipelines.annotation.build import BuildReport, BuildSettings, build_manifest

Build = Callable[..., tuple[BuildReport, dict[str, VideoRow]]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Writes empty videos, builds a manifest, and returns the report and the rows by id."""

    def run(
        sources: list[Path], videos: list[str], **settings: Any
    ) -> tuple[BuildReport, dict[str, VideoRow]]:
        for name in videos:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        chosen = BuildSettings(videos=str(tmp_path / "videos"), **settings)
        report = build_manifest(sources, tmp_path / "m.csv", chosen)
        return report, {row.video_id: row for row in read_manifest(tmp_path / "m.csv")}

    return run


def test_kinetics(tmp_path: Path, build: Build) -> None:
    train = tmp_path / "kinetics_train.csv"
    train.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        'testifying,---QUuC4vJs,84,94,validate\n"baking cookies",--3ouPhoy2A,20,30,train\n'
        "baking cookies,-0dF5uzmjHg,0,10,train\nabseiling,whole0000vid,115,125,train\n"
        "abseiling,-gone-gone-,1,11,train\nabseiling,--3ouPhoy2A,20,30,train\n"
        "abseiling,--3ouPhoy2A,40,50,train\n"
    )
    report, rows = build(
        [train],
        [
            "val/---QUuC4vJs_000084_000094.mp4",
            "train/baking cookies/--3ouPhoy2A_000020_000030.mkv",
            "-0dF5uzmjHg_0_10.mp4",
            "whole0000vid.webm",
            "whole0000vid.description.txt",
        ],
        format="kinetics",
    )
    assert {i: (r.label, r.split, r.start, r.end) for i, r in rows.items()} == {
        "---QUuC4vJs_000084_000094": ("testifying", "val", None, None),
        "--3ouPhoy2A_000020_000030": ("baking cookies", "train", None, None),
        "-0dF5uzmjHg_000000_000010": ("baking cookies", "train", None, None),
        "whole0000vid_000115_000125": ("abseiling", "train", 115.0, 125.0),
    }
    assert rows["--3ouPhoy2A_000020_000030"].path.endswith("--3ouPhoy2A_000020_000030.mkv")
    assert [clip.video_id for clip in report.missing] == [
        *("-gone-gone-_000001_000011", "--3ouPhoy2A_000040_000050")
    ]
    assert report.num_repeated == 1
    assert report.exit_code == 1
    listed = report.missing_file.read_text().splitlines()
    assert listed[0] == "video_id,label,split,why"
    assert "-gone-gone-_000001_000011 or -gone-gone-_1_11 or -gone-gone-" in listed[1]

    test = tmp_path / "test.csv"  # the test split has no labels
    test.write_text("youtube_id,time_start,time_end,split\n-0dF5uzmjHg,0,10,test\n")
    report, rows = build([test], [], format="kinetics")
    assert [(row.label, row.split) for row in rows.values()] == [("", "test")]
    assert report.exit_code == 0
    assert not report.missing_file.exists()


def test_ucf101(tmp_path: Path, build: Build) -> None:
    folder = tmp_path / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 ApplyLipstick\n")
    (folder / "trainlist02.txt").write_text(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
        "ApplyLipstick/v_ApplyLipstick_g09_c02.avi 2\r\n"
    )
    (folder / "testlist02.txt").write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n")
    report, rows = build(
        [folder],
        [
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
            "v_ApplyEyeMakeup_g01_c01.mp4",  # without its folder, and encoded anew
            "ApplyLipstick/v_ApplyLipstick_g09_c03.avi",
        ],
        format="ucf101",
        fold=2,
    )
    assert {i: (r.label, r.split) for i, r in rows.items()} == {
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": ("ApplyEyeMakeup", "train"),
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi": ("ApplyEyeMakeup", "test"),
    }
    assert [c.video_id for c in report.missing] == ["ApplyLipstick/v_ApplyLipstick_g09_c02.avi"]


def test_ucf101_and_hmdb51_get_a_validation_split_of_whole_recordings(tmp_path: Path) -> None:
    ucf, hmdb = tmp_path / "ucf", tmp_path / "hmdb"
    ucf.mkdir()
    names = [f"Run/v_Run_g{g:02}_c{c:02}.avi" for g in range(8, 26) for c in range(1, 5)]
    (ucf / "trainlist01.txt").write_text("\n".join(f"{name} 1" for name in names))
    (ucf / "testlist01.txt").write_text("Run/v_Run_g01_c01.avi\n")
    hmdb.mkdir()
    lines = [f"Film_{film}_run_f_cm_np1_le_{n}.avi 1 " for film in range(10) for n in range(3)]
    (hmdb / "run_test_split1.txt").write_text("\n".join(lines))
    for clips, length in (  # of what names a recording
        (list(read_ucf101(ucf, 1)), len("Run/v_Run_g08")),
        (list(read_hmdb51(hmdb, 1)), len("run/Film_0")),
    ):
        split_of = {clip.video_id: clip.split for clip in clips}
        train, val = (
            {name for name, split in split_of.items() if split == wanted}
            for wanted in ("train", "val")
        )
        assert 0.1 <= len(val) / len(train | val) <= 0.2
        assert not {name[:length] for name in train} & {name[:length] for name in val}


def test_hmdb51(tmp_path: Path, build: Build) -> None:
    folder = tmp_path / "testTrainMulti_7030_splits"
    folder.mkdir()
    (folder / "brush_hair_test_split1.txt").write_text(
        "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \natkins_brush_hair_u_nm_np2_le_goo_0.avi 2 \n"
        "Brunette_Foxyanya_ultra_silky_long_hair_brush_hair_u_nm_np1_ba_med_3.avi 0 \n"
    )
    (folder / "cartwheel_test_split1.txt").write_text(
        "(Rad)Schlag_die_Bank!_f_cm_np1_le_0.avi 1 \n"
    )
    (folder / "cartwheel_test_split2.txt").write_text("other.avi 1 \n")
    report, rows = build(
        [folder],
        [
            "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
            "brush_hair/atkins_brush_hair_u_nm_np2_le_goo_0.avi",
            "cartwheel/(Rad)Schlag_die_Bank!_f_cm_np1_le_0.avi",
        ],
        format="hmdb51",
    )
    assert [(Path(i).name[:6], r.label, r.split) for i, r in rows.items()] == [
        ("April_", "brush_hair", "train"),
        ("atkins", "brush_hair", "test"),
        ("(Rad)S", "cartwheel", "train"),
    ]
    assert report.exit_code == 0


def test_something_something(tmp_path: Path, build: Build) -> None:
    entry = {"label": "holding potato next to vicks vaporub bottle", "placeholders": ["potato"]}
    entry |= {"id": "78687", "template": "Holding [something] next to [something]"}
    paths = {
        "something-something-v2-train.json": [entry, {**entry, "id": "2"}],
        "something-something-v2-validation.json": [{**entry, "id": "3"}],
        "something-something-v2-test.json": [{"id": "4"}],
    }
    for name, value in paths.items():
        (tmp_path / name).write_text(json.dumps(value))
    sources = [tmp_path / name for name in paths]
    report, rows = build(
        sources, ["78687.webm", "3.webm", "4.webm"], format="something-something-v2"
    )
    label = "Holding something next to something"
    assert {i: (r.label, r.split) for i, r in rows.items()} == {
        "78687": (label, "train"),
        "3": (label, "val"),
        "4": ("", "test"),
    }
    assert [clip.video_id for clip in report.missing] == ["2"]


def test_activitynet(tmp_path: Path, build: Build) -> None:
    annotations = [
        {"segment": [14.25, 38.08], "label": "Fixing bicycle"},
        {"segment": [-0.1, 3.0], "label": "Fixing bicycle"},
        {"segment": [7.0, 7.0], "label": "Fixing bicycle"},
    ]
    database = {
        "sJhn2G5Lmi8": {"duration": 40.0, "subset": "training", "annotations": annotations},
        "8XCvPKAJZeM": {"duration": 9.0, "subset": "testing", "annotations": []},
        "goneAWAY123": {"subset": "validation", "annotations": annotations[:1]},
    }
    path = tmp_path / "activity_net.v1-3.min.json"
    path.write_text(json.dumps({"database": database, "version": "VERSION 1.3", "taxonomy": []}))
    report, rows = build([path], ["v_sJhn2G5Lmi8.mp4", "8XCvPKAJZeM.mkv"], format="activitynet")
    assert {i: (r.label, r.split, r.start, r.end) for i, r in rows.items()} == {
        "sJhn2G5Lmi8/0": ("Fixing bicycle", "train", 14.25, 38.08),
        "sJhn2G5Lmi8/1": ("Fixing bicycle", "train", 0.0, 3.0),
        "8XCvPKAJZeM": ("", "test", None, None),
    }
    assert [clip.video_id for clip in report.missing] == ["sJhn2G5Lmi8/2", "goneAWAY123/0"]
    assert "sJhn2G5Lmi8/2,Fixing bicycle,train,its span is empty" in report.missing_file.read_text()


def test_lists_of_paths_and_class_numbers(tmp_path: Path, build: Build) -> None:
    train = tmp_path / "kinetics400_train_list_videos.txt"
    train.write_text("abseiling rope/a b.mp4 0\nx/2.mp4 10\nx/3.mp4 2\ny/3.mp4 2\n")
    videos = ["abseiling rope/a b.webm", "x/2.mp4", "x/3.mp4"]
    report, rows = build([train], videos, format="list")
    assert {i: (r.label, r.split) for i, r in rows.items()} == {
        "abseiling rope/a b.mp4": ("00", "train"),
        "x/2.mp4": ("10", "train"),
        "x/3.mp4": ("02", "train"),
    }
    assert [clip.video_id for clip in report.missing] == ["y/3.mp4"]  # x/3.mp4 is another one

    names = tmp_path / "names.json"
    names.write_text(json.dumps({f"class {n}": n for n in range(11)}))
    several = tmp_path / "val.csv"
    several.write_text(f"{tmp_path}/videos/x/2.mp4,10\nx/3.mp4 1 4\n")
    _, rows = build([several], [], format="list", classes=str(names), multi_label=True)
    assert {Path(i).name: (r.label, r.split) for i, r in rows.items()} == {
        "2.mp4": ("class 10", "val"),
        "3.mp4": ("class 1|class 4", "val"),
    }
    lines = tmp_path / "names.txt"
    lines.write_text("run\neat\n")
    with pytest.raises(SettingsError, match="only list has class numbers"):
        BuildSettings(multi_label=True)
    with pytest.raises(ManifestError, match=r"val\.csv:1: class 10, but --classes names 2"):
        build([several], [], format="list", classes=str(lines))


def test_a_path_may_hold_spaces_numbers_and_quotes(tmp_path: Path, build: Build) -> None:
    lines = tmp_path / "list.txt"
    lines.write_text('take 2 7\n"b, c.mp4",3\n"d ""e"".mp4" 1\n')
    _, rows = build([lines], ["take 2.mp4", "b, c.mp4", 'd "e".mp4'], format="list")
    assert {i: r.label for i, r in rows.items()} == {
        "take 2": "7",
        "b, c.mp4": "3",
        'd "e".mp4': "1",
    }


def test_a_list_of_frames_is_not_taken_for_videos(tmp_path: Path, build: Build) -> None:
    (tmp_path / "rawframes.txt").write_text("run/r1 163 1\nrun/r2 99 1\n")
    (tmp_path / "folders.txt").write_text("run/r1 1\n")
    (tmp_path / "videos/run/r1").mkdir(parents=True)
    for name in ("rawframes.txt", "folders.txt"):
        with pytest.raises(ManifestError, match="look like a list of frames"):
            build([tmp_path / name], ["other/a.mp4"], format="list")


def test_names_compare_however_unicode_composes_them(tmp_path: Path, build: Build) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    lines = tmp_path / "list.txt"
    lines.write_text(f"{composed}/a.mp4 0\n")
    classes = tmp_path / "classes.txt"
    classes.write_text(f"{decomposed}\n")
    _, rows = build([lines], [f"{decomposed}/a.mp4"], format="list", classes=str(classes))
    assert {i: r.label for i, r in rows.items()} == {f"{composed}/a.mp4": composed}


def test_faults_of_annotation_files_are_named(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "x.csv"
    for format_, text, message in (
        ("kinetics", "id,start\n", r"x\.csv:1: no column 'youtube_id'"),
        ("kinetics", "youtube_id,time_start,time_end\na,b,3\n", r"x\.csv:2: 'b' is not a time"),
        ("kinetics", "youtube_id,time_start,time_end\na,nan,3\n", "'nan' is not a time"),
        ("kinetics", "youtube_id,time_start,time_end\na\n", "None is not a time"),
        ("activitynet", "[1]", "contains a list"),
        ("activitynet", '{"database": {"a": {"subset": 3}}}', "'a' is not an ActivityNet entry"),
        ("activitynet", "{", "not JSON"),
        ("activitynet", '{"database": {"a": 3}}', "'a' is not an ActivityNet entry"),
        ("kinetics", "youtube_id,time_start,time_end\n", "lists no clips"),
        (
            "activitynet",
            '{"database": {"a": {"subset": "training", "annotations": '
            '[{"label": "x", "segment": [1]}]}}}',
            "'a' is not an ActivityNet entry",
        ),
        ("something-something-v2", "[3]", r"an entry has no id \(3\)"),
        ("list", "a.mp4\n", r"x\.csv:1: 'a.mp4' is not a path and a class number"),
        ("list", "b.mp4 3\n", r"none of 1 clips has its file there, such as b\.mp4"),
    ):
        path.write_text(text)
        with pytest.raises(ManifestError, match=message):
            build([path], ["a.mp4"], format=format_)
        assert not (tmp_path / "m.csv").exists()
    path.write_bytes(b"youtube_id,time_start,time_end\n\xff,1,2\n")
    with pytest.raises(ManifestError, match="not UTF-8"):
        build([path], ["a.mp4"], format="kinetics")
    with pytest.raises(ManifestError, match=r"no CLASS_test_split1\.txt"):
        build([tmp_path], [], format="hmdb51")
    with pytest.raises(SettingsError, match="--format kinetics: needs --videos FOLDER"):
        BuildSettings(format="kinetics")
