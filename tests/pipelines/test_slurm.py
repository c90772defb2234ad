"""On a real SLURM: `.ci/slurm && pytest -m slurm`."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import cli_environment, run_cli
from feature_folders import made_up_features
from numbered_videos import write_video
from same_plan import assert_equal

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

MEANS = (
    *("--backbone", "toy_backbones:slow_mixer", "--weights", "none", "--feature-dtype", "float32"),
    # The same plan and the same bits wherever it is made.
    *("--precision", "float32", "--batch-size", "16", "--shard-frames", "250"),
)
CLUSTER = "cluster:\n  kind: slurm\n  cores: 1\n  memory: 1GiB\n  interface: lo\n"


def slurm(*command: object) -> str:
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return ran.stdout


def running_jobs() -> list[str]:
    return slurm("squeue", "-h", "--me", "-t", "running", "-o", "%i").split()


def state(job: str) -> str:
    found = re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))
    assert found
    return found[1]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a long video and some short ones: 12,500 frames."""
    folder = tmp_path_factory.mktemp("videos")
    rows = ["video_id,path,label,split"]
    for number, num_frames in enumerate((10_000, *(250,) * 10)):
        write_video(folder / f"{number}.mp4", num_frames)
        rows.append(f"v{number},{number}.mp4,{'ab'[number % 2]},train")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    return folder / "m.csv"


@pytest.fixture(scope="module")
def local(manifest: Path) -> Path:
    """The features that this machine makes of it by itself."""
    run_cli(manifest.parent, "extract", manifest, "local", *MEANS)
    return manifest.with_name("local")


def num_shards(folder: Path) -> int:
    return len(list(folder.glob("shards/*.h5")))


def run_on_cluster(
    manifest: Path,
    folder: Path,
    happens: Callable[["subprocess.Popen[str]"], object],
    *command: str,
    milliseconds: int = 5,
    code: int = 0,
) -> str:
    """Starts `vtnpipe extract MANIFEST f` on the cluster, lets something happen to it, and waits;
    what it printed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "vtnpipe", "extract", str(manifest), "f", *MEANS, *command],
        cwd=folder,
        env=cli_environment(TOY_MILLISECONDS=str(milliseconds)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        happens(process)
        printed, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, printed
    return printed


def test_jobs_that_are_cancelled_and_that_hit_their_walltime(
    tmp_path: Path, manifest: Path, local: Path
) -> None:
    # The walltime is one that the workers don't know, so it does end them in mid-task.
    section = CLUSTER.replace("cores: 1", "cores: 2") + '  directives: ["--time=1"]\n'
    (tmp_path / "c.yaml").write_text(section)
    ended: list[str] = []

    def cancel_one(process: "subprocess.Popen[str]") -> None:
        wait_until(lambda: num_shards(tmp_path / "f") > 0)
        ended.extend(running_jobs())
        slurm("scancel", *ended)
        wait_until(replacements)
        ended.extend(replacements())

    def replacements() -> list[str]:
        return [job for job in running_jobs() if job not in ended]

    # SLURM looks every half minute: the work takes two workers over 90 seconds.
    command = ("--config", "c.yaml")
    printed = run_on_cluster(manifest, tmp_path, cancel_one, *command, milliseconds=15)
    assert "workers: 2 on 1 hosts" in printed
    assert [state(job) for job in ended] == ["CANCELLED", "TIMEOUT"]
    assert_equal(tmp_path / "f", local)
    assert not running_jobs()


def test_workers_end_before_their_walltime_and_jobs_grow_with_the_work(
    tmp_path: Path, manifest: Path, local: Path
) -> None:
    # SLURM counts in minutes; the workers end after four fifths of these seconds.
    (tmp_path / "c.yaml").write_text(CLUSTER + '  walltime: "0:25"\n')
    seen: set[str] = set()

    def watch(process: "subprocess.Popen[str]") -> None:
        wait_until(lambda: seen.update(running_jobs()) or len(seen) > 3)

    command = ("--config", "c.yaml", "--jobs", "1:2", "--tls")
    printed = run_on_cluster(manifest, tmp_path, watch, *command, milliseconds=3)
    assert "up to 2" in printed
    assert {state(job) for job in seen} <= {"COMPLETED", "CANCELLED"}  # by vtnpipe, once idle
    logs = [path.read_text() for path in (tmp_path / "f/jobs").glob("*.err")]
    assert sum("lifetime" in log for log in logs) > 1
    assert_equal(tmp_path / "f", local)


def test_jobs_that_can_never_work_end_the_command(tmp_path: Path, manifest: Path) -> None:
    nothing = lambda process: None  # noqa: E731
    command = ("--config", "c.yaml")
    (tmp_path / "c.yaml").write_text(CLUSTER + "  queue: nowhere\n")
    printed = run_on_cluster(manifest, tmp_path, nothing, *command, code=2)
    assert "a job can't be submitted" in printed
    assert "invalid partition" in printed
    (tmp_path / "c.yaml").write_text(CLUSTER + '  prologue: ["exit 1"]\n')
    printed = run_on_cluster(manifest, tmp_path, nothing, *command, code=2)
    assert "3 jobs in a row ended before their workers came" in printed
    assert not list((tmp_path / "f").glob("shards/*"))


def submit(folder: Path, template: str, *options: str, **changes: str) -> str:
    """Submits a template in which a person has changed something; the job's number."""
    text = run_cli(folder, "cluster", "template", template).stdout
    for old, new in {"--cpus-per-task=8": "--cpus-per-task=1", "--mem=32G": "--mem=1G"}.items():
        assert old in text
        text = text.replace(old, new)
    for name, value in changes.items():
        text, count = re.subn(rf"^{name}=.*", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1
    (folder / "job.slurm").write_text(text)
    ran = subprocess.run(
        ["sbatch", "--parsable", *options, "job.slurm"],
        cwd=folder,
        env=cli_environment(
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", TOY_MILLISECONDS="2"
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def is_over(job: str) -> bool:
    """Whether a job, or all of an array, is neither at work nor in the queue."""
    states = slurm("squeue", "-h", "-j", job, "-t", "all", "-o", "%T").split()
    return set(states) <= {"COMPLETED", "CANCELLED", "FAILED"}


def start_again(job: str) -> None:
    """A requeued job, which would wait two minutes; not at once, as a node refuses one that it has
    ended in the same second.
    """
    time.sleep(3)
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_a_command_that_is_stopped_cancels_its_jobs(tmp_path: Path, manifest: Path) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER)

    def stop(process: "subprocess.Popen[str]") -> None:
        wait_until(lambda: num_shards(tmp_path / "f") > 0)
        process.terminate()

    run_on_cluster(manifest, tmp_path, stop, "--config", "c.yaml", "--jobs", "2", code=3)
    wait_until(lambda: not running_jobs(), 10)


def test_extraction_that_is_warned_of_its_walltime_is_requeued(
    tmp_path: Path, manifest: Path, local: Path
) -> None:
    changes = {"MANIFEST": str(manifest), "FEATURES": "f", "OPTIONS": f"({' '.join(MEANS)})"}
    job = submit(tmp_path, "extract", **changes)
    wait_until(lambda: num_shards(tmp_path / "f") > 2)
    slurm("scancel", "--batch", "--signal=USR1", job)  # as SLURM does before the walltime
    wait_until(lambda: state(job) == "PENDING", 60)
    assert not (tmp_path / "f/report.json").exists()
    start_again(job)
    wait_until(lambda: is_over(job), 200)
    assert state(job) == "COMPLETED"
    assert_equal(tmp_path / "f", local)


def test_array_with_a_part_that_is_killed_and_submitted_again(
    tmp_path: Path, manifest: Path, local: Path
) -> None:
    changes = {"MANIFEST": str(manifest), "FEATURES": "f", "OPTIONS": f"({' '.join(MEANS)})"}
    changes["PARTS"] = "2"
    array = submit(tmp_path, "extract-array", "--array=1-2", **changes)
    wait_until(lambda: num_shards(tmp_path / "f") > 2)
    slurm("scancel", f"{array}_2")
    wait_until(lambda: is_over(array), 200)
    assert not (tmp_path / "f/report.json").exists()
    assert (
        "tasks have no shard"
        in run_cli(tmp_path, "extract", manifest, "f", *MEANS, "--finish", code=3).stderr
    )
    again = submit(tmp_path, "extract-array", "--array=2", **changes)
    wait_until(lambda: is_over(again), 200)
    assert state(again) == "COMPLETED"
    assert (tmp_path / "f/report.json").exists()
    assert_equal(tmp_path / "f", local)


def test_training_that_is_requeued_ends_with_the_same_weights(tmp_path: Path) -> None:
    labels = {
        split: {f"{split}{n}": "abc"[n % 3] for n in range(count)}
        for split, count in (("train", 60), ("val", 6))
    }
    made_up_features(tmp_path / "f", labels)
    options = "--layers 1 --heads 2 --intermediate 16 --head-dim 8 --epochs 150 --device cpu"
    train = ("train-temporal", "f")
    run_cli(tmp_path, *train, "here", *options.split())
    metrics = tmp_path / "there/metrics.jsonl"

    def num_epochs() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    job = submit(tmp_path, "train", COMMAND=f"({' '.join(train)} there {options})")
    wait_until(lambda: num_epochs() > 3)
    slurm("scontrol", "requeue", job)
    wait_until(lambda: state(job) == "PENDING", 30)
    assert num_epochs() < 140
    start_again(job)
    before = num_epochs()
    wait_until(lambda: num_epochs() > before + 3)
    slurm("scancel", "--batch", "--signal=USR1", job)  # as SLURM does before the walltime
    wait_until(lambda: state(job) == "PENDING", 60)
    assert num_epochs() < 150
    start_again(job)
    wait_until(lambda: is_over(job), 200)
    log = next(tmp_path.glob("vtnpipe-train-*.log")).read_text()
    assert state(job) == "COMPLETED", log
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
