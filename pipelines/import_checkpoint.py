"""`vtnpipe import-checkpoint`: convert a checkpoint of the authors' code into a model folder.

The checkpoint is a PySlowFast file: `model_state` (tensors by name) and `cfg` (YAML text). Only the
names of the temporal model's tensors differ (`PREFIXES`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from rich.console import Console
from torch import Tensor, nn

from ..extract.create_backbone import (
    create_module,
    default_preprocessing,
    weights_bytes,
)
from ..extract.preprocessing import Preprocessing
from ..extract.weights_file import mismatches
from ..manifests.annotations import read_class_names
from ..manifests.atomic import write_bytes
from ..manifests.errors import (
    EXIT_OK,
    CheckpointError,
    ManifestError,
    SettingsError,
    first_line,
)
from ..manifests.feature_folder import FeatureSpec
from ..manifests.lock import locked
from ..temporal.checkpoint import RunFolder
from ..temporal.config import TemporalConfig
from ..temporal.model import TemporalClassifier
from .console import say
from .models.model_folder import NetworkConfig, write_model
from .options import settings_options
from .settings import check_settings, setting
from .training.session import check_new

PREFIXES = {  # of tensor names: vtnpipe → authors
    "encoder.cls_token": "cls_token",
    "encoder.model.": "temporal_encoder.",
    "head.": "mlp_head.",
}
# A constant buffer 0, 1, 2, …, which old versions of transformers stored.
POSITION_IDS = "temporal_encoder.embeddings.position_ids"
SHORT_SIDE = 256
MEAN, STD = 0.45, 0.225  # of each color channel, in the authors' data loader
REMEDY = "give a VTN checkpoint of the authors' PySlowFast code"
BACKBONES = (  # candidates, recognized by the shapes of their tensors; DeiT has those of ViT
    "vit_base_patch16_224 vit_small_patch16_224 vit_tiny_patch16_224 vit_large_patch16_224 "
    "vit_base_patch32_224 vit_small_patch32_224 vit_large_patch32_224 vit_base_patch8_224 "
    "resnet50 resnet101 resnet152 resnet34 resnet18"
).split()


@dataclass(frozen=True, kw_only=True)
class ImportCheckpointSettings:
    """Settings of `vtnpipe import-checkpoint`."""

    backbone: str | None = setting(
        None,
        help="timm name of the backbone; by default the first of these whose tensors have the same "
        f"shapes: {', '.join(BACKBONES)}.",
        metavar="NAME",
    )
    classes: str | None = setting(
        None,
        help="Names of the classes in the order of the logits, one per line, or PySlowFast's "
        "JSON; by default 0, 1, 2 and so on.",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        check_settings(self)


def import_checkpoint(
    source: str | Path,
    model: str | Path,
    settings: ImportCheckpointSettings | None = None,
    *,
    console: Console | None = None,
) -> None:
    """Convert a checkpoint of the authors' code into a model folder.

    Args:
        source: `.pyth` file; code in it is not run.
        model: model folder to create.
        settings: by default `ImportCheckpointSettings()`.
        console: for a summary; by default nothing is printed.

    Raises:
        VtnpipeError: the file is not such a checkpoint, or its tensors do not fit the model;
            nothing has been written.
    """
    settings = settings or ImportCheckpointSettings()
    console = console or Console(quiet=True)
    files = RunFolder(Path(model))
    check_new(files, files.backbone, files.kept)
    path = Path(source)
    state, cfg = _read(path)
    config = _temporal_config(cfg, path)
    name = settings.backbone or _find_backbone(state, path)
    with torch.device("meta"):  # allocates nothing, even for absurd sizes in the cfg
        backbone = create_module(name, pretrained=False)
        expected = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
        for key, tensor in TemporalClassifier(config).state_dict().items():
            expected[_authors_name(key)] = tensor
    if faults := mismatches(expected, state):
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise CheckpointError(
            f"{path}: does not fit a VTN with the backbone {name} and its cfg; nothing was "
            f"written; give another --backbone, or correct the cfg:{listed}"
        )
    temporal = TemporalClassifier(config)
    temporal.load_state_dict({key: state[_authors_name(key)] for key in temporal.state_dict()})
    weights, digest = weights_bytes(_part(state, "backbone."))
    network = NetworkConfig(
        spec=FeatureSpec(
            backbone=name,
            weights_digest=digest,
            preprocessing=_preprocessing(backbone).to_json(),
        ),
        temporal=config,
        class_names=_class_names(settings.classes, config.num_classes),
    )
    with locked(files):
        write_bytes(weights, files.backbone)
        write_model(files, temporal, network)
    num_parameters = sum(tensor.numel() for tensor in state.values())
    say(
        console,
        f"{files.root}: {name}, {config.num_layers} layers, window {config.attention_window}, "
        f"{config.num_classes} classes, {num_parameters / 1e6:.1f}M parameters",
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the cfg of a checkpoint.

    Raises:
        CheckpointError: the file is missing, unsafe or not such a checkpoint.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give the path of a .pyth file") from None
    except Exception as error:  # noqa: BLE001  # damaged or malicious files raise anything
        raise CheckpointError(
            f"{path}: not a safe PyTorch file ({first_line(error)}); give a PySlowFast checkpoint "
            "of plain tensors"
        ) from None
    state = found.get("model_state") if isinstance(found, Mapping) else None
    text = found.get("cfg") if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(text, str):
        raise CheckpointError(f"{path}: contains no model_state with a cfg; {REMEDY}")
    try:
        cfg = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CheckpointError(
            f"{path}: its cfg is not YAML ({first_line(error)}); {REMEDY}"
        ) from None
    if not isinstance(cfg, dict) or not isinstance(cfg.get("VTN"), dict):
        raise CheckpointError(f"{path}: its cfg has no section VTN; {REMEDY}")
    if not all(isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in state.items()):
        raise CheckpointError(
            f"{path}: its model_state contains other objects than tensors; {REMEDY}"
        )
    tensors = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    tensors.pop(POSITION_IDS, None)
    return tensors, cfg


def _authors_name(name: str) -> str:
    """Return the name of a temporal model's tensor in the authors' checkpoints."""
    (prefix,) = (prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[prefix] + name.removeprefix(prefix)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, without it."""
    return {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}


def _temporal_config(cfg: dict[str, Any], path: Path) -> TemporalConfig:
    """Return the configuration of the temporal model that the cfg describes.

    Raises:
        CheckpointError: the cfg lacks an entry, or describes a model that cannot be imported.
    """
    vtn, model = cfg["VTN"], cfg.get("MODEL")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: its cfg has no section MODEL; {REMEDY}")
    try:
        windows = vtn["ATTENTION_WINDOW"]
        windows = windows if isinstance(windows, list) else [windows]
        if any(window != windows[0] for window in windows[1:]) or not windows:
            raise CheckpointError(
                f"{path}: VTN.ATTENTION_WINDOW {windows}: all layers must have the same window; a "
                "checkpoint with several windows cannot be imported"
            )
        return TemporalConfig(
            feature_dim=vtn["HIDDEN_DIM"],
            num_classes=model["NUM_CLASSES"],
            num_layers=vtn["NUM_HIDDEN_LAYERS"],
            num_heads=vtn["NUM_ATTENTION_HEADS"],
            attention_window=windows[0],
            intermediate_dim=vtn["INTERMEDIATE_SIZE"],
            max_positions=vtn["MAX_POSITION_EMBEDDINGS"],
            position_fps=None,  # positions are frame numbers, whatever the frame rate
            dropout=vtn["HIDDEN_DROPOUT_PROB"],
            attention_dropout=vtn["ATTENTION_PROBS_DROPOUT_PROB"],
            head_dim=vtn["MLP_DIM"],
            head_dropout=model.get("DROPOUT_RATE", 0.5),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{path}: its cfg lacks {error}, which a VTN needs; {REMEDY}"
        ) from None
    except SettingsError as error:
        raise CheckpointError(f"{path}: its cfg: {error}") from None


def _find_backbone(state: Mapping[str, Tensor], path: Path) -> str:
    """Return the first backbone whose tensors have the checkpoint's names and shapes.

    Raises:
        CheckpointError: no backbone has them.
    """
    shapes = {key: tensor.shape for key, tensor in _part(state, "backbone.").items()}
    for name in BACKBONES:
        with torch.device("meta"):
            module = create_module(name, pretrained=False)
        if {key: tensor.shape for key, tensor in module.state_dict().items()} == shapes:
            return name
    raise CheckpointError(
        f"{path}: its backbone has the shapes of none of {', '.join(BACKBONES)}; name it with "
        "--backbone"
    )


def _preprocessing(backbone: nn.Module) -> Preprocessing:
    """Return the authors' preprocessing: short side 256, center crop of the backbone's input size.

    Raises:
        CheckpointError: the backbone's input is larger than the short side.
    """
    size = default_preprocessing(backbone).input_size
    if size[-1] > SHORT_SIDE:
        raise CheckpointError(
            f"the backbone takes frames of {size[-1]} pixels, but the authors resize their short "
            f"side to {SHORT_SIDE}; give another --backbone"
        )
    return Preprocessing(
        input_size=size,
        interpolation="bilinear",
        crop_pct=size[-1] / SHORT_SIDE,
        crop_mode="center",
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        style="pyslowfast",
    )


def _class_names(path: str | None, num_classes: int) -> list[str]:
    if path is None:
        return [str(index) for index in range(num_classes)]
    try:
        names = read_class_names(Path(path))
    except ManifestError as error:
        raise SettingsError(f"--classes {error}; give one name per line") from None
    if not len(names) == len(set(names)) == num_classes or "" in names:
        raise SettingsError(
            f"--classes {path}: {len(names)} names, {len(set(names))} of them different; the model "
            f"has {num_classes} classes; give each a name of its own"
        )
    return names


@click.command("import-checkpoint")
@click.argument("source")
@click.argument("model")
@settings_options(ImportCheckpointSettings)
def command(source: str, model: str, console: Console, **options: Any) -> int:
    """Create the model folder MODEL from SOURCE, a VTN checkpoint (.pyth) of the authors' code."""
    import_checkpoint(source, model, ImportCheckpointSettings(**options), console=console)
    return EXIT_OK
