"""A feature folder made elsewhere against what this machine makes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from command_line import run_cli
from vtnpipe.manifests.shards import open_features


def assert_as_made_here(folder: Path, manifest: str, options: Sequence[str]) -> None:
    """Equal to a local run of the same plan; `manifest` lies beside the folder."""
    local = folder.with_name("local")
    shutil.copytree(folder, local, ignore=shutil.ignore_patterns("*.h5", "jobs", "report.json"))
    run_cli(folder.parent, "extract", manifest, local.name, *options)
    assert_equal(folder, local)


def assert_equal(folder: Path, local: Path) -> None:
    """Every value and every file is that of a local run, but for the logs of jobs."""
    ours, theirs = open_features(local), open_features(folder)
    assert list(ours) == list(theirs)
    assert len(ours) > 0
    for name in ours:
        assert np.array_equal(ours[name].frame_index, theirs[name].frame_index)
        assert np.array_equal(ours[name].timestamps, theirs[name].timestamps)
        assert np.array_equal(ours[name].features, theirs[name].features)
    files = {path.relative_to(folder) for path in folder.rglob("*")}
    logs = {path for path in files if path.parts[0] == "jobs"}
    assert files - logs == {path.relative_to(local) for path in local.rglob("*")}
    assert all(path.suffix in ("", ".out", ".err") for path in logs)
