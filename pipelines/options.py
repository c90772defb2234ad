"""The command-line options that are made from settings, and `--config`."""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from ..manifests.errors import SettingsError
from .console import LastingConsole
from .settings import TYPE_WORDS, base_type, option_name

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])


def settings_options(settings_class: type[S]) -> Callable[[F], F]:
    """A decorator that gives a click command one option per field, and `--config FILE.yaml`.

    The command gets the fields as keyword arguments; make the settings with
    `settings_class(**options)`.
    """
    hints = typing.get_type_hints(settings_class)
    fields = dataclasses.fields(settings_class)  # type: ignore[arg-type]

    def decorate(command: F) -> F:
        for flag, attribute, words in reversed(OUTPUT_FLAGS):
            command = click.option(
                flag,
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=partial(_set_output, attribute),
                help=words,
            )(command)
        command = click.option(
            "--config",
            type=click.Path(dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            metavar="FILE.yaml",
            help="Read options' values from a YAML file; the command line wins.",
        )(command)
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
        return command

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
            raise SettingsError(f"{value}: give it as the section {self.section}: of --config")
        return self.read(dict(value)) if isinstance(value, Mapping) else value


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
    """YAML in which 2:50 is no number, no and off are words, and 1e-3 is a number: of what has no
    quotes only plain numbers, true, false and null are anything but text.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # as the base class has it


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
    """Refuses an entry of a config file that is of another type than its option.

    Raises:
        SettingsError: it is.
    """
    base: type
    types: set[type]  # besides text, which click takes apart
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
    """Makes a YAML file's values the defaults of the command's options."""
    if value is None:
        return
    try:
        text = Path(value).read_text(encoding="utf-8")
        config = yaml.load(text, Loader=_PlainLoader) or {}  # noqa: S506  # it is a SafeLoader
    except OSError as error:
        raise SettingsError(
            f"--config {value}: cannot be read ({error.strerror}); check its path"
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
    known = {name.rstrip("_"): name for name in options}
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
