"""CPU cores available to this process."""

import os

import pytest
from vtnpipe.extract.cores import CORES_OF_JOB, num_cpus, num_cpus_per_process


@pytest.fixture(autouse=True)
def _a_machine_of_64_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name in (*CORES_OF_JOB, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_the_cores_are_those_that_the_batch_system_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_cpus() == 64
    for name in CORES_OF_JOB:
        monkeypatch.setenv(name, "6")
        assert num_cpus() == 6
        monkeypatch.setenv(name, "")
        assert num_cpus() == 64
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "128")  # more than this process is bound to
    assert num_cpus() == 64


def test_processes_of_torchrun_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_cpus_per_process() == 8
    assert num_cpus_per_process(most=100) == 64
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert num_cpus_per_process() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert num_cpus_per_process() == 1
