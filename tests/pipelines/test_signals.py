"""Signals that stop a run; and a training that is killed or stopped, and resumed."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import run_cli, signal_training
from feature_folders import made_up_features
from vtnpipe.pipelines.signals import STOP_SIGNALS, StopOnSignals

EPOCHS = 60
OPTIONS = ("--layers", 1, "--heads", 2, "--intermediate", 16, "--head-dim", 8, "--batch-size", 8)
OPTIONS += ("--epochs", EPOCHS, "--optimizer", "adamw", "--class-weights", "balanced")
OPTIONS += ("--time-jitter", 0.5, "--frame-drop", 0.2, "--label-smoothing", 0.1)


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """Default handlers, whatever started the tests; restored afterwards."""
    numbers = (*STOP_SIGNALS, signal.SIGINT)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [*STOP_SIGNALS, signal.SIGINT])
def test_a_signal_asks_to_stop(number: signal.Signals) -> None:
    with StopOnSignals() as stop:
        assert not stop.is_asked
        os.kill(os.getpid(), number)
        assert stop.is_asked
        os.kill(os.getpid(), signal.SIGTERM)  # a batch system may repeat it
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` sets it
    with StopOnSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_asked
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_thread_handles_no_signals() -> None:
    found = []

    def enter() -> None:
        with StopOnSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def _features(folder: Path) -> Path:
    labels = {
        split: {f"{split}{n}": "abc"[n % 3] for n in range(count)}
        for split, count in (("train", 30), ("val", 12))
    }
    return made_up_features(folder / "f", labels, views=("center", "flip"))


@pytest.mark.slow
def test_a_run_killed_and_stopped_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    _features(tmp_path)
    run_cli(tmp_path, "train-temporal", "f", "whole", *OPTIONS)
    command = ("train-temporal", "f", "run", *OPTIONS, "--checkpoint-minutes", 0.0005)
    numbers = (signal.SIGHUP, signal.SIGKILL, signal.SIGINT)  # SIGUSR1: test_finetune.py
    for number, after_lines in zip(numbers, (4, 15, 30), strict=True):
        code, errors = signal_training(tmp_path, command, number, after_lines)
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 3, errors
            assert "saved a checkpoint; the same command resumes" in errors
        assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) < EPOCHS
    run_cli(tmp_path, "train-temporal", "f", "run", *OPTIONS)
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert list((tmp_path / "run/tensorboard").iterdir())
