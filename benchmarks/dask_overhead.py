"""Dask's cost per task of stage one: empty tasks, scheduled as by `vtnpipe extract --scheduler`.

    python benchmarks/dask_overhead.py            # 1,000, 10,000 and 100,000 tasks: 10 minutes
    python benchmarks/dask_overhead.py --quick    # 1,000 tasks; writes no result

Scheduler and workers are separate processes, so that the scheduler's CPU time and memory can be
distinguished from the client's. As many tasks are submitted ahead as keep `num_ahead` workers busy.
"""

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from measure import finish
from vtnpipe.extract.task import TaskReport, WorkerSettings
from vtnpipe.manifests.plan import Computation, PlannedRow, Task
from vtnpipe.pipelines.dask_cluster.client import open_client
from vtnpipe.pipelines.dask_cluster.jobqueue import THREADS_PER_WORKER, ClusterSettings
from vtnpipe.pipelines.extraction import scheduler as scheduling

NUM_TASKS = (1_000, 10_000, 100_000)
NUM_WORKERS = 2
NUM_ROWS = 20  # rows per task: short videos
TASK_SECONDS = 90.0  # duration of a real task on one core, see `TASK_FRAMES` of the planning


def do_nothing(task: Task, settings: WorkerSettings, topic: str) -> TaskReport:
    """Replace the work of a task."""
    return TaskReport(task=task.name)


def made_up_tasks(num_tasks: int) -> list[Task]:
    """Return tasks of short videos."""
    return [
        Task(
            name=f"000-{number:05d}",
            rows=tuple(
                PlannedRow(
                    video_id=f"video-{number}-{row}",
                    path=f"/data/videos/{number}/{row}.mp4",
                    start=None,
                    end=None,
                    size=1_000_000,
                    mtime_ns=10**18,
                    num_frames=250,
                )
                for row in range(NUM_ROWS)
            ),
            computation=Computation(32),
        )
        for number in range(num_tasks)
    ]


def run(num_tasks: int, num_ahead: int) -> dict[str, Any]:
    """Run so many tasks on a new scheduler; return times and memory."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        file = folder / "scheduler.json"

        def start(*command: str) -> psutil.Process:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--no-dashboard", "--host", "127.0.0.1"],
                stderr=subprocess.DEVNULL,
                cwd=folder,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return psutil.Process(process.pid)

        scheduler = start("distributed.cli.dask_scheduler", "--scheduler-file", str(file))
        for _ in range(NUM_WORKERS):
            worker = f"distributed.cli.dask_worker --scheduler-file {file} --memory-limit 0"
            start(*worker.split(), "--nthreads", str(THREADS_PER_WORKER))
        wait = f"import distributed as d; d.Client(scheduler_file='{file}').wait_for_workers(2)"
        subprocess.run([sys.executable, "-c", wait], check=True, timeout=120)
        settings = WorkerSettings(
            folder="/features", device="cpu", num_threads=1, num_decoder_processes=1
        )
        tasks = made_up_tasks(num_tasks)
        with open_client(ClusterSettings(scheduler=str(file))) as client:

            def feed(tasks: list[Task]) -> int:
                reports: list[TaskReport] = []
                scheduling.run_tasks(
                    client,
                    tasks,
                    settings,
                    num_workers=num_ahead,
                    on_progress=lambda progress: None,
                    on_finished=reports.append,
                )
                return len(reports)

            feed(made_up_tasks(20))  # scheduler and workers import their modules
            memory, processor = scheduler.memory_info().rss, scheduler.cpu_times()
            own = time.process_time()
            begun = time.perf_counter()
            num_done = feed(tasks)
            seconds = time.perf_counter() - begun
            spent = scheduler.cpu_times()
            assert num_done == num_tasks
            scheduler_seconds = spent.user + spent.system - processor.user - processor.system
            return {
                "tasks": num_tasks,
                "workers_ahead": num_ahead,
                "seconds": round(seconds, 2),
                "ms_per_task": round(1e3 * seconds / num_tasks, 3),
                "scheduler_cpu_ms_per_task": round(1e3 * scheduler_seconds / num_tasks, 3),
                "client_cpu_ms_per_task": round(1e3 * (time.process_time() - own) / num_tasks, 3),
                "scheduler_mib_before": round(memory / 2**20, 1),
                "scheduler_mib_after": round(scheduler.memory_info().rss / 2**20, 1),
            }


def main() -> None:
    """Measure each number of tasks, with few and with many ahead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    scheduling._run_on_worker = do_nothing
    runs = [
        run(num_tasks, num_ahead)
        for num_tasks in (NUM_TASKS[:1] if quick else NUM_TASKS)
        for num_ahead in (NUM_WORKERS, 1_000)
        if num_tasks <= 10_000 or num_ahead == 1_000  # as for a thousand workers
    ]
    worst = max(one["ms_per_task"] for one in runs)
    result = {
        "runs": runs,
        "task_seconds": TASK_SECONDS,
        "workers_that_one_scheduler_feeds": int(TASK_SECONDS / (worst / 1e3)),
    }
    if quick:
        print(result)
    else:
        finish("dask_overhead", result)


if __name__ == "__main__":
    main()
