"""Run all benchmarks one after the other, and write the table of their results into README.md.

    python benchmarks/everything.py            # about two hours on two idle cores
    python benchmarks/everything.py NAME.py    # only the named ones
    python benchmarks/everything.py --quick    # minutes, to see that each still runs; no results
    python benchmarks/everything.py --table    # only the table, from the existing result files

Failed benchmarks are listed at the end; their earlier results stay.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from measure import KINDS, RESULTS

HERE = RESULTS.parent
README = HERE / "README.md"
BEGIN, END = "<!-- results: python benchmarks/everything.py --table -->", "<!-- end of results -->"

SCRIPTS = [
    "extract.py",
    "dask_overhead.py",
    "temporal_encoder.py",
    "train_temporal.py",
    "finetune.py",
    "recipes.py",
    "backbones.py",
    "ablations.sh",
]


def efficiency(found: Any) -> str:
    """Return the efficiency of each set of videos, in words."""
    return ", ".join(f"{name} {one['efficiency']:.2f}" for name, one in found.items())


def fed(found: Any) -> str:
    """Return how well decoding feeds a fast backbone, for each set of videos, in words."""
    return ", ".join(
        f"{name} {one['over the lower of backbone and decoding']:.2f}"
        for name, one in found.items()
    )


def peer(found: Any) -> str:
    """Return how many times as fast extraction is as the usual loop, in words."""
    by_default, in_float32 = (
        found.get(
            f"{name}, times as fast as the usual loop", found.get(f"{name} over the usual loop")
        )
        for name in ("auto", "float32")
    )
    return f"{by_default:.2f} ({found['precision auto']}), {in_float32:.2f} (float32)"


def top1(runs: Any) -> str:
    """Return the top-1 of the best and the simplest model, in words."""
    return ", ".join(
        f"{name} {sum(runs[name]['val']) / len(runs[name]['val']):.0%}"
        for name in ("3 layers", "encoder: mean")
    )


def recipes(found: Any) -> str:
    """Return the default recipe's top-1 beside the better of probe and mean pooling, in words."""
    texts = []
    for name, row in found.items():
        other = max(row["probe_mean"]["mean"], row["mean"]["mean"])
        texts.append(f"{name}: {row['default']['mean']:.1%} ({other:.1%})")
    return ", ".join(texts)


# What is measured, the result file, and how to write its value.
ROWS: list[tuple[str, str, Callable[[Any], str]]] = [
    (
        "extraction with a backbone of 2,000 frames/s, over the lower of that and bare decoding",
        "extract_fed",
        lambda d: fed(d["fed"]),
    ),
    (
        "CPU time of a worker, 240p, without decoding",
        "extract_worker",
        lambda d: f"{d['worker']['bicubic']['cpu_microseconds_per_frame']:.0f} µs a frame",
    ),
    (
        "decoding to RGB, PyAV over decord",
        "extract_decoders",
        lambda d: ", ".join(
            f"{size} {one['PyAV over decord']:.2f}" for size, one in d["decoders"].items()
        ),
    ),
    (
        "three clips of 15 s, `test_vit`: first features, end",
        "extract_start",
        lambda d: ", ".join(
            f"{d['start'][name][0]:.1f} s"
            for name in ("seconds_to_first_features", "seconds_to_the_end")
        ),
    ),
    (
        "extraction over the bare backbone, frames/s",
        "extract_efficiency",
        lambda d: efficiency(d["efficiency"]),
    ),
    (
        "two workers, times as fast as one",
        "extract_scaling",
        lambda d: f"{d['scaling']['two workers over one']:.2f}",
    ),
    (
        "extraction, times as fast as the usual loop",
        "extract_peer",
        lambda d: peer(d["peer"]),
    ),
    (
        "a worker's memory in a video of two hours of 1080p",
        "extract_memory",
        lambda d: f"{d['memory']['peak_mib']:,} MiB",
    ),
    (
        "a manifest of 1,000,000 rows: read, plan, resume",
        "extract_million",
        lambda d: ", ".join(
            f"{d['million'][part]['seconds']:.0f} s" for part in ("read", "plan", "resume")
        ),
    ),
    (
        "Dask's cost of a task, 100,000 of them",
        "dask_overhead",
        lambda d: f"{d['runs'][-1]['ms_per_task']:.1f} ms",
    ),
    (
        "the Longformer, times as fast as transformers' (16 clips of 250 frames, float32)",
        "temporal_encoder",
        lambda d: (
            f"inference {d['ratios']['16x251 window 18']['inference float32']:.2f}, "
            f"training {d['ratios']['16x251 window 18']['training dropout 0.1']:.2f}"
        ),
    ),
    (
        "training on a clip from video, times the time of one from features",
        "train_temporal",
        lambda d: (
            f"{d['end_to_end']['end to end over stage two']:.0f} "
            f"({d['end_to_end']['frozen over stage two']:.0f} with a frozen backbone)"
        ),
    ),
    (
        "batches from an array in RAM, times as fast as a loop over clips",
        "train_temporal",
        lambda d: (
            f"{d['loader']['the loader over a loop over clips']:.0f}" if "loader" in d else "–"
        ),
    ),
    (
        "an epoch from memory, times that from shards",
        "train_temporal",
        lambda d: f"{d['reading']['in memory over shards']:.2f}",
    ),
    (
        "default recipe, top-1 on made sets (better of mean probe and mean pooling)",
        "recipes",
        lambda d: recipes(d["top-1 on test videos"]),
    ),
    (
        "memory of a finetuning step, checkpointing over plain",
        "finetune_memory",
        lambda d: f"{d['memory, checkpointing over plain']:.2f}",
    ),
    (
        "a finetuning's waiting for clips",
        "finetune_stages",
        lambda d: "{:.1%} of the time".format(d["a run's waiting for clips"]),
    ),
    (
        "hatchings, frozen and finetuned, top-1",
        "finetune_textures",
        lambda d: f"{d['top-1, frozen']['best']:.0%}, {d['top-1, finetuned']['best']:.0%}",
    ),
    ("order of frames, top-1", "ablations", lambda d: top1(d["top1"])),
]


def table() -> str:
    """Return the table of the result files, with a column for each kind of machine."""
    lines = [
        "| what | CPU with bfloat16 instructions | without | in `results/*/` |",
        "|---|---|---|---|",
    ]
    for words, name, in_words in ROWS:
        files = [RESULTS / kind / f"{name}.json" for kind in KINDS]
        found = [in_words(json.loads(file.read_text())) if file.exists() else "–" for file in files]
        lines.append(f"| {words} | {' | '.join(found)} | `{name}.json` |")
    return "\n".join(lines)


def write_table() -> None:
    """Write the table into README.md, between its marks."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


def main() -> int:
    """Run everything; return 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "scripts", nargs="*", metavar="NAME", help="file names of benchmarks; by default all"
    )
    parser.add_argument("--quick", action="store_true", help="minutes, as a test; no result files")
    parser.add_argument("--table", action="store_true", help="write the table only")
    arguments = parser.parse_args()
    scripts = [] if arguments.table else arguments.scripts or SCRIPTS
    failed = []
    for script in scripts:
        begun = time.monotonic()
        print("==", script, flush=True)
        command = [
            sys.executable if script.endswith(".py") else "bash",
            f"{HERE.name}/{script}",
            *(["--quick"] if arguments.quick else []),
        ]
        if subprocess.run(command, check=False, cwd=HERE.parent).returncode:
            failed.append(script)
        print(f"== {script}: {(time.monotonic() - begun) / 60:.1f} min", flush=True)
    if not arguments.quick:
        write_table()
    print(json.dumps({"benchmarks": len(scripts), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
