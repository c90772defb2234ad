"""Weights files: state dicts as training scripts save them, loaded into a backbone.

Checkpoints wrap their tensors in dicts, put a prefix before every name, and keep a moving average
beside the weights. What is taken of a file is decided by the backbone's names alone.
"""

import argparse
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.errors import BackboneError, first_line

WEIGHTS_WORDS = ("pretrained", "none")
# Words for the moving average of weights; of two state dicts that fit, it is taken.
AVERAGES = ("ema", "teacher", "average", "averaged")
MAX_DEPTH = 3  # of dicts in dicts
MAX_NAMED = 5  # tensors in a message
# What checkpoints hold besides tensors: options, and numbers of NumPy. None of them runs code.
SAFE_TYPES: list[Any] = [
    *(argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath),
    *(np.dtype, np.ndarray, np.float64, np.float32, np.int64),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    np.float64(0).__reduce__()[0],  # how a number is restored
]


def check_weights(weights: str) -> None:
    """Refuse weights that are neither a word nor a path that exists.

    Raises:
        BackboneError: there is no such file or folder.
    """
    if weights not in WEIGHTS_WORDS and not Path(weights).exists():
        raise BackboneError(
            f"weights {weights!r}: no such file, nor a model folder; give pretrained, none, or "
            "the path of a checkpoint or a model"
        )


def load_weights_file(module: nn.Module, path: Path) -> str:
    """Load a checkpoint file of a backbone, with or without its classifier.

    Returns:
        what was taken of the file; "" if all of it.

    Raises:
        BackboneError: the file cannot be read, or its tensors do not fit.
    """
    content = _read(path)
    own = module.state_dict()
    candidates = [
        candidate for name, state in _state_dicts(content) for candidate in _parts(name, state, own)
    ]
    if not candidates:
        raise BackboneError(
            f"weights {path}: contains no state dict of tensors; save model.state_dict()"
        )
    classifiers = _classifiers(module)
    parts = {key.partition(".")[0] for key in own}
    faults: list[tuple[int, list[str]]] = []  # number of missing tensors, and all faults
    for name, prefix, found in sorted(candidates, key=lambda one: not _is_average(*one[:2])):
        state = {
            key: value
            for key, value in found.items()
            if key in own or not _is_other_module(key, prefix, parts, classifiers)
        }
        for key, tensor in own.items():  # torch saves them since version 0.4.1
            if key.endswith("num_batches_tracked"):
                state.setdefault(key, tensor)
        faults.append((len(own.keys() - state), mismatches(own, state)))
        if not faults[-1][1]:
            module.load_state_dict(state)
            return _taken(name, prefix)
    _, fewest = min(faults)
    raise BackboneError(
        f"weights {path} do not fit the backbone: {_some(fewest)}; give a checkpoint of this very "
        "model, or its name with --backbone"
    )


def mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return why tensors do not fit a model's own, one line per tensor.

    Missing tensors and those that the model does not have take turns, so that the first few lines
    show both.
    """
    missing = [f"{key} is missing" for key in own if key not in state]
    unexpected = [f"{key} is not in the model" for key in state if key not in own]
    num_both = min(len(missing), len(unexpected))
    turns = [line for pair in zip(missing, unexpected, strict=False) for line in pair]
    return [
        *turns,
        *missing[num_both:],
        *unexpected[num_both:],
        *(
            f"{key} is {list(state[key].shape)}, the model's is {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
    ]


def _some(faults: list[str]) -> str:
    more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
    return "; ".join(faults[:MAX_NAMED]) + more


def _classifiers(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the classifier's tensors, by timm's configuration of the model."""
    found = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    names = (found,) if isinstance(found, str) else tuple(found)
    return tuple(f"{name}." for name in names)


def _is_other_module(key: str, prefix: str, parts: set[str], classifiers: tuple[str, ...]) -> bool:
    """Return whether a tensor is the classifier's; behind a prefix, also of a loss, for instance.

    More layers of a module that the backbone has are no other module, but another backbone.
    """
    return key.startswith(classifiers) or bool(prefix and key.partition(".")[0] not in parts)


def _read(path: Path) -> Any:
    """Return the content of a safetensors or PyTorch file, without running code in it."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with path.open("rb") as file:
            is_pytorch = zipfile.is_zipfile(file) or file.seek(0) or file.read(1) == b"\x80"
        if not is_pytorch:
            raise ValueError("its first bytes are of another kind of file")
        with torch.serialization.safe_globals(SAFE_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # a damaged or hostile file may raise anything
        raise BackboneError(
            f"weights {path}: neither a safetensors nor a safe PyTorch file ({first_line(error)}); "
            "save model.state_dict()"
        ) from None


def _state_dicts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (where, state dict) for the dicts of tensors in a checkpoint, the outermost first."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:  # beside an epoch, perhaps
        yield name, tensors
    if depth < MAX_DEPTH:
        for key, value in content.items():
            yield from _state_dicts(value, f"{name}.{key}" if name else key, depth + 1)


def _parts(
    name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Yield (where, prefix, tensors without it) for each prefix that a state dict may have."""
    names = [key for key in own if not key.endswith("num_batches_tracked")]
    first = next(iter(names), "")
    prefixes = {key.removesuffix(first) for key in state if key.endswith(f".{first}")}
    if not prefixes or first in state:
        yield name, "", dict(state)
    for prefix in sorted(prefixes):
        if first not in state or all(prefix + key in state for key in names):
            stripped = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            yield name, prefix, stripped


def _is_average(name: str, prefix: str) -> bool:
    words = f"{name}.{prefix}".replace("_", ".").lower().split(".")
    return any(word in AVERAGES for word in words)


def _taken(name: str, prefix: str) -> str:
    words = [repr(name)] if name else []
    if _is_average(name, prefix):
        words.append("the moving average")
    if prefix:
        words.append(f"the tensors whose names begin with {prefix!r}")
    return ", ".join(words)
