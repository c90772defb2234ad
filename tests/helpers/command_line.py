"""The real command line, in a process of its own."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

Vtnpipe = Callable[..., "subprocess.CompletedProcess[str]"]
HELPERS = Path(__file__).parent
SECONDS = 280  # for one command

# Commands are forked from a process that has imported what is not vtnpipe's and takes seconds.
_commands = multiprocessing.get_context("forkserver")
_commands.set_forkserver_preload(["torch", "timm", "distributed"])


def cli_environment(**changes: str) -> dict[str, str]:
    """An environment in which the toy backbones can be imported."""
    return {**os.environ, "PYTHONPATH": str(HELPERS), "NO_COLOR": "1", **changes}


def run_cli(
    folder: Path, *arguments: object, code: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    """Runs `vtnpipe` in a folder, and checks its exit code."""
    words = ["vtnpipe", *map(str, arguments)]
    with TemporaryDirectory() as outputs:
        paths = [Path(outputs) / name for name in ("stdout", "stderr")]
        process = _commands.Process(target=_command, args=(folder, words, cli_environment(), paths))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        stdout, stderr = (path.read_text() for path in paths)
    ran = subprocess.CompletedProcess(words, process.exitcode or 0, stdout, stderr)
    if code is not None:
        assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def _command(
    folder: Path, words: list[str], environment: dict[str, str], outputs: list[Path]
) -> None:
    """Does in a forked process what `python -m vtnpipe` does in one that is begun."""
    for number, path in enumerate(outputs, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[:0] = [str(folder), *environment["PYTHONPATH"].split(os.pathsep)]
    try:
        runpy.run_module("vtnpipe", run_name="__main__", alter_sys=True)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
