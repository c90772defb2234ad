"""`vtnpipe import-checkpoint`: a checkpoint of the authors' code becomes a model folder.

Theirs is a PySlowFast file: `model_state` (tensors by name) and `cfg` (YAML text). The temporal
model's tensors have other names there (`PREFIXES`), and nothing else differs.
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
    mismatches,
    weights_bytes,
)
from ..extract.preprocessing import Preprocessing
from ..manifests.annotations import read_class_names
from ..manifests.atomic import write_bytes
from ..manifests.errors import (
    EXIT_OK,
    CheckpointError,
    ManifestError,
    SettingsError,
    first_line,
)
from ..manifests.feature_folder import FeatureSpec, locked
from ..temporal.checkpoint import RunFolder
from ..temporal.config import TemporalConfig
from ..temporal.model import TemporalClassifier
from .console import say
from .models.model_folder import NetworkConfig, write_model
from .options import settings_options
from .settings import check_settings, setting
from .training.session import check_new

PREFIXES = {  # ours → theirs
    "encoder.cls_token": "cls_token",
    "encoder.model.": "temporal_encoder.",
    "head.": "mlp_head.",
}
COUNTER = "temporal_encoder.embeddings.position_ids"  # 0, 1, 2, …, which old transformers stored
SHORT_SIDE = 256
MEAN, STD = 0.45, 0.225  # of the authors' data loader, for each color
POSITION_FPS = 25.0
REMEDY = "give a checkpoint of a VTN, of the authors' PySlowFast"
BACKBONES = (  # whose shapes are tried; DeiT's are ViT's
    "vit_base_patch16_224 vit_small_patch16_224 vit_tiny_patch16_224 vit_large_patch16_224 "
    "vit_base_patch32_224 vit_small_patch32_224 vit_large_patch32_224 vit_base_patch8_224 "
    "resnet50 resnet101 resnet152 resnet34 resnet18"
).split()


@dataclass(frozen=True, kw_only=True)
class ImportCheckpointSettings:
    """The settings of `vtnpipe import-checkpoint`."""

    backbone: str | None = setting(
        None,
        help="Its timm name; by default the first that has the tensors' shapes, of "
        f"{', '.join(BACKBONES)}.",
        metavar="NAME",
    )
    classes: str | None = setting(
        None,
        help="Names of the classes in the logits' order, one a line, or PySlowFast's JSON; by "
        "default 0, 1, 2, …",
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
    """Writes a checkpoint of the authors' code as a model folder.

    Args:
        source: the `.pyth` file; no code in it is run.
        model: the folder to make.
        settings: by default, `ImportCheckpointSettings()`.
        console: for what was found; by default, nothing is printed.

    Raises:
        VtnpipeError: the file is none of theirs, or a tensor has no place in the model; nothing has
            been written then.
    """
    settings = settings or ImportCheckpointSettings()
    console = console or Console(quiet=True)
    files = RunFolder(Path(model))
    check_new(files, files.backbone, files.best)
    path = Path(source)
    state, cfg = _read(path)
    config = _temporal_config(cfg, path)
    name = settings.backbone or _find_backbone(state, path)
    with torch.device("meta"):  # whatever sizes the cfg claims
        backbone = create_module(name, pretrained=False)
        own = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
        for key, tensor in TemporalClassifier(config).state_dict().items():
            own[_their_name(key)] = tensor
    if faults := mismatches(own, state):
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise CheckpointError(
            f"{path}: does not fit a VTN with the backbone {name} and its cfg; nothing was "
            f"written; name another with --backbone, or correct the cfg:{listed}"
        )
    temporal = TemporalClassifier(config)
    temporal.load_state_dict({key: state[_their_name(key)] for key in temporal.state_dict()})
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
        f"{config.num_classes} classes, "
        f"{num_parameters / 1e6:.1f}M parameters",
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the cfg of a checkpoint."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give the path of a .pyth file") from None
    except Exception as error:  # noqa: BLE001  # whatever a damaged or a hostile file leads to
        raise CheckpointError(
            f"{path}: not a safe PyTorch file ({first_line(error)}); give a PySlowFast checkpoint "
            "of plain tensors"
        ) from None
    state = found.get("model_state") if isinstance(found, Mapping) else None
    text = found.get("cfg") if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(text, str):
        raise CheckpointError(f"{path}: holds no model_state with a cfg; {REMEDY}")
    try:
        cfg = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CheckpointError(
            f"{path}: its cfg is not YAML ({first_line(error)}); {REMEDY}"
        ) from None
    if not isinstance(cfg, dict) or not isinstance(cfg.get("VTN"), dict):
        raise CheckpointError(f"{path}: its cfg has no section VTN; {REMEDY}")
    if not all(isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in state.items()):
        raise CheckpointError(f"{path}: its model_state holds other things than tensors; {REMEDY}")
    tensors = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    tensors.pop(COUNTER, None)
    return tensors, cfg


def _their_name(ours: str) -> str:
    """The name of a temporal model's tensor in their checkpoints."""
    (prefix,) = (prefix for prefix in PREFIXES if ours.startswith(prefix))
    return PREFIXES[prefix] + ours.removeprefix(prefix)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}


def _temporal_config(cfg: dict[str, Any], path: Path) -> TemporalConfig:
    """The temporal model that the cfg describes."""
    vtn, model = cfg["VTN"], cfg.get("MODEL")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: its cfg has no section MODEL; {REMEDY}")
    try:
        windows = vtn["ATTENTION_WINDOW"]
        windows = windows if isinstance(windows, list) else [windows]
        if any(window != windows[0] for window in windows[1:]) or not windows:
            raise CheckpointError(
                f"{path}: VTN.ATTENTION_WINDOW {windows}: all layers must have the same window; a "
                "checkpoint of several can't be imported"
            )
        return TemporalConfig(
            feature_dim=vtn["HIDDEN_DIM"],
            num_classes=model["NUM_CLASSES"],
            num_layers=vtn["NUM_HIDDEN_LAYERS"],
            num_heads=vtn["NUM_ATTENTION_HEADS"],
            attention_window=windows[0],
            intermediate_dim=vtn["INTERMEDIATE_SIZE"],
            max_positions=vtn["MAX_POSITION_EMBEDDINGS"],
            position_fps=POSITION_FPS,
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
    """The first backbone with the tensors' names and shapes."""
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
    """The authors': short side 256, center crop of the backbone's input size."""
    size = default_preprocessing(backbone).input_size
    if size[-1] > SHORT_SIDE:
        raise CheckpointError(
            f"the backbone takes frames of {size[-1]}, but the authors' short side is "
            f"{SHORT_SIDE}; name another with --backbone"
        )
    return Preprocessing(
        input_size=size,
        interpolation="bilinear",
        crop_pct=size[-1] / SHORT_SIDE,
        crop_mode="center",
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
    )


def _class_names(path: str | None, num_classes: int) -> list[str]:
    if path is None:
        return [str(index) for index in range(num_classes)]
    try:
        names = read_class_names(Path(path))
    except ManifestError as error:
        raise SettingsError(f"--classes {error}; give one name a line") from None
    if not len(names) == len(set(names)) == num_classes or "" in names:
        raise SettingsError(
            f"--classes {path}: {len(names)} names, {len(set(names))} of them different; the model "
            f"has {num_classes} classes, and each needs a name of its own"
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
