"""Shared by the benchmarks: timing candidates in turn, and result files that name the machine."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
KINDS = ("bf16", "no-bf16")  # machines whose CPU has bfloat16 instructions, and others


def in_turn(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of each round of each candidate, run in turn after one warm-up round.

    Something that disturbs the machine for a while then disturbs all candidates alike. A candidate
    that returns a float has measured its own seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + warm_up):
        for name, run in candidates.items():
            begun = time.perf_counter()
            found = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                elapsed = time.perf_counter() - begun
                seconds[name].append(found if isinstance(found, float) else elapsed)
    return seconds


def spread(seconds: Sequence[float]) -> list[float]:
    """Return median, minimum and maximum, rounded."""
    return [round(x, 4) for x in (statistics.median(seconds), min(seconds), max(seconds))]


def finish(name: str, result: Mapping[str, Any]) -> None:
    """Write results/KIND/NAME.json with command, machine and versions; print it as the last line.

    KIND is one of `KINDS`: bfloat16 instructions change nearly every result.
    """
    cpu = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo") if "model name" in line),
        platform.processor(),
    )
    flags = next((line for line in _read("/proc/cpuinfo") if line.startswith("flags")), "")
    has = {flag: flag in flags for flag in ("avx512_bf16", "amx_bf16")}
    value = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "cpu": cpu,
            "cores": len(os.sched_getaffinity(0)),
            **has,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {p: version(p) for p in ("torch", "transformers", "timm", "numpy")},
        "threads": torch.get_num_threads(),
        **result,
    }
    folder = RESULTS / KINDS[not any(has.values())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    print(json.dumps(value))


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
