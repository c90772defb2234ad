"""The command line: version, help, and the exit codes of a process."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from command_line import Vtnpipe, run_process
from vtnpipe.pipelines.cli import COMMANDS


def test_version_and_help(vtnpipe: Vtnpipe) -> None:
    assert vtnpipe("--version").stdout.strip() == f"vtnpipe {version('vtnpipe')}"
    shown = vtnpipe("--help").stdout
    for command in COMMANDS:
        assert command in shown
    assert "--backbone" in vtnpipe("extract", "--help").stdout
    assert "No such command" in vtnpipe("extrakt", code=2).stderr


def test_wrong_usage_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    """One error of vtnpipe's own and one of click's."""
    for arguments, message in [
        (("manifest", "show", "none.csv"), "vtnpipe: none.csv: no such manifest"),
        (("manifest", "build", "none"), "Missing option"),
    ]:
        ran = run_process(tmp_path, *arguments, code=2)
        assert message in ran.stderr
        assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "messages"),
    [
        ("RuntimeError('boom')", 70, ["Traceback", "boom", "this is a bug in vtnpipe"]),
        (
            "OutOfMemoryError('CUDA out of memory')",
            2,
            ["out of GPU memory (CUDA out of memory); process fewer frames at once"],
        ),
        ("OSError(errno.ENOSPC, 'No space left')", 3, ["No space left", "rerun the command"]),
        ("KeyboardInterrupt", 3, ["stopped; the same command resumes"]),
        ("SystemError('operator torchvision::nms does not exist')", 2, ["different builds"]),
    ],
)
def test_an_error_that_no_check_foresaw_has_its_exit_code(
    raised: str, code: int, messages: list[str]
) -> None:
    program = (
        "import errno, sys, vtnpipe.pipelines.cli as c\n"
        f"class {torch.OutOfMemoryError.__name__}(RuntimeError): pass\n"
        f"def fail(*arguments, **options): raise {raised}\n"
        "c.cli.main = fail\n"
        "c.main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == code
    for message in messages:
        assert message in ran.stderr
    assert ("Traceback" in ran.stderr) == (code == 70)


@pytest.mark.parametrize(("num_present", "expected"), [(64, "3"), (3, "None")])
def test_torch_gets_as_many_threads_as_the_quota_allows(num_present: int, expected: str) -> None:
    program = (
        "import os, vtnpipe.pipelines.cli as c\n"
        f"c.num_cpus, os.cpu_count = lambda: 3, lambda: {num_present}\n"
        "os.environ.pop('OMP_NUM_THREADS', None)\n"
        "c.cli.main = lambda *arguments, **options: print(os.environ.get('OMP_NUM_THREADS'))\n"
        "c.main()\n"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == expected
