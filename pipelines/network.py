"""The whole network: backbone and temporal model, and the folder that it is stored in.

- config.json: backbone, preprocessing, temporal model, classes, and how its features were made
- model.safetensors: weights, `temporal.*`, and `backbone.*` unless a file of their own holds them
- backbone.safetensors: a frozen backbone's weights, as they lie in the feature folder
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from ..extract.backbone import create_module
from ..extract.preprocessing import Preprocessing
from ..manifests.errors import BackboneError, FeaturesError
from ..manifests.files import atomic_path, write_bytes, write_json
from ..manifests.folder import FeatureFolder
from ..temporal.checkpoint import RunFolder, read_weights
from ..temporal.model import TemporalClassifier, TemporalConfig

FORMAT, VERSION = "vtnpipe.model", 1


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What config.json says.

    Attributes:
        identity: of the feature folder that the model was fitted on: backbone, its weights' digest,
            preprocessing, precision and sampling.
        temporal: the temporal model.
        class_names: [C], in the order of the logits.
    """

    identity: dict[str, Any]
    temporal: TemporalConfig
    class_names: list[str]

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the frames."""
        return Preprocessing.from_json(self.identity["preprocessing"])


class VideoTransformerNetwork(nn.Module):
    """Frames [B, T, 3, H, W], normalised, with positions [B, T] → logits [B, C]."""

    def __init__(self, backbone: nn.Module, temporal: TemporalClassifier, config: NetworkConfig):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.temporal = temporal
        self.config = config

    def forward(self, frames: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Every frame through the backbone, then the temporal model once (`end-to-end`).

        Args:
            frames: [B, T, 3, H, W] float, normalised as `config.preprocessing` says.
            positions: [B, T] int.
            mask: [B, T] bool, True where there is a frame; None for everywhere.

        Returns:
            [B, C] logits.
        """
        B, T = frames.shape[:2]
        features = self.backbone(frames.flatten(0, 1)).unflatten(0, (B, T))
        logits: Tensor = self.temporal(features, positions, mask)
        return logits

    def train(self, mode: bool = True) -> "VideoTransformerNetwork":
        """Sets the mode of the temporal model; the frozen backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "VideoTransformerNetwork":
        """Loads a model folder; of a run folder, its best model.

        Raises:
            FeaturesError: it is not a model folder, or its weights don't fit its configuration.
        """
        files = RunFolder(Path(folder))
        config = read_config(files)
        network = cls(
            create_module(config.identity["backbone"], pretrained=False),
            TemporalClassifier(config.temporal),
            config,
        )
        state = read_weights(files.best)
        if files.backbone.exists():
            state |= _read_backbone(files.backbone, config.identity["weights_digest"])
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise FeaturesError(f"{files.best}: does not fit config.json ({error})") from None
        return network.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, with all weights in it."""
        files = RunFolder(Path(folder))
        files.root.mkdir(parents=True, exist_ok=True)
        state = {key: tensor.cpu().contiguous() for key, tensor in self.state_dict().items()}
        write_bytes(safetensors.torch.save(state), files.best)
        files.backbone.unlink(missing_ok=True)
        write_config(files, self.config)


def load_temporal(files: RunFolder, config: NetworkConfig) -> TemporalClassifier:
    """The temporal model of a model folder, without its backbone.

    Raises:
        FeaturesError: its weights don't fit its configuration.
    """
    temporal = TemporalClassifier(config.temporal)
    state, prefix = read_weights(files.best), "temporal."
    try:
        temporal.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
    except RuntimeError as error:
        raise FeaturesError(f"{files.best}: does not fit config.json ({error})") from None
    return temporal.eval()


def write_config(files: RunFolder, config: NetworkConfig) -> None:
    """Writes config.json."""
    value = {"format": FORMAT, "version": VERSION, **asdict(config)}
    write_json(value, files.config)


def read_config(files: RunFolder) -> NetworkConfig:
    """What config.json says.

    Raises:
        FeaturesError: it is missing, damaged, or of another version.
    """
    try:
        found = json.loads(files.config.read_text(encoding="utf-8"))
        kind = (found.pop("format"), found.pop("version"))
        if kind != (FORMAT, VERSION):
            raise FeaturesError(f"{files.config}: is {kind}, not {(FORMAT, VERSION)}")
        temporal = TemporalConfig(**found.pop("temporal"))
        return NetworkConfig(temporal=temporal, **found)
    except (FileNotFoundError, NotADirectoryError):
        raise FeaturesError(
            f"{files.root}: not a model or run folder (no config.json); make one with "
            "`vtnpipe train-temporal FEATURES RUN`"
        ) from None
    except (OSError, TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise FeaturesError(f"{files.config}: cannot be read ({error!r})") from None


def link_backbone(features: FeatureFolder, files: RunFolder) -> None:
    """Puts the feature folder's backbone weights into a run folder: linked, or copied."""
    if files.backbone.exists():
        return
    try:
        os.link(features.backbone, files.backbone)
    except FileNotFoundError:
        raise FeaturesError(
            f"{features.backbone}: missing, but predicting needs it; put it back"
        ) from None
    except OSError:
        with atomic_path(files.backbone) as temporary:
            shutil.copyfile(features.backbone, temporary)


def _read_backbone(path: Path, digest: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise BackboneError(f"{path}: not the weights that config.json names; put them back")
    return {f"backbone.{key}": tensor for key, tensor in safetensors.torch.load(data).items()}


def check_features(config: NetworkConfig, identity: Mapping[str, Any], features: Path) -> None:
    """Refuses features that the model was not fitted on.

    Raises:
        FeaturesError: names each setting that differs, with both values.
    """
    mine = config.identity
    # Precision and storage may differ: they make other roundings, not other features.
    keys = sorted({*mine, *identity} - {"precision", "store"})
    differences = [
        f"{key} is {identity.get(key)!r} there and {mine.get(key)!r} in the model"
        for key in keys
        if identity.get(key) != mine.get(key)
    ]
    if differences:
        raise FeaturesError(
            f"{features}: not the features that the model was fitted on: {'; '.join(differences)}; "
            "extract the videos with the model's backbone and settings"
        )
