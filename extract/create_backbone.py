"""Image models as modules: made by timm, from the Hugging Face hub or by a factory, and what timm
knows of them.
"""

import difflib
import gc
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..manifests.errors import BackboneError, first_line
from ..manifests.user_module import is_factory, module_from_factory
from .preprocessing import Preprocessing


def create_module(name: str, *, pretrained: bool, pool: str | None = None) -> nn.Module:
    """Makes a backbone's module [N, 3, H, W] → [N, D], by its timm name or its factory.

    Args:
        name: which.
        pretrained: with its pretrained weights.
        pool: how a timm model makes one vector of its last feature map or tokens (`avg`, `max`,
            `avgmax`, `token`, ...); None for its own way.

    Raises:
        BackboneError: the name or the pooling is unknown, or its pretrained weights can't be had.
    """
    if is_factory(name):
        if pool is not None:
            raise BackboneError(
                f"--pool {pool}: backbone {name!r} is a factory, which pools as it is written; "
                "leave out --pool"
            )
        if pretrained:
            raise BackboneError(
                f"backbone {name!r} is a factory, which has no pretrained weights by name; "
                "give --weights none or --weights FILE"
            )
        return module_from_factory(name, what="backbone", error_type=BackboneError)
    timm = _timm()
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except OSError as error:  # of the hub's before ValueError: some are both
        raise BackboneError(
            f"backbone {name!r}: its files can't be had from the Hugging Face hub "
            f"({first_line(error)}); "
            "on a machine without a network, download them elsewhere and copy the cache (HF_HOME), "
            "or give --weights FILE"
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
            module.reset_classifier(0, pool)  # type: ignore[operator]
        except Exception as error:  # each model refuses in its own way
            raise BackboneError(
                f"--pool {pool}: backbone {name!r} has no such pooling ({first_line(error)}); "
                "try token or avg for a transformer, avg, max or avgmax for a convolutional network"
            ) from error
    return module


@cache
def _timm() -> Any:
    """timm, which takes seconds to import, and more if Python's garbage collector went through all
    of it meanwhile, and again when the process ends; but what is imported stays.

    Raises:
        BackboneError: torch and torchvision are of different builds, which they say in forty lines.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        # Modules may be built on the meta device, but torch 2.6 can't be imported whole on it.
        with torch.device("cpu"):
            import timm
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise BackboneError(
            "torch and torchvision are of different builds; install both from the same index "
            "(`vtnpipe doctor` shows their versions)"
        ) from None
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()
    return timm


def default_preprocessing(module: nn.Module) -> Preprocessing:
    """From the model's own data configuration; timm's defaults for a module without one."""
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
    """The steps of timm's evaluation transform: resize, crop, conversion to float, normalising."""
    transform = _timm().data.create_transform(**asdict(preprocessing), is_training=False)
    steps: list[Any] = transform.transforms
    names = [type(step).__name__ for step in steps]
    assert "Crop" in names[-3], names
    assert names[-2:] == ["MaybeToTensor", "Normalize"], names
    return steps


def feature_dim(module: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    """D, found by a forward pass over one black frame.

    Raises:
        BackboneError: that fails, or does not give one vector.
    """
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
            "features must be [N, D], one vector a frame: give another, or --pool avg"
        )
    return int(output.shape[1])


def layers_of(module: nn.Module, name: str) -> list[list[str]]:
    """The names of a backbone's parameters, layer by layer as timm divides it: what comes before
    the blocks, then each block; norms after the last one belong to it.

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
