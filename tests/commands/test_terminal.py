"""Output on a terminal, with --quiet and --verbose, and in TensorBoard."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Vtnpipe, cli_environment
from feature_folders import made_up_features
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings

MEANS = ("--backbone", "toy_backbones:block_means", "--weights", "none")
COLOR = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
SMALL = ("--layers", 1, "--heads", 2, "--intermediate", 16, "--head-dim", 8, "--epochs", 2)


def _in_terminal(folder: Path, *arguments: object, **environment: str) -> tuple[int, str]:
    """Run `vtnpipe` on a terminal of 100 columns; return its exit code and its output there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "vtnpipe", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=cli_environment(TERM="xterm-256color", COLUMNS="100", LINES="40", **environment),
        close_fds=True,
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            found = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not found:
            break
        printed += found
    os.close(ours)
    return process.wait(), printed.decode()


@pytest.mark.slow
def test_extract_on_a_terminal(tmp_path: Path, manifest: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    with manifest.open("a") as file:
        file.write("bad,bad.mp4,B,val\n")
    code, printed = _in_terminal(tmp_path, "extract", manifest, "f", *MEANS, NO_COLOR="1")
    assert code == 1
    assert re.search(r"extract .*[0-9]+/[0-9]+ frames .*/s [0-9]+ workers?", printed)
    assert "1 failed" in printed
    assert re.search(r"│ videos +│ 4 ok, 0 partial, 1 failed +│", printed)
    assert re.search(r"│ limit +│ [a-z ]+ was busy for [0-9]+% of the time", printed)
    assert not COLOR.search(printed)
    code, printed = _in_terminal(tmp_path, "features", "show", "f", NO_COLOR="1")
    assert code == 0
    assert not COLOR.search(printed)


def test_quiet_and_verbose(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    labels = {split: {f"{split}{n}": f"c{n:02}" for n in range(24)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", labels)
    ran = vtnpipe("train-temporal", "f", "r", *SMALL, "--quiet")
    assert (ran.stdout, ran.stderr) == ("", "")
    assert (tmp_path / "r/model.safetensors").exists()
    assert "no/such/folder" in vtnpipe("evaluate", "no/such/folder", "f", "--quiet", code=2).stderr
    assert "and 4 more classes in" in vtnpipe("evaluate", "r", "f").stdout
    ran = vtnpipe("evaluate", "r", "f", "--verbose")
    assert [f"c{n:02}" for n in range(24)] == re.findall("^c[0-9]{2}", ran.stdout, re.MULTILINE)
    both = vtnpipe("evaluate", "r", "f", "--verbose", "--quiet", code=2)
    assert "exclude each other" in both.stderr


def test_tensorboard_has_curves_and_confusion(tmp_path: Path) -> None:
    labels = {split: {f"{split}{n}": "ab"[n % 2] for n in range(6)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", labels)
    settings = TrainTemporalSettings(layers=1, heads=2, intermediate=16, head_dim=8, epochs=3)
    train_temporal(tmp_path / "f", tmp_path / "r", settings)
    events = EventAccumulator(str(tmp_path / "r/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.step for event in events.Images("val/confusion")] == [1, 2, 3]
    image = events.Images("val/confusion")[-1]
    assert (image.width, image.height) == (400, 400)
    assert np.frombuffer(image.encoded_image_string[:8], np.uint8)[1:4].tobytes() == b"PNG"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_console_that_cannot_encode_a_name(tmp_path: Path, manifest: Path, encoding: str) -> None:
    """The name is spelled out, and the command does not end with an error after its work."""
    manifest.write_text(manifest.read_text() + "日本,bad.mp4,B,val\n")
    (tmp_path / "bad.mp4").write_text("no video")
    process = subprocess.run(
        [sys.executable, "-m", "vtnpipe", "extract", str(manifest), "f", *MEANS],
        cwd=tmp_path,
        env=cli_environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert rb"failed \u65e5\u672c: not-a-video" in process.stdout
