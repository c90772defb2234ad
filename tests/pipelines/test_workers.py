"""How many workers there are, and with how many threads and cores each."""

from types import SimpleNamespace

import pytest
from vtnpipe.pipelines import processors, workers
from vtnpipe.pipelines.cluster_settings import JobSettings
from vtnpipe.pipelines.extract_settings import ExtractSettings
from vtnpipe.pipelines.processors import num_cpus
from vtnpipe.pipelines.workers import choose_workers, workers_elsewhere


def test_no_more_workers_than_the_work_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cpus", lambda: 8)
    for num_frames, expected in ((10, (1, 8)), (600, (2, 4)), (10**6, (8, 1))):
        found = choose_workers(ExtractSettings(), "cpu", num_frames)
        assert (found.num_workers, found.num_threads) == expected
    found = choose_workers(ExtractSettings(workers=3, threads=5), "cpu", 10)
    assert (found.num_workers, found.num_threads) == (3, 5)


def test_the_cores_of_a_job_are_its_workers() -> None:
    """Whatever other jobs the node has."""
    there = {f"tcp://a:{port}": {"host": "a", "resources": {}} for port in range(8)}
    client = SimpleNamespace(scheduler_info=lambda n_workers: {"workers": there})
    job = JobSettings(cores=8)
    settings = ExtractSettings(cluster="slurm", job=job, workers=2, jobs="1:9")
    found = workers_elsewhere(client, settings, "cpu")
    assert (found.num_workers, found.num_threads, found.num_cpus) == (18, 4, 4)


def test_the_cores_are_those_that_the_batch_system_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda pid: set(range(64)))
    for name in processors.CORES_OF_JOB:
        monkeypatch.delenv(name, raising=False)
    assert num_cpus() == 64
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert num_cpus() == 6
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "")
    assert num_cpus() == 64
