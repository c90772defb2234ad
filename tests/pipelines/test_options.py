"""Options: created from settings, filled from config files, and the table of all commands."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from rich.console import Console
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.pipelines.cli import COMMANDS, LazyCommand, cli
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.options import settings_options
from vtnpipe.pipelines.settings import at_least, check_settings, setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = setting("x", help="A name.")
    size_frames: int = setting(3, help="A size.", check=at_least(1))
    rate: float | None = setting(None, help="A rate.")
    mode: Literal["fast", "exact"] = setting("fast", help="A mode.")
    is_dry: bool = setting(False, help="A flag.")

    def __post_init__(self) -> None:
        check_settings(self)


@click.command()
@settings_options(Settings)
def command(**options: Any) -> None:
    del options["console"]
    click.echo(repr(Settings(**options)))


def _invoke(*arguments: str) -> str:
    return CliRunner().invoke(command, arguments, catch_exceptions=False).output.strip()


def test_defaults_are_the_fields() -> None:
    assert _invoke() == repr(Settings())


def test_every_type_comes_through() -> None:
    found = _invoke("--name=y", "--size-frames=5", "--rate=2", "--mode=exact", "--is-dry")
    assert found == repr(Settings(name="y", size_frames=5, rate=2.0, mode="exact", is_dry=True))


def test_checks_hold_on_the_command_line() -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        _invoke("--size-frames=0")


def test_config_gives_values_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("size-frames: 7\nmode: exact\nis_dry: true\n")
    found = _invoke("--config", str(config), "--mode=fast")
    assert found == repr(Settings(size_frames=7, is_dry=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color: red", "unknown option 'color'"),
        ("- a\n- b", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("size-frames: 2.5", "size_frames 2.5: it must be a whole number"),
        ("size-frames: [1, 2]", "it must be a whole number"),
        ("rate: true", "it must be a number"),
        ("is-dry: 1", "it must be true or false"),
        ("name: {a: b}", "it must be text"),
    ],
)
def test_a_bad_config_has_its_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        _invoke("--config", str(tmp_path / "c.yaml"))


def test_a_missing_config_has_its_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config .*none\.yaml: cannot read it"):
        _invoke("--config", str(tmp_path / "none.yaml"))


def test_words_of_a_config_stay_words(tmp_path: Path) -> None:
    """YAML 1.1 reads 2:50 as 170, and no as false."""
    (tmp_path / "c.yaml").write_text("name: 2:50\nrate: 1e-3\nis-dry: true\n")
    found = _invoke("--config", str(tmp_path / "c.yaml"))
    assert found == repr(Settings(name="2:50", rate=0.001, is_dry=True))
    (tmp_path / "c.yaml").write_text("name: no\n")
    assert _invoke("--config", str(tmp_path / "c.yaml")) == repr(Settings(name="no"))


def test_a_section_of_a_config_is_passed_on_as_it_is(tmp_path: Path) -> None:
    @click.command()
    @settings_options(ExtractSettings)
    def extract(console: Console, **options: Any) -> None:
        settings = ExtractSettings(**{**options, "device": "cpu"})
        click.echo(f"{settings.cluster} {settings.job}")

    config = tmp_path / "c.yaml"
    config.write_text("cluster:\n  kind: slurm\n  queue: long\n  cores: 4\n")
    found = CliRunner().invoke(extract, ["--config", str(config)], catch_exceptions=False).output
    assert found.strip() == "slurm {'queue': 'long', 'cores': 4}"
    with pytest.raises(SettingsError, match="section cluster: of --config"):
        CliRunner().invoke(extract, ["--job", "x"], catch_exceptions=False)


def test_every_setting_has_a_sentence_of_help() -> None:
    num_settings = 0
    for target, _ in COMMANDS.values():
        module = import_module(f"vtnpipe.pipelines.{target.partition(':')[0]}")
        classes = [one for name, one in vars(module).items() if name.endswith("Settings")]
        for settings_class in filter(is_dataclass, classes):
            for field in fields(settings_class):
                if "help" in field.metadata:
                    assert field.metadata["help"].endswith("."), field.name
                    num_settings += 1
    assert num_settings > 100


# Options that commands share.
OUTPUT = "quiet verbose"
EXTRACTION = f"""
    allow-remote backbone batch-size cache cache-gib cluster compile config decoder
    decoder-processes device feature-dtype finish
    fps frame-stride image-fps image-size jobs max-failures max-megapixels part pool precision
    redo-changed retry scheduler shard-frames stall-seconds threads tls views weights workers
    {OUTPUT}
"""
TRAINING = f"""
    attention-window background batch-size checkpoint-minutes class-weights clip-frames
    clip-seconds config device dropout encoder epochs frame-drop gradient-accumulation
    gradient-checkpointing head head-dim head-dropout heads intermediate keep-checkpoints
    label-smoothing layers lr
    keep hidden-dim input-dropout max-grad-norm max-positions momentum num-workers optimizer
    patience position-embedding position-fps positions precision preset schedule seed segments
    smoothing-loss task time-jitter train-split val-split warmup-epochs weight-decay {OUTPUT}
"""
# Command → its options: users' scripts depend on them, so a change here is a change of the
# interface.
OPTIONS = {
    "cluster script": EXTRACTION,
    "cluster template": "",
    "demo": f"backbone config epochs events seeds {OUTPUT}",
    "doctor": "",
    "evaluate": f"""
        bootstrap chunk-frames clip-frames clip-seconds clips config decoder decoding device
        drop-partial group manifest min-seconds mode precision protocol seed segments
        shuffle-frames split transition-cost weights
        {OUTPUT}
    """,
    "explain": f"""
        chunk-frames config decoder device end frames most occlusions output prefixes start top
        {OUTPUT}
    """,
    "extract": EXTRACTION,
    "features export": f"config dtype format fps view {OUTPUT}",
    "features import": f"config feature-dtype fps key name stride {OUTPUT}",
    "features show": OUTPUT,
    "features verify": f"config drop recompute {OUTPUT}",
    "finetune": f"""
        augment backbone chunk-frames decoder flip fps frame-stride from image-size layer-decay
        new-head pool short-side-max short-side-min train-blocks val-clips weights {TRAINING}
    """,
    "import-checkpoint": f"backbone classes config {OUTPUT}",
    "manifest build": f"classes config fold format multi-label output split videos {OUTPUT}",
    "manifest check": OUTPUT,
    "manifest show": OUTPUT,
    "manifest split": f"config group output seed test train val {OUTPUT}",
    "model show": f"frames {OUTPUT}",
    "plan": EXTRACTION,
    "predict": f"""
        chunk-frames config decoder decoding device features min-seconds mode output top
        transition-cost {OUTPUT}
    """,
    "report": f"config device frames manifest output source split videos {OUTPUT}",
    "sweep": f"""
        cluster config device encoder jobs layers lr scheduler seeds test-split tls train-config
        weight-decay workers {OUTPUT}
    """,
    "train-temporal": f"drop-partial manifest preload recipe shortcut train-on {TRAINING}",
}


def _commands(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield each command that is not a group, with its full name."""
    command = command.load() if isinstance(command, LazyCommand) else command
    if not isinstance(command, click.Group):
        yield name, command
        return
    for part, one in command.commands.items():
        yield from _commands(one, f"{name} {part}".strip())


def test_every_command_loads_and_has_exactly_the_options_of_the_table() -> None:
    found = {
        name: sorted(
            max(option.opts, key=len).removeprefix("--")
            for option in command.params
            if isinstance(option, click.Option) and not option.hidden
        )
        for name, command in _commands(cli)
    }
    assert found == {name: sorted(options.split()) for name, options in OPTIONS.items()}


def test_the_short_help_of_every_command_is_a_plain_sentence() -> None:
    for name, (target, text) in COMMANDS.items():
        assert re.fullmatch(r"[A-Z][^\n.;:]*\.", text), name
        assert len(text) <= 60, name
        group = cli.commands[name]
        assert isinstance(group, LazyCommand)
        assert group.load().help, target
    listed = CliRunner().invoke(cli, ["--help"]).output
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", listed, re.MULTILINE), name


def test_every_command_prints_its_help() -> None:
    for name, command in _commands(cli):
        shown = CliRunner().invoke(cli, [*name.split(), "--help"])
        assert shown.exit_code == 0, shown.output
        assert f" {name} " in shown.output.splitlines()[0]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, (name, option.name)
                assert option.help.endswith("."), (name, option.name)


def test_quiet_and_verbose_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="--quiet and --verbose"):
        _invoke("--quiet", "--verbose")
