"""Backbone creation: modules by timm, the Hugging Face hub or a user's factory, and their weights.

The main process builds a backbone once (`build_backbone`) and writes its weights into the feature
folder; every worker loads those (`backbone.load_backbone`).
"""

import contextlib
import difflib
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import safetensors.torch
import torch
from huggingface_hub import constants as hub_constants
from torch import Tensor, nn

from ..manifests.errors import BackboneError, first_line
from ..manifests.user_module import call_factory, is_factory
from .preprocessing import Preprocessing
from .weights_file import WEIGHTS_WORDS, check_weights, load_weights_file

DEFAULT_BACKBONE = "vit_base_patch16_224"
RANDOM_SEED = 0  # of --weights none
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class BuiltBackbone:
    """Backbone as the main process builds it, for a feature folder.

    Attributes:
        preprocessing: the backbone's own preprocessing.
        dim: number of features per image, D.
        weights: tensors as the bytes of a safetensors file.
        digest: SHA-256 of `weights`.
        weights_taken: what was taken of a checkpoint file; "" if all of it, or without one.
    """

    preprocessing: Preprocessing
    dim: int
    weights: bytes
    digest: str
    weights_taken: str = ""


def build_backbone(
    name: str, weights: str, pool: str | None = None, image_size: int | None = None
) -> BuiltBackbone:
    """Create a backbone and its weights.

    Args:
        name: timm name, `hf-hub:` name, or `package.module:factory`.
        weights: `pretrained`, `none` (random, always the same), or a safetensors or PyTorch file.
        pool: timm pooling in place of the backbone's own.
        image_size: height and width of its input in place of its own, in pixels.

    Raises:
        BackboneError: the name is unknown, the weights are not available or do not fit, the image
            size is not possible, or the output is not [N, D].
    """
    check_weights(weights)
    path = None if weights in WEIGHTS_WORDS else Path(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        module = create_module(name, pretrained=weights == "pretrained", pool=pool)
    taken = "" if path is None else load_weights_file(module, path)
    preprocessing = default_preprocessing(module)
    if image_size is not None:
        set_image_size(module, name, image_size)
        preprocessing = replace(preprocessing, input_size=(3, image_size, image_size))
    dim = feature_dim(module, preprocessing, name)
    data, digest = weights_bytes(module.state_dict())
    return BuiltBackbone(
        preprocessing=preprocessing, dim=dim, weights=data, digest=digest, weights_taken=taken
    )


def weights_bytes(state: Mapping[str, Tensor]) -> tuple[bytes, str]:
    """Return tensors as the bytes of a safetensors file, and their SHA-256."""
    data = safetensors.torch.save(
        {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    )
    return data, hashlib.sha256(data).hexdigest()


def create_module(
    name: str, *, pretrained: bool, pool: str | None = None, image_size: int | None = None
) -> nn.Module:
    """Create a backbone's module, [N, 3, H, W] → [N, D].

    Args:
        name: timm name, `hf-hub:` name, or `package.module:factory`.
        pretrained: load its pretrained weights.
        pool: how a timm model reduces its last feature map or tokens to one vector (`avg`, `max`,
            `avgmax`, `token`, ...); None for its own way.
        image_size: height and width of its input in place of its own, in pixels.

    Raises:
        BackboneError: the name or the pooling is unknown, or pretrained weights are not available.
    """
    if is_factory(name):
        if pool is not None:
            raise BackboneError(
                f"--pool {pool}: backbone {name!r} is a user module, which pools by itself; leave "
                "out --pool"
            )
        if pretrained:
            raise BackboneError(
                f"backbone {name!r} is a user module, which has no pretrained weights by name; "
                "give --weights none or --weights FILE"
            )
        module = call_factory(name, returns=nn.Module, role="backbone", error_type=BackboneError)
        return set_image_size(module, name, image_size)
    timm = _timm()
    try:
        with _one_try() if pretrained else contextlib.nullcontext():
            module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except OSError as error:  # before ValueError: some of the hub's errors are both
        raise BackboneError(
            f"backbone {name!r}: cannot download from the Hugging Face hub ({first_line(error)}); "
            "on a machine without a network, download elsewhere and copy the cache (HF_HOME), or "
            "give --weights FILE"
        ) from None
    except (ValueError, ImportError) as error:
        raise BackboneError(
            f"backbone {name!r}: {first_line(error)}; give a timm name, hf-hub:NAME, or "
            "package.module:factory"
        ) from None
    except RuntimeError as error:
        if not str(error).startswith(("Unknown model", "Invalid pretrained tag", "No pretrained")):
            raise
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise BackboneError(f"backbone {name!r}: {error}; {hint}") from None
    if pool is not None:
        try:
            module.reset_classifier(0, pool)
        except Exception as error:  # models refuse in different ways
            raise BackboneError(
                f"--pool {pool}: backbone {name!r} has no such pooling ({first_line(error)}); "
                "try token or avg for a transformer, avg, max or avgmax for a convolutional network"
            ) from error
    return set_image_size(module, name, image_size)


def set_image_size(module: nn.Module, name: str, image_size: int | None) -> nn.Module:
    """Fit a module to images of another size than its own, and return it.

    Position embeddings are interpolated, as timm does it; convolutional networks take any size.

    Raises:
        BackboneError: the module does not allow the size.
    """
    setter: Any = getattr(module, "set_input_size", None)
    if image_size is not None and setter is not None:
        try:
            setter(img_size=(image_size, image_size))
        except Exception as error:  # models refuse in different ways
            raise BackboneError(
                f"--image-size {image_size}: backbone {name!r} does not allow it "
                f"({first_line(error)}); give a multiple of its patch size, or leave it out"
            ) from error
    return module


@contextlib.contextmanager
def _one_try() -> Iterator[None]:
    """Let the Hugging Face hub use its cache alone if it cannot be reached; it would retry long.

    Its address is tried once. Behind a proxy, that tells nothing.
    """
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    before = hub_constants.HF_HUB_OFFLINE
    if not getproxies():
        port = hub.port or (80 if hub.scheme == "http" else 443)
        try:
            socket.create_connection((hub.hostname, port), timeout=CONNECT_SECONDS).close()
        except OSError:
            hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before


@cache
def _timm() -> Any:
    """Import timm, which takes seconds.

    Raises:
        BackboneError: torch and torchvision are of different builds.
    """
    try:
        # Modules may be created on the meta device, but torch cannot be imported completely on it.
        with torch.device("cpu"):
            import timm
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise BackboneError(
            "torch and torchvision are of different builds; install both from the same index "
            "(`vtnpipe doctor` shows their versions)"
        ) from None
    return timm


def default_preprocessing(module: nn.Module) -> Preprocessing:
    """Return the preprocessing of a model's data configuration; timm's default without one."""
    config = _timm().data.resolve_model_data_config(module)
    return Preprocessing(
        input_size=tuple(config["input_size"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def timm_steps(preprocessing: Preprocessing) -> list[Any]:
    """Return timm's evaluation transform as steps: resize, crop, to float, normalize."""
    values = asdict(preprocessing)
    del values["style"]
    transform = _timm().data.create_transform(**values, is_training=False)
    steps: list[Any] = transform.transforms
    names = [type(step).__name__ for step in steps]
    assert "Crop" in names[-3], names
    assert names[-2:] == ["MaybeToTensor", "Normalize"], names
    return steps


def feature_dim(module: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    """Return D, by a forward pass over one black image.

    Raises:
        BackboneError: the pass fails, or does not return one vector.
    """
    was_training = module.training
    try:
        with torch.inference_mode():
            output = module.eval()(torch.zeros(1, *preprocessing.input_size))
    except Exception as error:
        raise BackboneError(
            f"backbone {name!r} fails on an image of {list(preprocessing.input_size)}: "
            f"{type(error).__name__}: {first_line(error)}; check its input size (--image-size)"
        ) from error
    module.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BackboneError(
            f"backbone {name!r} returns {shape} for one image; features must be [N, D]: give "
            "another backbone, or --pool avg"
        )
    return int(output.shape[1])


def parameter_layers(module: nn.Module, name: str) -> list[list[str]]:
    """Return the names of a backbone's parameters by layer, as timm groups them.

    The first layer holds what comes before the blocks; norms after the last block belong to it.

    Raises:
        BackboneError: the module has no `group_matcher`, as timm's models have.
    """
    if not hasattr(module, "group_matcher"):
        raise BackboneError(
            f"backbone {name!r} has no group_matcher, as timm's models have, so its blocks are not "
            "known; leave out --train-blocks and --layer-decay"
        )
    matcher = module.group_matcher(coarse=False)  # type: ignore[operator]
    found = _timm().models.group_parameters(module, matcher)
    layers = [list(names) for _, names in sorted(found.items())]
    parameters = dict(module.named_parameters())
    if len(layers) > 1 and all(parameters[one].ndim < 2 for one in layers[-1]):
        layers[-2] += layers.pop()
    return layers
