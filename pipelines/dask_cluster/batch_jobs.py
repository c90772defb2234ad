"""Batch jobs of Dask workers: how many there are to be, which have been lost, which may end.

dask-jobqueue writes, submits and cancels them. Dask's own scaling counts single workers, and never
replaces a job whose workers have all gone while it believes that job to be there; so what is wanted
is decided here, a look a second, by the tasks that the scheduler has.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

LOOK_SECONDS = 1.0
ABSENT_SECONDS = 5.0  # without a worker, after which the batch system is asked for the job
LOST_SECONDS = 60.0  # without a worker that was there before; a crashed one is back sooner
IDLE_SECONDS = 10.0  # before a job that is not needed is cancelled
QUEUE_SECONDS = 10.0  # between looks at the batch system's queue
AGAIN_SECONDS = 60.0  # until a refused job is submitted again
MAX_STILLBORN = 3  # jobs that may end in a row before their workers have come


@dataclass
class _Job:
    """What is known of a job.

    Attributes:
        asked: when it was submitted.
        seen: when one of its workers was last there; None before the first was.
        busy: when one of them last had a task.
    """

    asked: float
    seen: float | None = None
    busy: float = 0.0


class JobKeeper:
    """Keeps between so many jobs, as there is work.

    Attributes:
        cluster: whose jobs they are.

    Args:
        cluster: dask-jobqueue's.
        system: its batch system.
        num_jobs: the least and the most.
        workers_per_job: processes of a job.
        say: is told of what goes wrong.
    """

    def __init__(
        self,
        cluster: Any,
        system: str,
        num_jobs: tuple[int, int],
        workers_per_job: int,
        say: Callable[[str], None],
    ) -> None:
        self.cluster = cluster
        self._system = system
        self._least, self._most = num_jobs
        self._workers_per_job = workers_per_job
        self._say = say
        self._jobs: dict[str, _Job] = {}
        self._num_submitted = 0
        self._num_stillborn = 0  # in a row
        self._queue_looked_at = time.monotonic()
        self._submit_from = 0.0

    async def look(self) -> None:
        """Looks at who is there, cancels and submits what that asks for; in the cluster's loop.

        Raises:
            OSError, RuntimeError: the batch system refuses a job.
        """
        now = time.monotonic()
        self._note_workers(now)
        lost = await self._lost(now)
        num_wanted = min(self._most, max(self._least, self._num_needed()))
        surplus = len(self._jobs) - len(lost) - num_wanted
        idle = [name for name in self._idle(now) if name not in lost]
        ended = lost | set(idle[: max(0, surplus)])
        for name in ended:
            del self._jobs[name], self.cluster.worker_spec[name]
        if ended:
            await self.cluster._correct_state()
        if len(self._jobs) < num_wanted and now >= self._submit_from:
            await self._submit(num_wanted - len(self._jobs), now)

    async def go_on(self) -> None:
        """Looks, once work has begun: what is refused then is said, and tried again."""
        try:
            await self.look()
        except (OSError, RuntimeError) as error:
            self._submit_from = time.monotonic() + AGAIN_SECONDS
            self._say(f"{self._system} refuses another job: {in_a_line(error)}; it is asked again")

    def check(self) -> str:
        """Why no worker will come; empty as long as one may."""
        if self._num_stillborn < MAX_STILLBORN:
            return ""
        return f"{self._num_stillborn} jobs in a row ended before their workers came"

    def _note_workers(self, now: float) -> None:
        for worker in self.cluster.scheduler.workers.values():
            for name in (str(worker.name), str(worker.name).rpartition("-")[0]):
                job = self._jobs.get(name)
                if job is not None:
                    if job.seen is None:
                        self._num_stillborn = 0
                    job.seen = now
                    if worker.processing:
                        job.busy = now

    def _num_needed(self) -> int:
        """Jobs for the tasks that are not finished, one a worker."""
        tasks = self.cluster.scheduler.tasks.values()
        num_left = sum(task.state not in ("memory", "released", "erred") for task in tasks)
        return ceil(num_left / self._workers_per_job)

    def _idle(self, now: float) -> list[str]:
        """Jobs that may be cancelled, those without workers yet first."""
        may_end = [
            (job.seen is not None, name)
            for name, job in self._jobs.items()
            if now - max(job.busy, job.asked) > IDLE_SECONDS
        ]
        return [name for _, name in sorted(may_end)]

    async def _lost(self, now: float) -> set[str]:
        """Jobs that are no more: cancelled, preempted, failed, at their workers' lifetime's end."""
        absent = {
            name: now - (job.asked if job.seen is None else job.seen)
            for name, job in self._jobs.items()
        }
        lost = {
            name
            for name, seconds in absent.items()
            if seconds > LOST_SECONDS and self._jobs[name].seen is not None
        }
        asked_for = {name for name, seconds in absent.items() if seconds > ABSENT_SECONDS} - lost
        if asked_for and now - self._queue_looked_at > QUEUE_SECONDS:
            self._queue_looked_at = now
            queue = await self._queue()
            if queue is not None:
                jobs = self.cluster.workers
                gone = {name for name in asked_for if str(jobs[name].job_id) not in queue}
                lost |= gone
                num_stillborn = sum(self._jobs[name].seen is None for name in gone)
                self._num_stillborn += num_stillborn
                if num_stillborn:
                    self._say(f"{num_stillborn} jobs ended before their workers came: see the logs")
        return lost

    async def _queue(self) -> set[str] | None:
        """The ids of one's jobs that wait or run; None where that is not known.

        Only SLURM is asked. Of other systems' jobs, those whose workers never came stay.
        """
        if self._system != "slurm":
            return None
        process = await asyncio.create_subprocess_exec(
            *("squeue", "--me", "--noheader", "--format=%A"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        queued, _ = await process.communicate()
        return set(queued.decode().split()) if process.returncode == 0 else None

    async def _submit(self, number: int, now: float) -> None:
        names = []
        for _ in range(number):  # under a new name: Dask may still know the last one's workers
            name = self.cluster._new_worker_name(self._num_submitted)
            self._num_submitted += 1
            self.cluster.worker_spec[name] = self.cluster.new_spec
            names.append(name)
        try:
            await self.cluster._correct_state()
        except (OSError, RuntimeError):
            for name in names:
                self.cluster.worker_spec.pop(name)
            await self.cluster._correct_state()
            for job in list(self.cluster._created):  # or closing would wait for its end
                if job.job_id is None:
                    self.cluster._created.discard(job)
            raise
        self._jobs.update({name: _Job(now) for name in names})


def in_a_line(error: BaseException) -> str:
    """What a batch system's command said, without the command."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = lines[lines.index("stderr:") + 1 :] if "stderr:" in lines else lines
    return "; ".join(said) or type(error).__name__
