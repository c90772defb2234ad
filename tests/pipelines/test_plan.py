"""`vtnpipe plan`, and how rows become tasks."""

import re
from pathlib import Path

from command_line import Vtnpipe
from numbered_videos import CLIP_LENGTHS, write_video
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import TaskSize, look_at
from vtnpipe.pipelines.extraction.planning import divide, look_at_files

MEANS = ("--backbone", "toy_backbones:block_means", "--weights", "none")


def test_plan_says_what_is_to_be_done(tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_video(tmp_path / "turned.mp4", 30, rotation=90)
    with manifest.open("a") as file:
        file.write("none,none.mp4,x,train\ntext,text.mp4,x,train\nturned,turned.mp4,x,train\n")
    before = sorted(tmp_path.iterdir())
    ran = vtnpipe("plan", manifest, *MEANS, "--shard-frames", 20, code=1)
    assert sorted(tmp_path.iterdir()) == before
    found = dict(
        re.fullmatch(r"(\S+) +(.*)", line).groups()  # type: ignore[union-attr]
        for line in ran.stdout.splitlines()
        if re.match(r"[a-z/]+ {2,}", line) and "unreadable" not in line
    )
    total = sum(CLIP_LENGTHS.values()) + 30
    assert found["frames"] == f"{total} to extract; 80 by their files' index, 81 estimated"
    assert found["features"].startswith("16 float16 a frame: ")
    assert "h264 (3)" in found["codecs"]
    assert "128x64 (4)" in found["sizes"]
    assert found["rotation"] == "upright (4), turned by 90° (1)"
    assert "unreadable  none: missing:" in ran.stdout
    assert "unreadable  text: not-a-video:" in ran.stdout
    # The AVI, of 41 frames, is not cut.
    assert found["tasks"] == "7 of at most 41 frames; 2 long videos in 4 parts"
    assert f"for {total} frames" in found["time"]


def test_long_videos_are_cut_and_short_ones_share_a_task(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", length) for n, length in enumerate((9, 100, 9, 9))]
    rows = [look_at(VideoRow(video_id=path.stem, path=str(path))) for path in paths]
    looked_at = look_at_files([*rows, rows[0]._replace(video_id="again", end=0.2)], Sampling())
    assert [one.row.num_frames for one in looked_at] == [9, 100, 9, 9, 5]
    tasks = divide(looked_at, Sampling(), TaskSize(30))
    assert [[(row.video_id, row.part) for row in task] for task in tasks] == [
        [("0", 0)],
        [("1", 0)],
        [("1", 1)],
        [("1", 2)],
        [("2", 0), ("3", 0), ("again", 0)],
    ]
    parts = [row for task in tasks for row in task if row.video_id == "1"]
    assert [row.num_parts for row in parts] == [3, 3, 3]
    cuts = [row.cut for row in parts if row.cut is not None]
    assert [(cut.first_frame, cut.stop_frame) for cut in cuts] == [(0, 30), (30, 60), (60, 100)]
    assert [(cut.start, cut.end) for cut in cuts] == [(0.0, 1.2), (1.2, 2.4), (2.4, None)]


def test_wanted_frames_are_estimated_by_sampling(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 100)
    row = look_at(VideoRow(video_id="a", path=str(path)))
    rows = [row, row._replace(start=1.0), row._replace(start=1.0, end=2.0), row._replace(start=9.0)]
    for sampling, expected in (
        (Sampling(), [100, 75, 25, 1]),
        (Sampling(frame_stride=10), [10, 8, 3, 1]),
        (Sampling(fps=5), [20, 15, 5, 1]),
        (Sampling(fps=500), [100, 75, 25, 1]),
    ):
        found = [one.row.num_frames for one in look_at_files(rows, sampling)]
        assert found == expected
