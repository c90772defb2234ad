"""Size and speed of backbones on a CPU, for the table of docs/backbones.md.

    python benchmarks/backbones.py            # five minutes; result file and table
    python benchmarks/backbones.py --quick    # two backbones, one round; writes no result
    python benchmarks/backbones.py --table    # only the table, from the existing result file

Weights are random. The module with normalization runs as in `vtnpipe extract` on a CPU: bfloat16,
batches of 16 frames (4 of large ones), one in each of two threads; without decoding and resizing.
Backbones are measured in turn, three times each. Rates per core are by CPU time, which other
processes on the machine disturb less than the time that passes; both are stored.
"""

import argparse
import gc
import json
import os
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import KINDS, RESULTS, finish
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vtnpipe.extract.backbone import (
    MIN_CONVOLUTIONS,
    Backbone,
    PendingFeatures,
    evaluation_transform,
)
from vtnpipe.extract.create_backbone import create_module, default_preprocessing

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
BEGIN, END = "<!-- results: python benchmarks/backbones.py --table -->", "<!-- end of results -->"
THREADS, ROUNDS, SECONDS = 2, 3, 2.0
FRAMES_PER_HOUR = 25 * 3600
# Name and --image-size; None for the backbone's own.
BACKBONES: list[tuple[str, int | None]] = [
    ("vit_small_patch14_dinov2.lvd142m", None),
    ("vit_small_patch14_dinov2.lvd142m", 224),
    ("vit_base_patch14_dinov2.lvd142m", None),
    ("vit_base_patch14_dinov2.lvd142m", 224),
    ("vit_small_patch16_dinov3.lvd1689m", None),
    ("vit_base_patch16_dinov3.lvd1689m", None),
    ("convnext_tiny.dinov3_lvd1689m", None),
    ("vit_base_patch16_siglip_224.v2_webli", None),
    ("vit_base_patch16_clip_quickgelu_224.openai", None),
    ("convnext_base.fb_in22k_ft_in1k", None),
    ("tf_efficientnetv2_s.in21k_ft_in1k", None),
    ("efficientnet_b0.ra_in1k", None),
    ("vit_base_patch16_224.augreg2_in21k_ft_in1k", None),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", None),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", None),
    ("resnet50.a1_in1k", None),
    ("resnet18.a1_in1k", None),
]
QUICK = (5, 14)  # indices of what --quick measures


def describe(name: str, image_size: int | None) -> dict[str, Any]:
    """Return what is known of a backbone without running it on frames."""
    with torch.device("meta"):  # on a CPU, the fused attention would not be counted
        module = create_module(name, pretrained=False, image_size=image_size).requires_grad_(False)
        size = image_size or default_preprocessing(module).input_size[1]
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            features = module.eval()(torch.zeros(1, 3, size, size))
    return {
        "image_size": size,
        "dim": features.shape[1],
        "pool": _pooling(module),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 2),
    }


def _pooling(module: Any) -> str:
    """Return timm's name of a module's pooling."""
    pool = getattr(module, "global_pool", None) or module.head.global_pool
    return str(getattr(pool, "pool_type", pool))


def rates(name: str, image_size: int | None, seconds: float) -> tuple[float, float]:
    """Return frames per second that passed, and per second of CPU time of both threads.

    Args:
        name: name of the backbone.
        image_size: height and width of its input; None for its own.
        seconds: least duration; batches are not cut short.
    """
    module: nn.Module = create_module(name, pretrained=False, image_size=image_size)
    preprocessing = default_preprocessing(module)
    size = image_size or preprocessing.input_size[1]
    module = module.to(torch.bfloat16).eval().requires_grad_(False)
    num_convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    if channels_last := num_convolutions >= MIN_CONVOLUTIONS:
        module = module.to(memory_format=torch.channels_last)
    backbone = Backbone(
        module=module,
        transform=evaluation_transform(replace(preprocessing, input_size=(3, size, size)), "cpu"),
        dtype=torch.bfloat16,
        channels_last=channels_last,
        num_threads=THREADS,
    )
    batch_size = 16 if size <= 300 else 4
    images = torch.randint(0, 256, (batch_size, 1, 3, size, size), dtype=torch.uint8)
    for pending in [backbone.start(images[:2]) for _ in range(THREADS)]:
        pending.wait()
    begun, cpu_begun = time.perf_counter(), time.process_time()
    started, running = 0, deque[PendingFeatures]()
    while time.perf_counter() - begun < seconds or started % THREADS:
        running.append(backbone.start(images))
        started += 1
        if len(running) == THREADS:
            running.popleft().wait()
    for pending in running:
        pending.wait()
    num_frames = started * batch_size
    cpu_seconds = time.process_time() - cpu_begun
    return num_frames / (time.perf_counter() - begun), num_frames / cpu_seconds


def table() -> str:
    """Return the table of the result file."""
    result = json.loads((RESULTS / KINDS[0] / "backbones.json").read_text())
    lines = [
        "| `--backbone` | input | D | pooling | parameters | GMACs | MB/hour | frames/s per core |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    for row in result["backbones"]:
        option = f" `--image-size {row['image_size']}`" if row["is_given"] else ""
        per_core = median(row["frames_per_cpu_second"])
        lines.append(
            f"| `{row['name']}`{option} | {row['image_size']} | {row['dim']} | {row['pool']} "
            f"| {row['parameters'] / 1e6:.1f}M | {row['gmacs']:.1f} "
            f"| {row['dim'] * 2 * FRAMES_PER_HOUR / 1e6:.0f} "
            f"| {per_core:.{0 if per_core >= 10 else 1}f} |"
        )
    return "\n".join(lines)


def write_table() -> None:
    """Write the table into the page, between its marks."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


def main() -> None:
    """Measure, and write result and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two backbones; no result file")
    parser.add_argument("--table", action="store_true", help="write the table only")
    arguments = parser.parse_args()
    if arguments.table:
        write_table()
        return
    chosen = [BACKBONES[index] for index in QUICK] if arguments.quick else BACKBONES
    rows = [
        {"name": name, "is_given": size is not None, **describe(name, size)}
        for name, size in chosen
    ]
    found: list[list[tuple[float, float]]] = [[] for _ in chosen]
    loads = []
    for _ in range(1 if arguments.quick else ROUNDS):
        for (name, size), of_one in zip(chosen, found, strict=True):
            of_one.append(rates(name, size, SECONDS))
            gc.collect()
        loads.append(round(os.getloadavg()[0], 1))
    for row, of_one in zip(rows, found, strict=True):
        passed, cpu = zip(*of_one, strict=True)
        row["frames_per_second"] = [round(value, 2) for value in passed]
        row["frames_per_cpu_second"] = [round(value, 2) for value in cpu]
    result = {"precision": "bfloat16", "load_average_after_rounds": loads, "backbones": rows}
    if arguments.quick:
        print(json.dumps(result))
        return
    finish("backbones", result)
    write_table()


if __name__ == "__main__":
    main()
