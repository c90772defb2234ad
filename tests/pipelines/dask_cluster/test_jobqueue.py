"""Cluster settings, and the arguments of dask-jobqueue's classes."""

import re
from typing import Any

import pytest
from vtnpipe.extract.decode.limits import KEEP_FREED_MEMORY
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.pipelines.dask_cluster.jobqueue import (
    ClusterSettings,
    cluster_arguments,
    workers_per_job,
)

JOB = {
    "queue": "long",
    "cores": 6,
    "interface": "ib0",
    "worker_extra_args": ["--lifetime", "7h"],
    "job_script_prologue": ["module load cuda"],
}


def _settings(**changes: Any) -> ClusterSettings:
    return ClusterSettings(**{"cluster": "slurm", "device": "cpu", "job": JOB, **changes})


def test_the_section_is_passed_as_it_is_with_what_workers_need() -> None:
    found = cluster_arguments(_settings(), "logs")
    exports = [f"export {name}={value}" for name, value in KEEP_FREED_MEMORY.items()]
    assert found == {
        "queue": "long",
        "cores": 6,
        "interface": "ib0",
        "memory": "8GiB",
        "job_name": "vtnpipe",
        "log_directory": "logs",
        "processes": 6,
        "worker_extra_args": [
            *("--nthreads", "2", "--memory-limit", "0", "--no-dashboard", "--lifetime", "7h"),
        ],
        "job_script_prologue": [*exports, "module load cuda"],
    }
    assert JOB["job_script_prologue"] == ["module load cuda"]  # a copy was extended
    own = {**JOB, "memory": "64GiB", "job_name": "mine", "log_directory": "elsewhere"}
    found = cluster_arguments(_settings(job=own), "logs")
    assert [found[key] for key in ("memory", "job_name", "log_directory")] == [
        *("64GiB", "mine", "elsewhere"),
    ]
    options = cluster_arguments(_settings(device="cuda"), "logs")["worker_extra_args"]
    assert options[-4:] == ["--resources", "GPU=1", "--lifetime", "7h"]


def test_a_job_has_a_worker_per_core_or_one_with_a_gpu() -> None:
    assert workers_per_job(_settings()) == 6
    assert workers_per_job(_settings(job={})) == 1
    assert workers_per_job(_settings(device="cuda")) == 1
    assert workers_per_job(_settings(device="cuda", job={**JOB, "processes": 4})) == 4
    assert workers_per_job(_settings(workers=3, job={**JOB, "processes": 4})) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": 4}, "--jobs 4: needs --cluster"),
        ({"jobs": 0, "cluster": "slurm"}, "--jobs 0: it must be at least 1"),
        ({"jobs": "2:8", "cluster": "slurm"}, "--jobs '2:8': it must be a whole number"),
        ({"cluster": "loadleveler"}, "--cluster 'loadleveler': it must be one of local, slurm,"),
        ({"scheduler": "tcp://a:1", "cluster": "slurm"}, "leave out one of them"),
        ({"device": "cuda:1", "cluster": "slurm"}, "each has a GPU of its own; give --device cuda"),
        ({"device": "cuda:1", "scheduler": "tcp://a:1"}, "give --device cuda"),
        ({"job": {"queue": "gpu"}}, "cluster: the section names no batch system"),
        ({"job": {"queue": "gpu"}, "scheduler": "tcp://a:1"}, "remove the section"),
        ({"cluster": "slurm", "job": {"cores": 0}}, "cluster: cores 0: it must be"),
        ({"cluster": "slurm", "job": {"cores": "many"}}, "cluster: cores 'many': it must be"),
        ({"cluster": "slurm", "job": {"processes": 0}}, "cluster: processes 0: it must be"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        ClusterSettings(**settings)


def test_only_local_workers_without_a_scheduler_are_here() -> None:
    assert ClusterSettings().is_here
    assert not _settings().is_here
    assert not ClusterSettings(scheduler="tcp://a:1").is_here
