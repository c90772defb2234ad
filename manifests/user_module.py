"""What a stored name `package.module:function` stands for: a module that a function of the user's
makes.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import VtnpipeError, first_line

if TYPE_CHECKING:
    from torch import nn


def is_factory(name: str) -> bool:
    """Whether a name is that of a factory.

    >>> is_factory("my.models:make"), is_factory("hf-hub:timm/resnet50"), is_factory("resnet50")
    (True, False, False)
    """
    return ":" in name and not name.startswith("hf-hub:")


def module_from_factory(
    name: str, *arguments: Any, what: str, error_type: type[VtnpipeError]
) -> "nn.Module":
    """Calls a factory, which may lie in the current folder.

    Args:
        name: `package.module:function`.
        arguments: those of the function.
        what: the factory's role, for messages.
        error_type: what to raise.

    Raises:
        VtnpipeError: it can't be imported, fails, or returns no module; of type `error_type`.
    """
    from torch import nn

    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` would have it
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
        module = factory(*arguments)
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        called = "with the model's TemporalConfig" if arguments else "without arguments"
        raise error_type(
            f"{what} {name!r}: {kind}: {first_line(error)}; a factory is package.module:function, "
            f"importable from here, that returns a module when it is called {called}"
        ) from error
    if not isinstance(module, nn.Module):
        raise error_type(
            f"{what} {name!r} returned a {type(module).__name__}; it must return a torch.nn.Module"
        )
    return module
