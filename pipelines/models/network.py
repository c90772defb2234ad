"""The whole network: backbone and temporal model."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...extract.backbone import weights_bytes
from ...extract.create_backbone import layers_of
from ...manifests.errors import BackboneError, FeaturesError, first_line
from ...manifests.user_module import is_factory
from ...temporal.checkpoint import read_weights, save_weights
from ...temporal.model import TemporalClassifier
from ...temporal.run_folder import RunFolder
from .model_folder import (
    NetworkConfig,
    backbone_module,
    fill_from,
    read_backbone,
    read_config,
    write_config,
)


class VideoTransformerNetwork(
    nn.Module, ModelHubMixin, library_name="vtnpipe", tags=["video-classification"]
):
    """Frames [B, T, 3, H, W] with positions [B, T] → logits [B, C].

    The backbone is frozen until `unfreeze` is called. `save_pretrained(folder)` and
    `push_to_hub("user/name")` are huggingface_hub's, with a model card; `from_pretrained` takes
    back what they wrote.
    """

    _scale: Tensor
    _bias: Tensor

    def __init__(self, backbone: nn.Module, temporal: TemporalClassifier, config: NetworkConfig):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.temporal = temporal
        self.config = config
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            for values in (config.preprocessing.mean, config.preprocessing.std)
        )
        # (x / 255 - mean) / std as x * scale + bias
        self.register_buffer("_scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("_bias", (-mean / std).float(), persistent=False)

    def forward(self, frames: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Every frame through the backbone, then the temporal model once (`end-to-end`).

        Args:
            frames: [B, T, 3, H, W]: float, normalised as `config.preprocessing` says; or uint8,
                which is normalised here.
            positions: [B, T] int.
            mask: [B, T] bool, True where there is a frame; None for everywhere.

        Returns:
            [B, C] logits.
        """
        inputs = frames.flatten(0, 1) if mask is None else frames[mask.bool()]  # without padding
        if not inputs.is_floating_point():
            inputs = inputs.float() * self._scale + self._bias
        found = self.backbone(inputs)
        if mask is None:
            features = found.unflatten(0, positions.shape)
        else:
            features = found.new_zeros(*positions.shape, found.shape[-1])
            features[mask.bool()] = found
        logits: Tensor = self.temporal(features, positions, mask)
        return logits

    def train(self, mode: bool = True) -> "VideoTransformerNetwork":
        """Sets the mode of what learns; what is frozen stays in eval mode, and so does every
        BatchNorm of the backbone, whose statistics would depend on how a batch is divided.
        """
        super().train(mode)
        _eval_what_is_frozen(self.backbone)
        return self

    def unfreeze(self, num_blocks: int | None = None) -> None:
        """Lets the backbone learn.

        Args:
            num_blocks: its last so many blocks; None for all of it.

        Raises:
            BackboneError: it has fewer, or can't be divided into blocks.
        """
        learning = {name for name, _ in self.backbone.named_parameters()}
        if num_blocks == 0:
            learning = set()
        elif num_blocks is not None:
            layers = layers_of(self.backbone, self.config.identity["backbone"])
            if num_blocks >= len(layers):
                raise BackboneError(
                    f"--train-blocks {num_blocks}: {self.config.identity['backbone']} has "
                    f"{len(layers) - 1} blocks; give fewer, or leave it out to train all of it"
                )
            learning = {name for names in layers[len(layers) - num_blocks :] for name in names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in learning)

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        """What the learning rate of each of the backbone's parameters is multiplied by: a power of
        the decay, one more for each layer further from the temporal model (arXiv 2106.08254,
        appendix; timm's `layer_decay`).

        Raises:
            BackboneError: the backbone can't be divided into layers.
        """
        if layer_decay == 1:
            return {}
        layers = layers_of(self.backbone, self.config.identity["backbone"])
        return {
            f"backbone.{name}": layer_decay ** (len(layers) - depth)
            for depth, names in enumerate(layers)
            for name in names
        }

    def use_gradient_checkpointing(self) -> None:
        """From now on, training computes the backbone's blocks twice instead of keeping what lies
        inside them.

        Raises:
            BackboneError: the backbone has no such way.
        """
        switch = getattr(self.backbone, "set_grad_checkpointing", None)
        if switch is None:
            raise BackboneError(
                f"--gradient-checkpointing: backbone {self.config.identity['backbone']!r} has no "
                "set_grad_checkpointing, as timm's models have; leave it out"
            )
        switch(True)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # with those of its options that are meant here
        cls,
        folder: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        trust_factories: bool = False,
    ) -> "VideoTransformerNetwork":
        """Loads a model folder; of a run folder, its best model; or a model of the hub.

        Args:
            folder: a folder, or `user/name` on the Hugging Face hub.
            revision: on the hub.
            token: on the hub, where the model is private.
            trust_factories: call functions of this machine that a model of the hub names.

        Raises:
            FeaturesError: it is not a model folder, or its weights don't fit its configuration.
        """
        files = RunFolder(_local_folder(folder, revision, token))
        config = read_config(files)
        is_of_hub = files.root != Path(folder)
        names = (config.identity["backbone"], config.temporal.encoder, config.temporal.head)
        if is_of_hub and not trust_factories and any(map(is_factory, names)):
            raise FeaturesError(
                f"{folder}: names functions to call, {', '.join(filter(is_factory, names))}; read "
                "them, and give trust_factories=True"
            )
        network = cls(
            backbone_module(config),
            TemporalClassifier(config.temporal),
            config,
        )
        state = read_weights(files.best)
        if files.backbone.exists():
            state |= read_backbone(files.backbone, config.identity["weights_digest"])
        fill_from(files.best, network, state)
        return network.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes config.json and model.safetensors, with all weights in it."""
        files = RunFolder(save_directory)
        _, digest = weights_bytes(self.backbone.state_dict())  # not as loaded, if it was changed
        save_weights(self, files.best)
        files.backbone.unlink(missing_ok=True)
        identity = {**self.config.identity, "weights_digest": digest}
        write_config(files, replace(self.config, identity=identity))


def _eval_what_is_frozen(module: nn.Module) -> None:
    """Puts parts of which nothing learns into eval mode; parts without parameters go with what they
    are in.
    """
    parameters = list(module.parameters())
    is_frozen = bool(parameters) and not any(one.requires_grad for one in parameters)
    if is_frozen or isinstance(module, _BatchNorm):
        module.eval()
        return
    for child in module.children():
        _eval_what_is_frozen(child)


def _local_folder(folder: str | Path, revision: str | None, token: str | None) -> Path:
    """The folder itself, or where the hub's model of that name was put."""
    path = Path(folder)
    is_hub_name = isinstance(folder, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", folder)
    if path.exists() or not is_hub_name:
        return path
    try:
        return Path(_download(str(folder), revision, token))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FeaturesError(
            f"{folder}: no such folder, and the Hugging Face hub gives no such model "
            f"({first_line(error)}); check the name, or give token="
        ) from None


def _download(name: str, revision: str | None, token: str | None) -> str:
    patterns = ["config.json", "*.safetensors"]
    return snapshot_download(name, revision=revision, token=token, allow_patterns=patterns)
