"""Batch jobs of Dask workers: cluster settings, and the arguments of dask-jobqueue's classes.

The `cluster:` section of a config file goes to the dask-jobqueue class as it is; only what the
workers need is added.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...extract.decode.limits import KEEP_FREED_MEMORY
from ...manifests.errors import SettingsError
from ..settings import at_least, check_settings, device_setting, section, setting

Cluster = Literal["local", "slurm", "pbs", "lsf", "sge", "htcondor", "oar", "moab"]

GPU = "GPU"  # resource of which a worker with a GPU has one
THREADS_PER_WORKER = 2  # one task computes, the next one's first frames are decoded


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Settings of commands that run tasks on Dask workers."""

    cluster: Cluster = setting(
        "local",
        help="Where to run: on this machine, or in jobs of a batch system, described in the "
        "cluster: section of --config.",
    )
    scheduler: str | None = setting(
        None,
        help="Run on the workers of this Dask scheduler instead: its address or scheduler file.",
        metavar="ADDRESS|FILE",
    )
    jobs: int = setting(1, help="Number of batch jobs.", check=at_least(1))
    tls: bool = setting(
        False,
        help="Encrypt the traffic of scheduler and workers, and admit nobody else. With "
        "--scheduler, by the certificates of Dask's configuration.",
    )
    workers: int | None = setting(
        None,
        help="Worker processes, of this machine or of each batch job; by default one per core, or "
        "one per GPU.",
        check=at_least(1),
    )
    device: str = device_setting("Device of the backbone.")
    job: Mapping[str, Any] | None = section("cluster")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.scheduler is not None and self.cluster != "local":
            raise SettingsError(
                f"--scheduler {self.scheduler} with --cluster {self.cluster}: leave out one of them"
            )
        if self.cluster == "local" and self.job is not None:
            raise SettingsError(
                "cluster: the section names no batch system; add kind: slurm, for instance, or "
                "give --cluster slurm; with --scheduler, remove the section"
            )
        for key in ("cores", "processes"):
            value = (self.job or {}).get(key, 1)
            if not (isinstance(value, int) and value >= 1):
                raise SettingsError(
                    f"cluster: {key} {value!r}: it must be a whole number, at least 1"
                )
        if self.cluster == "local" and self.jobs != 1:
            raise SettingsError(
                f"--jobs {self.jobs}: needs --cluster slurm, for instance; on this machine, give "
                "--workers"
            )
        if not self.is_here and self.device.startswith("cuda:"):
            raise SettingsError(
                f"--device {self.device} with workers elsewhere: each has a GPU of its own; give "
                "--device cuda"
            )

    @property
    def is_here(self) -> bool:
        """Whether the workers are processes of this machine."""
        return self.cluster == "local" and self.scheduler is None


def workers_per_job(settings: ClusterSettings) -> int:
    """Return the worker processes of a batch job: as given, else one per GPU job or per core."""
    job = settings.job or {}
    default = 1 if settings.device == "cuda" else job.get("cores", 1)
    return int(settings.workers or job.get("processes") or default)


def cluster_arguments(settings: ClusterSettings, logs: str) -> dict[str, Any]:
    """Return the arguments of the dask-jobqueue class: the section, and what workers need.

    Args:
        settings: settings with a batch system.
        logs: folder of the jobs' logs.
    """
    job = dict(settings.job or {})
    # Memory is limited by the batch system.
    options = ["--nthreads", str(THREADS_PER_WORKER), "--memory-limit", "0", "--no-dashboard"]
    if settings.device == "cuda":
        options += ["--resources", f"{GPU}=1"]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in KEEP_FREED_MEMORY.items()]
    defaults = {"cores": 1, "memory": "8GiB", "job_name": "vtnpipe", "log_directory": logs}
    return {
        **defaults,
        **job,
        "processes": workers_per_job(settings),
        "worker_extra_args": [*options, *job.get("worker_extra_args", [])],
        "job_script_prologue": [*exports, *job.get("job_script_prologue", [])],
    }
