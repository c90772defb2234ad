"""Short form of the fault harness; the long form is `python tests/helpers/fault_harness.py`."""

import random
from pathlib import Path

import pytest
from command_line import Vtnpipe, run_cli
from fault_harness import OPTIONS, Tally, draw, run_round
from vtnpipe.manifests.feature_store import open_features

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_only_the_task_that_kills_its_workers_has_no_shard(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe
) -> None:
    """Clip d kills them, in a task of its own; tasks that were running beside it are finished."""
    means = ("--backbone", "toy_backbones:deadly", "--weights", "none", "--precision", "float32")
    ran = vtnpipe(*("extract", manifest, "f", *means, "--workers", 2, "--shard-frames", 60), code=3)
    assert "000-00002: the worker died repeatedly, even when running alone" in ran.stderr
    assert "2 of 3 tasks are finished" in ran.stdout
    assert list(open_features(tmp_path / "f")) == ["a", "b", "c"]


def test_killed_runs_end_equal_to_an_undisturbed_one(tmp_path: Path) -> None:
    draws, tally = random.Random(0), Tally()
    draw(tmp_path)
    run_cli(tmp_path, "extract", "m.csv", "whole", *OPTIONS, "--workers", "2")
    run_round(tmp_path, draws, tally, ["decoder", "worker", "main"], with_cluster=False)
    run_round(tmp_path, draws, tally, ["worker", "scheduler", "decoder"], with_cluster=True)
    assert tally.num_rounds == 2
    assert min(tally.kills[target] for target in ("decoder", "worker", "main")) >= 1
    assert tally.num_commands >= 4
