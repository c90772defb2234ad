"""The short form of the fault harness; its long form is a command of its own."""

import random
from pathlib import Path

import pytest
from command_line import run_cli
from fault_harness import OPTIONS, Tally, draw, run_round

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_killed_runs_end_equal_to_an_undisturbed_one(tmp_path: Path) -> None:
    draws, tally = random.Random(0), Tally()
    draw(tmp_path)
    run_cli(tmp_path, "extract", "m.csv", "whole", *OPTIONS, "--workers", "2")
    run_round(
        tmp_path, draws, tally, ["child", "worker", "main", "child", "stop"], of_its_own=False
    )
    run_round(tmp_path, draws, tally, ["worker", "scheduler", "child", "main"], of_its_own=True)
    assert tally.num_rounds == 2
    assert min(tally.kills[target] for target in ("child", "worker", "main")) >= 1
    assert tally.num_commands >= 4
