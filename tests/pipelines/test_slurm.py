"""On a real SLURM: `.ci/slurm && pytest -m slurm`."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import cli_environment, run_cli
from numbered_videos import write_video
from vtnpipe.manifests.shards import open_features

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

MEANS = (
    *("--backbone", "toy_backbones:slow_mixer", "--weights", "none", "--store", "float32"),
    *("--precision", "float32", "--shard-frames", "250"),
)
CLUSTER = "cluster:\n  kind: slurm\n  cores: 1\n  memory: 1GiB\n  interface: lo\n"


def slurm(*command: object) -> str:
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return ran.stdout


def running_jobs() -> list[str]:
    return slurm("squeue", "-h", "-t", "running", "-o", "%i").split()


def state(job: str) -> str:
    found = re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))
    assert found
    return found[1]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A long video and some short ones: 12,500 frames."""
    rows = ["video_id,path,label,split"]
    for number, num_frames in enumerate((10_000, *(250,) * 10)):
        write_video(tmp_path / f"{number}.mp4", num_frames)
        rows.append(f"v{number},{number}.mp4,{'ab'[number % 2]},train")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "m.csv"


def num_shards(folder: Path) -> int:
    return len(list(folder.glob("shards/*.h5")))


def assert_as_made_here(folder: Path) -> None:
    """Every value is that of a local run of the same plan."""
    local = folder.with_name("local")
    shutil.copytree(folder, local, ignore=shutil.ignore_patterns("*.h5", "jobs", "report.json"))
    run_cli(folder.parent, "extract", "m.csv", local.name, *MEANS)
    ours, theirs = open_features(local), open_features(folder)
    assert list(ours) == list(theirs) == [f"v{number}" for number in range(11)]
    for name in ours:
        assert np.array_equal(ours[name].frame_index, theirs[name].frame_index)
        assert np.array_equal(ours[name].timestamps, theirs[name].timestamps)
        assert np.array_equal(ours[name].features, theirs[name].features)
    assert sorted(path.name for path in folder.glob("*")) == sorted(
        [path.name for path in local.glob("*")] + ["jobs"] * (folder / "jobs").exists()
    )
    assert not list(folder.rglob("*.tmp"))


def test_jobs_that_are_cancelled_and_that_hit_their_walltime(
    tmp_path: Path, manifest: Path
) -> None:
    # The walltime is one that the workers don't know, so it does end them in mid-task.
    (tmp_path / "c.yaml").write_text(CLUSTER + '  directives: ["--time=1"]\n')
    command = ["extract", "m.csv", "f", *MEANS, "--config", "c.yaml", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vtnpipe", *command],
        cwd=tmp_path,
        env=cli_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: num_shards(tmp_path / "f") > 0)
        cancelled, timed_out = running_jobs()
        slurm("scancel", cancelled)
        printed, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert state(cancelled) == "CANCELLED"
    assert state(timed_out) == "TIMEOUT"
    assert_as_made_here(tmp_path / "f")
    assert not running_jobs()
