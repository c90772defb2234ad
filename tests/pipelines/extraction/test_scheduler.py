"""Scheduling of tasks: what becomes of workers that die, that run out of memory, that are gone."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, KilledWorker, LocalCluster
from vtnpipe.extract.batching import TaskProgress
from vtnpipe.extract.task import TaskReport, WorkerSettings
from vtnpipe.manifests.errors import BackboneError, SettingsError, StoppedError
from vtnpipe.manifests.plan import Computation, Task
from vtnpipe.pipelines.extraction import scheduler
from vtnpipe.pipelines.extraction.scheduler import own_gpu, run_on_each_worker, run_tasks

SETTINGS = WorkerSettings(folder="none", device="cpu", num_threads=1, num_decoder_processes=1)
TASKS = [Task(name=f"000-{number:05d}", rows=(), computation=Computation(1)) for number in range(6)]

RunTask = Callable[[Task, WorkerSettings, Callable[[TaskProgress], None]], TaskReport]


@pytest.fixture
def client() -> Iterator[Client]:
    """A client whose only worker is a thread of this process."""
    options: dict[str, Any] = {"dashboard_address": None, "memory_limit": 0}
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, **options) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _run(
    monkeypatch: pytest.MonkeyPatch, client: Any, run_task: RunTask, finished: list[str]
) -> list[TaskProgress]:
    """Run TASKS by a function in place of `run_task`, and return the progress.

    Names of finished tasks are appended to `finished`.
    """
    monkeypatch.setattr(scheduler, "run_task", run_task)
    progress: list[TaskProgress] = []
    run_tasks(
        client,
        TASKS,
        SETTINGS,
        num_workers=1,
        on_progress=progress.append,
        on_finished=lambda report: finished.append(report.task),
    )
    return progress


def _killed(task: Task) -> KilledWorker:
    """Return the error of a task whose workers died repeatedly."""
    return KilledWorker(task.name, SimpleNamespace(address="tcp://a:1"), 3)


def test_every_task_is_run_once_and_its_progress_arrives(
    monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    monkeypatch.setattr(scheduler, "PROGRESS_SECONDS", 0.0)

    def run(
        task: Task, settings: WorkerSettings, on_progress: Callable[[TaskProgress], None]
    ) -> TaskReport:
        assert settings == SETTINGS
        on_progress(TaskProgress(num_frames=3))
        on_progress(TaskProgress(num_frames=4, num_unplanned_frames=1))
        return TaskReport(task=task.name)

    finished: list[str] = []
    progress = _run(monkeypatch, client, run, finished)
    assert sorted(finished) == [task.name for task in TASKS]
    expected = TaskProgress(num_frames=7 * len(TASKS), num_unplanned_frames=len(TASKS))
    deadline = time.monotonic() + 5  # it arrives in a thread of its own
    while sum(progress, TaskProgress()) != expected:
        assert time.monotonic() < deadline, progress
        time.sleep(0.01)


def test_a_task_whose_worker_died_is_run_again_alone(
    monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    runs: list[str] = []
    at_work: set[str] = set()
    beside: dict[str, set[str]] = {}

    def run(task: Task, *_: Any) -> TaskReport:
        runs.append(task.name)
        at_work.add(task.name)
        beside[task.name] = at_work - {task.name}
        try:
            if task == TASKS[1] and runs.count(task.name) == 1:
                raise _killed(task)
            return TaskReport(task=task.name)
        finally:
            at_work.discard(task.name)

    finished: list[str] = []
    _run(monkeypatch, client, run, finished)
    assert sorted(finished) == [task.name for task in TASKS]
    assert finished[-1] == runs[-1] == TASKS[1].name
    assert len(runs) == len(TASKS) + 1
    assert beside[TASKS[1].name] == set()


def test_a_task_that_kills_its_worker_alone_too_is_named_when_all_others_are_finished(
    monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    runs: list[str] = []

    def run(task: Task, *_: Any) -> TaskReport:
        runs.append(task.name)
        if task in (TASKS[1], TASKS[4]):
            raise _killed(task)
        return TaskReport(task=task.name)

    finished: list[str] = []
    with pytest.raises(StoppedError, match=r"^000-00001, 000-00004: the worker died repeatedly"):
        _run(monkeypatch, client, run, finished)
    assert sorted(finished) == [task.name for task in TASKS if task not in (TASKS[1], TASKS[4])]
    assert len(runs) == len(TASKS) + 2


def test_an_error_of_a_task_ends_the_run(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    def fail(task: Task, *_: Any) -> TaskReport:
        raise BackboneError("on purpose")

    with pytest.raises(BackboneError, match="on purpose"):
        _run(monkeypatch, client, fail, [])

    def exhaust(task: Task, *_: Any) -> TaskReport:
        raise MemoryError

    with pytest.raises(StoppedError, match=r"its worker is out of memory; .* fewer --workers"):
        _run(monkeypatch, client, exhaust, [])


def test_a_run_without_workers_stops_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "COUNT_SECONDS", 0.05)
    monkeypatch.setattr(scheduler, "ABSENT_SECONDS", 0.5)
    seen: list[int] = []
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(StoppedError, match="all workers have gone; the same command resumes"):
            run_on_each_worker(client, len, [])
        with pytest.raises(StoppedError, match="all workers have gone; the same command resumes"):
            run_tasks(
                client,
                TASKS,
                SETTINGS,
                num_workers=1,
                on_progress=lambda progress: None,
                on_finished=lambda report: None,
                on_workers=seen.append,
            )
    assert len(seen) > 3  # it counted again and again before it gave up
    assert set(seen) == {0}


def test_the_queue_is_filled_a_few_tasks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two per worker, of as many workers as are expected or present."""
    monkeypatch.setattr(scheduler, "present_workers", lambda client: dict.fromkeys("abc"))
    client = SimpleNamespace(
        subscribe_topic=lambda topic, handler: None, submit=lambda *_, **__: object()
    )
    counted: list[int] = []
    feeder = scheduler._Feeder(client, SETTINGS, lambda progress: None, counted.append)
    queue = (TASKS[number % 6] for number in itertools.count())
    feeder.fill(queue, 2)
    assert len(feeder._running) == 6
    feeder.fill(queue, 5)
    assert len(feeder._running) == 10
    feeder.fill(queue, 1)
    assert len(feeder._running) == 10
    assert counted == [3]  # once in COUNT_SECONDS


@pytest.mark.parametrize(("name", "gpu"), [("vtnpipe-0-3", 1), (2, 0), ("1", 1), ("tcp://a:1", -1)])
def test_a_worker_has_the_gpu_of_its_number(
    monkeypatch: pytest.MonkeyPatch, name: object, gpu: int
) -> None:
    monkeypatch.setattr(scheduler, "get_worker", lambda: SimpleNamespace(name=name))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if gpu < 0:
        with pytest.raises(SettingsError, match=r"sees 2 GPUs.*--name NAME-0"):
            own_gpu()
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        assert own_gpu() == "cuda:0"
    else:
        assert own_gpu() == f"cuda:{gpu}"


def test_a_worker_decodes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[WorkerSettings] = []

    def run_task(task: Task, settings: WorkerSettings, on_progress: Any) -> None:
        taken.append(settings)

    worker = SimpleNamespace(log_event=lambda topic, event: None)
    monkeypatch.setattr(scheduler, "get_worker", lambda: worker)
    monkeypatch.setattr(scheduler, "own_gpu", lambda: "cuda:2")
    monkeypatch.setattr(scheduler, "run_task", run_task)
    settings = WorkerSettings(
        folder="f", device="cuda", num_threads=1, num_decoder_processes=1, engines="cuda"
    )
    for one in (settings, replace(settings, engines=""), replace(settings, device="cpu")):
        scheduler._run_on_worker(TASKS[0], one, "t")
    assert [(one.device, one.engines) for one in taken] == [
        ("cuda:2", "cuda:2"),
        ("cuda:2", ""),
        ("cpu", "cuda"),
    ]
