"""Settings as dataclasses: a setting's default, type, help and check stand on its field, written
with `setting(...)`, and nowhere else.

Types are str, int, float, bool, a Literal of words, or one of these `| None`. The options of the
command line are made from them in `options.py`.
"""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..manifests.errors import SettingsError
from ..manifests.user_module import is_factory

TYPE_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

# A check returns the rule that a value breaks, in words; empty where it is fine.
Check = Callable[[Any], str]


def setting(
    default: Any, *, help: str, check: Check | None = None, short: str = "", metavar: str = ""
) -> Any:
    """A field of a settings dataclass."""
    metadata = {"help": help, "check": check, "short": short, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def section(name: str, read: Callable[[dict[str, Any]], Any], *, default: Any) -> Any:
    """A field of a settings dataclass that no option gives, but a section of the config file.

    Args:
        name: of the section; its entry `kind` is the value of the option of that name.
        read: makes the field's value of the section's other entries.
        default: without such a section.
    """
    return dataclasses.field(default=default, metadata={"section": name, "read": read})


def at_least(minimum: float) -> Check:
    """A check for numbers."""
    return lambda value: "" if value >= minimum else f"it must be at least {minimum:g}"


def above(minimum: float) -> Check:
    """A check for numbers."""
    return lambda value: "" if value > minimum else f"it must be above {minimum:g}"


def auto_or_at_least(minimum: int) -> Check:
    """A check for text: `auto`, or a whole number."""
    rule = f"it must be auto or a whole number, at least {minimum}"
    return lambda value: (
        "" if value == "auto" or (value.isdecimal() and int(value) >= minimum) else rule
    )


def between(minimum: float, maximum: float) -> Check:
    """A check for numbers; the limits themselves are fine."""
    rule = f"it must be between {minimum:g} and {maximum:g}"
    return lambda value: "" if minimum <= value <= maximum else rule


def one_of_or_factory(*names: str) -> Check:
    """A check for a name out of several, or `package.module:factory`."""
    rule = f"it must be {', '.join(names)} or package.module:factory"
    return lambda value: "" if value in names or is_factory(value) else rule


def check_settings(settings: Any, name: Callable[[str], str] | None = None) -> None:
    """Runs the checks of a settings dataclass; call it in `__post_init__`.

    Args:
        settings: the dataclass.
        name: how an error calls a field; by default, as its option.

    Raises:
        SettingsError: names option, value, rule.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        base, is_optional = base_type(hints[field.name])
        if value is None and is_optional:
            continue
        words = typing.get_args(base) if typing.get_origin(base) is typing.Literal else ()
        if words:
            rule = "" if value in words else f"it must be one of {', '.join(words)}"
        elif not isinstance(value, _runtime_type(base)):
            rule = f"it must be {TYPE_WORDS[base]}"
        elif isinstance(value, float) and not math.isfinite(value):
            rule = "it must be finite"
        else:
            check = field.metadata.get("check")
            rule = check(value) if check else ""
        if rule:
            raise SettingsError(f"{(name or option_name)(field.name)} {value!r}: {rule}")


def check_unset(settings: Any, names: Iterable[str], why: str) -> None:
    """Refuses settings that would do nothing.

    Args:
        settings: the dataclass.
        names: of its fields that must have their defaults.
        why: they would do nothing.

    Raises:
        SettingsError: names option, value, why.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name in names:
        if (value := getattr(settings, name)) != defaults[name]:
            or_default = "" if defaults[name] is None else f", or give {defaults[name]}"
            raise SettingsError(f"{option_name(name)} {value}: {why}; leave it out{or_default}")


def check_output(path: Path) -> Path:
    """Refuses a file of `--output` that could not be written: before the work, not after it.

    Raises:
        SettingsError: it could not.
    """
    if path.is_dir():
        raise SettingsError(f"--output {path}: is a folder; give a file")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise SettingsError(
            f"--output {path}: its folder is missing or can't be written; make it, or name another"
        )
    return path


def make_folder(path: Path) -> None:
    """Makes a folder that a command writes into, if it is not there.

    Raises:
        SettingsError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"{path}: can't be made as a folder ({error.strerror}); give another, or make it one "
            "that can be written"
        ) from None


def option_name(name: str) -> str:
    """The option of a field, whose name ends in an underscore where it is a word of Python's.

    >>> option_name("batch_size"), option_name("from_")
    ('--batch-size', '--from')
    """
    return "--" + name.rstrip("_").replace("_", "-")


def base_type(hint: Any) -> tuple[Any, bool]:
    """The type without `| None`, and whether it had it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (base,) = (member for member in typing.get_args(hint) if member is not type(None))
        return base, True
    return hint, False


def _runtime_type(base: Any) -> Any:
    """What `isinstance` takes for a type: whole numbers are fine as float."""
    return (int, float) if base is float else typing.get_origin(base) or base
