"""Stage two on a GPU, a part of `on_gpu.py`: training, one step of it, inference, attention.

train-temporal  clips/s of the last epoch of vit-b-vtn with the paper's recipe, in both precisions
step            milliseconds of a training step of 16 clips of 16 frames: as it runs (a CUDA graph),
                eagerly, of LongformerModel of the same shape, and the sum of its kernel times
inference       milliseconds of 16 x 251 and of 1 x 16,001 tokens: eagerly, as a graph, and of its
                kernels; peak memory
attention       milliseconds of window attention alone: SDPA on blocks, which the model uses, and
                FlexAttention
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from train_temporal import made_up_store
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.attention import window_attention
from vtnpipe.temporal.cuda_graphs import CudaGraphs
from vtnpipe.temporal.dataset import ClipDataset, RandomClips
from vtnpipe.temporal.distributed import Precision, accelerated, choose_precision
from vtnpipe.temporal.feature_reader import preload
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.optim import Recipe
from vtnpipe.temporal.step import TrainStep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from longformer_reference import longformer_model, run_longformer_model

BATCH_SIZE, WINDOW = 16, 18
SHAPES = ((16, 250), (1, 16_000))  # clips x frames

Rate = Callable[[Callable[[], object], int], float]  # items/s of a step


def stage_two(folder: Path, device: str, rate: Rate, *, is_quick: bool) -> dict[str, Any]:
    """Measure all parts; `rate` measures a step that computes so many items."""
    preset = "vit-b-vtn-1layer" if is_quick else "vit-b-vtn"
    store = made_up_store(folder / "made-up", 64 if is_quick else 1024)
    rows = [
        VideoRow(
            video_id=name,
            path="none.mp4",
            label=f"c{n % 4}",
            split="val" if n % 8 == 0 else "train",
        )
        for n, name in enumerate(store)
    ]
    write_manifest(rows, store.folder.manifest)
    chosen = choose_precision("auto", device)
    precisions: tuple[Precision, ...] = ("float32",) if chosen == "float32" else ("float32", chosen)
    found: dict[str, Any] = {}
    for precision in precisions:
        run = folder / f"run-{precision}"
        settings = TrainTemporalSettings(
            recipe="paper",
            preset=preset,
            epochs=1 if is_quick else 6,
            device=device,
            precision=precision,
        )
        train_temporal(store.folder.root, run, settings)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[f"train-temporal, {precision}"] = {
            "clips/s": max(line["videos_per_second"] for line in lines),
            "last epoch": lines[-1],
        }
    found["step"] = step_milliseconds(store, preset, device, chosen, rate)
    found["inference"] = inference(preset, device, chosen, rate, is_quick=is_quick)
    if device != "cpu":
        found["attention"] = attention(device, rate)
    return found


def step_milliseconds(
    store: FeatureStore, preset: str, device: str, precision: Precision, rate: Rate
) -> dict[str, Any]:
    """Measure one training step, on the same clips again and again."""
    video_ids = list(store)[:BATCH_SIZE]
    targets = torch.arange(BATCH_SIZE)
    reader = preload(store, video_ids, device)
    dataset = ClipDataset(reader, video_ids, targets, RandomClips(), position_fps=25)
    keys = np.stack([np.arange(BATCH_SIZE), np.zeros(BATCH_SIZE, int)], axis=1)
    batches = repeat(dataset.batch(keys))
    recipe = Recipe(batch_size=BATCH_SIZE, precision=precision, optimizer="adamw", max_grad_norm=1)
    found: dict[str, Any] = {}
    with accelerated(device, precision) as accelerator:
        model = TemporalClassifier.from_preset(preset, num_classes=400)
        step = TrainStep(
            model, model.config, dataset, recipe, accelerator, lr_scales={}, offsets=None
        )
        step.network.train()
        run = partial(step, keys, batches)
        if step.graphs is not None:
            for _ in range(5):  # until the graph has been captured
                run()
            found["as it runs"] = milliseconds(rate, run)
            found["fault of the graph"] = step.graphs.fault
            step.graphs = None
        found["eager"] = milliseconds(rate, run)
        if device != "cpu":
            found["sum of kernel times"] = kernel_milliseconds(run)
            found["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    theirs = longformer_model(replace(model.config, num_classes=400)).to(device).train()
    optimizer = recipe.make_optimizer(theirs)
    features, positions, mask = dataset.batch(keys).on(torch.device(device))
    cls = torch.randn(1, 1, features.shape[-1], device=device)

    def their_step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bfloat16"):
            states = run_longformer_model(theirs, cls, features.float(), positions, mask)
        states[:, 0].float().square().sum().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    found["LongformerModel"] = milliseconds(rate, their_step)
    found["LongformerModel over ours"] = round(
        found["LongformerModel"] / found.get("as it runs", found["eager"]), 2
    )
    return found


def inference(
    preset: str, device: str, precision: Precision, rate: Rate, *, is_quick: bool
) -> dict[str, Any]:
    """Measure forward passes over whole videos."""
    found: dict[str, Any] = {}
    with accelerated(device, precision) as accelerator:
        model = TemporalClassifier.from_preset(preset, num_classes=400)
        network = accelerator.prepare_model(model, evaluation_mode=True).eval()
        for B, T in SHAPES[: 1 if is_quick else None]:
            inputs = torch.randn(B, T, model.config.feature_dim, device=device)
            positions = torch.arange(T, device=device).expand(B, -1).contiguous()
            mask = torch.ones_like(positions, dtype=torch.bool)
            run: Callable[[], Tensor] = partial(network, inputs, positions, mask)
            with torch.inference_mode():
                row: dict[str, Any] = {"eager": milliseconds(rate, run)}
                if device != "cpu":
                    torch.cuda.reset_peak_memory_stats()
                    run()
                    row["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
                    row["sum of kernel times"] = kernel_milliseconds(run)
                    graphs = CudaGraphs(network, torch.device(device), num_eager=1)
                    graph = partial(graphs, inputs, positions, mask)
                    graph(), graph()
                    row["as a graph"] = milliseconds(rate, graph)
            found[f"{B} x {T + 1} tokens"] = row
    return found


def attention(device: str, rate: Rate) -> dict[str, Any]:
    """Measure window attention in bfloat16: SDPA on blocks, and FlexAttention with its mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    H, d, half = 12, 64, WINDOW // 2
    found: dict[str, Any] = {}

    def may_attend(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((query - key).abs() <= half) | (key == 0)

    compiled: Any = torch.compile(flex_attention)
    for B, T in SHAPES:
        N = T + 1
        tokens = [torch.randn(B, N, H, d, device=device, dtype=torch.bfloat16) for _ in range(3)]
        query, key, value = tokens
        pad = torch.nn.functional.pad
        near_key, near_value = (pad(one, (0, 0, 0, 0, half, half)) for one in (key, value))
        is_key = pad(torch.ones(B, T, dtype=torch.bool, device=device), (1 + half, half))
        heads = [one.transpose(1, 2) for one in tokens]
        block_mask = create_block_mask(may_attend, None, None, N, N, device=device)
        cls = (key[:, 0], value[:, 0])
        blocks = partial(window_attention, query, near_key, near_value, is_key, *cls)
        flex = partial(compiled, *heads, block_mask=block_mask)
        difference = (blocks() - flex().transpose(1, 2))[:, 1:].abs().max()
        found[f"{B} x {N} tokens"] = {
            "SDPA on blocks": milliseconds(rate, blocks),
            "FlexAttention": milliseconds(rate, flex),
            "largest difference": round(float(difference), 4),
        }
    return found


def milliseconds(rate: Rate, step: Callable[[], object]) -> float:
    """Return the milliseconds of a step."""
    return round(1000 / rate(step, 1), 3)


def kernel_milliseconds(step: Callable[[], object], num_steps: int = 10) -> float:
    """Return the time that the kernels of a step take on the GPU, in milliseconds."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(num_steps):
            step()
        torch.cuda.synchronize()
    total: float = sum(event.self_device_time_total for event in profiler.key_averages())
    return round(total / 1000 / num_steps, 3)
