"""The command line: in this process for most tests, in a process of its own for signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import click
import pytest
from click.testing import CliRunner
from vtnpipe.manifests.errors import VtnpipeError
from vtnpipe.pipelines.cli import cli

HELPERS = Path(__file__).parent


class Ran(NamedTuple):
    """Result of a command."""

    returncode: int
    stdout: str
    stderr: str


Vtnpipe = Callable[..., Ran]


def run_cli(folder: Path, *arguments: object, code: int | None = 0) -> Ran:
    """Run `vtnpipe` in this process, in a folder; check its exit code."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        options = {"prog_name": "vtnpipe", "standalone_mode": False}
        result = CliRunner().invoke(cli, [*map(str, arguments)], **options)
    finally:
        os.chdir(before)
    error, said = result.exception, ""
    if error is None:
        returncode = result.return_value or 0
    elif isinstance(error, click.ClickException):
        returncode, said = error.exit_code, error.format_message()
    elif isinstance(error, VtnpipeError):
        returncode, said = error.exit_code, f"vtnpipe: {error}"
    else:
        raise error
    ran = Ran(returncode, result.stdout, result.stderr + said)
    if code is not None:
        assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def cli_environment(**changes: str) -> dict[str, str]:
    """An environment for commands in processes of their own, which finds the toy backbones.

    Commands compute in one thread, so that they always give the same bits.
    """
    own = {"PYTHONPATH": str(HELPERS), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **changes}


def run_process(
    folder: Path, *arguments: object, code: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    """Run `vtnpipe` in a process of its own, in a folder; check its exit code."""
    ran = subprocess.run(
        [sys.executable, "-m", "vtnpipe", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=cli_environment(),
        timeout=280,
        check=False,
    )
    if code is not None:
        assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def _default_handlers() -> None:
    """Reset signals, which a process that was started in the background ignores."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def signal_training(
    folder: Path, command: Sequence[object], number: signal.Signals, after_epochs: int
) -> tuple[int, str]:
    """Start a training in `run`, and send it a signal after some epochs.

    Returns:
        its exit code and what it wrote to stderr.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "vtnpipe", *map(str, command)],
        cwd=folder,
        env=cli_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_default_handlers,
    )
    metrics = folder / "run/metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= after_epochs:
            process.send_signal(number)
            break
        time.sleep(0.003)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def not_possible(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run, unless the environment forbids that."""
    if os.environ.get("VTNPIPE_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)
