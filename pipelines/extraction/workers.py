"""Who computes: how many worker processes, and with how many threads each."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...manifests.errors import SettingsError
from ..dask_cluster.jobqueue import workers_per_job
from ..processors import num_cpus, num_gpus
from .scheduler import on_each_worker, workers_of

if TYPE_CHECKING:
    from .settings import ExtractSettings

MIN_WORKER_FRAMES = 256  # less is done before another worker has started


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who computes: processes, each with its threads on a CPU or with a GPU.

    Attributes:
        device: on which.
        num_workers: processes; of batch jobs, as many as may come.
        num_threads: of each, on a CPU.
        num_cpus: cores for each one and its decoding children.
        is_elastic: whether they come and go.
        reason: for the log.
    """

    device: str
    num_workers: int
    num_threads: int
    num_cpus: int = 1
    is_elastic: bool = False
    reason: str


def choose_workers(settings: "ExtractSettings", device: str, num_frames: int) -> Workers:
    """One worker per core or per GPU, and no more than the work is worth, unless settings say."""
    is_cpu = device == "cpu"
    most = num_cpus() if is_cpu else num_gpus(device)
    num_workers = settings.workers or max(1, min(most, num_frames // MIN_WORKER_FRAMES))
    num_threads = settings.threads or max(1, num_cpus() // num_workers)
    if settings.workers:
        reason = "asked for"
    elif num_workers < most:
        reason = f"no more for {num_frames:,} frames"
    else:
        reason = "one per core, the fastest way to use them" if is_cpu else "one per GPU"
    threads = f", {num_threads} thread{'s' if num_threads > 1 else ''} each" if is_cpu else ""
    return Workers(
        device=device,
        num_workers=num_workers,
        num_threads=num_threads,
        num_cpus=max(1, num_cpus() // num_workers),
        reason=f"workers: {num_workers}{threads}; {reason}",
    )


def workers_elsewhere(client: Any, settings: "ExtractSettings", device: str) -> Workers:
    """Those of a scheduler or of batch jobs, one per Dask worker.

    Raises:
        SettingsError: a GPU is asked for, and no worker has one.
    """
    hosts = workers_of(client, device.split(":")[0])
    if not hosts:
        raise SettingsError(
            f"device {device}: no worker has a GPU; give the jobs some (gpus: in the cluster: "
            "section), or start workers with `dask worker ... --resources GPU=1`"
        )
    on_host = Counter(hosts.values())
    most = len(hosts)
    words = f"workers: {len(hosts)} on {len(on_host)} hosts"
    if settings.cluster == "local":
        cores, sharing = min(on_each_worker(client, num_cpus)), max(on_host.values())
    else:
        cores, sharing = settings.job.cores, workers_per_job(settings.job, settings.workers)
        most = max(most, settings.num_jobs[1] * sharing)
        words += f", up to {most}"
    share = max(1, cores // sharing)
    num_threads = settings.threads or share
    return Workers(
        device=device,
        num_workers=most,
        num_threads=num_threads,
        num_cpus=share,
        is_elastic=True,
        reason=words + (f", {num_threads} threads each" if device == "cpu" else ""),
    )
