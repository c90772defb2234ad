"""A training that is killed or stopped through the command line, and begun again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from command_line import cli_environment, run_cli
from feature_folders import made_up_features

EPOCHS = 60
OPTIONS = ("--layers", 1, "--heads", 2, "--intermediate", 16, "--head-dim", 8, "--batch-size", 8)
OPTIONS += ("--epochs", EPOCHS, "--optimizer", "adamw", "--class-weights", "balanced")
OPTIONS += ("--time-jitter", 0.5, "--frame-drop", 0.2, "--label-smoothing", 0.1)


def _features(folder: Path) -> Path:
    labels = {
        split: {f"{split}{n}": "abc"[n % 3] for n in range(count)}
        for split, count in (("train", 30), ("val", 12))
    }
    return made_up_features(folder / "f", labels, views=("center", "flip"))


def _heed() -> None:
    """They are ignored by what is begun in the background, such as tests may be."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _signalled(folder: Path, number: signal.Signals, after_lines: int) -> tuple[int, str]:
    """Starts a run, sends it a signal when so many epochs are done; its exit code and errors."""
    arguments = ["train-temporal", "f", "run", *OPTIONS, "--checkpoint-minutes", 0.0005]
    process = subprocess.Popen(
        [sys.executable, "-m", "vtnpipe", *map(str, arguments)],
        cwd=folder,
        env=cli_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed,
    )
    metrics = folder / "run/metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= after_lines:
            process.send_signal(number)
            break
        time.sleep(0.003)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_run_killed_and_stopped_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    _features(tmp_path)
    run_cli(tmp_path, "train-temporal", "f", "whole", *OPTIONS)
    asked = (signal.SIGHUP, signal.SIGKILL, signal.SIGINT)  # SIGUSR1: test_finetune.py
    for number, after_lines in zip(asked, (4, 15, 30), strict=True):
        code, errors = _signalled(tmp_path, number, after_lines)
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 3, errors
            assert "steps, which a checkpoint holds; the same command resumes" in errors
        assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) < EPOCHS
    run_cli(tmp_path, "train-temporal", "f", "run", *OPTIONS)
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert list((tmp_path / "run/tensorboard").iterdir())
