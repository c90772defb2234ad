"""Workers of an extraction: how many, with how many threads and decoder processes each."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...extract.cores import num_cpus
from ...extract.device import num_gpus
from ...manifests.errors import SettingsError, counted
from ..dask_cluster.jobqueue import workers_per_job
from .scheduler import run_on_each_worker, workers_with_device
from .settings import ExtractSettings

MIN_WORKER_FRAMES = 1024  # for fewer frames, starting another worker takes longer
ASSUMED_WORKERS, ASSUMED_CORES = 16, 8  # of a scheduler elsewhere, while nothing is known of it


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Worker processes, each with threads on a CPU or with a GPU.

    Attributes:
        device: device of the backbone.
        num_workers: number of worker processes.
        num_threads: threads of each worker, on a CPU.
        num_decoder_processes: decoder processes of each worker.
        description: the same in words, with the reason.
    """

    device: str
    num_workers: int
    num_threads: int
    num_decoder_processes: int
    description: str


def local_workers(settings: ExtractSettings, device: str, num_frames: int) -> Workers:
    """Choose one worker per core or per GPU, but no more than the frames are worth."""
    is_cpu = device == "cpu"
    most = num_cpus() if is_cpu else num_gpus(device)
    num_workers = settings.workers or max(1, min(most, num_frames // MIN_WORKER_FRAMES))
    if device == "cuda" and num_workers == 1:
        device = "cuda:0"
    if settings.workers:
        reason = "as given"
    elif num_workers < most:
        reason = f"no more for {num_frames:,} frames"
    else:
        reason = "one per core, the fastest way to use them" if is_cpu else "one per GPU"
    return _workers(settings, device, num_workers, num_cpus() // num_workers, reason)


def expected_workers(settings: ExtractSettings, device: str, num_frames: int) -> tuple[int, int]:
    """Return the number of workers and of decoder processes of each that the work is planned for.

    They only divide the work: it may run on others.
    """
    if settings.is_here:
        workers = local_workers(settings, device, num_frames)
        return settings.part_of[1] * workers.num_workers, workers.num_decoder_processes
    num_workers, cores = ASSUMED_WORKERS, ASSUMED_CORES
    if settings.scheduler is None:
        per_job = workers_per_job(settings)
        num_workers, cores = (
            settings.jobs * per_job,
            (settings.job or {}).get("cores", 1) // per_job,
        )
    return num_workers, _workers(settings, device, num_workers, cores, "").num_decoder_processes


def remote_workers(client: Any, settings: ExtractSettings, device: str) -> Workers:
    """Return the workers of a scheduler or of batch jobs.

    Raises:
        SettingsError: a GPU is asked for, and no worker has one.
    """
    hosts = workers_with_device(client, device)
    if not hosts:
        raise SettingsError(
            f"--device {device}: no worker has a GPU; start workers with `dask worker ... "
            "--resources GPU=1`"
        )
    workers_by_host = Counter(hosts.values())
    if settings.cluster == "local":
        cores = min(run_on_each_worker(client, num_cpus)) // max(workers_by_host.values())
    else:
        cores = (settings.job or {}).get("cores", 1) // workers_per_job(settings)
    reason = f"on {len(workers_by_host)} hosts"
    return _workers(settings, device, len(hosts), cores, reason)


def _workers(
    settings: ExtractSettings, device: str, num_workers: int, cores: int, reason: str
) -> Workers:
    """Return workers with `cores` cores each."""
    cores = max(1, cores)
    num_threads = settings.threads or cores
    default_processes = 1 if device == "cpu" else cores
    num_processes = settings.decoder_processes or default_processes
    threads = f"{counted(num_threads, 'thread')} and " if device == "cpu" else ""
    processes = counted(num_processes, "decoder process", "decoder processes")
    return Workers(
        device=device,
        num_workers=num_workers,
        num_threads=num_threads,
        num_decoder_processes=num_processes,
        description=f"workers: {num_workers} ({reason}), {threads}{processes} each",
    )
