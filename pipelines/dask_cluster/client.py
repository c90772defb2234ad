"""Where stage one's tasks run: opening a Dask client to workers of this machine, of a scheduler
that is there already, or of batch jobs.
"""

import contextlib
import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...manifests.errors import SettingsError, StoppedError, first_line
from ..console import in_words
from ..extraction.scheduler import present_workers
from .batch_jobs import LOOK_SECONDS, JobKeeper, in_a_line
from .jobqueue import (
    ENVIRONMENT,
    GPU,
    THREADS_PER_WORKER,
    ClusterSettings,
    cluster_arguments,
    workers_per_job,
)

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 10.0
WAIT_SECONDS = 5.0  # for more workers, once one has come
SAY_SECONDS = 60.0
# How often a task's worker may die before it is suspected: those of batch jobs often do.
MAX_DEATHS, MAX_DEATHS_OF_JOBS = 2, 10


@contextlib.contextmanager
def open_client(
    settings: ClusterSettings | None = None,
    *,
    num_workers: int | None = None,
    logs: str | Path = ".",
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Any]:
    """Opens a Dask client to at least one worker.

    Args:
        settings: where the workers are; by default, this machine's own processes, on loopback only.
        num_workers: processes, of this machine or of each batch job; None for a job's own number.
        logs: folder of the logs of batch jobs.
        say: is told what is waited for.

    Raises:
        SettingsError: there is no such scheduler or batch system, or a library is missing.
        StoppedError: the scheduler is gone while its client is used.
    """
    import dask
    from distributed import CancelledError, Client
    from distributed.comm.core import CommClosedError

    settings = settings or ClusterSettings()
    config = {
        "distributed.comm.timeouts.connect": "60s",
        "distributed.scheduler.allowed-failures": MAX_DEATHS
        if settings.is_here
        else MAX_DEATHS_OF_JOBS,
        **{f"distributed.nanny.pre-spawn-environ.{key}": one for key, one in ENVIRONMENT.items()},
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(config))
        if settings.scheduler is not None:
            client = stack.enter_context(_client_of(settings.scheduler, is_secret=settings.tls))
            try:
                yield client
            except (CancelledError, CommClosedError) as error:
                raise StoppedError(
                    f"the connection to the Dask scheduler was lost ({first_line(error)}); the "
                    "same command resumes, once there is one"
                ) from None
            return
        security = _security() if settings.tls else None
        if settings.is_here:
            cluster = stack.enter_context(_local_cluster(num_workers or 1, security))
            client = stack.enter_context(Client(cluster))
            client.wait_for_workers(1)
        else:
            keeper = stack.enter_context(
                _batch_cluster(settings, num_workers, Path(logs), security, say)
            )
            say(f"{settings.cluster}: {settings.jobs} jobs; their logs are in {logs}")
            client = stack.enter_context(Client(keeper.cluster))
            _wait_for_workers(client, keeper, say, logs)
        yield client


# Gives a client, opened when it is first asked for: to so many workers of this machine, or to those
# that the settings name.
GetClient = Callable[[int | None], Any]


@contextlib.contextmanager
def client_when_needed(
    settings: ClusterSettings, logs: Path, say: Callable[[str], None]
) -> Iterator[GetClient]:
    """Yields what gives the client of a whole run, always the same one; see `open_client`."""
    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def get_client(num_workers: int | None) -> Any:
            if not opened:
                client = open_client(settings, num_workers=num_workers, logs=logs, say=say)
                opened.append(stack.enter_context(client))
            return opened[0]

        yield get_client


def _local_cluster(num_workers: int, security: Any) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=num_workers,
        threads_per_worker=THREADS_PER_WORKER,
        processes=True,
        host=LOOPBACK,
        protocol="tls://" if security else None,
        security=security,
        dashboard_address=f"{LOOPBACK}:0",
        resources={GPU: 1},  # harmless where there is none: then nothing asks for one
        memory_limit=None,
        silence_logs=logging.CRITICAL,
    )


def _client_of(scheduler: str, *, is_secret: bool) -> Any:
    """A client of a scheduler that is there already.

    Raises:
        SettingsError: nobody answers there.
    """
    from distributed import Client
    from distributed.security import Security

    security = Security(require_encryption=True) if is_secret else None
    try:
        path = Path(scheduler)
        address = json.loads(path.read_text())["address"] if path.is_file() else scheduler
        client = Client(address, security=security, timeout=CONNECT_SECONDS)
        workers = present_workers(client)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SettingsError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); give its address "
            "(tcp://HOST:PORT, or tls:// with --tls) or the file that it was started with"
        ) from None
    if not workers:
        client.close()
        raise SettingsError(
            f"--scheduler {scheduler}: it has no workers; start some with `dask worker "
            f"{scheduler} --nworkers CORES --nthreads {THREADS_PER_WORKER} --memory-limit 0`, or "
            f"one a GPU with --resources {GPU}=1"
        )
    return client


def _security(**files: str) -> Any:
    """Certificates in files, or of Dask's own making, for this run."""
    from distributed.security import Security

    try:
        return Security(require_encryption=True, **files) if files else Security.temporary()
    except ImportError:
        raise SettingsError(
            "--tls: needs the package cryptography; pip install cryptography"
        ) from None


@contextlib.contextmanager
def _batch_cluster(
    settings: ClusterSettings,
    num_workers: int | None,
    logs: Path,
    security: Any,
    say: Callable[[str], None],
) -> Iterator[JobKeeper]:
    """Starts a scheduler here, and has the batch system run jobs of workers.

    Raises:
        SettingsError: it refuses them, or is not on this machine.
    """
    from tornado.ioloop import PeriodicCallback

    with contextlib.ExitStack() as stack:
        arguments = _jobqueue_arguments(settings, num_workers, logs)
        if security is not None:
            logs.mkdir(parents=True, exist_ok=True)
            # Its own folder: readable by nobody else, shared with the jobs, gone in the end.
            arguments["shared_temp_directory"] = stack.enter_context(
                TemporaryDirectory(prefix=".tls-", dir=logs)
            )
        with _without_default_walltime(settings):
            cluster = _jobqueue_class(settings)(
                **arguments,
                security=security,
                silence_logs=logging.CRITICAL,
                scheduler_options={"dashboard_address": f"{LOOPBACK}:0"},
            )
        stack.enter_context(cluster)
        per_job = workers_per_job(settings.job, num_workers)
        keeper = JobKeeper(cluster, settings.cluster, settings.num_jobs, per_job, say)
        try:
            cluster.sync(keeper.look)
        except (OSError, RuntimeError) as error:
            raise SettingsError(
                f"--cluster {settings.cluster}: a job can't be submitted ({in_a_line(error)}); see "
                "what it asks for: `vtnpipe cluster script` with the options of the job"
            ) from None
        looks = PeriodicCallback(keeper.go_on, LOOK_SECONDS * 1000)
        cluster.loop.add_callback(looks.start)
        stack.callback(cluster.loop.add_callback, looks.stop)
        yield keeper


def _without_default_walltime(settings: ClusterSettings) -> Any:
    """A context in which a job without a walltime has its queue's, not dask-jobqueue's half hour,
    of which its workers would not know.
    """
    import dask

    _jobqueue_class(settings)  # imported in the context, its defaults would end with that
    return dask.config.set({f"jobqueue.{settings.cluster}.walltime": None})


def _jobqueue_arguments(
    settings: ClusterSettings, num_workers: int | None, logs: Path
) -> dict[str, Any]:
    assert settings.cluster != "local"
    return cluster_arguments(settings.cluster, settings.job, num_workers, str(logs.absolute()))


def _jobqueue_class(settings: ClusterSettings) -> Any:
    try:
        import dask_jobqueue
    except ImportError:
        raise SettingsError(
            f"--cluster {settings.cluster}: needs dask-jobqueue; pip install dask-jobqueue"
        ) from None
    names = {"htcondor": "HTCondorCluster"}
    return getattr(dask_jobqueue, names.get(settings.cluster, f"{settings.cluster.upper()}Cluster"))


def job_script(settings: ClusterSettings, num_workers: int | None, logs: str) -> str:
    """The script that `open_client` would submit for each job.

    Args:
        settings: of a batch system.
        num_workers: of each job; None for a job's own number.
        logs: what stands for the folder of logs.

    Raises:
        SettingsError: the workers are not batch jobs, or a library is missing.
    """
    if settings.cluster == "local":
        raise SettingsError("--cluster local: there is no job; give --cluster slurm, for instance")
    job_class = _jobqueue_class(settings).job_cls
    address, security = "tcp://SCHEDULER:PORT", None
    if settings.tls:
        names = {"tls_ca_file": "ca_file", "tls_worker_cert": "cert", "tls_worker_key": "key"}
        security = _security(**{key: f"{logs}/.tls/{name}" for key, name in names.items()})
        address = "tls://SCHEDULER:PORT"
    # dask-jobqueue makes the folder of logs, whatever is then submitted.
    with TemporaryDirectory() as folder, _without_default_walltime(settings):
        arguments = _jobqueue_arguments(settings, num_workers, Path(folder))
        job = job_class(address, name="NAME", security=security, **arguments)
        script: str = job.job_script().replace(folder, logs)
    return script


def _wait_for_workers(
    client: Any, keeper: JobKeeper, say: Callable[[str], None], logs: str | Path
) -> None:
    """Returns when a worker is there, and a few seconds later if there are to be more.

    Raises:
        SettingsError: jobs end before their workers come.
    """
    from distributed import TimeoutError as TooLate

    begun = said = time.monotonic()
    while not present_workers(client):
        if fault := keeper.check():
            raise SettingsError(f"--cluster: {fault}; {logs} says why")
        now = time.monotonic()
        if now - said > SAY_SECONDS:
            said = now
            say(
                f"no worker has come for {in_words(now - begun)}: are the jobs still in the queue? "
                f"If not, {logs} says why"
            )
        with contextlib.suppress(TooLate):
            client.wait_for_workers(1, timeout=LOOK_SECONDS)
    with contextlib.suppress(TooLate):
        client.wait_for_workers(len(keeper.cluster.plan), timeout=WAIT_SECONDS)


def dashboard(client: Any) -> str:
    """Where to look at the workers, in words."""
    needs = "" if importlib.util.find_spec("bokeh") else " (needs bokeh: pip install bokeh)"
    return f"dashboard {client.dashboard_link}{needs}"
