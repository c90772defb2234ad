"""A real extraction whose processes are killed at random moments, compared with an undisturbed one.

    python tests/helpers/fault_harness.py --kills 200 --json result.json

Decoder processes, workers, the command itself and, in every other round, a scheduler in a process
of its own are killed; each time the command ends, it is run again. A round ends when the extraction
is finished, and must then be equal, bit for bit, to an undisturbed run of the same plan.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from command_line import cli_environment, run_cli
from numbered_videos import write_video
from vtnpipe.manifests.feature_store import open_features

OPTIONS = (
    *("--backbone", "toy_backbones:slow_mixer", "--weights", "none", "--feature-dtype", "float32"),
    *("--device", "cpu", "--precision", "float32"),
    *("--batch-size", "16", "--threads", "1", "--shard-frames", "150"),
)
TARGETS = (*("decoder", "worker") * 3, "main", "stop")
MARK = "VTNPIPE_FAULTS"  # in the environment of every process of a run
SECONDS_BETWEEN = (0.3, 3.5)
ROUND_SECONDS = 1200.0
KILLS_PER_ROUND = 16
FRAME_MILLISECONDS = "10"


@dataclass
class Tally:
    """Counts over all rounds.

    Attributes:
        kills: number of kills by target.
        num_commands: number of commands.
        num_rounds: number of finished rounds, whose features were equal.
        num_again: number of videos whose decoder process was killed twice, and that were extracted
            again with --retry.
    """

    kills: Counter[str] = field(default_factory=Counter)
    num_commands: int = 0
    num_rounds: int = 0
    num_again: int = 0


def draw(folder: Path, num_videos: int = 24) -> None:
    """Write a long video, which is cut into parts, and short ones, with their manifest m.csv."""
    rows = ["video_id,path,label,split"]
    for number in range(num_videos):
        write_video(folder / f"{number}.mp4", 1200 if number == 0 else 60 + 10 * (number % 7))
        rows.append(f"v{number},{number}.mp4,{'ab'[number % 2]},train")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")


def family(mark: str) -> list[psutil.Process]:
    """Return the living processes of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_decoder(process: psutil.Process) -> bool:
    """Return whether it is a decoder process."""
    return any("vtnpipe.extract.decode.process" in word for word in process.cmdline())


def is_worker(process: psutil.Process) -> bool:
    """Return whether it is a Dask worker itself, which its nanny started."""
    command = " ".join(process.cmdline())
    return "multiprocessing.spawn" in command or "multiprocessing.forkserver" in command


class Cluster:
    """A scheduler and two workers, in processes of their own."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.file = folder / "scheduler.json"
        self.file.unlink(missing_ok=True)
        environment = cli_environment(**{MARK: mark, "TOY_MILLISECONDS": FRAME_MILLISECONDS})

        def start(*command: str) -> "subprocess.Popen[bytes]":
            where = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(self.file))
            return subprocess.Popen(
                [sys.executable, "-m", *command, *where],
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
            )

        self.scheduler = start("distributed.cli.dask_scheduler")
        workers = ("--nthreads", "2", "--memory-limit", "0", "--no-dashboard")
        self.workers = [start("distributed.cli.dask_worker", *workers) for _ in range(2)]
        wait = f"import distributed as d; d.Client(scheduler_file={str(self.file)!r})"
        subprocess.run(
            [sys.executable, "-c", f"{wait}.wait_for_workers(2)"], check=True, timeout=60
        )

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.terminate()
        for process in (*self.workers, self.scheduler):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def choose(processes: Sequence[psutil.Process], target: str) -> list[psutil.Process]:
    """Return the processes that are such a target."""
    tests: dict[str, Callable[[psutil.Process], bool]] = {
        "decoder": is_decoder,
        "worker": lambda one: is_worker(one) and any(map(is_decoder, one.children())),
    }
    found = []
    for process in processes:
        try:
            if tests[target](process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def run_round(
    folder: Path, draws: random.Random, tally: Tally, targets: Sequence[str], *, with_cluster: bool
) -> None:
    """Run the extraction to its end, while kills hit it as long as there are targets.

    Args:
        folder: contains m.csv, and `whole`, which the run must equal in the end.
        draws: random numbers for moments and processes.
        tally: counts, which are increased.
        targets: what is killed, in this order.
        with_cluster: run scheduler and workers in processes of their own.
    """
    killed, whole = folder / "killed", folder / "whole"
    shutil.rmtree(killed, ignore_errors=True)
    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("*.h5", "report.json"))
    queue = list(targets)
    deadline = time.monotonic() + ROUND_SECONDS
    code, cluster = -1, None
    while code not in (0, 1):
        assert time.monotonic() < deadline, "the round has no end"
        mark = f"{folder}-{tally.num_commands}"
        tally.num_commands += 1
        if with_cluster and cluster is None:
            cluster = Cluster(folder, mark + "-cluster")
            cluster_mark = mark + "-cluster"
        where = ("--scheduler", str(cluster.file)) if cluster else ("--workers", "2")
        with (folder / "log.txt").open("a") as log:
            command = subprocess.Popen(
                [sys.executable, "-m", "vtnpipe", "extract", "m.csv", "killed", *OPTIONS, *where],
                cwd=folder,
                env=cli_environment(**{MARK: mark, "TOY_MILLISECONDS": FRAME_MILLISECONDS}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        is_scheduler_killed = False
        while command.poll() is None:
            assert time.monotonic() < deadline, "the command has no end"
            try:
                command.wait(draws.uniform(*SECONDS_BETWEEN))
                break
            except subprocess.TimeoutExpired:
                pass
            if not queue:
                continue
            target = queue[0]
            if target in ("main", "stop"):
                command.send_signal(signal.SIGKILL if target == "main" else signal.SIGTERM)
            elif target == "scheduler":
                if cluster is None:
                    queue.pop(0)
                    continue
                cluster.scheduler.kill()
                is_scheduler_killed = True
            else:
                marks = [mark] if cluster is None else [mark, cluster_mark]
                living = [one for each in marks for one in family(each)]
                if not (found := choose(living, target)):
                    continue  # not started yet
                try:
                    draws.choice(found).kill()
                except psutil.Error:
                    continue
            tally.kills[queue.pop(0)] += 1
        code = command.wait()
        # -SIGTERM: before it handles the signal; 2: without a scheduler when it starts.
        expected = (
            0,
            1,
            3,
            -signal.SIGKILL,
            -signal.SIGTERM,
            *([2] if is_scheduler_killed else []),
        )
        assert code in expected, f"exit code {code}: {(folder / 'log.txt').read_text()[-3000:]}"
        if cluster is not None and (is_scheduler_killed or code in (0, 1)):
            cluster.end()
            cluster = None
            await_end(cluster_mark)
        await_end(mark)
    compare(folder, tally)
    tally.num_rounds += 1


def await_end(mark: str) -> None:
    """Wait until no process of a command is left, half a minute at most."""
    deadline = time.monotonic() + 30
    while left := family(mark):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


def compare(folder: Path, tally: Tally) -> None:
    """Compare every value and every file with those of the undisturbed run."""
    one = open_features(folder / "whole")
    again = {
        name for name, (_, reason) in open_features(folder / "killed").outcomes.items() if reason
    }
    if again:  # a video whose decoder process died twice counts as bad
        tally.num_again += len(again)
        run_cli(folder, "extract", "m.csv", "killed", *OPTIONS, "--retry", "crashed")
    run_cli(folder, "features", "verify", "killed")
    other = open_features(folder / "killed")
    assert list(one) == list(other)
    assert one.outcomes == other.outcomes
    for name in one:
        assert np.array_equal(one[name].frame_index, other[name].frame_index)
        assert np.array_equal(one[name].timestamps, other[name].timestamps)
        if name in again:  # its frames were in another batch
            np.testing.assert_allclose(one[name].features, other[name].features, atol=1e-5)
        else:
            assert one[name].features.tobytes() == other[name].features.tobytes()
    ours, theirs = (
        {str(path.relative_to(root)) for path in root.rglob("*")}
        for root in (folder / "whole", folder / "killed")
    )
    assert ours == theirs or again


def harness(folder: Path, num_kills: int, seed: int) -> Tally:
    """Run rounds until there were so many kills."""
    draws, tally = random.Random(seed), Tally()
    draw(folder)
    run_cli(folder, "extract", "m.csv", "whole", *OPTIONS, "--workers", "2")
    while tally.kills.total() < num_kills:
        with_cluster = tally.num_rounds % 2 == 1
        kinds = (*TARGETS, "scheduler") if with_cluster else TARGETS
        targets = [draws.choice(kinds) for _ in range(KILLS_PER_ROUND)]
        run_round(folder, draws, tally, targets, with_cluster=with_cluster)
        print(f"round {tally.num_rounds}: {dict(tally.kills)}", flush=True)
    return tally


def main() -> None:
    """Run the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    begun = time.monotonic()
    with TemporaryDirectory() as folder:
        tally = harness(Path(folder), arguments.kills, arguments.seed)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "kills": dict(tally.kills),
        "num_kills": tally.kills.total(),
        "commands": tally.num_commands,
        "rounds_equal_to_the_undisturbed_run": tally.num_rounds,
        "videos_tried_again": tally.num_again,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
