"""Dask clients: what jobs are given, who may connect, and which addresses listen."""

import contextlib
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.security import Security
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.pipelines.dask_cluster import client as client_module
from vtnpipe.pipelines.dask_cluster.client import job_script, open_client, present_workers
from vtnpipe.pipelines.dask_cluster.jobqueue import ClusterSettings
from vtnpipe.pipelines.extraction.scheduler import run_on_each_worker

JOB = {
    "queue": "long",
    "walltime": "25:30:00",
    "memory": "64GiB",
    "cores": 32,
    "processes": 4,
    "job_script_prologue": ["module load cuda"],
    "worker_extra_args": ["--lifetime", "25h"],
    "job_extra_directives": ["--mail-user=me"],
}
# Keys that a batch system has not, or needs besides; lines of its script.
SCRIPTS: dict[str, tuple[dict[str, Any], str]] = {
    "slurm": (
        {"account": "me"},
        "#SBATCH -p long|#SBATCH -A me|#SBATCH -t 25:30:00|#SBATCH --mem=64G|"
        "#SBATCH --cpus-per-task=32|#SBATCH --mail-user=me",
    ),
    "pbs": (
        {"account": "me"},
        "#PBS -q long|#PBS -A me|#PBS -l walltime=25:30:00|#PBS -l select=1:ncpus=32:mem=64GB|"
        "#PBS --mail-user=me",
    ),
    "lsf": (
        {"project": "me", "walltime": "25:30"},
        '#BSUB -q long|#BSUB -P "me"|#BSUB -W 25:30|#BSUB -n 32|#BSUB --mail-user=me',
    ),
    "sge": (
        {"project": "me"},
        "#$ -q long|#$ -P me|#$ -l h_rt=25:30:00|#$ --mail-user=me",
    ),
    "htcondor": (
        {"disk": "1GiB", "queue": None, "walltime": None, "job_extra_directives": {"x": "y"}},
        "RequestCpus = MY.DaskWorkerCores|MY.DaskWorkerCores = 32|x = y",
    ),
    "oar": (
        {"project": "me", "memory_per_core_property_name": "memcore"},
        "#OAR -q long|#OAR --project me|#OAR --mail-user=me",
    ),
    "moab": ({"account": "me"}, "#PBS -q long|#PBS -A me|#PBS -l walltime=25:30:00"),
}


def _settings(**changes: Any) -> ClusterSettings:
    return ClusterSettings(**{"cluster": "slurm", "device": "cpu", **changes})


@pytest.mark.parametrize("system", SCRIPTS)
def test_a_job_asks_for_what_the_section_says(system: str) -> None:
    changes, expected = SCRIPTS[system]
    job = {key: value for key, value in {**JOB, **changes}.items() if value is not None}
    script = job_script(_settings(cluster=system, device="cuda", job=job), "FEATURES/jobs")
    lines = script.splitlines()
    assert {*expected.split("|")} <= {*lines}
    (command,) = (line for line in lines if "dask_worker" in line)
    assert "module load cuda" in script
    assert "export MALLOC_TRIM_THRESHOLD_=" in script
    assert "FEATURES/jobs" in script or system == "oar"  # which has no option for it
    # Of an option that is given twice, the last value counts.
    assert re.findall(r"--nthreads (\d+)", command)[-1] == "2"
    assert re.findall(r"--memory-limit (\S+)", command)[-1] == "0"
    for words in ("--nworkers 4", "--resources GPU=1", "--lifetime 25h"):
        assert words in command


def test_a_job_without_a_gpu_has_a_worker_per_core() -> None:
    job = {"cores": 6, "walltime": "10:00"}
    script = job_script(_settings(job=job), "logs")
    assert "--nworkers 6 " in script
    assert "--resources" not in script
    assert "--nworkers 3 " in job_script(_settings(job=job, workers=3), "logs")
    script = job_script(_settings(job=job, tls=True), "logs")
    assert "tls://SCHEDULER:PORT" in script
    assert "--tls-ca-file logs/.tls/ca_file" in script


def test_a_section_that_the_class_refuses_has_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"'partition'; the keys are .*SLURMCluster"):
        job_script(_settings(job={"partition": "x"}), "logs")
    with pytest.raises(SettingsError, match=r"cluster: .*many"):
        job_script(_settings(job={"memory": "many"}), "logs")
    with pytest.raises(SettingsError, match="--cluster local: has no jobs"):
        job_script(ClusterSettings(), "logs")
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(SettingsError, match="pip install dask-jobqueue"):
        job_script(_settings(), "logs")


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of `sbatch` and `scancel` that run each job on this machine, at once."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in {
        "sbatch": f'cp "$1" {tmp_path}/job-$$.sh; setsid bash {tmp_path}/job-$$.sh > '
        f"{tmp_path}/job-$$.log 2>&1 & "
        f"echo $! >> {tmp_path}/jobs.txt; echo Submitted batch job $!",
        "scancel": 'kill -- "-$1"',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.usefixtures("batch_system")
@pytest.mark.parametrize("tls", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_jobs_start_workers_and_are_cancelled_in_the_end(tmp_path: Path, tls: bool) -> None:
    logs, lines = tmp_path / "logs", []
    job = {"cores": 1, "memory": "1GiB", "interface": "lo"}
    with open_client(
        _settings(jobs=2, tls=tls, job=job), logs=logs, say=lambda line: lines.append(line)
    ) as client:
        workers = present_workers(client)
        assert len(workers) == 2
        assert all(address.startswith("tls" if tls else "tcp") for address in workers)
        assert [one["nthreads"] for one in workers.values()] == [2, 2]
        assert len(list(logs.glob(".tls-*"))) == tls
    assert lines == [f"slurm: submitted 2 jobs; their logs are in {logs}"]
    jobs = list(map(int, (tmp_path / "jobs.txt").read_text().split()))
    assert len(jobs) == 2
    _await_end(jobs)
    assert not list(logs.glob(".tls-*"))


def test_a_batch_system_that_refuses_a_job_ends_the_command(
    tmp_path: Path, batch_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch_system / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2; exit 1\n")
    settings = _settings(job={"interface": "lo"})

    def refused() -> str:
        with (
            pytest.raises(SettingsError, match="--cluster slurm: cannot submit a job") as error,
            open_client(settings, logs=tmp_path / "logs"),
        ):
            pass
        return str(error.value)

    assert "invalid partition" in refused()
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch at all
    assert "sbatch" in refused()
    assert "No such file" in refused()


def _await_end(groups: Iterable[int]) -> None:
    """Wait until no process of the groups is left."""
    deadline = time.monotonic() + 30
    while left := [group for group in groups if _is_alive(group)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_are_found_though_the_clients_copy_lacks_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the periodic refresh of distributed leaves it since 2026."""

    async def refresh(self: Any, n_workers: int = 0) -> None:
        self._scheduler_identity = {"workers": {}}

    with open_client(num_workers=1) as client:
        monkeypatch.setattr("distributed.Client._update_scheduler_info", refresh)
        assert client.scheduler_info()["workers"] == {}
        assert len(present_workers(client)) == 1
        assert run_on_each_worker(client, len, [1, 2, 3]) == [3]


def test_a_scheduler_that_is_missing_or_has_no_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 1.0)
    (tmp_path / "s.json").write_text("not of a scheduler")
    for where in ("tcp://127.0.0.1:9", "nonsense", str(tmp_path / "s.json")):
        with (
            pytest.raises(SettingsError, match="no Dask scheduler answers there"),
            open_client(ClusterSettings(scheduler=where)),
        ):
            pass
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster,
        pytest.raises(SettingsError, match="has no workers; start some with `dask worker"),
        open_client(ClusterSettings(scheduler=cluster.scheduler_address)),
    ):
        pass


def _sockets(process: int) -> Iterator[str]:
    """Yield the inodes of a process's sockets."""
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            if found := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                yield found[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_only_loopback_listens(num_workers: int) -> None:
    with open_client(num_workers=num_workers) as client:
        pids = set(client.run(os.getpid).values())
        assert (os.getpid() in pids) == (num_workers == 1)  # a single worker is a thread
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        own = {inode for process in {os.getpid(), *pids} for inode in _sockets(process)}
        tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
        lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    # Fields 1, 3 and 9 are the local address, the state (0A listens) and the inode.
    listening = [line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in own]
    assert len(listening) >= 3
    assert set(listening) == {"0100007F"}


def test_tls_admits_nobody_without_its_certificate() -> None:
    with open_client(ClusterSettings(tls=True), num_workers=1) as client:
        scheduler = client.scheduler.address
        workers = list(present_workers(client))
        assert run_on_each_worker(client, len, [1, 2, 3]) == [3]
        assert len(workers) == 1
        for address in (scheduler, *workers):
            assert address.startswith("tls://127.0.0.1:")
            host, port = address.removeprefix("tls://").split(":")
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with (
                socket.create_connection((host, int(port))) as plain,
                context.wrap_socket(plain) as encrypted,
            ):
                assert encrypted.version() == "TLSv1.3"
                with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                    encrypted.recv(1)
        # Neither without encryption nor with certificates of another authority.
        with pytest.raises((OSError, ValueError)):
            Client(scheduler.replace("tls://", "tcp://"), timeout=1).close()
        with pytest.raises((OSError, ValueError)):
            Client(scheduler, timeout=1, security=Security.temporary()).close()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_sites_configuration_may_require_encryption(num_workers: int) -> None:
    with (
        dask.config.set({"distributed.comm.require-encryption": True}),
        open_client(num_workers=num_workers) as client,
    ):
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        assert run_on_each_worker(client, len, [1, 2, 3]) == [3] * num_workers
