"""Settings as dataclasses: default, type, help and check stand on the field, and nowhere else.

Types are str, int, float, bool, a Literal of words, or one of these `| None`. `options.py` creates
the command-line options from them.
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

Check = Callable[[Any], str]  # returns the rule that a value breaks, or ""


def setting(
    default: Any, *, help: str, check: Check | None = None, short: str = "", metavar: str = ""
) -> Any:
    """Return a field of a settings dataclass."""
    metadata = {"help": help, "check": check, "short": short, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def section(name: str) -> Any:
    """Return a field that no option sets, but a section of the config file; None without one.

    Args:
        name: name of the section; its entry `kind` sets the option of that name.
    """
    return dataclasses.field(default=None, metadata={"section": name})


def device_setting(help: str = "Device of the computation.") -> Any:
    """Return the field of `--device`."""
    return setting("auto", help=help, metavar="auto|cpu|cuda|cuda:N")


def decoder_setting(
    help: str = "auto: PyAV; decord for whole files that pass its checks.",
) -> Any:
    """Return the field of `--decoder`."""
    return setting("auto", help=help)


def chunk_frames_setting(help: str = "Frames per backbone call.") -> Any:
    """Return the field of `--chunk-frames`."""
    return setting(32, help=help, check=at_least(1))


def clip_frames_setting(help: str) -> Any:
    """Return the field of `--clip-frames`; the default is the paper's for training."""
    return setting(16, help=help, check=at_least(1))


def clip_seconds_setting() -> Any:
    """Return the field of `--clip-seconds`; the default, 128 frames at 25/s, is the paper's."""
    return setting(5.12, help="Duration of a clip, in seconds.", check=between(0.01, 1e6))


def seed_setting(help: str) -> Any:
    """Return the field of `--seed`."""
    return setting(0, help=help, check=between(0, 2**31))


def manifest_setting() -> Any:
    """Return the field of `--manifest`, which replaces the features' own manifest."""
    return setting(
        None,
        help="Manifest with labels and splits; by default the features' own.",
        metavar="FILE",
    )


def drop_partial_setting() -> Any:
    """Return the field of `--drop-partial`."""
    return setting(False, help="Leave out videos with missing frames.")


def at_least(minimum: float) -> Check:
    """Return a check for numbers >= minimum."""
    return lambda value: "" if value >= minimum else f"must be at least {minimum:g}"


def above(minimum: float) -> Check:
    """Return a check for numbers > minimum."""
    return lambda value: "" if value > minimum else f"must be above {minimum:g}"


def between(minimum: float, maximum: float) -> Check:
    """Return a check for numbers in the closed interval."""
    rule = f"must be between {minimum:g} and {maximum:g}"
    return lambda value: "" if minimum <= value <= maximum else rule


def auto_or_at_least(minimum: int) -> Check:
    """Return a check for text: `auto` or a whole number."""
    rule = f"must be auto or a whole number, at least {minimum}"
    return lambda value: (
        "" if value == "auto" or (value.isdecimal() and int(value) >= minimum) else rule
    )


def one_of_or_factory(*names: str, prefix: str | None = None) -> Check:
    """Return a check for one of some names, a name with a prefix, or `package.module:factory`."""
    known = [*names, *([f"{prefix}NAME"] if prefix else [])]
    rule = f"must be {', '.join(known)} or package.module:factory"

    def check(value: Any) -> str:
        has_prefix = prefix is not None and value.startswith(prefix) and value != prefix
        return "" if value in names or has_prefix or is_factory(value) else rule

    return check


def check_settings(settings: Any) -> None:
    """Run the checks of a settings dataclass; call it in `__post_init__`.

    Raises:
        SettingsError: names option, value and rule.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        base, is_optional = base_type(hints[field.name])
        if "section" in field.metadata or (value is None and is_optional):
            continue
        words = typing.get_args(base) if typing.get_origin(base) is typing.Literal else ()
        if words:
            rule = "" if value in words else f"must be one of {', '.join(words)}"
        elif not isinstance(value, _runtime_type(base)):
            rule = f"must be {TYPE_WORDS[base]}"
        elif isinstance(value, float) and not math.isfinite(value):
            rule = "must be finite"
        else:
            check = field.metadata.get("check")
            rule = check(value) if check else ""
        if rule:
            raise SettingsError(f"{option_name(field.name)} {value!r}: it {rule}")


def check_unset(settings: Any, names: Iterable[str], why: str) -> None:
    """Refuse settings that would have no effect.

    Args:
        settings: the dataclass.
        names: fields that must have their defaults.
        why: why they would have no effect.

    Raises:
        SettingsError: names option, value and reason.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name in names:
        if (value := getattr(settings, name)) != defaults[name]:
            or_default = "" if defaults[name] is None else f", or give {defaults[name]}"
            raise SettingsError(f"{option_name(name)} {value}: {why}; leave it out{or_default}")


def check_output(path: Path) -> Path:
    """Refuse an output file that cannot be written, before the work and not after it.

    Raises:
        SettingsError: it cannot be written.
    """
    if path.is_dir():
        raise SettingsError(f"--output {path}: is a folder; give a file")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise SettingsError(
            f"--output {path}: its folder is missing or not writable; create it, or give another"
        )
    return path


def make_folder(path: Path) -> None:
    """Create a folder that a command writes to, unless it exists.

    Raises:
        SettingsError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"cannot create the folder {path} ({error.strerror}); give another, or make its parent "
            "writable"
        ) from None


def option_name(name: str) -> str:
    """Return the option of a field; a trailing underscore avoids Python's keywords.

    >>> option_name("batch_size"), option_name("from_")
    ('--batch-size', '--from')
    """
    return "--" + name.rstrip("_").replace("_", "-")


def base_type(hint: Any) -> tuple[Any, bool]:
    """Return the type without `| None`, and whether it had it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (base,) = (member for member in typing.get_args(hint) if member is not type(None))
        return base, True
    return hint, False


def _runtime_type(base: Any) -> Any:
    """Return the type for `isinstance`; whole numbers are valid floats."""
    return (int, float) if base is float else typing.get_origin(base) or base
