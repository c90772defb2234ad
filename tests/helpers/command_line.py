"""The real command line, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

Vtnpipe = Callable[..., "subprocess.CompletedProcess[str]"]
HELPERS = Path(__file__).parent


def cli_environment(**changes: str) -> dict[str, str]:
    """An environment in which the toy backbones can be imported.

    Commands compute in one thread, or two of them would not always give the same bits: Dask says so
    in the environment of a test process that has had workers, and else nothing does.
    """
    own = {"PYTHONPATH": str(HELPERS), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **changes}


def not_possible(reason: str) -> NoReturn:
    """Skips a test that this machine is not able to run, unless the environment forbids that."""
    if os.environ.get("VTNPIPE_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


def run_cli(
    folder: Path, *arguments: object, code: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    """Runs `vtnpipe` in a folder, and checks its exit code."""
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
