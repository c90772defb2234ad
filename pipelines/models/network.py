"""The whole network: backbone and temporal model."""

import re
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...extract.create_backbone import parameter_layers, weights_bytes
from ...manifests.errors import BackboneError, FeaturesError, first_line
from ...manifests.user_module import is_factory
from ...temporal.checkpoint import RunFolder, read_weights, save_weights
from ...temporal.model import TemporalClassifier
from .model_folder import (
    NetworkConfig,
    backbone_module,
    check_has_backbone,
    load_state,
    read_backbone,
    read_config,
    write_config,
)


class VideoTransformerNetwork(
    nn.Module, ModelHubMixin, library_name="vtnpipe", tags=["video-classification"]
):
    """Frames [B, T, 3, H, W] with positions [B, T] → logits [B, C].

    The backbone is frozen until `unfreeze` is called. `save_pretrained(folder)` and
    `push_to_hub("user/name")` are huggingface_hub's, with a model card; `from_pretrained` loads
    what they wrote.
    """

    _scale: Tensor
    _bias: Tensor

    def __init__(self, backbone: nn.Module, temporal: TemporalClassifier, config: NetworkConfig):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.temporal = temporal
        self.config = config
        scale, bias = config.preprocessing.scale_and_bias()
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_bias", bias, persistent=False)

    def forward(self, frames: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run every frame through the backbone, then the temporal model once (`end-to-end`).

        Args:
            frames: [B, T, 3, H, W], float and normalized by `config.preprocessing`; or uint8, which
                is normalized here.
            positions: [B, T] int.
            mask: [B, T] bool, True for frames, False for padding; None without padding.

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
        """Set the mode of trainable parts.

        Frozen parts stay in eval mode, and so does every BatchNorm of the backbone, whose
        statistics would depend on how a batch is divided.
        """
        super().train(mode)
        _set_frozen_to_eval(self.backbone)
        return self

    def unfreeze(self, num_blocks: int | None = None) -> None:
        """Make the backbone trainable.

        Args:
            num_blocks: number of its last blocks to train; None for all of it.

        Raises:
            BackboneError: it has fewer blocks, or cannot be divided into blocks.
        """
        trainable = {name for name, _ in self.backbone.named_parameters()}
        if num_blocks == 0:
            trainable = set()
        elif num_blocks is not None:
            layers = parameter_layers(self.backbone, self.config.spec.backbone)
            if num_blocks >= len(layers):
                raise BackboneError(
                    f"--train-blocks {num_blocks}: {self.config.spec.backbone} has "
                    f"{len(layers) - 1} blocks; give fewer, or leave it out to train all of it"
                )
            trainable = {name for names in layers[len(layers) - num_blocks :] for name in names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trainable)

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        """Return the learning-rate factor of each of the backbone's parameters.

        It is a power of the decay, one higher for each layer further from the temporal model (arXiv
        2106.08254, appendix; timm's `layer_decay`).

        Raises:
            BackboneError: the backbone cannot be divided into layers.
        """
        if layer_decay == 1:
            return {}
        layers = parameter_layers(self.backbone, self.config.spec.backbone)
        return {
            f"backbone.{name}": layer_decay ** (len(layers) - depth)
            for depth, names in enumerate(layers)
            for name in names
        }

    def use_gradient_checkpointing(self) -> None:
        """Make training recompute activations inside the backbone's blocks instead of storing them.

        Raises:
            BackboneError: the backbone does not support it.
        """
        switch = getattr(self.backbone, "set_grad_checkpointing", None)
        if switch is None:
            raise BackboneError(
                f"--gradient-checkpointing: backbone {self.config.spec.backbone!r} has no "
                "set_grad_checkpointing, as timm's models have; leave it out"
            )
        switch(True)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # fewer options
        cls,
        folder: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        trust_factories: bool = False,
        weights: str = "model.safetensors",
    ) -> "VideoTransformerNetwork":
        """Load a model folder, the model of a run folder, or a model of the hub.

        Args:
            folder: a folder, or `user/name` on the Hugging Face hub.
            revision: revision on the hub.
            token: token for a private model on the hub.
            trust_factories: call functions of this machine that a model of the hub names.
            weights: name of the file of the weights; `last.safetensors` for those of the last
                epoch of a run.

        Raises:
            FeaturesError: it is not a model folder, or its weights do not fit its configuration.
        """
        files = RunFolder(_local_folder(folder, revision, token))
        config = read_config(files)
        check_has_backbone(config, files.root)
        is_of_hub = files.root != Path(folder)
        names = (config.spec.backbone, config.temporal.encoder, config.temporal.head)
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
        state = read_weights(files.root / weights)
        if files.backbone.exists():
            state |= read_backbone(files.backbone, config.spec.weights_digest)
        load_state(files.root / weights, network, state)
        return network.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json, and model.safetensors with all weights."""
        files = RunFolder(save_directory)
        _, digest = weights_bytes(self.backbone.state_dict())  # it may have been trained
        save_weights(self, files.kept)
        files.backbone.unlink(missing_ok=True)
        spec = replace(self.config.spec, weights_digest=digest)
        write_config(files, replace(self.config, spec=spec))


def load_temporal(
    files: RunFolder, config: NetworkConfig, weights: Path | None = None
) -> TemporalClassifier:
    """Load the temporal model of a model folder, without its backbone.

    Args:
        files: the model folder.
        config: contents of its config.json.
        weights: file of the weights; by default those of the kept epoch.

    Raises:
        FeaturesError: its weights do not fit its configuration.
    """
    temporal = TemporalClassifier(config.temporal)
    path, prefix = weights or files.kept, "temporal."
    state = read_weights(path)
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    load_state(path, temporal, own)
    return temporal.eval()


def _set_frozen_to_eval(module: nn.Module) -> None:
    """Set frozen submodules to eval mode; those without parameters follow their parent."""
    parameters = list(module.parameters())
    is_frozen = bool(parameters) and not any(one.requires_grad for one in parameters)
    if is_frozen or isinstance(module, _BatchNorm):
        module.eval()
        return
    for child in module.children():
        _set_frozen_to_eval(child)


def _local_folder(folder: str | Path, revision: str | None, token: str | None) -> Path:
    """Return the folder itself, or the local copy of a model of the hub."""
    path = Path(folder)
    is_hub_name = isinstance(folder, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", folder)
    if path.exists() or not is_hub_name:
        return path
    try:
        return Path(_download(str(folder), revision, token))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FeaturesError(
            f"{folder}: no such folder, nor such a model on the Hugging Face hub "
            f"({first_line(error)}); check the name, or give token="
        ) from None


def _download(name: str, revision: str | None, token: str | None) -> str:
    patterns = ["config.json", "*.safetensors"]
    return snapshot_download(name, revision=revision, token=token, allow_patterns=patterns)
