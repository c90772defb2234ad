"""The frozen image backbone: frames in, one feature vector each out, with the preprocessing it was made for.

The main process builds it once (`build_backbone`) and writes its weights into the feature folder; every worker
loads those (`load_backbone`) and checks their digest, so that random weights, too, are the same everywhere.
"""

import contextlib
import difflib
import hashlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.errors import BackboneError, SettingsError
from .choices import Precision

RANDOM_SEED = 0  # of `weights none`
_WRAPPERS = ("state_dict", "model_state", "model")  # keys under which checkpoints keep their tensors


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an upright RGB frame becomes the backbone's input, in the words of timm's data configuration."""

    input_size: tuple[int, int, int]  # (3, H, W)
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]


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

    def resize(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Resizes and crops frames as timm's evaluation transform does, antialiased, in uint8.

        Args:
            images: [N, H, W, 3] uint8.

        Returns:
            [N, 3, h, w] uint8 on the CPU, where h and w are the backbone's input size.
        """
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last: torchvision's fast path
        for transform in _geometry(self.preprocessing):
            tensor = transform(tensor)
        # A copy, always: where nothing is to be resized, steps return views of the frames given.
        return tensor.clone(memory_format=torch.contiguous_format)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """The features of frames that `resize` made.

        Args:
            images: [N, 3, h, w] uint8.

        Returns:
            [N, D] float32 on the CPU.
        """
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        pixels = images.to(self.device).to(torch.float32).div_(255).sub_(mean).div_(std)
        features: Tensor = self.module(pixels.to(self.dtype))
        return features.to("cpu", torch.float32)


def _geometry(preprocessing: Preprocessing) -> list[Any]:
    """The steps of timm's own evaluation transform that come before the conversion to float."""
    from timm.data import create_transform

    steps = create_transform(**asdict(preprocessing), is_training=False).transforms
    names = [type(step).__name__ for step in steps]
    assert names[-2:] == ["MaybeToTensor", "Normalize"], names
    return list(steps[:-2])


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
        weights: `pretrained`, `none` (random, always the same ones), or a safetensors or PyTorch file.

    Raises:
        BackboneError: the name is unknown, the weights can't be had or don't fit, or its output is not [N, D].
    """
    path = None if weights in ("pretrained", "none") else Path(weights)
    if path is not None and not path.is_file():
        raise BackboneError(
            f"weights {weights!r}: no such file; give pretrained, none, or the path of a checkpoint"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        module = _create(name, pretrained=weights == "pretrained")
    if path is not None:
        _fill(module, path)
    preprocessing = _preprocessing(module)
    dim = _feature_dim(module, preprocessing, name)
    data = safetensors.torch.save(
        {key: tensor.detach().clone().contiguous() for key, tensor in module.state_dict().items()}
    )
    return BuiltBackbone(
        preprocessing=preprocessing,
        dim=dim,
        weights=data,
        digest=hashlib.sha256(data).hexdigest(),
    )


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
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BackboneError(
            f"{path}: its SHA-256 is {found[:16]}…, but extraction.json says {digest[:16]}…; "
            "the weights were changed: put them back, or extract into another folder"
        )
    module = _create(name, pretrained=False)
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


def _create(name: str, *, pretrained: bool) -> nn.Module:
    if ":" in name and not name.startswith("hf-hub:"):
        if pretrained:
            raise BackboneError(
                f"backbone {name!r} is a factory, which has no pretrained weights by name; "
                "give --weights none or --weights FILE"
            )
        return _from_factory(name)
    with _explain_import_errors():
        import timm

    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except OSError as error:
        raise BackboneError(
            f"backbone {name!r}: its files can't be had from the Hugging Face hub ({_first_line(error)}); "
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


def _from_factory(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` would have it
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise BackboneError(
            f"backbone {name!r}: {error}; a factory is package.module:function, importable from here"
        ) from None
    module = factory()
    if not isinstance(module, nn.Module):
        raise BackboneError(
            f"backbone {name!r} returned a {type(module).__name__}; it must return a torch.nn.Module"
        )
    return module


def _preprocessing(module: nn.Module) -> Preprocessing:
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
    with torch.inference_mode():
        output = module.eval()(torch.zeros(1, *preprocessing.input_size))
    module.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BackboneError(
            f"backbone {name!r} gives {shape} for one frame; features must be [N, D]: one vector a frame"
        )
    return int(output.shape[1])


def _fill(module: nn.Module, path: Path) -> None:
    """Loads a checkpoint file of the model, with or without its classifier."""
    state = _read_checkpoint(path)
    config = getattr(module, "pretrained_cfg", {})
    classifier = config.get("classifier") or ()
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = module.state_dict()
    state = {
        key: tensor
        for key, tensor in state.items()
        if key in own or not key.startswith(tuple(f"{prefix}." for prefix in prefixes))
    }
    faults = [f"lacks {key}" for key in own if key not in state]
    faults += [f"has {key}, which the model has not" for key in state if key not in own]
    faults += [
        f"{key} is {list(state[key].shape)}, the model's is {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BackboneError(
            f"weights {path} don't fit the backbone: {'; '.join(faults[:5])}{more}; "
            "give the checkpoint of this very model, or its name with --backbone"
        )
    module.load_state_dict(state)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file; the latter is never allowed to run code."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # whatever a damaged or a hostile file leads to
        raise BackboneError(
            f"weights {path}: neither a safetensors nor a safe PyTorch file ({_first_line(error)})"
        ) from None
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(f"weights {path}: holds no state dict of tensors")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def resolve_device(device: str) -> str:
    """`cpu`, `cuda` or `cuda:N` for `auto` or one of these.

    Raises:
        SettingsError: this machine has no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise SettingsError(f"device {device!r} is none of auto, cpu, cuda, cuda:N")
    num_gpus = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= num_gpus:
        raise SettingsError(
            f"device {device!r}: this machine has {num_gpus} CUDA devices that torch can use; "
            "give --device cpu, or see `vtnpipe doctor`"
        )
    return device


def resolve_precision(precision: Precision, device: str) -> tuple[str, str]:
    """The dtype to run in, and why.

    Returns:
        (`float32`, `bfloat16` or `float16`, the reason in words).
    """
    if precision != "auto":
        return precision, "asked for"
    if device != "cpu":
        if torch.cuda.is_bf16_supported():
            return "bfloat16", "the GPU has bfloat16"
        return "float16", "the GPU has no bfloat16"
    return cpu_precision()


def cpu_precision() -> tuple[str, str]:
    """The fastest dtype of this CPU that keeps the features, and why."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    found = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    if found:
        return "bfloat16", f"the CPU has {found[0]}"
    return "float32", "the CPU has no bfloat16 instructions"
