"""The temporal encoder against transformers' LongformerModel with the same weights.

    python benchmarks/temporal_encoder.py [--quick] [--device cuda]

vit-b-vtn's encoder (3 layers, 768 dimensions, 12 heads) on random features. All candidates run in
turn, in one process, and only the state of [CLS] is used, as in training and prediction. A ratio is
LongformerModel's median time over ours.
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import finish, in_turn, spread
from torch import Tensor
from vtnpipe.extract.device import resolve_precision
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.longformer import Longformer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from longformer_reference import longformer_model, run_longformer_model

WINDOWS = (18, 32)
SHAPES = ((16, 251), (1, 4001), (1, 16001), (16, 17))  # clips x tokens
NUM_JUDGED = 3  # shapes in the means; the last one, a training batch of the paper, is only reported
LARGEST_DIFFERENCE = 1e-4
LENGTHS = (1_001, 4_001, 16_001, 64_001)
D = 768
MAX_FULL_TOKENS = 5_000  # tokens of full attention on a CPU


def main() -> None:
    """Run all measurements, or one of memory in a separate process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one round, short sequences")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory[0], int(arguments.memory[1]), arguments.device)
        return
    torch.manual_seed(0)
    result: dict[str, Any] = {"ratios": {}, "seconds": {}}
    for window in WINDOWS:
        for num_clips, num_tokens in SHAPES[:: 3 if arguments.quick else 1]:
            compare(window, num_clips, num_tokens, arguments, result)
    ratios = result["ratios"]
    judged = [f"{B}x{N} window {w}" for B, N in SHAPES[:NUM_JUDGED] for w in WINDOWS]
    for kind in (
        "inference float32",
        "training dropout 0.0",
        "training dropout 0.1",
        "inference bfloat16 to float32",
        "inference bfloat16",
    ):
        chosen = [ratios[key][kind] for key in judged if kind in ratios.get(key, ())]
        if not chosen:
            continue
        result[f"{kind}: least"] = min(chosen)
        result[f"{kind}: geometric mean"] = round(math.prod(chosen) ** (1 / len(chosen)), 2)
    if arguments.quick:
        print(json.dumps(result))
    else:
        result["per token"] = per_token(arguments.device)
        result["memory"] = memory(arguments.device)
        finish("temporal_encoder" + ("_cuda" if arguments.device != "cpu" else ""), result)


def models(window: int, dropout: float, device: str) -> tuple[torch.nn.Module, Longformer]:
    """Return LongformerModel and ours with the same weights."""
    config = TemporalConfig(
        feature_dim=D,
        num_classes=400,
        attention_window=window,
        dropout=dropout,
        attention_dropout=dropout,
    )
    theirs, ours = longformer_model(config), Longformer(config)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(device), ours.to(device)


def clips(num_clips: int, num_tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return [CLS], features, positions and mask."""
    positions = torch.arange(num_tokens - 1, device=device).repeat(num_clips, 1)
    features = torch.randn(num_clips, num_tokens - 1, D, device=device)
    cls = torch.randn(1, 1, D, device=device)
    return cls, features, positions, torch.ones_like(positions, dtype=torch.bool)


def compare(
    window: int,
    num_clips: int,
    num_tokens: int,
    arguments: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Add the ratios of one window and one shape to the result."""
    device, rounds = arguments.device, 1 if arguments.quick else (3 if num_tokens > 10_000 else 5)
    inputs = clips(num_clips, num_tokens, device)
    ratios: dict[str, float] = {}
    theirs, ours = models(window, 0.0, device)
    theirs.eval(), ours.eval()
    low_inputs = (inputs[0].bfloat16(), inputs[1].bfloat16(), *inputs[2:])
    low_theirs, low_ours = (copy.deepcopy(m).bfloat16() for m in (theirs, ours))

    @torch.inference_mode()
    def run(model: torch.nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = (
            model(*given)
            if isinstance(model, Longformer)
            else run_longformer_model(model, *given)[:, 0]
        )
        return found

    difference = float((run(ours, inputs) - run(theirs, inputs)).abs().max())
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"ours and LongformerModel differ by {difference}")

    candidates = {"theirs": lambda: run(theirs, inputs), "ours": lambda: run(ours, inputs)}
    if resolve_precision("auto", device)[0] == "bfloat16":
        candidates["theirs bfloat16"] = lambda: run(low_theirs, low_inputs)
        candidates["ours bfloat16"] = lambda: run(low_ours, low_inputs)
    if device != "cpu" or num_tokens < MAX_FULL_TOKENS:
        config = TemporalConfig(feature_dim=D, num_classes=400, encoder="full")
        full = Longformer(config).to(device).eval()
        candidates["full"] = lambda: run(full, inputs)
    rounds_of = in_turn(candidates, rounds, warm_up=num_tokens < 10_000)
    seconds = {name: statistics.median(values) for name, values in rounds_of.items()}
    ratios["inference float32"] = seconds["theirs"] / seconds["ours"]
    if "ours bfloat16" in seconds:
        ratios["inference bfloat16 to float32"] = seconds["theirs"] / seconds["ours bfloat16"]
        ratios["inference bfloat16"] = seconds["theirs bfloat16"] / seconds["ours bfloat16"]
    if "full" in seconds:
        ratios["inference float32, exact attention to ours"] = seconds["full"] / seconds["ours"]

    for dropout in (0.0, 0.1):
        pair = [model.train() for model in models(window, dropout, device)]

        def step(model: torch.nn.Module) -> None:
            model.zero_grad()
            states = model(*inputs) if isinstance(model, Longformer) else None
            if states is None:
                states = run_longformer_model(model, *inputs)[:, 0]
            states.square().sum().backward()

        steps = {name: partial(step, m) for name, m in zip(("theirs", "ours"), pair, strict=True)}
        trained = in_turn(steps, 3, warm_up=num_tokens < 10_000)  # long ones need none
        middle = {name: statistics.median(values) for name, values in trained.items()}
        ratios[f"training dropout {dropout}"] = middle["theirs"] / middle["ours"]
        rounds_of |= {f"{name} training {dropout}": value for name, value in trained.items()}
    key = f"{num_clips}x{num_tokens} window {window}"
    result["ratios"][key] = {name: round(value, 2) for name, value in ratios.items()}
    result["seconds"][key] = {name: spread(values) for name, values in rounds_of.items()}
    result["largest difference"] = max(difference, result.get("largest difference", 0.0))
    print(f"{key}: {result['ratios'][key]}; largest difference {difference:.1e}", flush=True)


def per_token(device: str) -> dict[str, Any]:
    """Return our microseconds per token in float32, by length of the sequence."""
    _, ours = models(18, 0.0, device)
    ours.eval()
    inputs = {length: clips(1, length, device) for length in LENGTHS}

    @torch.inference_mode()
    def run(length: int) -> None:
        ours(*inputs[length])

    seconds = in_turn({str(length): partial(run, length) for length in LENGTHS}, rounds=5)
    micros = {n: round(statistics.median(seconds[str(n)]) / n * 1e6, 1) for n in LENGTHS}
    ratio = max(micros.values()) / min(micros.values())
    return {"microseconds": micros, "most to least": round(ratio, 2)}


def memory(device: str) -> dict[str, Any]:
    """Return the bytes that a token adds to the peak memory, and the peak of 100,000 frames."""

    def measured(model: str, num_tokens: int) -> dict[str, float]:
        command = [sys.executable, __file__, "--memory", model, str(num_tokens), "--device", device]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found: dict[str, float] = json.loads(output.splitlines()[-1])
        return found

    found: dict[str, Any] = {}
    for model, (short, long) in {"ours": (16_001, 64_001), "theirs": (4_001, 16_001)}.items():
        grown = measured(model, long)["peak_bytes"] - measured(model, short)["peak_bytes"]
        found[f"{model}: bytes a token"] = round(grown / (long - short))
    found["features alone: bytes a token"] = D * 4
    found["ours: 100,000 frames"] = measured("ours", 100_001)
    return found


def measure_memory(name: str, num_tokens: int, device: str) -> None:
    """Print this process's peak memory in one forward pass, and its time."""
    pair = list(models(18, 0.0, device))
    model = pair[name == "ours"].eval()
    pair.clear()
    inputs = clips(1, num_tokens, device)
    begun = time.perf_counter()
    with torch.inference_mode():
        if name == "ours":
            model(*inputs)
        else:
            run_longformer_model(model, *inputs)
    seconds = time.perf_counter() - begun
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated()
    else:  # ru_maxrss would begin with the parent's memory
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps({"peak_bytes": peak, "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()
