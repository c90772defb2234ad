"""Fixtures of all tests: numbered clips, real clips, manifests, and the command line."""

import csv
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import Vtnpipe, run_cli
from numbered_videos import write_clips

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Compute in one thread, so that the same command always gives the same bits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real clips; tests that need it are skipped if it is missing."""
    if not (SHARED / "videos").is_dir():
        pytest.skip("the real clips are not on this machine")
    return SHARED / "videos"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four numbered clips: name → path; clip k begins with number 1000 k."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes rows to `manifest.csv` in the test's folder."""

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


@pytest.fixture
def vtnpipe(tmp_path: Path) -> Vtnpipe:
    """Function that runs a command in the test's folder."""
    return partial(run_cli, tmp_path)
