"""Comparison of a feature folder with one that this machine extracts by itself."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from command_line import run_cli
from vtnpipe.manifests.feature_store import open_features


def assert_as_made_here(folder: Path, manifest: str, options: Sequence[str]) -> None:
    """Compare with a local run of the same plan; `manifest` lies beside the folder."""
    local = folder.with_name("local")
    shutil.copytree(folder, local, ignore=shutil.ignore_patterns("*.h5", "jobs", "report.json"))
    run_cli(folder.parent, "extract", manifest, local.name, *options)
    assert_equal(folder, local)


def assert_equal(folder: Path, local: Path) -> None:
    """Compare every value and every file with those of a local run, except the logs of jobs."""
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
