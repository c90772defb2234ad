"""Imports what takes seconds and is not vtnpipe's, once; then a fork of it becomes `python -m
vtnpipe` for each line of its input.

A line is JSON: folder, words of the command line, environment, files for its output and errors. The
answer is a line with the exit code.
"""

import gc
import json
import os
import runpy
import sys

import distributed  # noqa: F401
import timm  # noqa: F401
import torch  # noqa: F401


def fork_for_each_line() -> None:
    """Returns in the forks only."""
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            become(*json.loads(line))
            return
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)


def become(
    folder: str, words: list[str], environment: dict[str, str], output: str, errors: str
) -> None:
    """Makes this process one that was begun there, with these words."""
    for number, path in enumerate((os.devnull, output, errors)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["vtnpipe", *words]
    sys.path[0] = folder


if __name__ == "__main__":
    gc.freeze()
    fork_for_each_line()
    runpy.run_module("vtnpipe", run_name="__main__", alter_sys=True)
