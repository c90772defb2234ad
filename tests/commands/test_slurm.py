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
    # The same plan and the same bits on every machine.
    *("--device", "cpu", "--precision", "float32", "--batch-size", "16", "--shard-frames", "250"),
)
CLUSTER = "cluster:\n  kind: slurm\n  cores: 1\n  memory: 1GiB\n  interface: lo\n"
ABSENT_SECONDS = 120  # without workers, after which a command stops


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
        assert time.monotonic() < end, "timeout"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of a long video and some short ones: 12,500 frames."""
    folder = tmp_path_factory.mktemp("videos")
    rows = ["video_id,path,label,split"]
    for number, num_frames in enumerate((10_000, *(250,) * 10)):
        write_video(folder / f"{number}.mp4", num_frames)
        rows.append(f"v{number},{number}.mp4,{'ab'[number % 2]},train")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    return folder / "m.csv"


@pytest.fixture(scope="module")
def local(manifest: Path) -> Path:
    """Features that this machine extracts from it by itself."""
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
    """Run `vtnpipe extract MANIFEST f` on the cluster while something happens to it; return its
    output.
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


def test_a_cancelled_job_leaves_its_tasks_to_the_others(
    tmp_path: Path, manifest: Path, local: Path
) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER)
    jobs: list[str] = []

    def cancel_one(process: "subprocess.Popen[str]") -> None:
        wait_until(lambda: num_shards(tmp_path / "f") > 0)
        jobs.extend(running_jobs())
        slurm("scancel", jobs[0])

    command = ("--config", "c.yaml", "--jobs", "2", "--tls")
    printed = run_on_cluster(manifest, tmp_path, cancel_one, *command)
    assert "slurm: submitted 2 jobs" in printed
    assert "workers: 2 (on 1 hosts)" in printed
    assert len(jobs) == 2
    assert state(jobs[0]) == "CANCELLED"
    assert_equal(tmp_path / "f", local)
    wait_until(lambda: not running_jobs(), 10)


def test_without_workers_the_command_stops_and_the_same_command_resumes(
    tmp_path: Path, manifest: Path, local: Path
) -> None:
    """Both jobs are cancelled in the middle of their tasks."""
    config = tmp_path / "c.yaml"
    config.write_text(CLUSTER)
    jobs: list[str] = []
    ended = 0.0

    def wait_for_the_end(process: "subprocess.Popen[str]") -> None:
        nonlocal ended
        wait_until(lambda: num_shards(tmp_path / "f") > 0)
        jobs.extend(running_jobs())
        slurm("scancel", *jobs)
        wait_until(lambda: not running_jobs())
        ended = time.monotonic()

    command = ("--config", "c.yaml", "--jobs", "2")
    printed = run_on_cluster(
        manifest, tmp_path, wait_for_the_end, *command, milliseconds=25, code=3
    )
    assert ABSENT_SECONDS - 15 < time.monotonic() - ended < ABSENT_SECONDS + 60
    assert "all workers have gone; the same command resumes" in printed
    assert [state(job) for job in jobs] == ["CANCELLED", "CANCELLED"]
    num_done = num_shards(tmp_path / "f")
    assert f"{num_done} of {len(list((local / 'shards').iterdir()))} tasks are finished" in printed
    shards = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("f/shards/*.h5")}
    config.write_text(CLUSTER)
    run_on_cluster(manifest, tmp_path, lambda process: None, *command, milliseconds=1)
    for name, mtime in shards.items():
        assert (tmp_path / "f/shards" / name).stat().st_mtime_ns == mtime
    assert_equal(tmp_path / "f", local)
    assert not running_jobs()


def test_a_job_that_slurm_refuses_ends_the_command(tmp_path: Path, manifest: Path) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER + "  queue: nowhere\n")
    command = ("--config", "c.yaml", "--jobs", "2")
    printed = run_on_cluster(manifest, tmp_path, lambda process: None, *command, code=2)
    assert "--cluster slurm: cannot submit a job" in printed
    assert "invalid partition" in printed
    assert not list((tmp_path / "f").glob("shards/*"))
    assert not running_jobs()


def test_jobs_that_end_before_their_workers_connect_are_reported(
    tmp_path: Path, manifest: Path
) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER + '  job_script_prologue: ["exit 1"]\n')
    lines: list[str] = []

    def stop(process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        while "no worker has connected for" not in "".join(lines[-1:]):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        process.terminate()

    run_on_cluster(manifest, tmp_path, stop, "--config", "c.yaml", code=3)
    assert "f/jobs" in lines[-1]
    assert list((tmp_path / "f/jobs").glob("*.err"))


def submit(folder: Path, template: str, *options: str, **changes: str) -> str:
    """Submit a template with some variables changed; return the job's number."""
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
    """Return whether a job, or each of an array, is neither running nor in the queue."""
    states = slurm("squeue", "-h", "-j", job, "-t", "all", "-o", "%T").split()
    return set(states) <= {"COMPLETED", "CANCELLED", "FAILED"}


def start_again(job: str) -> None:
    """Start a requeued job, which would wait two minutes.

    It waits three seconds first: a node refuses a job that it has ended in the same second.
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
