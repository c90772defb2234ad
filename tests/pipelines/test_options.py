"""Settings: options are made from the fields, checks hold from Python and from the command line."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.pipelines.dask_cluster.jobqueue import JobSettings
from vtnpipe.pipelines.evaluate import EvaluateSettings
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.finetune import FinetuneSettings
from vtnpipe.pipelines.options import settings_options
from vtnpipe.pipelines.predict import PredictSettings
from vtnpipe.pipelines.settings import at_least, check_settings, setting
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings


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
    click.echo(repr(Settings(**options)))


def _invoke(*arguments: str) -> str:
    return CliRunner().invoke(command, arguments, catch_exceptions=False).output.strip()


def test_defaults_are_the_fields() -> None:
    assert _invoke() == repr(Settings())


def test_every_type_comes_through() -> None:
    found = _invoke("--name=y", "--size-frames=5", "--rate=2", "--mode=exact", "--is-dry")
    assert found == repr(Settings(name="y", size_frames=5, rate=2.0, mode="exact", is_dry=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size_frames": 0}, "--size-frames 0: it must be at least 1"),
        ({"mode": "slow"}, "--mode 'slow': it must be one of fast, exact"),
        ({"name": 3}, "--name 3: it must be text"),
        ({"rate": float("inf")}, "--rate inf: it must be finite"),
    ],
)
def test_checks_hold_from_python(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    assert str(caught.value) == message


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
    with pytest.raises(SettingsError, match="cannot be read"):
        _invoke("--config", str(tmp_path / "none.yaml"))


def test_words_of_a_config_stay_words(tmp_path: Path) -> None:
    """YAML 1.1 reads 2:50 as 170, and no as false."""
    (tmp_path / "c.yaml").write_text("name: 2:50\nrate: 1e-3\nis-dry: true\n")
    found = _invoke("--config", str(tmp_path / "c.yaml"))
    assert found == repr(Settings(name="2:50", rate=0.001, is_dry=True))
    (tmp_path / "c.yaml").write_text("name: no\n")
    assert _invoke("--config", str(tmp_path / "c.yaml")) == repr(Settings(name="no"))


def test_every_setting_says_what_it_is() -> None:
    sections = [field for field in fields(ExtractSettings) if "section" in field.metadata]
    assert [field.metadata["section"] for field in sections] == ["cluster"]
    for field in (*fields(ExtractSettings), *fields(JobSettings)):
        assert field in sections or field.metadata["help"].endswith(".")


@pytest.mark.parametrize(
    ("settings_class", "options", "message"),
    [
        (
            TrainTemporalSettings,
            {"positions": "frames", "position_fps": 10.0},
            "--position-fps 10.0: --positions frames has no rate; leave it out",
        ),
        (
            TrainTemporalSettings,
            {"optimizer": "adamw", "momentum": 0.5},
            "--momentum 0.5: --optimizer adamw has none",
        ),
        (
            TrainTemporalSettings,
            {"train_on": "videos", "clip_frames": 8},
            "--clip-frames 8: --train-on videos has no clips",
        ),
        (FinetuneSettings, {"augment": "no", "flip": "yes"}, "--flip yes: --augment no leaves"),
        (EvaluateSettings, {"clip_seconds": 2.0}, "--clip-seconds 2.0: without --clips"),
        (
            EvaluateSettings,
            {"mode": "end-to-end", "chunk_frames": 8},
            "--chunk-frames 8: --mode end-to-end has no chunks",
        ),
        (
            PredictSettings,
            {"mode": "features", "features": "f", "decoder": "pyav"},
            "--decoder pyav: --mode features decodes nothing",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    settings_class: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        settings_class(**options)
