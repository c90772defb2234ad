"""The whole network: backbone and temporal model."""

import re
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from ..extract.backbone import weights_bytes
from ..manifests.errors import FeaturesError, first_line
from ..manifests.factory import is_factory
from ..temporal.checkpoint import RunFolder, read_weights, save_weights
from ..temporal.model import TemporalClassifier
from .model_folder import NetworkConfig, backbone_module, read_backbone, read_config, write_config


class VideoTransformerNetwork(
    nn.Module, ModelHubMixin, library_name="vtnpipe", tags=["video-classification"]
):
    """Frames [B, T, 3, H, W], normalised, with positions [B, T] → logits [B, C].

    `save_pretrained(folder)` and `push_to_hub("user/name")` are huggingface_hub's, with a model
    card; `from_pretrained` takes back what they wrote.
    """

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
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise FeaturesError(f"{files.best}: does not fit config.json ({error})") from None
        return network.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes config.json and model.safetensors, with all weights in it."""
        files = RunFolder(save_directory)
        _, digest = weights_bytes(self.backbone.state_dict())  # not as loaded, if it was changed
        save_weights(self, files.best)
        files.backbone.unlink(missing_ok=True)
        identity = {**self.config.identity, "weights_digest": digest}
        write_config(files, replace(self.config, identity=identity))


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
            f"({first_line(error)})"
        ) from None


def _download(name: str, revision: str | None, token: str | None) -> str:
    patterns = ["config.json", "*.safetensors"]
    return snapshot_download(name, revision=revision, token=token, allow_patterns=patterns)
