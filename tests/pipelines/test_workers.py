"""How many workers there are, and with how many threads and cores each."""

from typing import Any

import pytest
from vtnpipe.pipelines import cluster, dask_tasks, processors, workers
from vtnpipe.pipelines.dask_cluster.jobqueue import JobSettings
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.extraction.workers import choose_workers, workers_elsewhere
from vtnpipe.pipelines.processors import num_cpus


def test_no_more_workers_than_the_work_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cpus", lambda: 8)
    for num_frames, expected in ((10, (1, 8)), (600, (2, 4)), (10**6, (8, 1))):
        found = choose_workers(ExtractSettings(), "cpu", num_frames)
        assert (found.num_workers, found.num_threads) == expected
    found = choose_workers(ExtractSettings(workers=3, threads=5), "cpu", 10)
    assert (found.num_workers, found.num_threads) == (3, 5)


def test_the_cores_of_a_job_are_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other jobs the node has."""
    there = {f"tcp://a:{port}": {"host": "a", "resources": {}} for port in range(8)}
    monkeypatch.setattr(dask_tasks, "present_workers", lambda client: there)
    job = JobSettings(cores=8)
    settings = ExtractSettings(cluster="slurm", job=job, workers=2, jobs="1:9")
    found = workers_elsewhere(None, settings, "cpu")
    assert (found.num_workers, found.num_threads, found.num_cpus) == (18, 4, 4)


def test_workers_are_there_though_the_clients_copy_lacks_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As distributed's periodic look at the scheduler leaves it, since 2026."""

    async def refresh(self: Any, n_workers: int = 0) -> None:
        self._scheduler_identity = {"workers": {}}

    with cluster.open_client(num_workers=1) as client:
        monkeypatch.setattr("distributed.Client._update_scheduler_info", refresh)
        assert client.scheduler_info()["workers"] == {}
        assert len(dask_tasks.present_workers(client)) == 1
        assert dask_tasks.on_each_worker(client, len, [1, 2, 3]) == [3]


def test_the_cores_are_those_that_the_batch_system_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda pid: set(range(64)))
    for name in processors.CORES_OF_JOB:
        monkeypatch.delenv(name, raising=False)
    assert num_cpus() == 64
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert num_cpus() == 6
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "")
    assert num_cpus() == 64
