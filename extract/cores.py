"""CPU cores available to this process."""

import os

# Cores that a batch system gave to the job, if it does not bind processes to them.
CORES_OF_JOB = ("SLURM_CPUS_ON_NODE", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")


def num_cpus() -> int:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    of_job = [
        int(os.environ[name]) for name in CORES_OF_JOB if os.environ.get(name, "").isdecimal()
    ]
    return max(1, min([cores or 1, *of_job]))


def num_cpus_per_process(most: int = 8) -> int:
    """Return the cores per process if `torchrun` started several; at least one, at most `most`."""
    return max(1, min(most, num_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
