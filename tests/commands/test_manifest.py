"""`vtnpipe manifest build`, `check`, `split` and `show`."""

from collections import Counter
from pathlib import Path

import pytest
from command_line import Vtnpipe
from vtnpipe.manifests.errors import ManifestError, SettingsError
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest
from vtnpipe.pipelines.manifest import (
    SplitSettings,
    build_manifest,
    split_manifest,
)


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_build_check_split_show(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    for label in ("run", "eat"):
        _touch(*(tmp_path / "set" / label / f"{n:02}.mp4" for n in range(20)))
    _touch(
        tmp_path / "set/run/deep/a b.MKV", tmp_path / "set/run/notes.txt", tmp_path / "set/x.mp4"
    )
    ran = vtnpipe("manifest", "build", "set", "-o", "m.csv")
    assert "41 videos, 2 classes" in ran.stdout
    rows = {row.video_id: row for row in read_manifest(tmp_path / "m.csv")}
    assert rows["run/deep/a b.MKV"].label == "run"
    assert rows["eat/03.mp4"].path == str(tmp_path / "set/eat/03.mp4")
    assert "set/eat/03.mp4" in (tmp_path / "m.csv").read_text().splitlines()[4]

    assert "ok" in vtnpipe("manifest", "check", "m.csv").stdout
    (tmp_path / "set/eat/03.mp4").unlink()
    (tmp_path / "set/eat/04.mp4").write_bytes(b"")
    ran = vtnpipe("manifest", "check", "m.csv", code=1)
    assert "eat/03.mp4" in ran.stdout
    assert "0 bytes" in ran.stdout

    ran = vtnpipe("manifest", "split", "m.csv", "-o", "s.csv", "--seed", 3)
    counts = Counter((row.label, row.split) for row in read_manifest(tmp_path / "s.csv"))
    assert counts["eat", "train"] == 16
    assert counts["eat", "val"] == counts["eat", "test"] == 2
    assert vtnpipe("manifest", "show", "s.csv").stdout.split()[-8:] == ran.stdout.split()[-8:]
    assert "train" in ran.stdout


def test_what_systems_leave_in_a_folder_is_no_class(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    root = tmp_path / "set"
    _touch(*(root / label / f"{n}.mp4" for label in ("run", "eat") for n in range(2)))
    _touch(root / "run/._0.mp4", root / "__MACOSX/run/._0.mp4", root / ".Trash-1000/files/old.mp4")
    _touch(root / "eat/@eaDir/0.mp4/thumb.mp4", root / "#recycle/a/b.mp4", root / "eat/.hidden.avi")
    ran = vtnpipe("manifest", "build", "set", "-o", "m.csv")
    assert "4 videos, 2 classes" in ran.stdout
    assert "6 left out" in ran.stdout
    assert {row.label for row in read_manifest(tmp_path / "m.csv")} == {"run", "eat"}


def test_links_that_lead_nowhere_are_missing(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    for label in ("run", "eat"):
        _touch(tmp_path / "set" / label / "there.mp4")
        (tmp_path / "set" / label / "gone.mp4").symlink_to("../../.git/annex/objects/gone")
    ran = vtnpipe("manifest", "build", "set", "-o", "m.csv", code=1)
    assert "2 videos, 2 classes" in ran.stdout
    assert "missing: 2 of 4 clips (eat/gone.mp4, run/gone.mp4)" in ran.stdout
    listed = (tmp_path / "m.csv.missing.csv").read_text()
    assert "a link that leads to no file" in listed


def test_classes_of_one_name_are_one(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    """Sub-folders of macOS and Linux spell the same é differently."""
    _touch(tmp_path / "set/\u00e9/a.mp4", tmp_path / "set/e\u0301/b.mp4")
    assert "2 videos, 1 class" in vtnpipe("manifest", "build", "set", "-o", "m.csv").stdout
    (tmp_path / "set/\u00e9/b.mp4").touch()
    ran = vtnpipe("manifest", "build", "set", "-o", "m.csv", code=2)
    assert "differ only in how Unicode composes" in ran.stderr
    (tmp_path / "n.csv").write_text("video_id,path,label,split\na,a.mp4,e\u0301,\n")
    assert read_manifest(tmp_path / "n.csv")[0].label == "\u00e9"


def test_wrong_usage_exits_with_2(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    assert "no such folder" in vtnpipe("manifest", "build", "no", "-o", "m.csv", code=2).stderr
    assert "no such manifest" in vtnpipe("manifest", "show", "m.csv", code=2).stderr
    assert "Missing option" in vtnpipe("manifest", "build", "no", code=2).stderr
    assert list(tmp_path.iterdir()) == []


def _split(folder: Path, ids: list[str], settings: SplitSettings) -> dict[str, str]:
    rows = [VideoRow(video_id=i, path=f"/{i}.mp4", label=i[0]) for i in ids]
    write_manifest(rows, folder / "m.csv")
    return {
        row.video_id: row.split
        for row in split_manifest(folder / "m.csv", folder / "s.csv", settings)
    }


def test_split_is_seeded_and_stratified(tmp_path: Path) -> None:
    ids = [f"{label}{n}" for label in "abc" for n in range(10)]
    settings = SplitSettings(train=0.5, val=0.5, test=0, seed=1)
    first = _split(tmp_path, ids, settings)
    assert _split(tmp_path, ids, settings) == first
    assert _split(tmp_path, ids, SplitSettings(train=0.5, val=0.5, test=0, seed=2)) != first
    assert Counter((i[0], split) for i, split in first.items()) == {
        (label, split): 5 for label in "abc" for split in ("train", "val")
    }


def test_copies_of_one_recording_stay_on_one_side(tmp_path: Path) -> None:
    ids = [f"{'ab'[g % 2]}_g{g:02}_c{c}" for g in range(40) for c in range(1 + g % 4)]
    found = _split(tmp_path, ids, SplitSettings(group=r"_(g\d+)_"))
    sides: dict[str, set[str]] = {}
    for video_id, split in found.items():
        sides.setdefault(video_id.split("_")[1], set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    shares = Counter(found.values())
    assert abs(shares["train"] / len(ids) - 0.8) < 0.05
    assert shares["val"]
    assert shares["test"]


def test_rows_of_one_file_stay_together_unless_told_otherwise(tmp_path: Path) -> None:
    rows = [
        VideoRow(
            video_id=str(n), path=f"/recording-{n % 3}.mp4", label="ab"[n // 30], start=n, end=n + 1
        )
        for n in range(60)
    ]
    write_manifest(rows, tmp_path / "m.csv")
    drawn = split_manifest(tmp_path / "m.csv", tmp_path / "split.csv")
    pairs = {(row.path, row.split) for row in drawn}
    assert len(pairs) == 3
    assert {split for _, split in pairs} == {"train", "val", "test"}
    single = split_manifest(tmp_path / "m.csv", tmp_path / "m.csv", SplitSettings(group=".*"))
    assert Counter(row.split for row in single) == {"train": 48, "val": 6, "test": 6}


def test_labels_that_are_numbers_are_drawn_together_and_several_each(tmp_path: Path) -> None:
    for labels in (
        [f"{n}.5" for n in range(100)],
        [f"{'ab'[n % 2]}|{n // 4 % 2}" for n in range(100)],
    ):
        rows = [
            VideoRow(video_id=str(n), path=f"/{n}", label=label) for n, label in enumerate(labels)
        ]
        write_manifest(rows, tmp_path / "m.csv")
        drawn = split_manifest(tmp_path / "m.csv", tmp_path / "m.csv")
        assert Counter(row.split for row in drawn) == {"train": 80, "val": 10, "test": 10}


def test_a_folder_of_splits_and_classes(tmp_path: Path) -> None:
    for name in ("train/run/a.mp4", "train/eat/b.mp4", "validation/run/a.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    build_manifest([tmp_path / "set"], tmp_path / "m.csv")
    found = {row.video_id: (row.label, row.split) for row in read_manifest(tmp_path / "m.csv")}
    assert found == {
        "train/run/a.mp4": ("run", "train"),
        "train/eat/b.mp4": ("eat", "train"),
        "validation/run/a.mp4": ("run", "val"),
    }


def test_names_are_printed_as_they_are(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    (tmp_path / "m.csv").write_text("video_id,path,label,split\na,gone:x:1[red].mp4,b,\n")
    assert "gone:x:1[red].mp4" in vtnpipe("manifest", "check", "m.csv", code=1).stdout


def test_split_rules(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="add up to 1"):
        SplitSettings(train=0.9)
    with pytest.raises(SettingsError, match="not a regular expression"):
        SplitSettings(group="(")
    with pytest.raises(ManifestError, match="'a1' has no match for --group"):
        _split(tmp_path, ["a1"], SplitSettings(group="x"))


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ManifestError, match=r"no videos; expected .*CLASS/VIDEO"):
        build_manifest([tmp_path / "set"], tmp_path / "m.csv")
    for name in ("a.mp4", "b.mkv", "cover.jpg"):
        _touch(tmp_path / f"set/{name}")
    report = build_manifest([tmp_path / "set"], tmp_path / "m.csv")
    assert [(row.video_id, row.label) for row in report.rows] == [("a.mp4", ""), ("b.mkv", "")]
    assert next(report.lines).endswith("m.csv: 2 videos, without labels")


def test_folders_of_images_are_videos(tmp_path: Path) -> None:
    for name in ("run/a/1.jpg", "run/a/2.JPG", "eat/b/1.png", "eat/c.mp4", "eat/thumbnail.jpg"):
        _touch(tmp_path / "set" / name)
    rows = build_manifest([tmp_path / "set"], tmp_path / "m.csv").rows
    assert [(row.video_id, row.label) for row in rows] == [
        ("eat/b", "eat"),
        ("eat/c.mp4", "eat"),
        ("run/a", "run"),
    ]


def test_folders_that_are_links_are_searched(tmp_path: Path) -> None:
    (tmp_path / "data/run").mkdir(parents=True)
    (tmp_path / "data/run/a.mp4").touch()
    (tmp_path / "set/eat").mkdir(parents=True)
    (tmp_path / "set/eat/b.mp4").touch()
    (tmp_path / "set/run").symlink_to(tmp_path / "data/run")
    (tmp_path / "set/eat/again").symlink_to(tmp_path / "set")  # a cycle
    found = build_manifest([tmp_path / "set"], tmp_path / "m.csv").rows
    assert [row.video_id for row in found] == ["eat/b.mp4", "run/a.mp4"]
    with pytest.raises(ManifestError, match="is a folder; give a file"):
        build_manifest([tmp_path / "set"], tmp_path / "data")


def test_missing_clips_give_exit_code_1(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.mp4").touch()
    (tmp_path / "val.txt").write_text("a.mp4 3\nb.mp4 1\n")
    arguments = ("val.txt", "-o", "m.csv", "--format", "list", "--videos", "set")
    ran = vtnpipe("manifest", "build", *arguments, code=1)
    assert "m.csv: 1 video, 1 class" in ran.stdout
    assert "missing: 1 of 2 clips (b.mp4); all in m.csv.missing.csv" in ran.stdout
    assert [row.split for row in read_manifest(tmp_path / "m.csv")] == ["val"]
