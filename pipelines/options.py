"""Command-line options created from settings, `--config`, and the console options."""

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from ..manifests.errors import SettingsError
from .console import CommandConsole
from .settings import TYPE_WORDS, base_type, option_name

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(settings_class: type) -> Callable[[F], F]:
    """Return a decorator that adds one option per settings field, and `--config FILE.yaml`.

    The command gets the fields as keyword arguments, and `console`; it creates the settings with
    `settings_class(**options)`.
    """
    hints = typing.get_type_hints(settings_class)

    def decorate(command: F) -> F:
        command = console_options(command)
        command = click.option(
            "--config",
            type=click.Path(dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            metavar="FILE.yaml",
            help="Read option values from a YAML file; the command line overrides it.",
        )(command)
        for field in reversed(dataclasses.fields(settings_class)):
            if "section" in field.metadata:
                kind = _Section(field.metadata["section"])
                option = click.option(
                    option_name(field.name), field.name, type=kind, default=None, hidden=True
                )
            else:
                option = _option(field, hints[field.name])
            command = option(command)
        return command

    return decorate


def console_options(command: F) -> F:
    """Add `--quiet` and `--verbose` to a command, which gets a `console` instead."""

    @functools.wraps(command)
    def with_console(*arguments: Any, quiet: bool, verbose: bool, **options: Any) -> Any:
        if quiet and verbose:
            raise SettingsError("--quiet and --verbose exclude each other; give one of them")
        console = CommandConsole(quiet=quiet, is_verbose=verbose)
        return command(*arguments, console=console, **options)

    decorated: Any = with_console
    for name, help in (
        ("--verbose", "Print details, and long lists in full."),
        ("--quiet", "Print errors only."),
    ):
        decorated = click.option(name, is_flag=True, help=help)(decorated)
    result: F = decorated
    return result


class _Section(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    """Type of an option that only a section of the config file sets."""

    name = "section"

    def __init__(self, section: str) -> None:
        self.section = section

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the section as it is."""
        if isinstance(value, str):
            raise SettingsError(f"{value}: give it as the section {self.section}: of --config")
        return value


def _option(field: "dataclasses.Field[Any]", hint: Any) -> Callable[[F], F]:
    base, _ = base_type(hint)
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


class _PlainLoader(yaml.SafeLoader):
    """YAML loader in which 2:50, no and off are text, and 1e-3 is a number.

    Of unquoted scalars, only plain numbers, true, false and null are anything but text.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # as the base class declares it


for _kind, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
    "merge": r"<<",
}.items():
    _PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_pattern})$"), None
    )


def _check_type(where: str, entry: Any, option: click.Option) -> None:
    """Refuse a config entry of another type than its option.

    Raises:
        SettingsError: the type differs.
    """
    base: type
    types: set[type]  # besides text, which click converts
    if option.is_flag:
        base, types = bool, {bool}
    elif option.type is click.INT:
        base, types = int, {int}
    elif option.type is click.FLOAT:
        base, types = float, {int, float}
    else:
        base, types = str, {int, float}
    if type(entry) not in types | {str, type(None)}:
        raise SettingsError(f"{where} {entry!r}: it must be {TYPE_WORDS[base]}; correct it")


def _read_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Make a YAML file's values the defaults of the command's options."""
    if value is None:
        return
    try:
        text = Path(value).read_text(encoding="utf-8")
        config = yaml.load(text, Loader=_PlainLoader) or {}  # noqa: S506  # it is a SafeLoader
    except OSError as error:
        raise SettingsError(
            f"--config {value}: cannot read it ({error.strerror}); check its path"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {value}: is not YAML ({error}); correct it") from None
    if not isinstance(config, Mapping):
        raise SettingsError(
            f"--config {value}: must be a mapping of option names to values; write lines such as "
            "`batch_size: 16`"
        )
    options = {
        p.name: p
        for p in context.command.params
        if isinstance(p, click.Option) and p.name and p.name != "config"
    }
    sections = {p.type.section: name for name, p in options.items() if isinstance(p.type, _Section)}
    known = {name.rstrip("_"): name for name in options if name not in sections.values()}
    defaults: dict[str, Any] = {}
    for key, entry in config.items():
        name = str(key).replace("-", "_")
        if name in sections and isinstance(entry, Mapping):
            values = dict(entry)
            if "kind" in values:
                kind = defaults[known[name]] = values.pop("kind")
                _check_type(f"--config {value}: {name}: kind", kind, options[known[name]])
            defaults[sections[name]] = values
            continue
        if name not in known:
            raise SettingsError(
                f"--config {value}: unknown option {name!r}; this command has "
                f"{', '.join(sorted(known))}; correct or remove it"
            )
        _check_type(f"--config {value}: {name}", entry, options[known[name]])
        defaults[known[name]] = entry
    context.default_map = {**(context.default_map or {}), **defaults}
