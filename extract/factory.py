"""Modules of the user's own, named `package.module:function`."""

import importlib
import sys
from pathlib import Path

from torch import nn

from ..manifests.errors import BackboneError, first_line


def module_from_factory(name: str) -> nn.Module:
    """Calls a factory, which may lie in the current folder.

    Raises:
        BackboneError: it can't be imported, fails, or returns no module.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` would have it
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
        module = factory()
    except Exception as error:
        kind = type(error).__name__
        raise BackboneError(
            f"backbone {name!r}: {kind}: {first_line(error)}; "
            "a factory is package.module:function, importable from here, "
            "that returns a module when it is called without arguments"
        ) from error
    if not isinstance(module, nn.Module):
        raise BackboneError(
            f"backbone {name!r} returned a {type(module).__name__}; it must return a "
            "torch.nn.Module"
        )
    return module
