"""A full, read-only or lost disk, and bits that flip on it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Vtnpipe, cli_environment, not_possible
from numbered_videos import write_video
from vtnpipe.manifests.feature_store import open_features

MIXER = (
    *("--backbone", "toy_backbones:mixer", "--weights", "none", "--feature-dtype", "float32"),
    *("--precision", "float32", "--batch-size", 16, "--workers", 1, "--shard-frames", 300),
)


def _mount(*words: str) -> None:
    ran = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        not_possible(f"nothing can be mounted here: {ran.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system in memory, of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=3m", "none", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def videos(tmp_path: Path, write_csv: Callable[..., Path]) -> Path:
    """A manifest of eight videos of 300 frames: 40 kB of features each."""
    (tmp_path / "videos").mkdir()
    for number in range(8):
        write_video(tmp_path / f"videos/{number}.mp4", 300)
    return write_csv((f"v{n}", f"videos/{n}.mp4", "x", "train") for n in range(8))


def _same(one: Path, other: Path) -> bool:
    stores = [open_features(folder) for folder in (one, other)]
    return list(stores[0]) == list(stores[1]) and all(
        np.array_equal(stores[0][name].features, stores[1][name].features) for name in stores[0]
    )


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.faults
def test_a_full_disk_stops_the_run_which_resumes_when_there_is_room(
    tmp_path: Path, small_disk: Path, videos: Path, vtnpipe: Vtnpipe
) -> None:
    vtnpipe("extract", videos, "whole", *MIXER)
    features, filler = small_disk / "f", small_disk / "filler"

    def leave(num_bytes: int) -> None:
        filler.unlink(missing_ok=True)
        disk = os.statvfs(small_disk)
        filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - num_bytes))

    leave(200_000)  # the weights alone are 1 MB
    ran = vtnpipe("extract", videos, features, *MIXER, code=2)
    assert "No space left on device" in ran.stderr
    leave(1_350_000)  # enough for a few of the eight shards
    ran = vtnpipe("extract", videos, features, *MIXER, code=3)
    assert "No space left on device" in ran.stderr
    assert "fix the problem and rerun the command" in ran.stderr
    assert "Traceback" not in ran.stderr
    num_shards = len(list((features / "shards").glob("*.h5")))
    assert 0 < num_shards < 8
    assert not [name for name in _names(features) if name.endswith(".tmp")]
    filler.unlink()
    vtnpipe("extract", videos, features, *MIXER)
    assert _same(tmp_path / "whole", features)
    assert _names(features) == _names(tmp_path / "whole")

    # Read-only: reading works without a lock, writing is refused.
    _mount("-o", "remount,ro", str(small_disk))
    assert "8 of 8: 8 ok" in vtnpipe("features", "show", features).stdout
    assert "are sound" in vtnpipe("features", "verify", features).stdout
    assert "Read-only file system" in vtnpipe("extract", videos, features, *MIXER, code=2).stderr


@pytest.mark.faults
@pytest.mark.parametrize("lost", ["videos", "features"])
def test_a_disk_that_goes_away_marks_nothing_as_failed(
    tmp_path: Path, small_disk: Path, videos: Path, vtnpipe: Vtnpipe, lost: str
) -> None:
    """A disk is unmounted during the run, and mounted again."""
    options = ("--backbone", "toy_backbones:slow_mixer", *MIXER[2:])
    shutil.move(tmp_path / "videos", small_disk / "videos")
    (tmp_path / "videos").symlink_to(small_disk / "videos")
    features = small_disk / "f" if lost == "features" else tmp_path / "f"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vtnpipe",
            "extract",
            str(videos),
            str(features),
            *map(str, options),
        ],
        cwd=tmp_path,
        env=cli_environment(TOY_MILLISECONDS="10"),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((features / "shards").glob("*.h5")):
        assert process.poll() is None
        time.sleep(0.05)
    kept = tmp_path / "kept"
    kept.mkdir()
    _mount("--bind", str(small_disk), str(kept))
    subprocess.run(["umount", "-l", str(small_disk)], check=True)
    try:
        _, errors = process.communicate(timeout=100)
        if lost == "features":
            assert process.returncode == 3, errors
            assert "is gone; mount it again" in errors
        else:
            assert process.returncode in (1, 3), errors
        _mount("--bind", str(kept), str(small_disk))
        vtnpipe("extract", videos, features, *options)
    finally:
        subprocess.run(["umount", "-l", str(kept)], check=False)
    store = open_features(features)
    assert {store.outcomes[name] for name in store.entries} == {("ok", "")}
    assert [len(store[f"v{n}"].features) for n in range(8)] == [300] * 8


@pytest.mark.slow
def test_flipped_bits_are_found_and_their_shards_written_again(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe
) -> None:
    options = (*MIXER[:-1], 20)
    vtnpipe("extract", manifest, "f", *options)
    shutil.copytree(tmp_path / "f", tmp_path / "whole")
    shards = sorted((tmp_path / "f/shards").glob("*.h5"))
    assert len(shards) == 6
    assert f"{len(shards)} shards are sound" in vtnpipe("features", "verify", "f").stdout

    def flip(path: Path, position: int) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 16
        path.write_bytes(data)

    data = shards[0].read_bytes()
    features = open_features(tmp_path / "f")
    first = next(iter(features))
    flip(shards[0], data.index(features[first].features[0].tobytes()) + 2)  # in the features
    flip(shards[1], 9)  # in the header of HDF5
    shards[2].write_bytes(shards[2].read_bytes()[:-100])
    shards[3].write_bytes(shards[4].read_bytes())  # a sound shard of another task
    (tmp_path / "f/shards/000-00099.h5").write_bytes(shards[4].read_bytes())
    ran = vtnpipe("features", "verify", "f", code=1)
    assert "its checksum is wrong" in ran.stdout
    assert "000-00099.h5: its task is in no plan; move it elsewhere" in ran.stdout
    assert f"4 of {len(shards) + 1} shards are damaged; --drop removes them" in ran.stdout
    assert all(path.exists() for path in shards)
    ran = vtnpipe("features", "verify", "f", "--drop", code=1)
    assert "removed 4" in ran.stdout
    (tmp_path / "f/shards/000-00099.h5").unlink()
    vtnpipe("extract", manifest, "f", *options)
    assert _same(tmp_path / "whole", tmp_path / "f")
    assert _names(tmp_path / "whole") == _names(tmp_path / "f")
    (tmp_path / "f/backbone.safetensors").write_bytes(b"other weights")
    assert "its SHA-256 is not" in vtnpipe("features", "verify", "f", code=1).stdout
