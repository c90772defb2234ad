"""Scheduling of tasks on the Dask workers of an open client, a few ahead of the workers."""

import itertools
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from math import inf
from typing import Any, TypeVar

import torch
from distributed import KilledWorker, get_worker, wait
from distributed import TimeoutError as DaskTimeoutError

from ...extract.batching import TaskProgress
from ...extract.task import TaskReport, WorkerSettings, run_task
from ...manifests.errors import SettingsError, StoppedError
from ...manifests.plan import Task
from ..dask_cluster.client import present_workers
from ..dask_cluster.jobqueue import GPU, THREADS_PER_WORKER

T = TypeVar("T")

PROGRESS_SECONDS = 0.5
COUNT_SECONDS = 10.0  # between counts of the workers
ABSENT_SECONDS = 120.0  # without any worker, after which a run stops


def workers_with_device(client: Any, device: str) -> dict[str, str]:
    """Return address → host of the workers that can compute on `cpu` or `cuda`."""
    return {
        address: one["host"]
        for address, one in present_workers(client).items()
        if device == "cpu" or one["resources"].get(GPU)
    }


def run_on_each_worker(client: Any, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Run a function on every worker at the same time; return the results.

    Raises:
        StoppedError: all workers have gone.
    """
    futures = {
        address: client.submit(function, *arguments, workers=[address], pure=False)
        for address in present_workers(client)
    }
    results = []
    for address, future in futures.items():
        while address in present_workers(client):  # else it would be waited for forever
            try:
                results.append(future.result(timeout=COUNT_SECONDS))
                break
            except DaskTimeoutError:
                continue  # busy with the tasks of another run
            except KilledWorker:
                break
        else:
            future.cancel()
    if not results:
        raise StoppedError("all workers have gone; the same command resumes")
    return results


def run_tasks(
    client: Any,
    tasks: Sequence[Task],
    settings: WorkerSettings,
    *,
    num_workers: int,
    on_progress: Callable[[TaskProgress], None],
    on_finished: Callable[[TaskReport], None],
    on_workers: Callable[[int], None] = lambda num_workers: None,
) -> None:
    """Run tasks on a client's workers until all are finished.

    The death of a worker may be due to its other task, or to the machine. A task whose workers died
    repeatedly is therefore tried again alone, and fails if its worker dies again.

    Args:
        client: Dask client.
        tasks: tasks in the order in which to run them.
        settings: settings of all tasks.
        num_workers: number of workers to keep busy; more are, if more are present.
        on_progress: called with the tasks' progress, from another thread.
        on_finished: called with each finished task's report.
        on_workers: called now and then with the number of workers.

    Raises:
        VtnpipeError: a task found an error in the settings; the other tasks are dropped.
        StoppedError: all workers have gone, or a task's workers died repeatedly.
    """
    feeder = _Feeder(client, settings, on_progress, on_workers)
    queue = iter(tasks)
    to_retry = []
    feeder.fill(queue, num_workers)
    for task, report in feeder.finished():
        if report is None:
            to_retry.append(task)
        else:
            on_finished(report)
        feeder.fill(queue, num_workers)
    failed = []
    for lone_task in to_retry:
        feeder.submit(lone_task)
        for task, report in feeder.finished():
            if report is None:
                failed.append(task.name)
            else:
                on_finished(report)
    if failed:
        raise StoppedError(
            f"{', '.join(failed)}: the worker died repeatedly, even when running alone (out of "
            "memory?); the same command resumes, with a smaller --batch-size for instance"
        )


class _Feeder:
    """Submits tasks to a client's workers, and yields them when finished."""

    def __init__(
        self,
        client: Any,
        settings: WorkerSettings,
        on_progress: Callable[[TaskProgress], None],
        on_workers: Callable[[int], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._on_workers = on_workers
        self._run = uuid.uuid4().hex[:8]  # distinguishes runs that share a scheduler
        client.subscribe_topic(self._run, lambda event: on_progress(TaskProgress(*event[1])))
        is_gpu = settings.device == "cuda"
        self._options = {"resources": {GPU: 1 / THREADS_PER_WORKER}} if is_gpu else {}
        self._running: dict[Any, Task] = {}
        self._counted, self._num_present, self._last_present = -inf, 0, time.monotonic()

    def submit(self, task: Task) -> None:
        """Submit a task."""
        key = f"extract-{self._run}-{task.name}-{uuid.uuid4().hex[:4]}"
        future = self._client.submit(
            _run_on_worker, task, self._settings, self._run, key=key, pure=False, **self._options
        )
        self._running[future] = task

    def fill(self, queue: Iterator[Task], num_workers: int) -> None:
        """Submit as many tasks as keep `num_workers` workers, and all present ones, busy."""
        self._count_workers()
        wanted = THREADS_PER_WORKER * max(num_workers, self._num_present)
        for task in itertools.islice(queue, max(0, wanted - len(self._running))):
            self.submit(task)

    def _count_workers(self) -> None:
        """Count the workers, unless that was done just now.

        Raises:
            StoppedError: there has been none for a while.
        """
        now = time.monotonic()
        if now - self._counted <= COUNT_SECONDS:
            return
        self._counted = now
        self._num_present = len(present_workers(self._client))
        self._on_workers(self._num_present)
        if self._num_present:
            self._last_present = now
        elif now - self._last_present > ABSENT_SECONDS:
            raise StoppedError("all workers have gone; the same command resumes")

    def finished(self) -> Iterator[tuple[Task, TaskReport | None]]:
        """Yield tasks and their reports until none is running; None if its workers died.

        Raises:
            StoppedError: a worker is out of memory, or all workers have gone.
        """
        while self._running:
            try:
                done = wait(
                    list(self._running), timeout=COUNT_SECONDS, return_when="FIRST_COMPLETED"
                ).done
            except DaskTimeoutError:
                self._count_workers()
                continue
            for future in done:
                task, report = self._running.pop(future), None
                try:
                    report = future.result()
                except KilledWorker:
                    pass
                except MemoryError:
                    raise StoppedError(
                        f"{task.name}: its worker is out of memory; the same command resumes, with "
                        "fewer --workers for instance"
                    ) from None
                yield task, report
            del done, future  # Dask keeps results that are referred to


def own_gpu() -> str:
    """Return the GPU of this Dask worker: if it sees several, by the number in its name.

    Raises:
        SettingsError: it sees several, and its name neither is nor ends with -NUMBER.
    """
    num_gpus, name = torch.cuda.device_count(), str(get_worker().name)
    number = re.fullmatch(r"(?:.*-)?(\d+)", name)
    if number is None and num_gpus > 1:
        raise SettingsError(
            f"Dask worker {name}: sees {num_gpus} GPUs, and its name does not tell which to use; "
            "start it with --name NAME-0 (NAME-1, ...), or with one GPU in CUDA_VISIBLE_DEVICES"
        )
    return f"cuda:{int(number[1]) % num_gpus if number else 0}"


def _run_on_worker(task: Task, settings: WorkerSettings, topic: str) -> TaskReport:
    """Run a task in a Dask worker, on the worker's own GPU; send progress to a topic."""
    worker = get_worker()
    if settings.device == "cuda":
        gpu = own_gpu()
        settings = replace(settings, device=gpu, engines=settings.engines and gpu)
    collected = TaskProgress()
    last_sent = time.monotonic()

    def on_progress(progress: TaskProgress) -> None:
        nonlocal collected
        collected += progress
        if time.monotonic() - last_sent > PROGRESS_SECONDS:
            flush()

    def flush() -> None:
        nonlocal collected, last_sent
        worker.log_event(topic, astuple(collected))  # to a dict, Dask would add a key
        collected, last_sent = TaskProgress(), time.monotonic()

    report = run_task(task, settings, on_progress)
    flush()
    return report
