"""Temporal encoders: tokens [B, T, W], positions and mask [B, T] → one vector per clip, [B, W].

An encoder for tasks on frames also has a method `frame_states`, which takes the same and returns a
vector per frame, [B, T, W].

    longformer  VTN's encoder: frames attend within windows, [CLS] to all frames; linear in T
    full        the same with exact attention of every token to every other; quadratic in T
    uniform     the same with equal attention to all tokens: does attention matter?
    attentive   a learned query attends to the tokens once: the usual probe of frozen features
    mean        mean of the tokens: a baseline that ignores the order of frames
    hf:NAME     a transformer of Hugging Face, see `temporal/hf_encoder.py`

Any other encoder is a user module, `package.module:factory`, called with the `TemporalConfig`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..manifests.errors import SettingsError, first_line
from ..manifests.user_module import call_factory
from .config import TemporalConfig
from .hf_encoder import PREFIX, HfEncoder
from .longformer import Longformer


def build_encoder(config: TemporalConfig) -> nn.Module:
    """Create the encoder that a configuration names, with random weights.

    Raises:
        SettingsError: a user module's factory fails, or the module does not return [B, D]; or the
            task is on frames, and the encoder has no states of them.
    """
    module = _build(config)
    if config.is_per_frame and not hasattr(module, "frame_states"):
        raise SettingsError(
            f"--task {config.task} with --encoder {config.encoder}: it gives no state for each "
            "frame; give longformer, full, uniform, hf:NAME, or a module with a method "
            "frame_states(tokens, positions, mask)"
        )
    return module


def _build(config: TemporalConfig) -> nn.Module:
    if config.encoder in ("longformer", "full", "uniform"):
        return ClsEncoder(config)
    if config.encoder == "attentive":
        return AttentiveEncoder(config)
    if config.encoder.startswith(PREFIX):
        return HfEncoder(config)
    if config.encoder == "mean":
        return MeanEncoder()
    module = call_factory(
        config.encoder, config, returns=nn.Module, role="encoder", error_type=SettingsError
    )
    if torch.get_default_device().type == "meta":
        return module
    features = torch.zeros(1, 2, config.token_dim)
    positions, mask = torch.arange(2)[None], torch.ones(1, 2, dtype=torch.bool)
    inputs, name = (features, positions, mask), f"encoder {config.encoder!r}"
    if config.is_per_frame and hasattr(module, "frame_states"):
        check_output(module, [1, 2, config.token_dim], name, *inputs, method="frame_states")
    else:
        check_output(module, [1, config.token_dim], name, *inputs)
    return module


def check_output(
    module: nn.Module, shape: list[int], what: str, *inputs: Tensor, method: str = "forward"
) -> None:
    """Run a user module on one clip, and refuse it if it does not return a tensor of a shape.

    Args:
        module: the user module.
        shape: shape that it must return.
        what: name of the module, for messages.
        inputs: inputs of one clip.
        method: name of the method to run.

    Raises:
        SettingsError: the module fails, or returns anything else.
    """
    was_training = module.training
    try:
        with torch.no_grad():
            output = getattr(module.eval(), method)(*inputs)
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise SettingsError(
            f"{what} failed on inputs of {shapes}: {type(error).__name__}: {first_line(error)}; an "
            "encoder takes features [B, T, D], positions [B, T] and a mask [B, T]; a head takes "
            "[B, D]"
        ) from error
    module.train(was_training)
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != shape:
        raise SettingsError(f"{what} returned {found} for one clip; it must return {shape}")


class ClsEncoder(nn.Module):
    """Longformer over a learned [CLS] followed by the frames; returns the final state of [CLS].

    [CLS] is initialized as a standard normal vector, as in the authors' code.

    Args:
        config: configuration of the temporal model.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.token_dim))
        self.model = Longformer(config)

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per clip, [B, D].

        Args:
            features: [B, T, D].
            positions: [B, T] int, frame positions.
            mask: [B, T] bool, True for frames, False for padding.
        """
        state: Tensor = self.model(self.cls_token, features, positions, mask)
        return state

    def frame_states(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per frame, [B, T, D]; for the arguments see `forward`."""
        states: Tensor = self.model(self.cls_token, features, positions, mask, cls_only=False)
        return states[:, 1:]

    def cls_attention(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the attention of [CLS] to itself and to each frame, [B, L, H, 1 + T].

        Args:
            features: [B, T, D].
            positions: [B, T] int, frame positions.
            mask: [B, T] bool, True for frames, False for padding.
        """
        return self.model.cls_attention(self.cls_token, features, positions, mask)


class AttentiveEncoder(nn.Module):
    """Cross-attention of one learned query to the normalized tokens, and a projection.

    It ignores positions.

    Args:
        config: configuration of the temporal model.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        W = config.token_dim
        self.num_heads = config.num_heads
        self.query = nn.Parameter(torch.randn(config.num_heads, W // config.num_heads))
        self.norm = nn.LayerNorm(W)
        self.key = nn.Linear(W, W)
        self.value = nn.Linear(W, W)
        self.output = nn.Linear(W, W)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per clip, [B, W].

        Args:
            tokens: [B, T, W].
            positions: [B, T]; ignored.
            mask: [B, T] bool, True for frames, False for padding.
        """
        tokens = self.norm(tokens)
        key, value = (
            layer(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.key, self.value)
        )  # [B, H, T, d]
        query = self.query[None, :, None].expand(len(tokens), -1, -1, -1)
        context = F.scaled_dot_product_attention(query, key, value, mask[:, None, None])
        state: Tensor = self.output(context[:, :, 0].flatten(1))
        return state


class MeanEncoder(nn.Module):
    """Mean of the frames' features."""

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per clip, [B, D]; 0 for a clip without frames.

        Args:
            features: [B, T, D].
            positions: [B, T]; ignored.
            mask: [B, T] bool, True for frames, False for padding.
        """
        precise = torch.promote_types(features.dtype, torch.float32)
        weights = mask.to(precise) / mask.sum(1, keepdim=True).clamp(min=1)
        with torch.autocast(features.device.type, enabled=False):
            mean = weights[:, None] @ features.to(precise)
        return mean[:, 0].to(features.dtype)
