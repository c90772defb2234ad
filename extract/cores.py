"""CPU cores available to this process."""

import os
from collections.abc import Iterator
from pathlib import Path

# Cores that a batch system gave to the job, if it does not bind processes to them.
CORES_OF_JOB = ("SLURM_CPUS_ON_NODE", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")


def num_cpus() -> int:
    """Return the number of cores that this process may use: by affinity, job and cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    of_job = [
        int(os.environ[name]) for name in CORES_OF_JOB if os.environ.get(name, "").isdecimal()
    ]
    return max(1, min([cores or 1, *of_job, *cgroup_quotas()]))


def cgroup_quotas(root: Path = Path("/")) -> Iterator[int]:
    """Yield the CPU quotas of this process's cgroups, rounded up to whole cores.

    Containers limit CPU time rather than the cores to run on. A cgroup's own limit and those of
    all groups above it apply. See `cpu.max` in the kernel's documentation of cgroup v2, and
    `cpu.cfs_quota_us` in that of v1.

    Args:
        root: root of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == mount:
                break


def _quota(group: Path) -> Iterator[int]:
    """Yield the CPU quota of one cgroup, in cores, if it has one."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        if quota != "max" and int(quota) > 0:
            yield -(-int(quota) // int(period))
    except (OSError, ValueError):
        return  # a group without a limit, or seen from inside a container


def num_cpus_per_process(most: int = 8) -> int:
    """Return the cores per process if `torchrun` started several; at least one, at most `most`."""
    return max(1, min(most, num_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
