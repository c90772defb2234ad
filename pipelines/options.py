"""Settings as dataclasses, and the command-line options that are made from them.

A setting's default, type, help and check stand on its field, written with `setting(...)`, and
nowhere else. Types are str, int, float, bool, a Literal of words, or one of these `| None`.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from ..manifests.errors import SettingsError
from ..manifests.factory import is_factory
from .progress import LastingConsole

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])

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
        base, is_optional = _base_type(hints[field.name])
        if value is None and is_optional:
            continue
        words = typing.get_args(base) if typing.get_origin(base) is typing.Literal else ()
        if words:
            rule = "" if value in words else f"it must be one of {', '.join(words)}"
        elif not isinstance(value, _runtime_type(base)):
            rule = f"it must be of type {base.__name__}"
        else:
            check = field.metadata.get("check")
            rule = check(value) if check else ""
        if rule:
            raise SettingsError(f"{(name or option_name)(field.name)} {value!r}: {rule}")


def option_name(name: str) -> str:
    """The option of a field, whose name ends in an underscore where it is a word of Python's.

    >>> option_name("batch_size"), option_name("from_")
    ('--batch-size', '--from')
    """
    return "--" + name.rstrip("_").replace("_", "-")


def _base_type(hint: Any) -> tuple[Any, bool]:
    """The type without `| None`, and whether it had it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (base,) = (member for member in typing.get_args(hint) if member is not type(None))
        return base, True
    return hint, False


def _runtime_type(base: Any) -> Any:
    """What `isinstance` takes for a type: whole numbers are fine as float."""
    return (int, float) if base is float else typing.get_origin(base) or base


def settings_options(settings_class: type[S]) -> Callable[[F], F]:
    """A decorator that gives a click command one option per field, and `--config FILE.yaml`.

    The command gets the fields as keyword arguments; make the settings with
    `settings_class(**options)`.
    """
    hints = typing.get_type_hints(settings_class)
    fields = dataclasses.fields(settings_class)  # type: ignore[arg-type]

    def decorate(command: F) -> F:
        for field in reversed(fields):
            if "section" in field.metadata:
                command = click.option(
                    option_name(field.name),
                    field.name,
                    type=_Section(field.metadata["section"], field.metadata["read"]),
                    default=field.default,
                    hidden=True,
                )(command)
            else:
                command = _option(field, hints[field.name])(command)
        for flag, attribute, words in OUTPUT_FLAGS:
            command = click.option(
                flag,
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=partial(_set_output, attribute),
                help=words,
            )(command)
        return click.option(
            "--config",
            type=click.Path(dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            metavar="FILE.yaml",
            help="Read options' values from a YAML file; the command line wins.",
        )(command)

    return decorate


# What a run prints: the option, the attribute of `LastingConsole`, help.
OUTPUT_FLAGS = (
    ("--quiet", "is_quiet", "Print errors only."),
    ("--verbose", "is_verbose", "Print details, and long lists in full."),
    (
        "--log-json",
        "is_json",
        "Print a JSON object a line: time, message, and what progress is made of.",
    ),
)


def _set_output(
    attribute: str, context: click.Context, parameter: click.Parameter, is_set: bool
) -> None:
    if is_set:
        setattr(LastingConsole, attribute, True)
    if LastingConsole.is_quiet and LastingConsole.is_verbose:
        raise SettingsError("--quiet and --verbose exclude each other; give one of them")


class _Section(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    """The type of an option that only a section of the config file gives."""

    name = "section"

    def __init__(self, section: str, read: Callable[[dict[str, Any]], Any]) -> None:
        self.section = section
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The settings of a mapping; settings are left as they are."""
        if isinstance(value, str):
            raise SettingsError(f"{value}: only the section {self.section}: of --config gives that")
        return self.read(dict(value)) if isinstance(value, Mapping) else value


def _option(field: "dataclasses.Field[Any]", hint: Any) -> Callable[[F], F]:
    base, _ = _base_type(hint)
    names = [option_name(field.name), field.name]
    if field.metadata["short"]:
        names.append(field.metadata["short"])
    options: dict[str, Any] = {"default": field.default, "help": field.metadata["help"]}
    if base is bool:
        return click.option(*names, is_flag=True, **options)
    if typing.get_origin(base) is typing.Literal:
        options["type"] = click.Choice(typing.get_args(base))
    else:
        options["type"] = base
    if field.metadata["metavar"]:
        options["metavar"] = field.metadata["metavar"]
    return click.option(*names, show_default=field.default is not None, **options)


def _read_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Makes a YAML file's values the defaults of the command's options."""
    if value is None:
        return
    try:
        config = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {value}: cannot be read as YAML ({error})") from None
    if not isinstance(config, Mapping):
        raise SettingsError(f"--config {value}: must be a mapping of option names to values")
    known = {
        p.name.rstrip("_"): p.name
        for p in context.command.params
        if isinstance(p, click.Option) and p.name
    }
    sections = {
        p.type.section: p.name
        for p in context.command.params
        if isinstance(p.type, _Section) and p.name
    }
    known = {key: name for key, name in known.items() if name not in sections.values()}
    defaults = {}
    for key, entry in config.items():
        name = str(key).replace("-", "_")
        if name in sections and isinstance(entry, Mapping):
            values = dict(entry)
            if "kind" in values:
                defaults[known[name]] = values.pop("kind")
            defaults[sections[name]] = values
            continue
        if name not in known:
            raise SettingsError(
                f"--config {value}: unknown option {name!r}; this command has "
                f"{', '.join(sorted(known))}"
            )
        defaults[known[name]] = entry
    context.default_map = {**(context.default_map or {}), **defaults}
