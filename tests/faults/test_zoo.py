"""Outcomes of bad, odd and hostile files, through the command line: those of zoo.csv."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Vtnpipe
from numbered_videos import number_of_blocks
from vtnpipe.manifests.feature_store import open_features
from zoo import MAKERS, make_zoo

TABLE = Path(__file__).with_name("zoo.csv")
MEANS = ("--backbone", "toy_backbones:block_means", "--weights", "none", "--workers", "1")
# Frames too small or turned, so that the numbers drawn in them cannot be read.
NOT_LEGIBLE = {"tiny.mkv", "odd-size.webm", "rotated-90.mp4", "rotated-180.mp4", "mirrored.mp4"}


@pytest.mark.slow
def test_each_file_of_the_zoo_ends_as_expected(
    tmp_path: Path, write_csv: Callable[..., Path], vtnpipe: Vtnpipe
) -> None:
    with TABLE.open(newline="") as file:
        table = {row["file"]: row for row in csv.DictReader(file)}
    names = make_zoo(tmp_path)
    assert len(names) >= 40
    assert list(table) == names
    rows = [(name, name, "x", "train") for name in names]
    rows += [("../../escape", "sound.mp4", "x", "train"), ("missing", "none.mp4", "x", "train")]
    rows += [("url", "http://127.0.0.1:9/a.mp4", "x", "train")]
    if os.geteuid() != 0:  # root reads everything
        (tmp_path / "secret.mp4").write_bytes(b"x")
        (tmp_path / "secret.mp4").chmod(0)
        rows.append(("secret", "secret.mp4", "x", "train"))
    manifest = write_csv(rows)
    before = list(tmp_path.iterdir())
    ran = vtnpipe("extract", manifest, "f", *MEANS, "--max-failures", 20, code=3)
    assert "more than --max-failures 20 allows" in ran.stderr  # before anything is planned
    assert not list((tmp_path / "f/shards").iterdir())
    assert not list((tmp_path / "f/plan").iterdir())
    ran = vtnpipe(
        *("extract", manifest, "f", *MEANS, "--stall-seconds", 20, "--max-failures", "100%"), code=1
    )
    store = open_features(tmp_path / "f")
    outcomes = store.outcomes
    for name, expected in table.items():
        status, reason = outcomes[name]
        reasons = expected["reason"].split("|")  # of newer and older versions of FFmpeg
        assert status == expected["status"], name
        assert reason in reasons, name
        num_frames = store.num_frames(name)
        num_lost = sum(entry.num_lost_frames for entry in store.entries[name])
        if expected["status"] == "ok":
            assert (num_frames, num_lost) == (int(expected["frames"]), 0), name
            if name not in NOT_LEGIBLE:
                numbers = [number_of_blocks(row) for row in store[name].features]
                assert numbers == list(range(num_frames)), name
        elif expected["status"] == "partial":
            assert num_lost > 0, name
            if expected["frames_and_lost"]:  # the number of frames lost at the end is an estimate
                assert abs(num_frames + num_lost - int(expected["frames_and_lost"])) <= 1, name
        else:
            assert num_frames == 0, name
    assert outcomes["../../escape"] == ("ok", "")
    assert outcomes["missing"] == ("failed", "missing")
    assert outcomes["url"] == ("failed", "refused")
    assert outcomes.get("secret", ("failed", "permission")) == ("failed", "permission")
    with (tmp_path / "f/failures.csv").open(newline="") as file:
        failures = {line["video_id"]: line["reason"] for line in csv.DictReader(file)}
    assert failures == {name: reason for name, (status, reason) in outcomes.items() if reason}
    assert set(tmp_path.iterdir()) - set(before) == {tmp_path / "f"}
    assert "are sound" in vtnpipe("features", "verify", "f").stdout
    assert set(MAKERS) == set(table)


@pytest.mark.slow
@pytest.mark.parametrize("megapixels", ["0.01", "0.004"])
def test_frames_beyond_the_limit_are_refused(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe, megapixels: str
) -> None:
    """The clips have 128 x 64 or 128 x 96 pixels."""
    options = ("--max-megapixels", megapixels, "--max-failures", "100%")
    vtnpipe("extract", manifest, "f", *MEANS, *options, code=1)
    too_large = [id for id, (_, reason) in open_features(tmp_path / "f").outcomes.items() if reason]
    assert too_large == (["b"] if megapixels == "0.01" else list("abcd"))
