"""CPU cores available to this process."""

import os
from pathlib import Path

import pytest
from vtnpipe.extract import cores
from vtnpipe.extract.cores import CORES_OF_JOB, cgroup_quotas, num_cpus, num_cpus_per_process


@pytest.fixture(autouse=True)
def _a_machine_of_64_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(cores, "cgroup_quotas", lambda: [])
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


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        (
            {
                "proc/self/cgroup": "0::/slice/job\n",
                "sys/fs/cgroup/slice/cpu.max": "250000 100000\n",
                "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
            },
            [3],
        ),
        (
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"},
            [4],
        ),
        (
            {  # version 1; a container sees its own group as the root
                "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            [2],
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            [],
        ),
    ],
)
def test_a_cgroup_limits_the_cores(
    tmp_path: Path, files: dict[str, str], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, files)
    assert list(cgroup_quotas(tmp_path)) == expected
    monkeypatch.setattr(cores, "cgroup_quotas", lambda: expected)
    assert num_cpus() == min([64, *expected])
