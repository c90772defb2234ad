"""The frozen image backbone: frames in, one feature vector each out, with the preprocessing it was
made for.

The main process builds it once (`build_backbone`) and writes its weights into the feature folder;
every worker loads those (`load_backbone`) and checks their digest, so that random weights, too, are
the same everywhere.
"""

import contextlib
import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.errors import BackboneError, first_line
from ..manifests.factory import is_factory, module_from_factory
from .preprocessing import Preprocessing
from .weights import fill

RANDOM_SEED = 0  # of `weights none`


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A module [N, 3, H, W] → [N, D] with its preprocessing, on a device.

    Attributes:
        module: frozen, in eval mode, in the precision's dtype.
        dim: D.
        dtype: of weights and activations.
    """

    module: nn.Module
    preprocessing: Preprocessing
    dim: int
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def geometry(self) -> list[Any]:
        """The steps that resize and crop."""
        return _geometry(self.preprocessing)

    def resize(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Resizes and crops frames as timm's evaluation transform does, antialiased, in uint8.

        Args:
            images: [N, H, W, 3] uint8.

        Returns:
            [N, 3, h, w] uint8 on the CPU, where h and w are the backbone's input size.
        """
        # Channels last in memory: torchvision's fast path.
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
        for step in self.geometry:
            tensor = step(tensor)
        # A copy, always: where nothing is to be resized, steps return views of the frames given.
        return tensor.clone(memory_format=torch.contiguous_format)

    def normalise(self, images: Tensor) -> Tensor:
        """The backbone's input from frames that `resize` made.

        Args:
            images: [N, 3, h, w] uint8.

        Returns:
            [N, 3, h, w] float32 on the device.
        """
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return images.to(self.device).to(torch.float32).div_(255).sub_(mean).div_(std)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """The features of frames that `resize` made.

        Args:
            images: [N, 3, h, w] uint8.

        Returns:
            [N, D] float32 on the CPU.
        """
        features: Tensor = self.module(self.normalise(images).to(self.dtype))
        return features.to("cpu", torch.float32)


def _geometry(preprocessing: Preprocessing) -> list[Any]:
    """The steps of timm's own evaluation transform that come before the conversion to float."""
    from timm.data import create_transform
    from torchvision.transforms import Resize, v2

    steps = create_transform(**asdict(preprocessing), is_training=False).transforms
    names = [type(step).__name__ for step in steps]
    assert names[-2:] == ["MaybeToTensor", "Normalize"], names
    return [
        # The same resize in uint8 throughout, as PIL does it; the older class goes by float, at ten
        # times the cost.
        v2.Resize(step.size, step.interpolation, antialias=True) if type(step) is Resize else step
        for step in steps[:-2]
    ]


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


def build_backbone(name: str, weights: str) -> BuiltBackbone:
    """Makes a backbone and its weights.

    Args:
        name: a timm name, `hf-hub:` names included, or `package.module:factory`.
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
        module = create_module(name, pretrained=weights == "pretrained")
    if path is not None:
        fill(module, path)
    preprocessing = default_preprocessing(module)
    dim = _feature_dim(module, preprocessing, name)
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
    preprocessing: Preprocessing,
    dim: int,
    device: str,
    dtype: str,
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
    module = create_module(name, pretrained=False)
    module.load_state_dict(safetensors.torch.load(data))
    torch_dtype: torch.dtype = getattr(torch, dtype)
    module = module.to(torch.device(device), torch_dtype).eval().requires_grad_(False)
    return Backbone(
        module=module,
        preprocessing=preprocessing,
        dim=dim,
        device=torch.device(device),
        dtype=torch_dtype,
    )


def create_module(name: str, *, pretrained: bool) -> nn.Module:
    """Makes a backbone's module [N, 3, H, W] → [N, D], by its timm name or its factory.

    Raises:
        BackboneError: the name is unknown, or its pretrained weights can't be had.
    """
    if is_factory(name):
        if pretrained:
            raise BackboneError(
                f"backbone {name!r} is a factory, which has no pretrained weights by name; "
                "give --weights none or --weights FILE"
            )
        return module_from_factory(name, what="backbone", error_type=BackboneError)
    with _explain_import_errors():
        import timm

    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (ValueError, ImportError) as error:
        raise BackboneError(
            f"backbone {name!r}: {first_line(error)}; give a timm name, hf-hub:NAME, or "
            "package.module:factory"
        ) from None
    except OSError as error:
        raise BackboneError(
            f"backbone {name!r}: its files can't be had from the Hugging Face hub "
            f"({first_line(error)}); "
            "on a machine without a network, download them elsewhere and copy the cache (HF_HOME), "
            "or give --weights FILE"
        ) from None
    except RuntimeError as error:
        if not str(error).startswith(("Unknown model", "Invalid pretrained tag", "No pretrained")):
            raise
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise BackboneError(f"backbone {name!r}: {error}; {hint}") from None
    return module


@contextlib.contextmanager
def _explain_import_errors() -> Iterator[None]:
    """Says in one line what a torch and a torchvision of different builds say in forty."""
    try:
        yield
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise BackboneError(
            "torch and torchvision are of different builds; install both from the same index "
            "(`vtnpipe doctor` shows their versions)"
        ) from None


def default_preprocessing(module: nn.Module) -> Preprocessing:
    """From the model's own data configuration; timm's defaults for a module without one."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(module)
    return Preprocessing(
        input_size=tuple(config["input_size"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _feature_dim(module: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    """D, found by a forward pass over one black frame."""
    was_training = module.training
    try:
        with torch.inference_mode():
            output = module.eval()(torch.zeros(1, *preprocessing.input_size))
    except Exception as error:
        raise BackboneError(
            f"backbone {name!r} fails on a frame of {list(preprocessing.input_size)}: "
            f"{type(error).__name__}: {first_line(error)}; check its input size"
        ) from error
    module.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BackboneError(
            f"backbone {name!r} gives {shape} for one frame; "
            "features must be [N, D]: one vector a frame"
        )
    return int(output.shape[1])
