"""Settings dataclasses: their checks hold from Python, too."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.pipelines.evaluate import EvaluateSettings
from vtnpipe.pipelines.predict import PredictSettings
from vtnpipe.pipelines.settings import (
    at_least,
    auto_or_at_least,
    check_output,
    check_settings,
    make_folder,
    one_of_or_factory,
    setting,
)
from vtnpipe.pipelines.training.finetune_settings import FinetuneSettings
from vtnpipe.pipelines.training.settings import TrainTemporalSettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = setting("x", help="A name.")
    size_frames: int = setting(3, help="A size.", check=at_least(1))
    rate: float | None = setting(None, help="A rate.")
    mode: Literal["fast", "exact"] = setting("fast", help="A mode.")

    def __post_init__(self) -> None:
        check_settings(self)


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


def test_whole_numbers_are_valid_rates() -> None:
    assert Settings(rate=2).rate == 2
    assert Settings(rate=None).rate is None
    with pytest.raises(SettingsError, match="--name None: it must be text"):
        Settings(name=None)  # type: ignore[arg-type]


def test_checks_of_words_numbers_and_user_modules() -> None:
    check = auto_or_at_least(2)
    assert [check(value) for value in ("auto", "2", "30")] == ["", "", ""]
    assert all("at least 2" in check(value) for value in ("1", "-3", "2.5", "all", ""))
    check = one_of_or_factory("mlp")
    assert [check(value) for value in ("mlp", "my_module:head")] == ["", ""]
    assert all("mlp or package.module:factory" in check(value) for value in ("x", "hf-hub:x", ""))


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    assert check_output(tmp_path / "p.csv") == tmp_path / "p.csv"
    with pytest.raises(SettingsError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(SettingsError, match=r"--output .*no/p\.csv: its folder is missing"):
        check_output(tmp_path / "no/p.csv")


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b")
    make_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="file/c"):
        make_folder(tmp_path / "file/c")


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
        (FinetuneSettings, {"augment": "no", "flip": "yes"}, "--flip yes: --augment no"),
        (
            EvaluateSettings,
            {"clip_seconds": 2.0},
            "--clip-seconds 2.0: has no effect without --clips",
        ),
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
