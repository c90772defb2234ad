"""The model folder: what config.json says, and where the weights lie.

- config.json: backbone, preprocessing, temporal model, classes, and how its features are made
- model.safetensors: weights, `temporal.*`, and `backbone.*` unless a file of their own holds them
- backbone.safetensors: a frozen backbone's weights, byte for byte as in the feature folder

Where the backbone has learnt, its weights change with each best epoch: config.json then names no
digest of them, but model.safetensors does in its header, so that the two are written as one.
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

from ...extract.backbone import BuiltBackbone, weights_bytes
from ...extract.create_backbone import create_module
from ...extract.preprocessing import Preprocessing
from ...extract.weights import mismatches
from ...manifests.atomic import atomic_path, sha256_of, write_json
from ...manifests.errors import BackboneError, FeaturesError, SettingsError
from ...manifests.feature_folder import FeatureFolder
from ...temporal.checkpoint import read_metadata, read_weights, save_weights
from ...temporal.config import TemporalConfig
from ...temporal.model import TemporalClassifier
from ...temporal.run_folder import RunFolder

FORMAT, VERSION = "vtnpipe.model", 1
DIGEST = "backbone_digest"  # in the header of model.safetensors


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What config.json says, and of a backbone that has learnt, whose weights they are.

    Attributes:
        identity: what decides the features that the model takes: backbone, its weights' digest,
            preprocessing and sampling; after training on a feature folder, that folder's.
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


def backbone_module(config: NetworkConfig) -> nn.Module:
    """The backbone of a model, without its weights."""
    identity = config.identity
    return create_module(identity["backbone"], pretrained=False, pool=identity["pool"])


def write_model(files: RunFolder, temporal: TemporalClassifier, config: NetworkConfig) -> None:
    """Writes a model folder beside its backbone's weights; config.json last, as it makes it one."""
    save_weights(temporal, files.best, prefix="temporal.")
    write_config(files, config)


def save_network(network: nn.Module, backbone: nn.Module, path: Path) -> None:
    """Writes all weights of a network whose backbone learns, with that one's digest."""
    _, digest = weights_bytes(backbone.state_dict())
    save_weights(network, path, metadata={DIGEST: digest})


def backbone_of_model(folder: Path) -> BuiltBackbone:
    """The backbone of a model folder, for extracting features that fit the model.

    Raises:
        VtnpipeError: the folder is damaged.
    """
    files = RunFolder(folder)
    config = read_config(files)
    if files.backbone.exists():
        tensors = read_backbone(files.backbone, config.identity["weights_digest"])
    else:
        tensors = {k: v for k, v in read_weights(files.best).items() if k.startswith("backbone.")}
    state = {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()}
    with torch.device("meta"):
        own = backbone_module(config).state_dict()
    weights, digest = weights_bytes(state)
    if (faults := mismatches(own, state)) or digest != config.identity["weights_digest"]:
        fault = faults[0] if faults else "they are not those that config.json names"
        raise BackboneError(
            f"{folder}: the weights of its backbone {config.identity['backbone']} can't be used: "
            f"{fault}; put its {files.backbone.name} back"
        )
    return BuiltBackbone(
        preprocessing=config.preprocessing,
        dim=config.temporal.feature_dim,
        weights=weights,
        digest=digest,
    )


def load_temporal(files: RunFolder, config: NetworkConfig) -> TemporalClassifier:
    """The temporal model of a model folder, without its backbone.

    Raises:
        FeaturesError: its weights don't fit its configuration.
    """
    temporal = TemporalClassifier(config.temporal)
    state, prefix = read_weights(files.best), "temporal."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    fill_from(files.best, temporal, own)
    return temporal.eval()


def fill_from(path: Path, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the weights of a model's file into its module.

    Raises:
        FeaturesError: they are not the module's.
    """
    if faults := mismatches(module.state_dict(), state):
        raise FeaturesError(
            f"{path}: does not fit the config.json beside it: {faults[0]}; put back the two that "
            "belong together, or make the model anew"
        )
    module.load_state_dict(state)


def write_config(files: RunFolder, config: NetworkConfig) -> None:
    """Writes config.json."""
    value = {"format": FORMAT, "version": VERSION, **asdict(config)}
    write_json(value, files.config)


def model_digest(files: RunFolder) -> str:
    """Of a model's weights file: 16 hexadecimal digits.

    Raises:
        FeaturesError: it is not there.
    """
    if not files.best.exists():
        raise FeaturesError(
            f"{files.best}: missing; a run has it after its first epoch, so train it further"
        )
    return sha256_of(files.best)[:16]


def read_config(files: RunFolder) -> NetworkConfig:
    """What config.json says.

    Raises:
        FeaturesError: it is missing, damaged, or of another version.
    """
    try:
        found = json.loads(files.config.read_text(encoding="utf-8"))
        kind = (found.pop("format"), found.pop("version"))
        if kind != (FORMAT, VERSION):
            raise FeaturesError(
                f"{files.config}: is {kind}, not {(FORMAT, VERSION)}; it was made by another "
                "version of vtnpipe, or by another program: use that one, or make the model anew"
            )
        config = NetworkConfig(temporal=TemporalConfig(**found.pop("temporal")), **found)
        if config.identity["weights_digest"] is None:
            identity = {**config.identity, "weights_digest": read_metadata(files.best)[DIGEST]}
            config = replace(config, identity=identity)
        _check_config(config)
    except (FileNotFoundError, NotADirectoryError):
        raise FeaturesError(
            f"{files.root}: not a model or run folder (no config.json); make one with "
            "`vtnpipe train-temporal FEATURES RUN` or `vtnpipe import-checkpoint`"
        ) from None
    except FeaturesError:
        raise
    except SettingsError as error:
        raise FeaturesError(f"{files.config}: {error}; put it back") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FeaturesError(f"{files.config}: cannot be read ({error!r}); put it back") from None
    return config


def _check_config(config: NetworkConfig) -> None:
    """Refuses what other commands would stumble over.

    Raises:
        ValueError: something is missing, or is not what it must be.
    """
    texts = [config.identity[key] for key in ("backbone", "weights_digest")]
    num_names = 0 if config.temporal.task == "regression" else config.temporal.num_classes
    names = config.class_names
    if not all(isinstance(text, str) for text in [*texts, *names]) or len(names) != num_names:
        raise ValueError(f"{len(names)} class names for {num_names} classes, or names are no text")
    _ = config.preprocessing


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


def read_backbone(path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a backbone's own file, as `backbone.*`.

    Raises:
        BackboneError: they are not those of the digest.
    """
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
    # Precision and storage may differ: they make other roundings, not other features; and so may
    # the views, as logits are averaged over those that there are.
    keys = sorted({*mine, *identity} - {"precision", "store", "views"})
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
