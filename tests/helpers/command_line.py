"""The real command line, in a process of its own."""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

Vtnpipe = Callable[..., "subprocess.CompletedProcess[str]"]
HELPERS = Path(__file__).parent


def cli_environment(**changes: str) -> dict[str, str]:
    """An environment in which the toy backbones can be imported.

    Commands compute in one thread, or two of them would not always give the same bits: Dask says so
    in the environment of a test process that has had workers, and else nothing does.
    """
    own = {"PYTHONPATH": str(HELPERS), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **changes}


@cache
def _server() -> "subprocess.Popen[str]":
    """What begins commands without their seconds of importing torch."""
    server = subprocess.Popen(
        [sys.executable, str(HELPERS / "command_server.py")],
        env=cli_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # without more lines it ends
    return server


def run_cli(
    folder: Path, *arguments: object, code: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    """Runs `vtnpipe` in a folder, and checks its exit code."""
    words = [str(argument) for argument in arguments]
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with TemporaryDirectory() as outputs:
        output, errors = (Path(outputs) / name for name in ("output", "errors"))
        command = (str(folder), words, cli_environment(), str(output), str(errors))
        try:
            print(json.dumps(command), file=server.stdin, flush=True)
            returned = int(server.stdout.readline())
        except BaseException:  # the test's time is over: its command must not outlive it
            for process in psutil.Process(server.pid).children(recursive=True):
                process.kill()
            server.kill()
            _server.cache_clear()
            raise
        ran = subprocess.CompletedProcess(words, returned, output.read_text(), errors.read_text())
    if code is not None:
        assert ran.returncode == code, ran.stdout + ran.stderr
    return ran
