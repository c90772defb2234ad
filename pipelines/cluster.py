"""Where stage one's tasks run: opening a Dask client to workers of this machine, of a scheduler
that is there already, or of batch jobs; and feeding it tasks. This is the only file that knows
Dask.
"""

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from ..manifests.errors import SettingsError, StoppedError
from ..manifests.plan import Task
from .cluster_settings import (
    ENVIRONMENT,
    THREADS_PER_WORKER,
    ClusterSettings,
    cluster_arguments,
)

if TYPE_CHECKING:
    from ..extract.batches import Progress
    from ..extract.worker import Job, TaskReport

_T = TypeVar("_T")

PROGRESS_SECONDS = 0.5
LOOPBACK = "127.0.0.1"
GPU = "GPU"  # the resource of which a worker with a GPU has one
TASK_SECONDS = (
    "90s"  # about what a task takes, before the first has: a job is worth starting for it
)
CONNECT_SECONDS = 10.0
WAIT_SECONDS = 5.0  # for more workers, once one has come
SAY_SECONDS = 60.0
COUNT_SECONDS = 10.0  # between looks at how many workers have come
LOST_SECONDS = 5.0  # after which a job whose workers have gone is replaced
# How often a task's worker may die: of batch jobs, most do for no fault of the task.
MAX_DEATHS, MAX_DEATHS_OF_JOBS = 3, 10
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


@contextlib.contextmanager
def open_client(
    settings: ClusterSettings | None = None,
    *,
    num_workers: int | None = None,
    logs: str | Path = ".",
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Any]:
    """Opens a Dask client to at least one worker.

    Args:
        settings: where the workers are; by default, this machine's own processes, on loopback only.
        num_workers: processes, of this machine or of each batch job; None for a job's own number.
        logs: folder of the logs of batch jobs.
        say: is told what is waited for.

    Raises:
        SettingsError: there is no such scheduler or batch system, or a library is missing.
    """
    import dask
    from distributed import Client

    settings = settings or ClusterSettings()
    config = {
        "distributed.comm.timeouts.connect": "60s",
        "distributed.scheduler.default-task-durations.extract": TASK_SECONDS,
        "distributed.scheduler.allowed-failures": MAX_DEATHS
        if settings.is_here
        else MAX_DEATHS_OF_JOBS,
        **{f"distributed.nanny.pre-spawn-environ.{key}": one for key, one in ENVIRONMENT.items()},
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(config))
        if settings.scheduler is not None:
            yield stack.enter_context(_client_of(settings.scheduler, is_secret=settings.tls))
            return
        security = _temporary_security() if settings.tls else None
        if settings.is_here:
            cluster = _local_cluster(num_workers or 1, security)
        else:
            cluster = _batch_cluster(settings, num_workers, Path(logs), security, stack)
            say(f"{settings.cluster}: {settings.jobs} jobs; their logs are in {logs}")
        stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster))
        _wait_for_workers(client, say, logs)
        yield client


# Gives a client, opened when it is first asked for: to so many workers of this machine, or to those
# that the settings name.
GetClient = Callable[[int | None], Any]


@contextlib.contextmanager
def client_when_needed(
    settings: ClusterSettings, logs: Path, say: Callable[[str], None]
) -> Iterator[GetClient]:
    """Yields what gives the client of a whole run, always the same one; see `open_client`."""
    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def get_client(num_workers: int | None) -> Any:
            if not opened:
                client = open_client(settings, num_workers=num_workers, logs=logs, say=say)
                opened.append(stack.enter_context(client))
            return opened[0]

        yield get_client


def _local_cluster(num_workers: int, security: Any) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=num_workers,
        threads_per_worker=THREADS_PER_WORKER,
        processes=True,
        host=LOOPBACK,
        protocol="tls://" if security else None,
        security=security,
        dashboard_address=f"{LOOPBACK}:0",
        resources={GPU: 1},  # harmless where there is none: then nothing asks for one
        memory_limit=None,
        silence_logs=logging.CRITICAL,
    )


def _client_of(scheduler: str, *, is_secret: bool) -> Any:
    """A client of a scheduler that is there already.

    Raises:
        SettingsError: nobody answers there.
    """
    from distributed import Client
    from distributed.security import Security

    security = Security(require_encryption=True) if is_secret else None
    try:
        path = Path(scheduler)
        address = json.loads(path.read_text())["address"] if path.is_file() else scheduler
        client = Client(address, security=security, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SettingsError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); give its address "
            "(tcp://HOST:PORT, or tls:// with --tls) or the file that it was started with"
        ) from None
    if not client.scheduler_info(n_workers=-1)["workers"]:
        client.close()
        raise SettingsError(
            f"--scheduler {scheduler}: it has no workers; start some with `dask worker "
            f"{scheduler} --nthreads {THREADS_PER_WORKER} --memory-limit 0`, with --resources "
            f"{GPU}=1 for one that has a GPU"
        )
    return client


def _temporary_security() -> Any:
    """Certificates of Dask's own making, for this run."""
    from distributed.security import Security

    try:
        return Security.temporary()
    except ImportError:
        raise SettingsError(
            "--tls: needs the package cryptography; pip install 'vtnpipe[hpc]'"
        ) from None


def _batch_cluster(
    settings: ClusterSettings,
    num_workers: int | None,
    logs: Path,
    security: Any,
    stack: contextlib.ExitStack,
) -> Any:
    """Starts a scheduler here, and has the batch system run jobs of workers."""
    from tornado.ioloop import PeriodicCallback

    arguments = _jobqueue_arguments(settings, num_workers, logs)
    if security is not None:
        logs.mkdir(parents=True, exist_ok=True)
        # Its own folder: readable by nobody else, shared with the jobs, gone in the end.
        arguments["shared_temp_directory"] = stack.enter_context(
            TemporaryDirectory(prefix=".tls-", dir=logs)
        )
    cluster = _jobqueue_class(settings)(
        **arguments,
        security=security,
        silence_logs=logging.CRITICAL,
        scheduler_options={"dashboard_address": f"{LOOPBACK}:0"},
    )
    least, most = settings.num_jobs
    cluster.adapt(minimum_jobs=least, maximum_jobs=most)
    replace_lost = PeriodicCallback(_LostJobs(cluster).forget, 1000)
    cluster.loop.add_callback(replace_lost.start)
    stack.callback(cluster.loop.add_callback, replace_lost.stop)
    return cluster


def _jobqueue_arguments(
    settings: ClusterSettings, num_workers: int | None, logs: Path
) -> dict[str, Any]:
    assert settings.cluster != "local"
    return cluster_arguments(settings.cluster, settings.job, num_workers, str(logs.absolute()))


def _jobqueue_class(settings: ClusterSettings) -> Any:
    try:
        import dask_jobqueue
    except ImportError:
        raise SettingsError(
            f"--cluster {settings.cluster}: needs dask-jobqueue; pip install 'vtnpipe[hpc]'"
        ) from None
    names = {"htcondor": "HTCondorCluster"}
    return getattr(dask_jobqueue, names.get(settings.cluster, f"{settings.cluster.upper()}Cluster"))


def job_script(settings: ClusterSettings, num_workers: int | None, logs: str) -> str:
    """The script that `open_client` would submit for each job.

    Args:
        settings: of a batch system.
        num_workers: of each job; None for a job's own number.
        logs: what stands for the folder of logs.

    Raises:
        SettingsError: the workers are not batch jobs, or a library is missing.
    """
    if settings.cluster == "local":
        raise SettingsError("--cluster local: there is no job; give --cluster slurm, for instance")
    job_class = _jobqueue_class(settings).job_cls
    with TemporaryDirectory() as folder:  # dask-jobqueue makes it, whatever is then submitted
        arguments = _jobqueue_arguments(settings, num_workers, Path(folder))
        job = job_class("tcp://SCHEDULER:PORT", name="NAME", **arguments)
        script: str = job.job_script().replace(folder, logs)
    return script


class _LostJobs:
    """Forgets batch jobs whose workers have gone (cancelled, preempted, at their lifetime's end),
    so that the cluster asks for others. Dask itself never does where a job has several workers.
    """

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._last_seen: dict[str, float] = {}

    def forget(self) -> None:
        """Looks at who is there; call it in the cluster's event loop."""
        workers = self._cluster.scheduler.workers.values()
        now = time.monotonic()
        for worker in workers:
            for name in (str(worker.name), str(worker.name).rpartition("-")[0]):
                if name in self._cluster.worker_spec:
                    self._last_seen[name] = now
        for name, seen in list(self._last_seen.items()):
            if name not in self._cluster.worker_spec:
                del self._last_seen[name]
            elif now - seen > LOST_SECONDS:
                del self._last_seen[name], self._cluster.worker_spec[name]


def _wait_for_workers(client: Any, say: Callable[[str], None], logs: str | Path) -> None:
    """Returns when a worker is there, and a few seconds later if there are to be more."""
    from distributed import TimeoutError as TooLate

    waited = 0.0
    while not client.scheduler_info(n_workers=-1)["workers"]:
        with contextlib.suppress(TooLate):
            client.wait_for_workers(1, timeout=SAY_SECONDS)
            break
        waited += SAY_SECONDS
        say(
            f"no worker has come for {waited / 60:.0f} min: are the jobs still in the queue? If "
            f"not, {logs} says why"
        )
    with contextlib.suppress(TooLate):
        client.wait_for_workers(len(client.cluster.plan), timeout=WAIT_SECONDS)


def dashboard(client: Any) -> str:
    """Where to look at the workers, in words."""
    needs = "" if importlib.util.find_spec("bokeh") else " (needs bokeh: pip install bokeh)"
    return f"dashboard {client.dashboard_link}{needs}"


def workers_of(client: Any, device: str) -> dict[str, str]:
    """Which workers can compute on `cpu` or `cuda`: address → host."""
    found = client.scheduler_info(n_workers=-1)["workers"]
    return {
        address: one["host"]
        for address, one in found.items()
        if device == "cpu" or one["resources"].get(GPU)
    }


def on_each_worker(client: Any, function: Callable[..., _T], *arguments: Any) -> list[_T]:
    """Runs a function on every worker, all at a time; its results.

    A worker that goes in the meantime has none.

    Args:
        client: from `open_client`.
        function: what to run.
        arguments: for it; a device `cuda` among them becomes the worker's own GPU.

    Raises:
        StoppedError: all workers have gone.
    """
    from distributed import TimeoutError as TooLate
    from distributed import wait

    workers = workers_of(client, "cuda" if "cuda" in arguments else "cpu")
    futures = {
        address: client.submit(_with_own_gpu, function, arguments, workers=[address], pure=False)
        for address in workers
    }
    while not all(future.done() for future in futures.values()):
        with contextlib.suppress(TooLate):
            wait(list(futures.values()), timeout=PROGRESS_SECONDS)
        present = client.scheduler_info(n_workers=-1)["workers"]
        for address in futures.keys() - present.keys():
            futures.pop(address).cancel()
        if not futures:
            raise StoppedError("all workers have gone; the same command resumes")
    return list(client.gather(list(futures.values())))


def on_one_worker(client: Any, function: Callable[..., _T], *arguments: Any) -> _T:
    """Runs a function on any one worker, with a GPU if there is such a one; its result."""
    workers = list(workers_of(client, "cuda") or workers_of(client, "cpu"))
    future = client.submit(function, *arguments, workers=workers, pure=False)
    result: _T = future.result()
    return result


def _with_own_gpu(function: Callable[..., _T], arguments: Sequence[Any]) -> _T:
    return function(*(_own_gpu() if argument == "cuda" else argument for argument in arguments))


def _own_gpu() -> str:
    """The GPU of this Dask worker, where it sees several: by the number that its name ends with."""
    import torch
    from distributed import get_worker

    number = re.search(r"\d*$", str(get_worker().name))
    return f"cuda:{int(number[0] or 0 if number else 0) % torch.cuda.device_count()}"


def run_tasks(
    client: Any,
    tasks: Sequence[Task],
    job: "Job",
    *,
    num_workers: int,
    on_progress: Callable[["Progress"], None],
    on_finished: Callable[["TaskReport"], None],
) -> None:
    """Runs tasks on a client's workers, a few ahead of them, until all are finished.

    Args:
        client: from `open_client`.
        tasks: what to run, in this order.
        job: what they share.
        num_workers: that may come; so many are kept busy at once.
        on_progress: gets what came to the tasks since the last call; from another thread.
        on_finished: gets each finished task's report.

    Raises:
        VtnpipeError: a task found a fault of the settings; the rest is dropped.
        StoppedError: a task's workers died again and again.
    """
    from distributed import KilledWorker, as_completed

    from ..extract.batches import Progress

    run = uuid.uuid4().hex[:8]  # a scheduler that others use, too, tells runs apart by it
    client.subscribe_topic(run, lambda event: on_progress(Progress(*event[1])))
    queue = iter(tasks)
    running = as_completed()
    options = {"resources": {GPU: 1 / THREADS_PER_WORKER}} if job.device == "cuda" else {}

    counted, present = 0.0, 0

    def submit_ahead() -> None:
        nonlocal counted, present
        if time.monotonic() - counted > COUNT_SECONDS:  # of thousands, each time would be too often
            counted, present = time.monotonic(), len(client.scheduler_info(n_workers=-1)["workers"])
        wanted = THREADS_PER_WORKER * max(num_workers, present)
        for task in itertools.islice(queue, max(0, wanted - running.count())):
            key = f"extract-{run}-{task.name}"
            future = client.submit(_run_on_worker, task, job, run, key=key, pure=False, **options)
            running.add(future)

    submit_ahead()
    for future in running:
        try:
            report = future.result()
        except KilledWorker as error:
            raise StoppedError(
                f"{future.key}: its worker died {error.allowed_failures + 1} times (out of "
                "memory?); the same command resumes, with fewer --workers for instance"
            ) from None
        on_finished(report)
        submit_ahead()


def _run_on_worker(task: Task, job: "Job", topic: str) -> "TaskReport":
    """Runs a task in a Dask worker, on the worker's own GPU; a topic hears how far it is."""
    from distributed import get_worker

    from ..extract.batches import Progress
    from ..extract.worker import run_task

    worker = get_worker()
    if job.device == "cuda":
        job = replace(job, device=_own_gpu())
    collected = Progress()
    last_sent = time.monotonic()

    def on_progress(progress: "Progress") -> None:
        nonlocal collected, last_sent
        collected += progress
        if time.monotonic() - last_sent > PROGRESS_SECONDS:
            flush()

    def flush() -> None:
        nonlocal collected, last_sent
        worker.log_event(topic, astuple(collected))  # to a dict, Dask adds a key
        collected, last_sent = Progress(), time.monotonic()

    report = run_task(task, job, on_progress)
    flush()
    return report
