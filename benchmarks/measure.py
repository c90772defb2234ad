"""What the benchmarks share: rounds of several candidates in turn, and what machine it was."""

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
KINDS = ("bf16", "no-bf16")  # of machines, by their CPU


def in_turn(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each round of each candidate, in turn, by default after one warm-up round.

    What disturbs the machine for a while then disturbs all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + warm_up):
        for name, run in candidates.items():
            begun = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def spread(seconds: Sequence[float]) -> list[float]:
    """Median, least and most, rounded."""
    return [round(x, 4) for x in (statistics.median(seconds), min(seconds), max(seconds))]


def finish(name: str, result: Mapping[str, Any]) -> None:
    """Writes results/KIND/NAME.json with how it was run, and prints it as the last line.

    KIND is one of `KINDS`: a CPU with bfloat16 instructions is another one for nearly every figure.
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
