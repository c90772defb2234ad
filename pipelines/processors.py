"""How many cores and GPUs there are for this process."""

import os

# The cores that a batch system gave to the job, where it does not bind processes to them.
CORES_OF_JOB = ("SLURM_CPUS_ON_NODE", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")


def num_cpus() -> int:
    """The cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    of_job = [
        int(os.environ[name]) for name in CORES_OF_JOB if os.environ.get(name, "").isdecimal()
    ]
    return max(1, min([cores or 1, *of_job]))


def num_cpus_of_process(most: int = 8) -> int:
    """The cores that each process of this machine may use where `torchrun` started several; at
    least one.
    """
    return max(1, min(most, num_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def num_gpus(device: str) -> int:
    """How many GPUs `cuda` (all of them) or `cuda:N` (one) means."""
    import torch

    return 1 if ":" in device else torch.cuda.device_count()
