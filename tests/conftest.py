"""Fixtures for all tests: numbered clips, real clips, and the command line as a user runs it."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from conftest_types import Vtnpipe
from numbered_videos import write_clips

HELPERS = Path(__file__).parent / "helpers"
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real clips; tests that need it are skipped where it is not."""
    if not (SHARED / "videos").is_dir():
        pytest.skip("the real clips are not on this machine")
    return SHARED / "videos"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four numbered clips: name → path; clip k begins with number 1000 k."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as `manifest.csv` in the test's folder."""

    def write(rows: Iterable[Sequence[object]], header: str = "video_id,path,label,split") -> Path:
        path = tmp_path / "manifest.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header.split(","))
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def manifest(clips: dict[str, Path], write_csv: Callable[..., Path]) -> Path:
    """A manifest of the numbered clips."""
    return write_csv((name, path, name.upper(), "train") for name, path in clips.items())


def cli_environment() -> dict[str, str]:
    """The environment in which the toy backbones can be imported."""
    return {**os.environ, "PYTHONPATH": str(HELPERS), "NO_COLOR": "1"}


@pytest.fixture
def vtnpipe(tmp_path: Path) -> Vtnpipe:
    """Runs the real command line in a process of its own, in the test's folder."""

    def run(*arguments: object, code: int | None = 0) -> "subprocess.CompletedProcess[str]":
        ran = subprocess.run(
            [sys.executable, "-m", "vtnpipe", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=cli_environment(),
            timeout=280,
            check=False,
        )
        if code is not None:
            assert ran.returncode == code, ran.stdout + ran.stderr
        return ran

    return run
