"""User modules: `package.module:factory` names a function that returns, say, a torch.nn.Module."""

import importlib
import sys
from pathlib import Path
from typing import Any, TypeVar

from .errors import VtnpipeError, first_line

T = TypeVar("T")


def is_factory(name: str) -> bool:
    """Return whether a name denotes a user module.

    >>> is_factory("my.models:make"), is_factory("hf-hub:timm/resnet50"), is_factory("hf:bert")
    (True, False, False)
    """
    return ":" in name and not name.startswith(("hf-hub:", "hf:"))


def call_factory(
    name: str, *arguments: Any, returns: type[T], role: str, error_type: type[VtnpipeError]
) -> T:
    """Import and call a factory, which may lie in the current folder.

    Args:
        name: `package.module:function`.
        arguments: arguments of the function.
        returns: type of the result.
        role: role of the result, for messages.
        error_type: type of the error to raise.

    Raises:
        VtnpipeError: the factory cannot be imported, fails, or returns another type; the error is
            an `error_type`.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` does
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
        result = factory(*arguments)
    except (Exception, SystemExit) as error:
        call = "with the model's TemporalConfig" if arguments else "without arguments"
        raise error_type(
            f"{role} {name!r}: {type(error).__name__}: {first_line(error)}; a factory is "
            f"package.module:function, importable from here, that returns a {returns.__name__} "
            f"when called {call}"
        ) from error
    if not isinstance(result, returns):
        raise error_type(
            f"{role} {name!r} returned a {type(result).__name__}; it must return a "
            f"{returns.__module__.partition('.')[0]} {returns.__name__}"
        )
    return result
