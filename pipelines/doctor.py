"""`vtnpipe doctor`: one screen about this machine, for oneself and for bug reports."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from ..manifests.errors import EXIT_OK, EXIT_USAGE
from .processors import num_cpus

PACKAGES = (
    *("vtnpipe", "torch", "torchvision", "timm", "transformers", "decord2", "av", "h5py"),
    *("dask", "distributed", "numpy", "click"),
)


class Finding(NamedTuple):
    """One line of the doctor's screen."""

    name: str
    text: str
    is_fine: bool = True


def package_versions(*names: str) -> dict[str, str | None]:
    """The installed version of each distribution; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def doctor() -> tuple[list[Finding], int]:
    """Looks at this machine; returns what it finds, and the exit code: 2 where vtnpipe can't work
    here.
    """
    findings = list(_findings())
    return findings, EXIT_OK if all(finding.is_fine for finding in findings) else EXIT_USAGE


def _findings() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    for name, found in package_versions(*PACKAGES).items():
        # decord2 has no wheel for some systems; `--decoder auto` then takes PyAV, and says so.
        yield Finding(name, found or "not installed", found is not None or name == "decord2")
    yield _requirements()
    torch_fits = _imports("torch and torchvision", "import torchvision; print('they match')")
    yield torch_fits
    yield _imports("decoder decord", "import decord; print(decord.__version__)", is_needed=False)
    yield _imports("decoder PyAV", "import av; print('FFmpeg', av.ffmpeg_version_info)")
    if torch_fits.is_fine:
        yield from _processors()
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    yield Finding(
        "weights cache", f"{home} ({'present' if home.exists() else 'empty'}; HF_HOME moves it)"
    )
    for label, folder in (("disk here", Path.cwd()), ("disk for temporaries", Path("/tmp"))):  # noqa: S108
        if folder.exists():
            free = shutil.disk_usage(folder).free
            yield Finding(label, f"{free / 2**30:,.0f} GiB free in {folder}", free > 2**30)


def _requirements() -> Finding:
    """Which of the packages that vtnpipe needs are missing, or of a version that won't do."""
    from packaging.requirements import Requirement

    name, faults = "requirements", []
    for one in map(Requirement, requires("vtnpipe") or []):
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        found = package_versions(one.name)[one.name]
        if found is None or not one.specifier.contains(found, prereleases=True):
            faults.append(f"{one} is needed, {found or 'none'} is there")
    return Finding(name, "; ".join(faults) or "all there, in versions that do", not faults)


def _imports(name: str, code: str, *, is_needed: bool = True) -> Finding:
    """Runs a line of Python in a process of its own, so that a crash is a finding, too."""
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


def _processors() -> Iterator[Finding]:
    import torch

    from ..extract.device import cpu_precision

    name = torch.backends.cpu.get_cpu_capability()
    precision, reason = cpu_precision()
    yield Finding(
        "cpu", f"{num_cpus()} cores, {name}; precision auto is {precision} there: {reason}"
    )
    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield Finding(f"cuda:{index}", f"{properties.name}, {memory}")
    if not count:
        yield Finding("cuda", "no GPU that torch can use; --device auto is cpu")
