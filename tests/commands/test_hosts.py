"""Two hosts on one machine: network namespaces with their own addresses, and a shared folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import cli_environment, not_possible
from numbered_videos import write_video
from same_plan import assert_as_made_here

pytestmark = pytest.mark.hosts

MIXER = ("--backbone", "toy_backbones:mixer", "--weights", "none", "--feature-dtype", "float32")
# Where the workers are not on this machine, device and precision must be given.
MIXER += ("--device", "cpu", "--precision", "float32")
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two network namespaces that are connected to each other only."""
    names = [f"vtnpipe-{os.getpid()}-{number}" for number in range(2)]
    ends = [f"vtn{os.getpid() % 10**6}{end}" for end in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        not_possible(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_a_scheduler_on_one_host_and_workers_on_both(hosts: list[str], tmp_path: Path) -> None:
    rows = ["video_id,path,label,split"]
    for number in range(6):
        write_video(tmp_path / f"{number}.mp4", 200)
        rows.append(f"v{number},{number}.mp4,a,train")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    extract = ("extract", "m.csv", "f", *MIXER, "--shard-frames", "100")

    def on(host: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", hosts[host], sys.executable, *command]

    with ExitStack() as stack:

        def start(host: int, *command: str) -> None:
            process = subprocess.Popen(
                on(host, "-m", *command, "--host", ADDRESSES[host]),
                cwd=tmp_path,
                env=cli_environment(),
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start(0, "distributed.cli.dask_scheduler", "--scheduler-file", "s.json", "--no-dashboard")
        for host in range(2):
            worker = "distributed.cli.dask_worker --scheduler-file s.json --nthreads 2"
            start(host, *worker.split(), "--memory-limit", "0", "--no-dashboard")
        wait = "from distributed import Client; Client(scheduler_file='s.json').wait_for_workers(2)"
        subprocess.run(on(0, "-c", wait), cwd=tmp_path, check=True, timeout=60)
        ran = subprocess.run(
            on(1, "-m", "vtnpipe", *extract, "--scheduler", "s.json"),
            cwd=tmp_path,
            env=cli_environment(),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "workers: 2 (on 2 hosts)" in ran.stdout
    assert_as_made_here(tmp_path / "f", "m.csv", MIXER)
