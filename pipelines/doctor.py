"""`vtnpipe doctor`: versions, decoders, devices and disk of this machine, on one screen."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click

from ..extract.cores import num_cpus
from ..manifests.errors import EXIT_OK, EXIT_USAGE

PACKAGES = (
    *("vtnpipe", "torch", "torchvision", "timm", "transformers", "decord2", "av", "h5py"),
    *("dask", "distributed", "numpy", "click"),
)
OPTIONAL = ("decord2",)  # has no wheel for some systems; only `--decoder decord` needs it
DEVICES = """
import torch
from vtnpipe.extract.device import cpu_precision
print("cpu", torch.backends.cpu.get_cpu_capability(), *cpu_precision(), sep="\\t")
for index in range(torch.cuda.device_count()):
    found = torch.cuda.get_device_properties(index)
    print(f"cuda:{index}", found.name, f"{found.total_memory / 2**30:.0f} GiB", sep="\\t")
"""


class Finding(NamedTuple):
    """One line of the screen.

    Attributes:
        name: what was examined.
        text: result.
        is_ok: whether vtnpipe can work with it.
    """

    name: str
    text: str
    is_ok: bool = True


def doctor() -> tuple[list[Finding], int]:
    """Examine this machine; return the findings, and exit code 2 if vtnpipe cannot work here."""
    findings = list(_findings())
    return findings, EXIT_OK if all(finding.is_ok for finding in findings) else EXIT_USAGE


def _findings() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    for name in PACKAGES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "not installed", name in OPTIONAL)
    torch_matches = _run_python("torch and torchvision", "import torchvision; print('they match')")
    yield torch_matches
    yield _run_python("decoder decord", "import decord; print(decord.__version__)", is_needed=False)
    yield _run_python("decoder PyAV", "import av; print('FFmpeg', av.ffmpeg_version_info)")
    if torch_matches.is_ok:
        yield from _devices()
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    yield Finding(
        "weights cache", f"{home} ({'exists' if home.exists() else 'empty'}; HF_HOME moves it)"
    )
    for label, folder in (("disk here", Path.cwd()), ("disk for temporaries", Path("/tmp"))):  # noqa: S108
        if folder.exists():
            free = shutil.disk_usage(folder).free
            yield Finding(label, f"{free / 2**30:,.0f} GiB free in {folder}", free > 2**30)


def _run_python(name: str, code: str, *, is_needed: bool = True) -> Finding:
    """Return what Python code prints in a separate process, or that it crashes or hangs."""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name, "hangs", not is_needed)
    if ran.returncode == 0:
        return Finding(name, ran.stdout.strip())
    lines = ran.stderr.strip().splitlines()
    return Finding(name, f"fails: {lines[-1] if lines else ran.returncode}", not is_needed)


def _devices() -> Iterator[Finding]:
    found = _run_python("devices", DEVICES)
    if not found.is_ok:
        yield found
        return
    cpu, *gpus = (line.split("\t") for line in found.text.splitlines())
    _, capability, precision, reason = cpu
    yield Finding(
        "cpu", f"{num_cpus()} cores, {capability}; precision auto is {precision} there: {reason}"
    )
    for name, model, memory in gpus:
        yield Finding(name, f"{model}, {memory}")
    if not gpus:
        yield Finding("cuda", "no GPU that torch can use; --device auto is cpu")


@click.command("doctor")
def command() -> int:
    """Show versions, decoders, devices, caches and disk of this machine."""
    findings, exit_code = doctor()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = " " if finding.is_ok else "!"
        click.echo(f"{mark} {finding.name.ljust(width)}  {finding.text}")
    return exit_code
