"""`vtnpipe doctor`: versions, decoders, devices, limits and disk of this machine, on one screen."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click

from ..extract.cores import num_cpus
from ..manifests.atomic import fsync_folder
from ..manifests.errors import EXIT_OK, EXIT_USAGE
from ..manifests.lock import has_flock

PACKAGES = (
    *("vtnpipe", "torch", "torchvision", "timm", "transformers", "decord2", "av", "h5py"),
    *("dask", "distributed", "numpy", "click"),
)
MIN_OPEN_FILES, MIN_DATA_BYTES = 128, 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
OPTIONAL = ("decord2",)  # has no wheel for some systems; only `--decoder decord` needs it
DEVICES = """
import torch
from vtnpipe.extract.decode.nvdec import describe, read_engines
from vtnpipe.extract.device import cpu_precision
print("cpu", torch.backends.cpu.get_cpu_capability(), *cpu_precision(), sep="\\t")
for index in range(torch.cuda.device_count()):
    found = torch.cuda.get_device_properties(index)
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    print(f"cuda:{index}", found.name, memory, describe(read_engines(index)), sep="\\t")
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


def doctor(folder: str | Path = ".") -> tuple[list[Finding], int]:
    """Examine this machine; return the findings, and exit code 2 if vtnpipe cannot work here.

    Args:
        folder: folder whose file system is examined.
    """
    findings = list(_findings(Path(folder)))
    return findings, EXIT_OK if all(finding.is_ok for finding in findings) else EXIT_USAGE


def _findings(folder: Path) -> Iterator[Finding]:
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
    yield from _weights_cache()
    yield from _limits()
    yield from _file_system(folder)
    try:
        temporary = Path(tempfile.gettempdir())
        free = shutil.disk_usage(temporary).free
    except OSError as error:
        yield Finding("temporary files", f"no folder ({error.strerror}); set TMPDIR", False)
        return
    yield Finding("temporary files", f"{_gib(free)} free in {temporary}", free > 2**30)


def _weights_cache() -> Iterator[Finding]:
    # Unlike Path's own, it leaves a ~ where there is no home.
    home = Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")))  # noqa: PTH111
    yield Finding(
        "weights cache", f"{home} ({'exists' if home.exists() else 'empty'}; HF_HOME moves it)"
    )


def _limits() -> Iterator[Finding]:
    """Yield the limits of the system, the batch job or the container."""
    cores, present = num_cpus(), os.cpu_count() or 1
    fewer = f" of {present}, by affinity, job or quota" if cores < present else ""
    yield Finding("cores", f"{cores}{fewer}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(
        "open files", f"{_limit(soft)} (hard limit {_limit(hard)})", soft >= MIN_OPEN_FILES
    )
    _, data = resource.getrlimit(resource.RLIMIT_DATA)
    is_enough = data == resource.RLIM_INFINITY or data >= MIN_DATA_BYTES
    words = "none" if data == resource.RLIM_INFINITY else _gib(data)
    yield Finding("limit of a process's data", words, is_enough)
    if SHARED_MEMORY.exists():
        size = shutil.disk_usage(SHARED_MEMORY).total
        yield Finding("shared memory", f"{_gib(size)} in {SHARED_MEMORY}; not needed")


def _limit(number: int) -> str:
    return "none" if number == resource.RLIM_INFINITY else f"{number:,}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.{0 if num_bytes >= 10 * 2**30 else 1}f} GiB"


def _file_system(folder: Path) -> Iterator[Finding]:
    """Yield what the file system of a folder can do, by trying it there."""
    try:
        free = shutil.disk_usage(folder).free
        yield Finding("disk", f"{_gib(free)} free in {folder.absolute()}", free > 2**30)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".vtnpipe-doctor-") as place:
            locks = "flock" if has_flock(Path(place)) else "no flock; claim files take its place"
            (Path(place) / "file").write_bytes(b"x")
            can_flush = fsync_folder(Path(place))
    except OSError as error:
        yield Finding("writing there", f"fails: {error.strerror or error}", False)
        return
    flushed = "renames can be flushed" if can_flush else "renames cannot be flushed, only files"
    yield Finding("writing there", f"works; {locks}; {flushed}")


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
    yield Finding("cpu", f"{capability}; precision auto is {precision} there: {reason}")
    for name, model, memory, engines in gpus:
        yield Finding(name, f"{model}, {memory}, {engines}")
    if not gpus:
        yield Finding("cuda", "no GPU that torch can use; --device auto is cpu")


@click.command("doctor")
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False))
def command(folder: str) -> int:
    """Show versions, decoders, devices, limits and disk of this machine.

    FOLDER, by default the current one, is where features or runs are to be written: whether its
    file system can lock and flush is tried there.
    """
    findings, exit_code = doctor(folder)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = " " if finding.is_ok else "!"
        click.echo(f"{mark} {finding.name.ljust(width)}  {finding.text}")
    return exit_code
