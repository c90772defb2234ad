"""Dask clients: of workers on this machine, of a running scheduler, or of batch jobs."""

import contextlib
import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask
import dask.config
from distributed import CancelledError, Client, LocalCluster, as_completed
from distributed import TimeoutError as DaskTimeoutError
from distributed.comm.core import CommClosedError
from distributed.security import Security

from ...extract.decode.limits import KEEP_FREED_MEMORY
from ...manifests.errors import SettingsError, StoppedError, first_line
from ..console import duration_text
from .jobqueue import GPU, THREADS_PER_WORKER, ClusterSettings, cluster_arguments

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 10.0
WAIT_SECONDS = 5.0  # for more workers, once one has connected
REPORT_SECONDS = 60.0
# Deaths of its workers after which a task is tried alone; batch jobs are often preempted.
MAX_DEATHS, MAX_DEATHS_OF_JOBS = 2, 10


@contextlib.contextmanager
def open_client(
    settings: ClusterSettings | None = None,
    *,
    num_workers: int = 1,
    logs: str | Path = ".",
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Any]:
    """Open a Dask client that has at least one worker.

    A single worker of this machine is a thread of this process, which is there at once.

    Args:
        settings: where the workers are; by default on this machine, listening on loopback only.
            Dask's own configuration may require encryption, as `--tls` does.
        num_workers: worker processes of this machine.
        logs: folder of the batch jobs' logs.
        say: prints what is waited for.

    Raises:
        SettingsError: there is no such scheduler or batch system, or a library is missing.
        StoppedError: the connection to the scheduler was lost.
    """
    settings = settings or ClusterSettings()
    config = {
        "distributed.comm.timeouts.connect": "60s",
        "distributed.worker.profile.enabled": False,  # it looks at the threads 100 times a second
        "distributed.admin.tick.interval": "1s",  # else 50 times a second
        "distributed.scheduler.allowed-failures": MAX_DEATHS
        if settings.is_here
        else MAX_DEATHS_OF_JOBS,
        **{
            f"distributed.nanny.pre-spawn-environ.{name}": value
            for name, value in KEEP_FREED_MEMORY.items()
        },
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(config))
        if settings.scheduler is not None:
            client = stack.enter_context(_client_of(settings.scheduler, use_tls=settings.tls))
            try:
                yield client
            except (CancelledError, CommClosedError) as error:
                raise StoppedError(
                    f"lost the connection to the Dask scheduler ({first_line(error)}); start one, "
                    "and the same command resumes"
                ) from None
            return
        security = _security() if settings.tls or _needs_certificates() else None
        protocol = "tls://" if security or _requires_encryption() else "tcp://"
        if settings.is_here:
            cluster = stack.enter_context(_local_cluster(num_workers, security, protocol))
            client = stack.enter_context(Client(cluster))
            client.wait_for_workers(1)
        else:
            cluster = stack.enter_context(_job_cluster(settings, Path(logs), security))
            say(f"{settings.cluster}: submitted {settings.jobs} jobs; their logs are in {logs}")
            client = stack.enter_context(Client(cluster))
            _wait_for_workers(client, len(cluster.plan), logs, say)
        yield client


def _requires_encryption() -> bool:
    return bool(dask.config.get("distributed.comm.require-encryption", None))


def _needs_certificates() -> bool:
    """Return whether Dask's configuration requires encryption, but has no certificates for it."""
    names = ("ca-file", "scheduler.cert", "scheduler.key", "worker.cert", "worker.key")
    files = [dask.config.get(f"distributed.comm.tls.{name}", None) for name in names]
    return _requires_encryption() and not all(one and Path(one).exists() for one in files)


def present_workers(client: Any) -> dict[str, Any]:
    """Return address → information of all workers that the client's scheduler has now.

    `client.scheduler_info()` is a copy in which workers may be missing since distributed 2026.

    Raises:
        CommClosedError: the scheduler is gone.
    """
    if client.scheduler is None:
        raise CommClosedError("the client is closed")
    workers: dict[str, Any] = client.sync(client.scheduler.identity)["workers"]
    return workers


def finished_results(futures: Sequence[Any]) -> Iterator[Any]:
    """Yield the results of futures, as they finish."""
    for _, result in as_completed(futures, with_results=True):
        yield result


def job_script(settings: ClusterSettings, logs: str) -> str:
    """Return the script that `open_client` would submit for each job.

    Args:
        settings: settings with a batch system.
        logs: text that stands for the folder of logs.

    Raises:
        SettingsError: the workers are not batch jobs, or a library is missing.
    """
    if settings.cluster == "local":
        raise SettingsError("--cluster local: has no jobs; give --cluster slurm, for instance")
    job_class = _jobqueue_class(settings).job_cls
    address, security = "tcp://SCHEDULER:PORT", None
    if settings.tls:
        names = {"tls_ca_file": "ca_file", "tls_worker_cert": "cert", "tls_worker_key": "key"}
        security = _security(**{key: f"{logs}/.tls/{name}" for key, name in names.items()})
        address = "tls://SCHEDULER:PORT"
    with TemporaryDirectory() as folder:  # dask-jobqueue creates the folder of logs
        job = _create(job_class, settings, folder, address, name="NAME", security=security)
        script: str = job.job_script().replace(folder, logs)
    return script


def dashboard_lines(client: Any, *, is_here: bool) -> list[str]:
    """Return the address of the dashboard; for workers elsewhere, also what it needs."""
    if importlib.util.find_spec("bokeh"):
        return [f"dashboard {client.dashboard_link}"]
    hint = f"dashboard {client.dashboard_link} (needs bokeh: pip install bokeh)"
    return [] if is_here else [hint]


def _local_cluster(num_workers: int, security: Security | None, protocol: str) -> Any:
    return LocalCluster(
        n_workers=num_workers,
        threads_per_worker=THREADS_PER_WORKER,
        processes=num_workers > 1,
        host=LOOPBACK,
        protocol=protocol,
        security=security,
        dashboard_address=f"{LOOPBACK}:0",
        resources={GPU: 1},  # of no effect on a CPU: nothing asks for it
        memory_limit=None,
        silence_logs=logging.CRITICAL,
    )


def _client_of(scheduler: str, *, use_tls: bool) -> Any:
    """Return a client of a running scheduler.

    Raises:
        SettingsError: no scheduler answers, or it has no workers.
    """
    security = Security(require_encryption=True) if use_tls else None
    try:
        path = Path(scheduler)
        address = json.loads(path.read_text())["address"] if path.is_file() else scheduler
        client = Client(address, security=security, timeout=CONNECT_SECONDS)
        workers = present_workers(client)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SettingsError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); give its address "
            "(tcp://HOST:PORT, or tls:// with --tls) or its scheduler file"
        ) from None
    if not workers:
        client.close()
        raise SettingsError(
            f"--scheduler {scheduler}: has no workers; start some with `dask worker {scheduler} "
            f"--nworkers CORES --nthreads {THREADS_PER_WORKER} --memory-limit 0`, or one per GPU "
            f"with --resources {GPU}=1"
        )
    return client


def _security(**files: str) -> Security:
    """Return security by the given certificate files, or by temporary certificates."""
    try:
        return Security(require_encryption=True, **files) if files else Security.temporary()
    except ImportError:
        raise SettingsError(
            "--tls, or require-encryption in Dask's configuration: needs the package cryptography; "
            "pip install cryptography"
        ) from None


@contextlib.contextmanager
def _job_cluster(settings: ClusterSettings, logs: Path, security: Security | None) -> Iterator[Any]:
    """Start a scheduler here, and submit jobs of workers.

    Raises:
        SettingsError: the batch system refuses them, or is not on this machine.
    """
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {}
        if security is not None:
            logs.mkdir(parents=True, exist_ok=True)
            # A folder of its own: private, shared with the jobs, removed at the end.
            options["shared_temp_directory"] = stack.enter_context(
                TemporaryDirectory(prefix=".tls-", dir=logs)
            )
        cluster = _create(
            _jobqueue_class(settings),
            settings,
            str(logs.absolute()),
            **options,
            security=security,
            silence_logs=logging.CRITICAL,
            scheduler_options={"dashboard_address": f"{LOOPBACK}:0"},
        )
        if security is not None:
            for name in ("ca_file", "cert", "key"):  # before their folder is removed
                stack.callback(getattr(cluster, f"_job_{name}").close)
        stack.enter_context(cluster)
        try:
            cluster.sync(_submit, cluster, settings.jobs)
        except (OSError, RuntimeError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            said = lines[lines.index("stderr:") + 1 :] if "stderr:" in lines else lines
            raise SettingsError(
                f"--cluster {settings.cluster}: cannot submit a job ({'; '.join(said)}); see "
                "`vtnpipe cluster script` with the same options"
            ) from None
        yield cluster


async def _submit(cluster: Any, num_jobs: int) -> None:
    """Submit jobs, in the cluster's event loop.

    `cluster.scale` would submit them at some later time, and drop the error of a refused job.

    Raises:
        OSError, RuntimeError: the batch system refuses a job; those before it are cancelled.
    """
    while len(cluster.worker_spec) < num_jobs:
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        await cluster._correct_state()
    except (OSError, RuntimeError):
        cluster.worker_spec.clear()
        await cluster._correct_state()
        cluster._created.clear()  # else closing the cluster fails, since one never ran
        raise


def _jobqueue_class(settings: ClusterSettings) -> Any:
    try:
        import dask_jobqueue  # an optional dependency
    except ImportError:
        raise SettingsError(
            f"--cluster {settings.cluster}: needs dask-jobqueue; pip install dask-jobqueue"
        ) from None
    names = {"htcondor": "HTCondorCluster", "moab": "MoabCluster"}
    return getattr(dask_jobqueue, names.get(settings.cluster, f"{settings.cluster.upper()}Cluster"))


def _create(
    jobqueue_class: Any, settings: ClusterSettings, logs: str, *values: Any, **options: Any
) -> Any:
    """Create a cluster or a job from the settings.

    Raises:
        SettingsError: the class refuses an argument.
    """
    try:
        return jobqueue_class(*values, **cluster_arguments(settings, logs), **options)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"cluster: {first_line(error)}; the keys are the arguments of dask-jobqueue's "
            f"{_jobqueue_class(settings).__name__}"
        ) from None


def _wait_for_workers(
    client: Any, num_expected: int, logs: str | Path, say: Callable[[str], None]
) -> None:
    """Wait until a worker has connected, and a few seconds more if there are to be several."""
    begun = time.monotonic()
    while not present_workers(client):
        with contextlib.suppress(DaskTimeoutError):
            client.wait_for_workers(1, timeout=REPORT_SECONDS)
            break
        say(
            f"no worker has connected for {duration_text(time.monotonic() - begun)}; if the jobs "
            f"are not in the queue any more, {logs} tells why"
        )
    with contextlib.suppress(DaskTimeoutError):
        client.wait_for_workers(num_expected, timeout=WAIT_SECONDS)
