"""Check and measure everything on a machine with one GPU and no network, in under eight minutes.

    python benchmarks/on_gpu.py [--only NAME ...] [--quick] [--device cpu] [--files FOLDER]
                                [--out FILE]

tests       the tests marked `cuda`, if pytest is installed
backbone    the bare forward pass of ViT-B/16 and ResNet-50 in bfloat16, eager and compiled
copies      preparing frames: copies from pinned and pageable memory, resize by matrices and by
            torchvision
decoding    raw decoding in as many processes as there are cores: 240p, 720p, 1080p
extract     clips and one long video of each size, ViT-B/16, and ResNet-50 at 240p, over the lower
            of the bare backbone and raw decoding
nvdec       see `nvdec_on_gpu.py`: the GPU's video engines against the CPU, rates and equality, on
            odd files and those in `--files`
parity      stored features against the plainest path in float32
stage-two   see `stage_two_on_gpu.py`: clips/s of train-temporal on stored features; a training step
            against LongformerModel's and against its kernels; inference; FlexAttention
finetune    clips/s of the whole network

Videos are H.264, copied packet by packet from a few drawn seconds. The last line of output is one
JSON object; a part that fails leaves its error there, and the exit code is 1.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from nvdec_on_gpu import nvdec
from rich.console import Console
from stage_two_on_gpu import stage_two
from torchvision.transforms import v2
from vtnpipe.extract.backbone import compile_module
from vtnpipe.extract.cores import num_cpus
from vtnpipe.extract.create_backbone import create_module
from vtnpipe.extract.device import pinning_of, resolve_precision
from vtnpipe.extract.preprocessing import MatrixResize
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.finetune import finetune as run_finetune
from vtnpipe.pipelines.inference.recompute import recompute_sample
from vtnpipe.pipelines.training.finetune_settings import FinetuneSettings

from extract import decoding_rate, draw, remux

ROOT = Path(__file__).parents[1]
SIZES = {"240p": (240, 320), "720p": (720, 1280), "1080p": (1080, 1920)}
DRAWN_FRAMES = 250
# Frames of each set, and how often a file is repeated in it as clips of 10 s.
NUM_COPIES = {"240p": 240, "720p": 80, "1080p": 32}
BATCH_SIZE = 128


class Machine:
    """State shared by the parts: device, scale, drawn videos, and the results so far."""

    def __init__(self, folder: Path, device: str, files: Path | None, *, is_quick: bool) -> None:
        self.folder = folder
        self.files = files
        self.device = device
        self.is_quick = is_quick
        self.models = ("test_vit", "test_resnet")
        if not is_quick:
            self.models = ("vit_base_patch16_224", "resnet50")
        self.results: dict[str, Any] = {}

    def clip(self, size: str) -> Path:
        """Return a drawn clip of 10 s."""
        height, width = SIZES[size]
        num_frames = 25 if self.is_quick else DRAWN_FRAMES
        return draw(self.folder / f"{size}.mp4", num_frames, height=height, width=width)

    def manifest(self, size: str, *, is_long: bool) -> Path:
        """Return a manifest of many clips, or of one long video of as many frames."""
        name = f"{size}-{'long' if is_long else 'clips'}"
        path = self.folder / f"{name}.csv"
        if not path.exists():
            copies = 4 if self.is_quick else NUM_COPIES[size]
            clip = self.clip(size)
            if is_long:
                paths = [remux(clip, self.folder / f"{name}.mp4", copies)]
            else:
                paths = [clip] * copies
            rows = [
                VideoRow(
                    video_id=f"v{number}", path=str(one), label=f"c{number % 2}", split="train"
                )
                for number, one in enumerate(paths)
            ]
            write_manifest(rows, path)
        return path

    def synchronize(self) -> None:
        """Wait until the device has computed everything."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def rate(self, step: Callable[[], object], num_items: int) -> float:
        """Return items/s of a step, after a warm-up, for a second or two."""
        step()
        self.synchronize()
        start, num_steps = time.perf_counter(), 0
        while time.perf_counter() - start < (0.2 if self.is_quick else 1.5):
            step()
            num_steps += 1
            if num_steps % 8 == 0:
                self.synchronize()
        self.synchronize()
        return round(num_steps * num_items / (time.perf_counter() - start), 1)


def tests(machine: Machine) -> dict[str, Any]:
    """Run the tests marked `cuda`."""
    if importlib.util.find_spec("pytest") is None:
        return {"summary": "not run: pytest is not installed"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (ran.stdout + ran.stderr).strip().splitlines()
    if ran.returncode:
        raise RuntimeError("\n".join(lines[-15:]))
    return {"summary": lines[-1]}


def backbone(machine: Machine) -> dict[str, Any]:
    """Measure the bare forward passes."""
    found: dict[str, Any] = {}
    dtype = getattr(torch, resolve_precision("auto", machine.device)[0])
    for name in machine.models:
        module = create_module(name, pretrained=False).to(machine.device, dtype).eval()
        memory_format = torch.channels_last if "resnet" in name else torch.contiguous_format
        module = module.to(memory_format=memory_format)
        size = module.pretrained_cfg["input_size"]  # type: ignore[index]
        images = torch.randn(BATCH_SIZE, *size, device=machine.device, dtype=dtype)
        images = images.contiguous(memory_format=memory_format)
        with torch.inference_mode():
            found[name] = {"eager": machine.rate(partial(module, images), BATCH_SIZE)}
            if machine.device != "cpu":
                start = time.perf_counter()
                compiled = compile_module(module)
                compiled(images)
                machine.synchronize()
                found[name]["seconds_to_compile"] = round(time.perf_counter() - start, 1)
                found[name]["compiled"] = machine.rate(partial(compiled, images), BATCH_SIZE)
    return found


def copies(machine: Machine) -> dict[str, Any]:
    """Measure copies to the device, and the two ways to resize."""
    found: dict[str, Any] = {}
    for size, (height, width) in SIZES.items():
        images = torch.randint(0, 256, (8, height, width, 3), dtype=torch.uint8)
        gigabytes = images.numel() / 1e9
        row = {
            "copy pageable, GB/s": machine.rate(partial(images.to, machine.device), 1) * gigabytes
        }
        if (pin := pinning_of(machine.device)) is not None:
            unpin = pin(images.data_ptr(), images.numel())
            assert images.is_pinned()
            row["copy pinned, GB/s"] = (
                machine.rate(partial(images.to, machine.device, non_blocking=True), 1) * gigabytes
            )
            unpin()
        there = images.to(machine.device).permute(0, 3, 1, 2)
        plain = v2.Resize(224, v2.InterpolationMode.BICUBIC, antialias=True)
        dtype = torch.float32 if machine.device == "cpu" else torch.float16
        matrices = MatrixResize(224, "bicubic", dtype)
        row["torchvision's resize, frames/s"] = machine.rate(partial(plain, there), 8)
        row["resize by matrices, frames/s"] = machine.rate(partial(matrices, there), 8)
        difference = (plain(there).int() - matrices(there).int()).abs()
        row["largest difference"] = int(difference.max())
        found[size] = {name: round(value, 1) for name, value in row.items()}
    return found


def decoding(machine: Machine) -> dict[str, Any]:
    """Measure raw decoding to RGB, one process per core."""
    return {size: round(decoding_rate(machine.clip(size), "kept", num_cpus())) for size in SIZES}


def extraction(machine: Machine) -> dict[str, Any]:
    """Extract clips and long videos of each size."""
    found: dict[str, Any] = {}
    vit, resnet = machine.models
    jobs = [(vit, size, is_long) for size in SIZES for is_long in (False, True)]
    for name, size, is_long in [*jobs, (resnet, "240p", False)]:
        manifest = machine.manifest(size, is_long=is_long)
        features = machine.folder / f"features-{name}-{manifest.stem}"
        settings = ExtractSettings(backbone=name, weights="none", device=machine.device)
        start = time.perf_counter()
        report = extract(manifest, features, settings, console=Console(stderr=True))
        seconds = time.perf_counter() - start
        assert report.throughput is not None
        rate = report.throughput.frames_per_second
        limits = {
            "bare backbone": machine.results.get("backbone", {}).get(name, {}).get("eager"),
            "raw decoding": machine.results.get("decoding", {}).get(size),
        }
        known = [limit for limit in limits.values() if limit]
        found[f"{name}, {manifest.stem}"] = {
            "frames_per_second": rate,
            "over the lower of backbone and decoding": round(rate / min(known), 3)
            if known
            else None,
            "frames": report.num_frames,
            "seconds, with start": round(seconds, 1),
            "busy": report.throughput.busy,
            "seconds_by_stage": report.throughput.seconds_by_stage,
        }
        print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def parity(machine: Machine) -> dict[str, Any]:
    """Compare a sample of stored features with the plainest path in float32."""
    manifest = machine.manifest("240p", is_long=False)
    features = machine.folder / "parity"
    settings = ExtractSettings(backbone=machine.models[0], weights="none", device=machine.device)
    rows = read_manifest(manifest)[:4]
    write_manifest(rows, machine.folder / "parity.csv")
    extract(machine.folder / "parity.csv", features, settings)
    compared = recompute_sample(features, 24)
    cosines = [one.cosine for one in compared]
    assert min(cosines) > 0.999, min(cosines)
    return {"frames": len(cosines), "least cosine": round(min(cosines), 6)}


def finetune(machine: Machine) -> dict[str, Any]:
    """Train the whole network for a few steps."""
    rows = read_manifest(machine.manifest("240p", is_long=False))[: 8 if machine.is_quick else 64]
    halves = [
        replace(row, split="val" if number % 8 == 0 else "train") for number, row in enumerate(rows)
    ]
    write_manifest(halves, machine.folder / "finetune.csv")
    settings = FinetuneSettings(
        backbone=machine.models[0],
        weights="none",
        epochs=2,
        batch_size=4,
        val_clips=1,
        device=machine.device,
    )
    run_finetune(machine.folder / "finetune.csv", machine.folder / "finetune", settings)
    lines = (machine.folder / "finetune/metrics.jsonl").read_text().splitlines()
    return {"last epoch": json.loads(lines[-1])}


PARTS: dict[str, Callable[[Machine], dict[str, Any]]] = {
    "tests": tests,
    "backbone": backbone,
    "copies": copies,
    "decoding": decoding,
    "extract": extraction,
    "nvdec": lambda machine: nvdec(
        machine.folder,
        machine.device,
        machine.clip,
        [*SIZES][:1] if machine.is_quick else [*SIZES],
        machine.models[0],
        machine.files,
        is_quick=machine.is_quick,
    ),
    "parity": parity,
    "stage-two": lambda machine: stage_two(
        machine.folder, machine.device, machine.rate, is_quick=machine.is_quick
    ),
    "finetune": finetune,
}


def main() -> int:
    """Run all parts, or the named ones; return 1 if one failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small models and few frames")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--files", type=Path, help="folder of further files for `nvdec`")
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    # Child processes import vtnpipe and these benchmarks, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    is_cpu = arguments.device == "cpu"
    failed: list[str] = []
    with TemporaryDirectory(prefix="vtnpipe-gpu-") as folder:
        machine = Machine(Path(folder), arguments.device, arguments.files, is_quick=arguments.quick)
        seconds: dict[str, float] = {}
        for name in arguments.only:
            print(f"== {name}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            try:
                machine.results[name] = PARTS[name](machine)
                failed += [f"{name}: {step}" for step in machine.results[name].get("failed", [])]
            except Exception as error:  # noqa: BLE001  # the other parts run all the same
                traceback.print_exc()
                machine.results[name] = {"error": f"{type(error).__name__}: {error}"}
                failed.append(name)
            seconds[name] = round(time.perf_counter() - start, 1)
            print(json.dumps({name: machine.results[name]}), file=sys.stderr, flush=True)
    result = {
        "benchmark": "on_gpu",
        "command": " ".join(["python", *sys.argv]),
        "device": "cpu" if is_cpu else torch.cuda.get_device_name(),
        "cores": num_cpus(),
        "torch": torch.__version__,
        "seconds": seconds,
        "failed": failed,
        **machine.results,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
