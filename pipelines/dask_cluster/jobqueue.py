"""Where tasks run: on this machine, on Dask workers that are there already, or in the jobs of a
batch system; and what a job is given.
"""

import re
import shlex
from dataclasses import dataclass
from typing import Any, Literal

from ...manifests.errors import SettingsError
from ..settings import at_least, check_settings, section, setting

BatchSystem = Literal["slurm", "pbs", "lsf", "sge", "htcondor"]
Cluster = Literal["local", "slurm", "pbs", "lsf", "sge", "htcondor"]

GPU = "GPU"  # the resource of which a worker with a GPU has one
THREADS_PER_WORKER = 2  # Dask's: one task at the backbone, the next one's first frames are decoded
LIFETIME_MARGIN_SECONDS = 120  # before its walltime, a worker ends, and others take its tasks
LIFETIME_SHARE = 0.8  # of a short walltime
HTCONDOR_DISK = "1GiB"  # which dask-jobqueue must be given; workers store nothing of their own
ENVIRONMENT = {
    # Dask has workers give freed memory back at once; a backbone takes it again with every
    # batch, and on a CPU page faults then cost a third of the speed.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}

_DURATION = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d\d)")
_MEMORY = re.compile(r"\d+(\.\d+)? ?[KMGT]i?B")
_TEXT_LISTS = ("directives", "prologue")


def duration_seconds(text: str) -> int | None:
    """Of [[DAYS-]HOURS:]MINUTES:SECONDS; None for anything else.

    >>> duration_seconds("1-02:00:30"), duration_seconds("90:00"), duration_seconds("soon")
    (93630, 5400, None)
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """A batch job that runs workers: the `cluster:` section of a config file."""

    queue: str | None = setting(None, help="Queue, or SLURM's partition.")
    account: str | None = setting(None, help="Account, or project.")
    walltime: str | None = setting(
        None, help="[HOURS:]MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS; its workers end earlier."
    )
    memory: str = setting("8GiB", help="Of a job.")
    cores: int = setting(
        1, help="Of a job; SGE is told by a directive, as -pe smp 8.", check=at_least(1)
    )
    gpus: int = setting(0, help="Of a job; it runs one worker for each.", check=at_least(0))
    directives: tuple[str, ...] = setting((), help="More lines for the batch system.")
    prologue: tuple[str, ...] = setting((), help="Shell lines before the workers start.")
    env: tuple[tuple[str, str], ...] = setting((), help="Environment variables of the workers.")
    interface: str | None = setting(None, help="Network interface of scheduler and workers.")
    python: str | None = setting(None, help="Of the workers; by default, this one.")

    def __post_init__(self) -> None:
        if self.walltime is not None and duration_seconds(str(self.walltime)) is None:
            raise SettingsError(
                f"cluster: walltime {self.walltime!r}: it must be HOURS:MINUTES:SECONDS, in quotes"
            )
        check_settings(self, name=lambda field: f"cluster: {field}")
        if not _MEMORY.fullmatch(self.memory):
            raise SettingsError(f"cluster: memory {self.memory!r}: it must be as 16GiB")

    @classmethod
    def from_yaml(cls, values: dict[str, Any]) -> "JobSettings":
        """From a section as YAML reads it.

        Raises:
            SettingsError: an unknown key, or a value that breaks its rule.
        """
        known = sorted(cls.__dataclass_fields__)
        for key, value in values.items():
            if key not in known:
                raise SettingsError(
                    f"cluster: unknown key {key!r}; there are {', '.join(['kind', *known])}"
                )
            if key in _TEXT_LISTS:
                if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                    raise SettingsError(f"cluster: {key} {value!r}: it must be a list of lines")
                values = {**values, key: tuple(value)}
            if key == "env":
                if not isinstance(value, dict):
                    raise SettingsError(f"cluster: env {value!r}: it must map names to values")
                pairs = tuple((str(name), str(text)) for name, text in value.items())
                values = {**values, key: pairs}
        return cls(**values)

    @property
    def walltime_seconds(self) -> int | None:
        """None for the queue's own, of which workers do not know."""
        return duration_seconds(self.walltime or "")

    @property
    def lifetime_seconds(self) -> int | None:
        """After which a worker ends by itself: the walltime would count against its tasks."""
        seconds = self.walltime_seconds
        if seconds is None:
            return None
        return max(seconds - LIFETIME_MARGIN_SECONDS, int(LIFETIME_SHARE * seconds))

    @property
    def stagger_seconds(self) -> int:
        """By which a worker may end earlier or later."""
        return ((self.walltime_seconds or 0) - (self.lifetime_seconds or 0)) // 4


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """The settings of commands that run tasks."""

    cluster: Cluster = setting(
        "local",
        help="Where to run: on this machine, or in jobs of a batch system, described in the "
        "cluster: section of --config.",
    )
    scheduler: str | None = setting(
        None,
        help="Run on the workers of this Dask scheduler instead: its address or its file.",
        metavar="ADDRESS|FILE",
    )
    jobs: str = setting(
        "1",
        help="How many batch jobs at a time: a number, or least and most, as there is work.",
        metavar="N|MIN:MAX",
    )
    tls: bool = setting(
        False,
        help="Encrypt what scheduler and workers say, and let nobody else in. With --scheduler, by "
        "the certificates of Dask's configuration.",
    )
    job: JobSettings = section("cluster", JobSettings.from_yaml, default=JobSettings())

    def __post_init__(self) -> None:
        check_settings(self)
        if self.scheduler is not None and self.cluster != "local":
            raise SettingsError(
                f"--scheduler {self.scheduler} with --cluster {self.cluster}: leave out one of them"
            )
        if self.scheduler is not None and (self.jobs != "1" or self.job != JobSettings()):
            raise SettingsError(
                f"--scheduler {self.scheduler}: its workers are there already; leave out "
                "--jobs and the section cluster:"
            )
        if self.is_here and self.job != JobSettings():
            raise SettingsError(
                "cluster: the section does not say of which batch system; add kind: slurm, for "
                "instance, or give --cluster slurm"
            )
        least, most = self.num_jobs
        if not 1 <= least <= most:
            raise SettingsError(f"--jobs {self.jobs!r}: it must be N or MIN:MAX, at least 1")

        if self.is_here and self.jobs != "1":
            raise SettingsError(
                f"--jobs {self.jobs}: there are jobs with --cluster slurm, for instance; on this "
                "machine, give --workers"
            )

    @property
    def is_here(self) -> bool:
        """Whether the workers are this machine's own processes."""
        return self.cluster == "local" and self.scheduler is None

    @property
    def num_jobs(self) -> tuple[int, int]:
        """The least and the most; zeros for what is no number."""
        words = self.jobs.split(":")
        if len(words) > 2 or not all(word.isdecimal() for word in words):
            return 0, 0
        return int(words[0]), int(words[-1])


def workers_per_job(job: JobSettings, num_workers: int | None) -> int:
    """One for each GPU; without, one for each core, unless so many are asked for."""
    return num_workers or job.gpus or job.cores


def cluster_arguments(
    system: BatchSystem, job: JobSettings, num_workers: int | None, logs: str
) -> dict[str, Any]:
    """What dask-jobqueue's class of a batch system is made with.

    Args:
        system: which.
        job: what each job is given.
        num_workers: worker processes of a job; by default, one per GPU or core.
        logs: folder of the jobs' logs.
    """
    environment = {**ENVIRONMENT, **dict(job.env)}
    options = ["--memory-limit", "0", "--no-dashboard"]  # the batch system limits memory
    if job.gpus:
        options += ["--resources", "GPU=1"]
    if job.lifetime_seconds is not None:
        # Not all at the same time, that some are there to take the others' tasks.
        options += ["--lifetime", f"{job.lifetime_seconds}s"]
        options += ["--lifetime-stagger", f"{job.stagger_seconds}s"]
    processes = workers_per_job(job, num_workers)
    arguments: dict[str, Any] = {
        "cores": processes * THREADS_PER_WORKER,  # Dask's: what they compute on is said below
        "memory": job.memory,
        "processes": processes,
        "job_name": "vtnpipe",
        "log_directory": logs,
        "interface": job.interface,
        "worker_extra_args": options,
        "job_script_prologue": [
            *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
            *job.prologue,
        ],
        "job_extra_directives": list(job.directives),
    }
    if job.python:
        arguments["python"] = job.python
    if system == "htcondor":
        return arguments | _htcondor_arguments(job)
    arguments |= {"queue": job.queue, "walltime": _walltime(system, job)}
    arguments["account" if system in ("slurm", "pbs") else "project"] = job.account
    directives = arguments["job_extra_directives"]
    if system == "slurm":
        arguments["job_cpu"] = job.cores
        if job.gpus:
            directives.insert(0, f"--gres=gpu:{job.gpus}")
    elif system == "pbs":
        memory = job.memory.replace(" ", "").replace("i", "").lower()
        gpus = f":ngpus={job.gpus}" if job.gpus else ""
        arguments["resource_spec"] = f"select=1:ncpus={job.cores}:mem={memory}{gpus}"
    elif system == "lsf":
        arguments["ncpus"] = job.cores
        if job.gpus:
            directives.insert(0, f'-gpu "num={job.gpus}"')
    elif job.gpus:
        directives.insert(0, f"-l gpu={job.gpus}")
    return arguments


def _walltime(system: BatchSystem, job: JobSettings) -> str | None:
    """As the system reads it: HOURS:MINUTES:SECONDS, LSF without seconds."""
    if job.walltime_seconds is None:
        return None
    minutes, seconds = divmod(job.walltime_seconds, 60)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return text if system == "lsf" else f"{text}:{seconds:02d}"


def _htcondor_arguments(job: JobSettings) -> dict[str, Any]:
    """HTCondor has no queues, and its directives are pairs."""
    pairs: dict[str, Any] = {"RequestCpus": job.cores}
    for line in job.directives:
        name, sign, value = line.partition("=")
        if not sign:
            raise SettingsError(f"cluster: directives {line!r}: HTCondor's must be NAME = VALUE")
        pairs[name.strip()] = value.strip()
    if job.account:
        pairs["accounting_group"] = job.account
    if job.gpus:
        pairs["request_gpus"] = job.gpus
    if job.walltime_seconds is not None:
        pairs["+MaxRuntime"] = job.walltime_seconds
    if job.queue:
        raise SettingsError(f"cluster: queue {job.queue!r}: HTCondor has none; leave it out")
    return {"disk": HTCONDOR_DISK, "job_extra_directives": pairs}
