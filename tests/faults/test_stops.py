"""Runs that stop early by themselves, and videos that are extracted again."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Vtnpipe, cli_environment
from fault_harness import MARK, family, is_decoder
from numbered_videos import write_video
from vtnpipe.manifests.failures import read_failures
from vtnpipe.manifests.feature_store import open_features

SLOW = (
    *("--backbone", "toy_backbones:slow_mixer", "--weights", "none", "--feature-dtype", "float32"),
    *("--precision", "float32", "--batch-size", "16", "--workers", "1", "--shard-frames", "100"),
)


@pytest.mark.slow
def test_too_many_failures_stop_the_run_and_are_listed(
    tmp_path: Path, write_csv: Callable[..., Path], vtnpipe: Vtnpipe
) -> None:
    """The files can be opened, so that only their tasks find that nothing can be decoded."""
    names = [f"{number}.mp4" for number in range(6)]
    for number, name in enumerate(names):
        data = write_video(tmp_path / name, 100, num_b_frames=0).read_bytes()
        begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
        if number >= 3:
            (tmp_path / name).write_bytes(data[:begin] + b"\xff" * (end - begin) + data[end:])
    manifest = write_csv((name, name, "x", "train") for name in names)
    ran = vtnpipe("extract", manifest, "f", *SLOW, "--max-failures", 1, code=3)
    assert re.search(r"[23] of 6 videos failed \([23] (no-frames|damaged)\)", ran.stderr)
    assert "more than --max-failures 1 allows" in ran.stderr
    assert "the same command resumes" in ran.stderr
    found = re.search(r"([0-9]) of 6 tasks are finished", ran.stdout)
    assert found
    failures = read_failures(tmp_path / "f/failures.csv")
    assert 2 <= len(failures) <= 3
    assert {failure.video_id for failure in failures} <= {*names[3:]}
    assert not (tmp_path / "f/report.json").exists()
    vtnpipe("extract", manifest, "f", *SLOW, "--max-failures", 3, code=1)
    assert list(open_features(tmp_path / "f").outcomes) == names
    assert [f.video_id for f in read_failures(tmp_path / "f/failures.csv")] == names[3:]


@pytest.mark.slow
def test_a_video_that_hangs_or_crashes_or_is_missing_is_left_out_and_can_be_retried(
    tmp_path: Path, write_csv: Callable[..., Path], vtnpipe: Vtnpipe
) -> None:
    """Meanwhile, a second run into the same folder is refused."""
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
    write_video(tmp_path / "6.mp4", 20)  # without --retry
    vtnpipe("extract", manifest, "f", *SLOW, "--retry", "stalled", code=1)
    expected |= {"v1": ("ok", ""), "v6": ("ok", "")}
    assert open_features(tmp_path / "f").outcomes == expected
    vtnpipe("extract", manifest, "f", *SLOW, "--retry", "all")
    store = open_features(tmp_path / "f")
    assert [len(store[f"v{n}"].features) for n in range(7)] == [50] * 6 + [20]
    assert "nothing to do" in vtnpipe("extract", manifest, "f", *SLOW, "--retry", "all").stdout


@pytest.mark.slow
@pytest.mark.parametrize("num_val", [2, 40])
def test_a_signal_ends_a_finetuning_whose_decoder_hangs(
    tmp_path: Path, write_csv: Callable[..., Path], num_val: int
) -> None:
    """Long before the decoder's deadline, in training and in validation."""
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", 50)
    rows = [(f"v{n}", f"{n}.mp4", "xy"[n], "train") for n in range(2)]
    rows += [(f"w{n}", f"{2 + n % 2}.mp4", "xy"[n % 2], "val") for n in range(num_val)]
    arguments = [
        *("finetune", str(write_csv(rows)), "run", "--backbone", "toy_backbones:block_means"),
        *("--weights", "none", "--from", "none", "--clip-frames", "4", "--clip-seconds", "0.3"),
        *("--layers", "1", "--heads", "4", "--num-workers", "2", "--epochs"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "vtnpipe", *arguments, "10000"],
        cwd=tmp_path,
        env=cli_environment(**{MARK: str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    decoders = list(filter(is_decoder, family(str(tmp_path))))
    assert decoders
    for decoder in decoders:
        decoder.suspend()
    time.sleep(1)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 3, printed
    assert time.monotonic() - begin < 30
    assert "the same command resumes" in printed
    num_epochs = len(metrics.read_text().splitlines())
    (line,) = [line for line in printed.splitlines() if "saved a checkpoint" in line]
    assert f"stopped in epoch {num_epochs + 1}" in line
