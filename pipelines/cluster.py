"""Where stage one's tasks run: opening a Dask client, and feeding it tasks. This is the only file
that knows Dask.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..manifests.errors import StoppedError
from ..manifests.plan import Task

if TYPE_CHECKING:
    from ..extract.batches import Progress
    from ..extract.worker import Job, TaskReport

_T = TypeVar("_T")

PROGRESS_TOPIC = "vtnpipe-progress"
PROGRESS_SECONDS = 0.5
LOOPBACK = "127.0.0.1"
TASKS_PER_WORKER = 2  # at a time: one at the backbone, the next one's first frames being decoded


def num_cpus() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
def open_client(num_workers: int) -> Iterator[Any]:
    """Opens a Dask client to a cluster of this machine's own processes; loopback only.

    Args:
        num_workers: processes.
    """
    import dask
    from distributed import Client, LocalCluster

    config = {
        "distributed.comm.timeouts.connect": "60s",
        # Dask has workers give freed memory back at once; a backbone takes it again with every
        # batch, and on a CPU page faults then cost a third of the speed.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**30,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25,
    }
    with (
        dask.config.set(config),
        LocalCluster(
            n_workers=num_workers,
            threads_per_worker=TASKS_PER_WORKER,
            processes=True,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def on_each_worker(client: Any, function: Callable[..., _T], *arguments: Any) -> list[_T]:
    """Runs a function on every worker, all at a time; its results.

    Args:
        client: from `open_client`.
        function: what to run.
        arguments: for it; a device `cuda` among them becomes the worker's own GPU.
    """
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    futures = [
        client.submit(_with_own_gpu, function, arguments, workers=[address], pure=False)
        for address in workers
    ]
    return list(client.gather(futures))


def _with_own_gpu(function: Callable[..., _T], arguments: Sequence[Any]) -> _T:
    return function(*(_own_gpu() if argument == "cuda" else argument for argument in arguments))


def _own_gpu() -> str:
    """The GPU of this Dask worker, where there are several."""
    import torch
    from distributed import get_worker

    return f"cuda:{int(get_worker().name) % torch.cuda.device_count()}"


def run_tasks(
    client: Any,
    tasks: Sequence[Task],
    job: "Job",
    *,
    on_progress: Callable[["Progress"], None],
    on_finished: Callable[["TaskReport"], None],
) -> None:
    """Runs tasks on a client's workers, a few ahead of them, until all are finished.

    Args:
        client: from `open_client`.
        tasks: what to run, in this order.
        job: what they share.
        on_progress: gets what came to the tasks since the last call; from another thread.
        on_finished: gets each finished task's report.

    Raises:
        VtnpipeError: a task found a fault of the settings; the rest is dropped.
        StoppedError: a task's workers died again and again.
    """
    from distributed import KilledWorker, as_completed

    from ..extract.batches import Progress

    client.subscribe_topic(PROGRESS_TOPIC, lambda event: on_progress(Progress(*event[1])))
    ahead = TASKS_PER_WORKER * len(client.scheduler_info(n_workers=-1)["workers"])
    queue = iter(tasks)
    running = as_completed()

    def submit_next() -> None:
        task = next(queue, None)
        if task is not None:
            key = f"extract-{task.name}"
            running.add(client.submit(_run_on_worker, task, job, key=key, pure=False))

    for _ in range(ahead):
        submit_next()
    for future in running:
        try:
            report = future.result()
        except KilledWorker as error:
            raise StoppedError(
                f"{future.key}: its worker died {error.allowed_failures + 1} times (out of "
                "memory?); the same command resumes, with fewer --workers for instance"
            ) from None
        on_finished(report)
        submit_next()


def _run_on_worker(task: Task, job: "Job") -> "TaskReport":
    """Runs a task in a Dask worker process, on the worker's own GPU."""
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
        worker.log_event(PROGRESS_TOPIC, astuple(collected))  # to a dict, Dask adds a key
        collected, last_sent = Progress(), time.monotonic()

    report = run_task(task, job, on_progress)
    flush()
    return report
