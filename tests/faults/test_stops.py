"""Runs that end by themselves before their end, and videos that are tried again."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Vtnpipe, cli_environment
from fault_harness import MARK, family
from numbered_videos import write_video
from vtnpipe.manifests.errors import SettingsError, StoppedError
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.extraction.giving_up import MIN_FAILURES, FailureLimit
from vtnpipe.pipelines.extraction.settings import ExtractSettings

SLOW = (
    *("--backbone", "toy_backbones:slow_mixer", "--weights", "none", "--feature-dtype", "float32"),
    *("--precision", "float32", "--batch-size", "16", "--workers", "1", "--shard-frames", "100"),
)


def test_a_limit_counts_videos_or_a_share() -> None:
    FailureLimit("3", 100).count({"missing": 2, "empty": 1}, "a.mp4: 0 bytes")
    with pytest.raises(StoppedError, match=r"4 of 100 videos failed \(3 missing, 1 empty\)"):
        FailureLimit("3", 100).count({"missing": 3, "empty": 1})
    FailureLimit("5%", 20).count({"missing": MIN_FAILURES - 1})  # too few to tell
    limit = FailureLimit("5%", 1000)
    limit.count({"missing": 50})
    with pytest.raises(StoppedError, match=r"a\.mp4: no such file; mend what is wrong"):
        limit.count({"missing": 1}, "a.mp4: no such file")
    for value in ("-1", "101%", "some", "5 %"):
        with pytest.raises(SettingsError, match="--max-failures"):
            ExtractSettings(max_failures=value)
    for value in ("soon", "0:00", "90"):
        with pytest.raises(SettingsError, match="--time-budget"):
            ExtractSettings(time_budget=value)
    with pytest.raises(SettingsError, match="--retry 'broken': it must be of missing,"):
        ExtractSettings(retry="broken")
    assert ExtractSettings(retry="stalled,crashed").reasons_to_retry == {"stalled", "crashed"}
    assert len(ExtractSettings(retry="all").reasons_to_retry) == 14


@pytest.mark.faults
def test_a_time_budget_ends_the_run_between_tasks(
    tmp_path: Path, write_csv: Callable[..., Path], vtnpipe: Vtnpipe
) -> None:
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", 1000)
    manifest = write_csv((f"v{n}", f"{n}.mp4", "x", "train") for n in range(4))
    begun = time.monotonic()
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "vtnpipe", "extract", str(manifest), "f", *SLOW),
            *("--time-budget", "0:40"),  # a busy machine takes half of it to begin
        ],
        cwd=tmp_path,
        env=cli_environment(TOY_MILLISECONDS="20", **{MARK: str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ran.returncode == 3, ran.stdout + ran.stderr
    assert time.monotonic() - begun < 60
    assert "the same command resumes" in ran.stderr
    found = re.search(r"([0-9]+) of 40 tasks are finished and stay so", ran.stdout)
    assert found
    num_done = len(list((tmp_path / "f/shards").glob("*.h5")))
    assert 0 < num_done < 40
    assert int(found[1]) == num_done
    assert not family(str(tmp_path))
    vtnpipe("extract", manifest, "f", *SLOW)
    assert [len(video.features) for video in open_features(tmp_path / "f").values()] == [1000] * 4


def test_a_video_that_hangs_or_crashes_or_is_missing_is_left_out_and_can_be_tried_again(
    tmp_path: Path, write_csv: Callable[..., Path], vtnpipe: Vtnpipe
) -> None:
    """Each time that it is opened; a second run into the folder meanwhile is refused."""
    for number in range(6):
        write_video(tmp_path / f"{number}.mp4", 50)
    manifest = write_csv((f"v{n}", f"{n}.mp4", "x", "train") for n in range(7))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "vtnpipe", "extract", str(manifest), "f", *SLOW),
            *("--stall-seconds", "3", "--decoder-processes", "1"),
        ],
        cwd=tmp_path,
        env=cli_environment(VTNPIPE_TEST_BAD="hang=1.mp4,kill=4.mp4", **{MARK: str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (tmp_path / "f/extraction.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    again = vtnpipe("extract", manifest, "f", *SLOW, code=2)
    assert f"another run is writing there (process {process.pid} on " in again.stderr
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 1, printed
    store = open_features(tmp_path / "f")
    expected = {f"v{n}": ("ok", "") for n in range(6)}
    expected |= {"v1": ("failed", "stalled"), "v4": ("failed", "crashed")}
    expected |= {"v6": ("failed", "missing")}
    assert store.outcomes == expected
    assert [len(video.features) for video in store.values()] == [50] * 4
    assert not family(str(tmp_path))
    write_video(tmp_path / "6.mp4", 20)  # nobody need ask for it
    vtnpipe("extract", manifest, "f", *SLOW, "--retry", "stalled", code=1)
    expected |= {"v1": ("ok", ""), "v6": ("ok", "")}
    assert open_features(tmp_path / "f").outcomes == expected
    vtnpipe("extract", manifest, "f", *SLOW, "--retry", "all")
    store = open_features(tmp_path / "f")
    assert [len(store[f"v{n}"].features) for n in range(7)] == [50] * 6 + [20]
    assert "nothing to do" in vtnpipe("extract", manifest, "f", *SLOW, "--retry", "all").stdout
