"""Filling a backbone from a checkpoint file: safetensors, or PyTorch without code in it."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.errors import BackboneError, first_line

_WRAPPERS = ("state_dict", "model_state", "model")  # under which checkpoints keep their tensors


def fill(module: nn.Module, path: Path) -> None:
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
    if faults := mismatches(own, state):
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BackboneError(
            f"weights {path} don't fit the backbone: {'; '.join(faults[:5])}{more}; "
            "give the checkpoint of this very model, or its name with --backbone"
        )
    module.load_state_dict(state)


def mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from being a model's own, one line a tensor."""
    return [
        *(f"lacks {key}" for key in own if key not in state),
        *(f"has {key}, which the model has not" for key in state if key not in own),
        *(
            f"{key} is {list(state[key].shape)}, the model's is {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
    ]


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file; the latter is never allowed to run code."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # whatever a damaged or a hostile file leads to
        raise BackboneError(
            f"weights {path}: neither a safetensors nor a safe PyTorch file ({first_line(error)}); "
            "save model.state_dict()"
        ) from None
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    is_named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not is_named or not all(isinstance(one, Tensor) for one in state.values()):
        raise BackboneError(
            f"weights {path}: holds no state dict of tensors; save model.state_dict()"
        )
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}
