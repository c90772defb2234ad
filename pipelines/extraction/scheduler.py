"""Work on the Dask workers of an open client: a function on each of them or on one, and stage one's
tasks, fed a few ahead.
"""

import contextlib
import itertools
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ...manifests.errors import SettingsError, StoppedError
from ...manifests.plan import Task
from ..dask_cluster.jobqueue import GPU, THREADS_PER_WORKER

if TYPE_CHECKING:
    from ...extract.batching import Progress
    from ...extract.task import Job, TaskReport

_T = TypeVar("_T")

PROGRESS_SECONDS = 0.5
COUNT_SECONDS = 10.0  # between looks at how many workers have come


def present_workers(client: Any) -> dict[str, Any]:
    """All workers that a client's scheduler has at this moment: address → what it knows of each.

    They are asked for, not taken from `client.scheduler_info()`: that is a copy from which the
    client itself leaves the workers out, from time to time, since distributed 2026.

    Raises:
        CommClosedError: the scheduler is gone.
    """
    from distributed.comm.core import CommClosedError

    if client.scheduler is None:
        raise CommClosedError("the client is closed")
    workers: dict[str, Any] = client.sync(client.scheduler.identity)["workers"]
    return workers


def workers_of(client: Any, device: str) -> dict[str, str]:
    """Which workers can compute on `cpu` or `cuda`: address → host."""
    return {
        address: one["host"]
        for address, one in present_workers(client).items()
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
    results = _on_workers(client, "cuda" if "cuda" in arguments else "cpu", function, arguments)
    if not results:
        raise StoppedError("all workers have gone; the same command resumes")
    return results


def on_one_worker(client: Any, function: Callable[..., _T], *arguments: Any) -> _T:
    """Runs a function on any one worker, with a GPU if there is such a one; its result."""
    device = "cuda" if workers_of(client, "cuda") else "cpu"
    while not (results := _on_workers(client, device, function, arguments, most=1)):
        client.wait_for_workers(1)  # the one that had it has gone
    return results[0]


def _on_workers(
    client: Any,
    device: str,
    function: Callable[..., _T],
    arguments: Sequence[Any],
    most: int | None = None,
) -> list[_T]:
    """Results of the workers that are still there when all that are have given theirs.

    A task that is bound to a worker waits for ever once that has gone, so they are looked after.
    """
    from distributed import KilledWorker, wait
    from distributed import TimeoutError as TooLate

    addresses = itertools.islice(workers_of(client, device), most)
    futures = {
        address: client.submit(_with_own_gpu, function, arguments, workers=[address], pure=False)
        for address in addresses
    }
    while not all(future.done() for future in futures.values()):
        with contextlib.suppress(TooLate):
            wait(list(futures.values()), timeout=PROGRESS_SECONDS)
        for address in futures.keys() - present_workers(client).keys():
            futures.pop(address).cancel()
    results = []
    for future in futures.values():
        with contextlib.suppress(KilledWorker):
            results.append(future.result())
    return results


def _with_own_gpu(function: Callable[..., _T], arguments: Sequence[Any]) -> _T:
    return function(*(_own_gpu() if argument == "cuda" else argument for argument in arguments))


def _own_gpu() -> str:
    """The GPU of this Dask worker, where it sees several: by the number that its name ends with.

    Raises:
        SettingsError: it sees several, and its name is no number, nor ends with -NUMBER.
    """
    import torch
    from distributed import get_worker

    num_gpus, name = torch.cuda.device_count(), str(get_worker().name)
    number = re.fullmatch(r"(?:.*-)?(\d+)", name)
    if number is None and num_gpus > 1:
        raise SettingsError(
            f"Dask worker {name}: it sees {num_gpus} GPUs, and nothing says which is its own; "
            "start it with --name NAME-0 (NAME-1, ...), or with one GPU in CUDA_VISIBLE_DEVICES"
        )
    return f"cuda:{int(number[1]) % num_gpus if number else 0}"


def run_tasks(
    client: Any,
    tasks: Sequence[Task],
    job: "Job",
    *,
    num_workers: int,
    on_progress: Callable[["Progress"], None],
    on_finished: Callable[["TaskReport"], None],
    on_workers: Callable[[int], None] = lambda num_workers: None,
    may_begin: Callable[[Task], bool] = lambda task: True,
    seconds_left: float = inf,
) -> None:
    """Runs tasks on a client's workers, a few ahead of them, until all are finished.

    A task whose workers died again and again may be innocent: its worker had another task, too, or
    the machine is at fault. It is tried again when nothing else is at work.

    Args:
        client: from `open_client`.
        tasks: what to run, in this order.
        job: what they share.
        num_workers: that may come; so many are kept busy at once.
        on_progress: gets what came to the tasks since the last call; from another thread.
        on_finished: gets each finished task's report.
        on_workers: gets how many workers there are, now and then.
        may_begin: whether there is time for a task.
        seconds_left: after which those that run are dropped.

    Raises:
        VtnpipeError: a task found a fault of the settings; the rest is dropped.
        StoppedError: the time is over, or a task's workers died again and again.
    """
    feeder = _Feeder(client, job, on_progress, on_workers, seconds_left)
    queue = filter(may_begin, tasks)
    num_left = len(tasks)

    def finish_all(refill: Callable[[], None]) -> list[Task]:
        """Waits for all that is at work; the tasks whose workers died."""
        nonlocal num_left
        dead = []
        for task, report in feeder.finished():
            if report is None:
                dead.append(task)
            else:
                num_left -= 1
                on_finished(report)
            refill()
        return dead

    feeder.fill(queue, num_workers)
    suspects = finish_all(lambda: feeder.fill(queue, num_workers))
    guilty = []
    for suspect in filter(may_begin, suspects):
        feeder.submit(suspect)
        guilty += [task.name for task in finish_all(lambda: None)]
    if guilty:
        raise StoppedError(
            f"{', '.join(guilty)}: the worker died each time, with nothing else at work, too (out "
            "of memory?); the same command resumes, with a smaller --batch-size for instance"
        )
    if num_left:
        raise StoppedError(f"no time is left for {num_left:,} tasks; the same command resumes")


class _Feeder:
    """Tasks on their way through a client's workers."""

    def __init__(
        self,
        client: Any,
        job: "Job",
        on_progress: Callable[["Progress"], None],
        on_workers: Callable[[int], None],
        seconds_left: float,
    ) -> None:
        from distributed import as_completed

        from ...extract.batching import Progress

        self._client = client
        self._job = job
        self._on_workers = on_workers
        self._run = uuid.uuid4().hex[:8]  # a scheduler that others use, too, tells runs apart by it
        client.subscribe_topic(self._run, lambda event: on_progress(Progress(*event[1])))
        is_gpu = job.device == "cuda"
        self._options = {"resources": {GPU: 1 / THREADS_PER_WORKER}} if is_gpu else {}
        timeout = None if seconds_left == inf else max(0.0, seconds_left)
        self._running = as_completed(timeout=timeout)
        self._tasks: dict[str, Task] = {}
        self._counted, self._num_present = -inf, 0

    def submit(self, task: Task) -> None:
        """Gives a task to the scheduler."""
        key = f"extract-{self._run}-{task.name}-{uuid.uuid4().hex[:4]}"
        self._tasks[key] = task
        future = self._client.submit(
            _run_on_worker, task, self._job, self._run, key=key, pure=False, **self._options
        )
        self._running.add(future)

    def fill(self, queue: Iterator[Task], num_workers: int) -> None:
        """Submits as many tasks as keep so many workers busy, and all those that have come."""
        now = time.monotonic()
        if now - self._counted > COUNT_SECONDS:  # of thousands, each time would be too often
            self._counted = now
            self._num_present = len(present_workers(self._client))
            self._on_workers(self._num_present)
        wanted = THREADS_PER_WORKER * max(num_workers, self._num_present)
        for task in itertools.islice(queue, max(0, wanted - self._running.count())):
            self.submit(task)

    def finished(self) -> Iterator[tuple[Task, "TaskReport | None"]]:
        """Yields tasks and their reports until nothing is at work; no report for a task whose
        workers died more often than Dask allows.

        Raises:
            StoppedError: the time is over, or a worker has no memory left.
        """
        from distributed import KilledWorker
        from distributed import TimeoutError as TooLate

        while True:
            try:
                future = next(self._running)
            except StopIteration:
                return
            except TooLate:
                raise StoppedError(
                    f"the time is over, {len(self._tasks)} tasks were dropped; the same command "
                    "resumes"
                ) from None
            task, report = self._tasks.pop(future.key), None
            try:
                report = future.result()
                del future  # or Dask keeps the result, and computes it again if that is lost
            except KilledWorker:
                pass
            except MemoryError:
                raise StoppedError(
                    f"{task.name}: its worker has no memory left; the same command resumes, with "
                    "fewer --workers for instance"
                ) from None
            yield task, report


def _run_on_worker(task: Task, job: "Job", topic: str) -> "TaskReport":
    """Runs a task in a Dask worker, on the worker's own GPU; a topic hears how far it is."""
    from distributed import get_worker

    from ...extract.batching import Progress
    from ...extract.task import run_task

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
