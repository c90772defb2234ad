"""The frozen image backbone: frames in, one feature vector each out, with the preprocessing it was
made for.

The main process builds it once (`build_backbone`) and writes its weights into the feature folder;
every worker loads those (`load_backbone`) and checks their digest, so that random weights, too, are
the same everywhere.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.errors import BackboneError
from .create_backbone import create_module, default_preprocessing, feature_dim, timm_steps
from .preprocessing import Preprocessing
from .transform import Transform
from .weights import fill

RANDOM_SEED = 0  # of `weights none`


class Kinds(NamedTuple):
    """What a backbone is made of, as far as it matters for speed."""

    num_convolutions: int  # to which memory formats matter
    num_attentions: int  # that can do with a fused kernel or without


class Computing(NamedTuple):
    """Features on their way: [N, V, D] float32 on the CPU, there once `event` has come."""

    features: Tensor
    event: "torch.cuda.Event | None"

    def wait(self) -> Tensor:
        """The features, when they are there."""
        if self.event is not None:
            self.event.synchronize()
        return self.features


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A module [N, 3, H, W] → [N, D] with its transform, on a device.

    Attributes:
        module: frozen, in eval mode, in the precision's dtype.
        transform: what makes its input.
        dtype: of weights and activations.
        kinds: what it is made of.
        channels_last: whether its input lies in memory pixel by pixel.
        fixed_size: images of every batch, for a compiled module; smaller batches are filled up.
    """

    module: Callable[[Tensor], Tensor]
    transform: Transform
    dtype: torch.dtype
    kinds: Kinds = Kinds(0, 0)
    channels_last: bool = False
    fixed_size: int | None = None

    @torch.inference_mode()
    def start(self, images: Tensor) -> Computing:
        """Sends images through; on a GPU this returns before the features are there.

        Args:
            images: [N, V, 3, h, w] uint8, as `transform.resize` makes them.
        """
        num_frames, num_views = images.shape[:2]
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        inputs = self.transform.normalise(images.flatten(0, 1))
        inputs = inputs.to(self.dtype, memory_format=order)
        if self.fixed_size is not None and len(inputs) < self.fixed_size:
            filler = inputs[:1].expand(self.fixed_size - len(inputs), -1, -1, -1)
            inputs = torch.cat((inputs, filler))
        outputs = self.module(inputs)[: num_frames * num_views].to(torch.float32)
        features = outputs.to("cpu", non_blocking=True).unflatten(0, (num_frames, num_views))
        event = None
        if outputs.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(outputs.device))
        return Computing(features, event)

    def features(self, images: Tensor) -> Tensor:
        """The features [N, V, D], float32 on the CPU, of images as `start` takes them."""
        return self.start(images).wait()


def evaluation_transform(
    preprocessing: Preprocessing, device: str, views: Sequence[str] = ("centre",)
) -> Transform:
    """Timm's own evaluation transform up to the conversion to float, for batches of uint8.

    Raises:
        BackboneError: its crop leaves nothing to take other views of.
    """
    from torchvision.transforms import Resize, v2

    if "left" in views and preprocessing.crop_mode != "center":
        raise BackboneError(
            f"--views three-crop: the backbone's preprocessing has crop mode "
            f"{preprocessing.crop_mode!r}, which leaves nothing beside the centre; give "
            "--views flip"
        )
    *steps, crop, _, _ = timm_steps(preprocessing)
    return Transform(
        preprocessing=preprocessing,
        # The same resize in uint8 throughout, as PIL does it; the older class goes by float, at ten
        # times the cost.
        resize_steps=[
            v2.Resize(step.size, step.interpolation, antialias=True)
            if type(step) is Resize
            else step
            for step in steps
        ],
        crop=crop,
        views=tuple(views),
        device=torch.device(device),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class BuiltBackbone:
    """A backbone as the main process makes it: what goes into the feature folder.

    Attributes:
        weights: its tensors as the bytes of a safetensors file.
        digest: SHA-256 of `weights`.
    """

    preprocessing: Preprocessing
    dim: int
    weights: bytes
    digest: str


def build_backbone(name: str, weights: str, pool: str | None = None) -> BuiltBackbone:
    """Makes a backbone and its weights.

    Args:
        name: a timm name, `hf-hub:` names included, or `package.module:factory`.
        pool: as `create_module` takes it.
        weights: `pretrained`, `none` (random, always the same ones), or a safetensors or PyTorch
            file.

    Raises:
        BackboneError: the name is unknown, the weights can't be had or don't fit, or its output is
            not [N, D].
    """
    path = None if weights in ("pretrained", "none") else Path(weights)
    if path is not None and not path.is_file():
        raise BackboneError(
            f"weights {weights!r}: no such file, nor a model folder; give pretrained, none, or "
            "the path of a checkpoint or a model"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        module = create_module(name, pretrained=weights == "pretrained", pool=pool)
    if path is not None:
        fill(module, path)
    preprocessing = default_preprocessing(module)
    dim = feature_dim(module, preprocessing, name)
    data, digest = weights_bytes(module.state_dict())
    return BuiltBackbone(preprocessing=preprocessing, dim=dim, weights=data, digest=digest)


def weights_bytes(state: Mapping[str, Tensor]) -> tuple[bytes, str]:
    """The bytes of a safetensors file, and their SHA-256; the same for the same tensors."""
    data = safetensors.torch.save(
        {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    )
    return data, hashlib.sha256(data).hexdigest()


def load_backbone(
    name: str,
    path: Path,
    *,
    digest: str,
    pool: str | None,
    dtype: str,
    transform: Transform,
    channels_last: bool = False,
    fused_attention: bool = True,
    compiled_size: int | None = None,
) -> Backbone:
    """Makes the backbone of a feature folder from the weights that lie there.

    Raises:
        BackboneError: the file's digest is not the one in extraction.json.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BackboneError(
            f"{path}: its SHA-256 is {found[:16]}…, but extraction.json says {digest[:16]}…; "
            "the weights were changed: put them back, or extract into another folder"
        )
    module = create_module(name, pretrained=False, pool=pool)
    module.load_state_dict(safetensors.torch.load(data))
    torch_dtype: torch.dtype = getattr(torch, dtype)
    module = module.to(transform.device, torch_dtype).eval().requires_grad_(False)
    attentions: list[Any] = [
        part for part in module.modules() if getattr(part, "fused_attn", False) is True
    ]
    for attention in attentions:
        attention.fused_attn = fused_attention  # timm's switch
    num_convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    return Backbone(
        module=module if compiled_size is None else compiled(module),
        transform=transform,
        dtype=torch_dtype,
        kinds=Kinds(num_convolutions, len(attentions)),
        channels_last=channels_last,
        fixed_size=compiled_size,
    )


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module, compiled for one size of batch at its first call; its weights frozen in."""
    import torch._inductor.config

    torch._inductor.config.freezing = True  # on a CPU, this is what makes it pay
    return torch.compile(module, dynamic=False)
