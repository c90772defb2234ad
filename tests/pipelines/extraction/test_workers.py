"""Workers: how many there are, with how many threads and decoder processes each."""

from dataclasses import replace
from typing import Any

import pytest
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.pipelines.extraction import scheduler, workers
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.extraction.workers import (
    ASSUMED_CORES,
    ASSUMED_WORKERS,
    expected_workers,
    local_workers,
    remote_workers,
)


def _present(number: int, host: str = "a", **resources: float) -> dict[str, Any]:
    return {
        f"tcp://{host}:{port}": {"host": host, "resources": resources} for port in range(number)
    }


def test_no_more_workers_than_the_work_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cpus", lambda: 8)
    for num_frames, expected in ((10, (1, 8)), (2100, (2, 4)), (10**6, (8, 1))):
        found = local_workers(ExtractSettings(), "cpu", num_frames)
        assert (found.num_workers, found.num_threads) == expected
        assert found.num_decoder_processes == 1
    found = local_workers(ExtractSettings(workers=3, threads=5), "cpu", 10)
    assert (found.num_workers, found.num_threads) == (3, 5)
    assert found.description == "workers: 3 (as given), 5 threads and 1 decoder process each"
    found = local_workers(ExtractSettings(decoder_processes=4), "cpu", 10)
    assert found.num_decoder_processes == 4


def test_gpus_share_the_cores_for_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cpus", lambda: 8)
    monkeypatch.setattr(workers, "num_gpus", lambda device: 1 if ":" in device else 2)
    for device, expected in (("cuda", (2, 4)), ("cuda:1", (1, 8))):
        found = local_workers(ExtractSettings(), device, 10**6)
        assert (found.num_workers, found.num_decoder_processes) == expected
        assert found.description == (
            f"workers: {expected[0]} (one per GPU), {expected[1]} decoder processes each"
        )


def test_the_cores_of_a_job_are_divided_among_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other jobs the host has."""
    monkeypatch.setattr(scheduler, "present_workers", lambda client: _present(8))
    job = {"cores": 8}
    settings = ExtractSettings(cluster="slurm", job=job, workers=2, jobs=9)
    found = remote_workers(None, settings, "cpu")
    assert (found.num_workers, found.num_threads) == (8, 4)
    monkeypatch.setattr(scheduler, "present_workers", lambda client: _present(3, GPU=1))
    settings = ExtractSettings(cluster="slurm", job=job, device="cuda", precision="float32")
    found = remote_workers(None, settings, "cuda")
    assert (found.num_workers, found.num_decoder_processes) == (3, 8)


def test_the_cores_of_a_host_are_divided_among_the_workers_of_a_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {**_present(4), **_present(2, "b")}
    monkeypatch.setattr(scheduler, "present_workers", lambda client: there)
    monkeypatch.setattr(workers, "run_on_each_worker", lambda client, function: [16] * 4 + [9] * 2)
    found = remote_workers(None, ExtractSettings(scheduler="tcp://a:1"), "cpu")
    assert (found.num_workers, found.num_threads) == (6, 2)
    assert "on 2 hosts" in found.description
    with pytest.raises(SettingsError, match="--device cuda: no worker has a GPU"):
        remote_workers(None, ExtractSettings(scheduler="tcp://a:1"), "cuda")


def test_the_workers_that_tasks_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cpus", lambda: 8)
    monkeypatch.setattr(workers, "num_gpus", lambda device: 4)
    for device, expected in (("cpu", (8, 1)), ("cuda", (4, 2))):
        assert expected_workers(ExtractSettings(), device, 10**6) == expected
        three_parts = ExtractSettings(part="2/3")
        assert expected_workers(three_parts, device, 10**6) == (3 * expected[0], expected[1])
    assert expected_workers(ExtractSettings(workers=3), "cpu", 1) == (3, 1)
    scheduler = ExtractSettings(scheduler="a")
    assert expected_workers(scheduler, "cuda", 1) == (ASSUMED_WORKERS, ASSUMED_CORES)
    jobs = ExtractSettings(cluster="slurm", jobs=5, job={"cores": 6})
    assert expected_workers(jobs, "cpu", 1) == (30, 1)
    assert expected_workers(replace(jobs, device="cuda"), "cuda", 1) == (5, 6)
