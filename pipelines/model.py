"""`vtnpipe model show`: parameters, GMACs and configuration of a preset or a model folder.

GMACs are counted as in the paper: 10^9 multiplications with weights (linear layers and
convolutions) for every token of every layer, without the products of attention itself. vtnpipe's
own encoder skips some of them (see `temporal/longformer.py`).
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..extract.create_backbone import create_module, default_preprocessing
from ..manifests.errors import EXIT_OK, SettingsError
from ..temporal.checkpoint import RunFolder
from ..temporal.config import TemporalConfig
from ..temporal.encoders import ClsEncoder, MeanEncoder
from ..temporal.model import TemporalClassifier
from ..temporal.presets import PRESETS
from .console import say
from .models.model_folder import read_config
from .options import console_options

PAPER_FRAMES, PAPER_CLASSES = 250, 400  # 10 s at 25 fps; Kinetics-400


def show_model(name: str, *, num_frames: int = PAPER_FRAMES) -> Iterator[str]:
    """Yield lines about a preset or a model folder.

    Args:
        name: name of a preset, or path of a model or run folder.
        num_frames: number of frames of the video whose GMACs are counted.

    Raises:
        VtnpipeError: `name` is neither.
    """
    backbone_name, config = _describe(name)
    with torch.device("meta"):
        backbone = create_module(backbone_name, pretrained=False)
        temporal = TemporalClassifier(config)
    input_size = default_preprocessing(backbone).input_size
    num_backbone, num_temporal = (_num_parameters(module) for module in (backbone, temporal))
    per_frame = backbone_macs(backbone, input_size)
    per_video = temporal_macs(temporal, num_frames)
    size = "x".join(map(str, input_size[1:]))
    yield f"{name}: {(num_backbone + num_temporal) / 1e6:.0f}M parameters"
    yield f"  backbone  {num_backbone / 1e6:7.2f}M  {backbone_name}, frames of {size}"
    yield f"  temporal  {num_temporal / 1e6:7.2f}M  {config.encoder}, {config.num_classes} classes"
    if per_video is None:
        yield f"  {num_frames} frames: backbone {num_frames * per_frame / 1e9:.0f} GMACs"
    else:
        total = num_frames * per_frame + per_video
        yield (
            f"  {num_frames} frames: {total / 1e9:.0f} GMACs (backbone {num_frames} x "
            f"{per_frame / 1e9:.2f}, temporal {per_video / 1e9:.2f}; products with weights, as in "
            "the paper)"
        )
    for key, value in asdict(config).items():
        yield f"    {key.ljust(20)}{value}"


def _describe(name: str) -> tuple[str, TemporalConfig]:
    """Return the name of the backbone and the configuration of the temporal model."""
    if name in PRESETS:
        preset = PRESETS[name]
        return preset.backbone, preset.temporal_config(num_classes=PAPER_CLASSES)
    if not Path(name).exists():
        raise SettingsError(
            f"{name}: neither a preset ({', '.join(PRESETS)}) nor a model or run folder; give "
            "one of these"
        )
    config = read_config(RunFolder(Path(name)))
    return config.spec.backbone, config.temporal


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def backbone_macs(module: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the multiplications with weights for one frame, by a module on the meta device."""
    aten = torch.ops.aten
    module.requires_grad_(False)  # the counter cannot follow parameters as inputs (attention pools)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(1, *input_size, device="meta"))
    counts: dict[object, int] = counter.get_flop_counts()["Global"]
    # The products of attention itself, aten.bmm or a fused kernel, do not count.
    return sum(counts.get(kind, 0) for kind in (aten.mm, aten.addmm, aten.convolution)) // 2


def temporal_macs(model: TemporalClassifier, num_frames: int) -> int | None:
    """Return the multiplications with weights for one clip; None if a part is a user module."""

    def num_uses(name: str) -> int:
        """Return the number of vectors that pass through a linear layer of the encoder."""
        return 1 if name.endswith("query_global") else 1 + num_frames

    if model.config.head != "mlp" or not isinstance(model.encoder, ClsEncoder | MeanEncoder):
        return None
    encoder = sum(
        layer.weight.numel() * num_uses(name)
        for name, layer in model.encoder.named_modules()
        if isinstance(layer, nn.Linear)
    )
    head = sum(
        layer.weight.numel() for layer in model.head.modules() if isinstance(layer, nn.Linear)
    )
    return encoder + head


@click.group("model")
def group() -> None:
    """Show models."""


@group.command("show")
@click.argument("model")
@click.option(
    "--frames",
    default=PAPER_FRAMES,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of frames of the video whose GMACs are counted.",
)
@console_options
def show_command(model: str, frames: int, console: Console) -> int:
    """Show parameters, GMACs and settings of MODEL, a preset or a model or run folder."""
    say(console, *show_model(model, num_frames=frames))
    return EXIT_OK
