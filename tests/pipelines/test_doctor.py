"""`vtnpipe doctor`, `--version`, `--help`, and what a bug looks like."""

import subprocess
import sys
from importlib.metadata import version

from command_line import Vtnpipe


def test_doctor_fits_one_screen_and_says_what_matters(vtnpipe: Vtnpipe) -> None:
    ran = vtnpipe("doctor")
    lines = ran.stdout.splitlines()
    assert len(lines) <= 24
    for word in ("torch", "decord2", "PyAV", "cpu", "cuda", "weights cache", "disk", "they match"):
        assert word in ran.stdout
    assert not any(line.startswith("!") for line in lines)


def test_version_and_help(vtnpipe: Vtnpipe) -> None:
    assert vtnpipe("--version").stdout.strip() == f"vtnpipe {version('vtnpipe')}"
    shown = vtnpipe("--help").stdout
    for command in ("extract", "features", "manifest", "doctor"):
        assert command in shown
    assert "--backbone" in vtnpipe("extract", "--help").stdout
    assert "No such command" in vtnpipe("extrakt", code=2).stderr


def test_a_bug_exits_with_70_and_its_traceback() -> None:
    code = (
        "import sys, vtnpipe.pipelines.cli as c\n"
        "def fail(): raise RuntimeError('boom')\n"
        "c.doctor = fail\n"
        "sys.argv = ['vtnpipe', 'doctor']\n"
        "c.main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 70
    assert "boom" in ran.stderr
    assert "bug" in ran.stderr
    code = code.replace("RuntimeError('boom')", "torch.OutOfMemoryError('CUDA out of memory')")
    ran = subprocess.run(
        [sys.executable, "-c", "import torch; " + code], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "the GPU's memory is full (CUDA out of memory); give fewer frames" in ran.stderr
