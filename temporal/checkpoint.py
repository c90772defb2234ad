"""A run's weights and checkpoints on disk.

Weights are safetensors. A checkpoint is one PyTorch file of plain tensors and numbers, loaded with
`weights_only=True`.
"""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.atomic import atomic_path, write_bytes
from ..manifests.errors import FeaturesError, first_line
from .run_folder import RunFolder


def save_weights(
    module: nn.Module, path: Path, *, prefix: str = "", metadata: dict[str, str] | None = None
) -> None:
    """Writes a module's state dict as safetensors, atomically, each key behind a prefix; the
    metadata goes into the file's header.
    """
    tensors = {
        f"{prefix}{key}": tensor.detach().cpu().clone().contiguous()
        for key, tensor in module.state_dict().items()
    }
    write_bytes(safetensors.torch.save(tensors, metadata), path)


def save_checkpoint(
    run: RunFolder, place: tuple[int, int], state: dict[str, Any], *, kept: int
) -> None:
    """Writes a checkpoint, and removes all but the newest few.

    Args:
        run: the folder.
        place: finished epochs, and steps of the next.
        state: of plain tensors, numbers and texts.
        kept: how many stay.
    """
    epoch, step = place
    run.checkpoints.mkdir(exist_ok=True)
    with atomic_path(run.checkpoints / f"epoch-{epoch:06d}-step-{step:08d}.pt") as temporary:
        torch.save(state, temporary)
    for old in _checkpoints(run)[:-kept]:
        old.unlink()


def load_checkpoint(run: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint; None where there is none.

    Raises:
        FeaturesError: it can't be read.
    """
    paths = _checkpoints(run)
    if not paths:
        return None
    try:
        state: dict[str, Any] = torch.load(paths[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # whatever a damaged file leads to
        raise FeaturesError(
            f"{paths[-1]}: cannot be read ({first_line(error)}); remove it, and the run resumes "
            "from the one before, or begins again"
        ) from None
    return state


def _checkpoints(run: RunFolder) -> list[Path]:
    return sorted(run.checkpoints.glob("epoch-*.pt"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FeaturesError: it is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise FeaturesError(_missing(path)) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise FeaturesError(_unreadable(path, error)) from None


def _missing(path: Path) -> str:
    return (
        f"{path}: missing; a run has it from the end of its first epoch on: train further, or put "
        "it back"
    )


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read ({error}); put back a copy, or make the model anew"


def read_metadata(path: Path) -> dict[str, str]:
    """What `save_weights` was given to put into a file's header.

    Raises:
        FeaturesError: it is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise FeaturesError(_missing(path)) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise FeaturesError(_unreadable(path, error)) from None
