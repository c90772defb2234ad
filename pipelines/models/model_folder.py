"""The model folder: config.json, and where the weights are.

- config.json: feature specification, temporal model, class names
- model.safetensors: weights, `temporal.*`, and `backbone.*` unless a file of their own has them
- backbone.safetensors: a frozen backbone's weights, byte for byte as in the feature folder

The weights of a trained backbone change with each epoch. config.json then has no digest of
them; the header of model.safetensors does, so that weights and digest are written as one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...extract.create_backbone import BuiltBackbone, create_module, weights_bytes
from ...extract.preprocessing import Preprocessing
from ...extract.weights_file import mismatches
from ...manifests.atomic import atomic_path, sha256_of, write_json
from ...manifests.errors import BackboneError, FeaturesError, SettingsError
from ...manifests.feature_folder import FeatureFolder, FeatureSpec, read_extraction
from ...manifests.manifest import nfc
from ...temporal.checkpoint import RunFolder, read_metadata, read_weights, save_weights
from ...temporal.config import TemporalConfig

FORMAT, VERSION = "vtnpipe.model", 2
DIGEST = "backbone_digest"  # key in the header of model.safetensors
# Fields in which features may differ from those that a model was trained on: precision and dtype
# cause other roundings only, and logits are averaged over the views.
MAY_DIFFER = frozenset({"precision", "feature_dtype", "views", "color_conversion"})


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Contents of config.json.

    Attributes:
        spec: specification of the features that the temporal model takes.
        temporal: configuration of the temporal model.
        class_names: [C], in the order of the logits.
    """

    spec: FeatureSpec
    temporal: TemporalConfig
    class_names: list[str]

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the frames."""
        return Preprocessing.from_json(self.spec.preprocessing)

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return {
            "spec": self.spec.to_json(),
            "temporal": asdict(self.temporal),
            "class_names": self.class_names,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NetworkConfig":
        """Create a configuration from JSON values; version 1 called the specification identity."""
        spec = values["spec"] if "spec" in values else values["identity"]
        return cls(
            spec=FeatureSpec.from_json(spec),
            temporal=TemporalConfig(**values["temporal"]),
            class_names=[nfc(name) for name in values["class_names"]],
        )


def backbone_module(config: NetworkConfig) -> nn.Module:
    """Create the backbone of a model, without its weights."""
    spec = config.spec
    return create_module(
        spec.backbone, pretrained=False, pool=spec.pool, image_size=spec.image_size
    )


def write_model(files: RunFolder, temporal: nn.Module, config: NetworkConfig) -> None:
    """Write temporal weights and config.json, which makes the folder a model folder, last."""
    save_weights(temporal, files.kept, prefix="temporal.")
    write_config(files, config)


def save_network(network: nn.Module, backbone: nn.Module, path: Path) -> None:
    """Write all weights of a network with a trained backbone, and the backbone's digest."""
    _, digest = weights_bytes(backbone.state_dict())
    save_weights(network, path, metadata={DIGEST: digest})


def backbone_of_model(folder: Path) -> BuiltBackbone:
    """Return the backbone of a model folder, for extracting features that fit the model.

    Raises:
        VtnpipeError: the folder is damaged.
    """
    files = RunFolder(folder)
    config = read_config(files)
    check_has_backbone(config, folder)
    if files.backbone.exists():
        tensors = read_backbone(files.backbone, config.spec.weights_digest)
    else:
        tensors = {k: v for k, v in read_weights(files.kept).items() if k.startswith("backbone.")}
    state = {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()}
    with torch.device("meta"):
        own = backbone_module(config).state_dict()
    weights, digest = weights_bytes(state)
    if (faults := mismatches(own, state)) or digest != config.spec.weights_digest:
        fault = faults[0] if faults else "they are not those that config.json names"
        raise BackboneError(
            f"{folder}: cannot use the weights of its backbone {config.spec.backbone}: {fault}; "
            f"restore its {files.backbone.name}"
        )
    return BuiltBackbone(
        preprocessing=config.preprocessing,
        dim=config.temporal.feature_dim,
        weights=weights,
        digest=digest,
    )


def load_state(path: Path, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the weights of a model's file into its module.

    Raises:
        FeaturesError: they do not fit the module.
    """
    if faults := mismatches(module.state_dict(), state):
        raise FeaturesError(
            f"{path}: does not fit the config.json beside it: {faults[0]}; restore the two that "
            "belong together, or create the model again"
        )
    module.load_state_dict(state)


def write_config(files: RunFolder, config: NetworkConfig) -> None:
    """Write config.json atomically."""
    write_json({"format": FORMAT, "version": VERSION, **config.to_json()}, files.config)


def model_digest(weights: Path) -> str:
    """Return the digest of a model's weights file, 16 hexadecimal digits.

    Raises:
        FeaturesError: the file is missing.
    """
    if not weights.exists():
        raise FeaturesError(
            f"{weights}: missing; a run writes it after its first epoch, so train it further"
        )
    return sha256_of(weights)[:16]


def read_config(files: RunFolder) -> NetworkConfig:
    """Read and check config.json.

    Raises:
        FeaturesError: the file is missing, damaged, or of another version.
    """
    try:
        found = json.loads(files.config.read_text(encoding="utf-8"))
        kind = (found.pop("format"), found.pop("version"))
        if kind[0] != FORMAT or kind[1] not in (1, VERSION):
            raise FeaturesError(
                f"{files.config}: is {kind}, but this vtnpipe reads {FORMAT!r} versions 1 and "
                f"{VERSION}; use the vtnpipe that wrote it, or create the model again"
            )
        config = NetworkConfig.from_json(found)
        if not config.spec.weights_digest and not config.spec.is_imported:
            digest = read_metadata(files.kept)[DIGEST]
            config = replace(config, spec=replace(config.spec, weights_digest=digest))
        _check_config(config)
    except (FileNotFoundError, NotADirectoryError):
        raise FeaturesError(
            f"{files.root}: not a model or run folder (no config.json); create one with "
            "`vtnpipe train-temporal FEATURES RUN` or `vtnpipe import-checkpoint`"
        ) from None
    except SettingsError as error:
        raise FeaturesError(f"{files.config}: {error}; restore it") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FeaturesError(f"cannot read {files.config} ({error!r}); restore it") from None
    return config


def _check_config(config: NetworkConfig) -> None:
    """Check the parts of a configuration that its constructors do not.

    Raises:
        ValueError: something is missing or of the wrong type.
    """
    texts = [config.spec.backbone, config.spec.weights_digest]
    num_names = 0 if config.temporal.task == "regression" else config.temporal.num_classes
    names = config.class_names
    if not all(isinstance(text, str) for text in [*texts, *names]) or len(names) != num_names:
        raise ValueError(f"{len(names)} class names for {num_names} classes, or names are no text")
    if not config.spec.is_imported:
        _ = config.preprocessing


def check_has_backbone(config: NetworkConfig, folder: Path) -> None:
    """Refuse a model of imported features where frames are to be decoded.

    Raises:
        BackboneError: its features were imported.
    """
    if config.spec.is_imported:
        raise BackboneError(
            f"{folder}: was trained on imported features, {config.spec.backbone!r}, and has no "
            "backbone for videos; give features: `evaluate MODEL FEATURES`, or `predict --mode "
            "features`"
        )


def link_backbone(features: FeatureFolder, files: RunFolder) -> None:
    """Link, or else copy, the feature folder's backbone weights into a run folder.

    A folder of imported features has none.
    """
    if files.backbone.exists() or read_extraction(features).spec.is_imported:
        return
    try:
        os.link(features.backbone, files.backbone)
    except FileNotFoundError:
        raise FeaturesError(
            f"{features.backbone}: missing, but prediction needs it; restore it"
        ) from None
    except OSError:
        with atomic_path(files.backbone) as temporary:
            shutil.copyfile(features.backbone, temporary)


def read_backbone(path: Path, digest: str) -> dict[str, Tensor]:
    """Return the tensors of a backbone's own file, as `backbone.*`.

    Raises:
        BackboneError: their digest is another one.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise BackboneError(f"{path}: not the weights that config.json names; restore them")
    return {f"backbone.{key}": tensor for key, tensor in safetensors.torch.load(data).items()}


def check_features(config: NetworkConfig, spec: FeatureSpec, features: Path) -> None:
    """Refuse features of another specification than the model was trained on.

    Raises:
        FeaturesError: names each field that differs, with both values.
    """
    if differences := config.spec.differences(spec, ignore=MAY_DIFFER):
        raise FeaturesError(
            f"{features}: not the features that the model was trained on: "
            f"{'; '.join(differences)}; extract the videos with the model's backbone and settings"
        )
