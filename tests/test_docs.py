"""README and docs: links, commands, options, tables, messages and code agree with the code."""

import re
import shutil
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest
from command_line import run_cli
from drawn_events import draw_event_videos
from feature_folders import extract_rows, made_up_features, make_folder
from numbered_videos import write_video
from vtnpipe.manifests.failures import Reason
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.segments import by_video, read_segments, write_audacity
from vtnpipe.manifests.shards import Entry
from vtnpipe.pipelines.cli import LazyCommand, cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted(DOCS.glob("*.md")),
]


def _blocks(path: Path) -> list[str]:
    """Return the blocks of Python code of a page."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def _command_of(words: list[str]) -> click.Command:
    """Return the command that a line names, without its words."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
        if isinstance(command, LazyCommand):
            command = command.load()
    return command


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links {link}"


def test_commands_and_their_options_exist() -> None:
    num_options = 0
    for page in PAGES:
        for line in re.findall(
            r"(?:^ {4}|`)(vtnpipe [a-z][^`\n]*)", page.read_text(), re.MULTILINE
        ):
            words = line.split("#")[0].split()[1:]
            command = _command_of(words)
            assert command is not cli, f"{page.name}: {line}"
            known = {name for parameter in command.params for name in parameter.opts}
            for word in words:
                if word.startswith("--") and word != "--help":
                    assert word.split("|")[0] in known, f"{page.name}: {line}: {word}"
                    num_options += 1
    assert num_options > 25


def test_every_option_in_the_text_is_some_commands() -> None:
    known = {"--help", "--version", "--build-arg"}  # the last of docker
    groups: list[click.Group] = [cli]
    while groups:
        for command in groups.pop().commands.values():
            loaded = command.load() if isinstance(command, LazyCommand) else command
            known |= {name for parameter in loaded.params for name in parameter.opts}
            if isinstance(loaded, click.Group):
                groups.append(loaded)
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for code in re.findall(r"`(--[^`\n]+)`", page.read_text()):
            for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code):
                assert word in known, f"{page.name}: {code}"


def test_the_code_of_python_md_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for name in ("swim/0.mp4", "walk/1.mp4", "swim/2.mp4", "walk/3.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_video(path, 60, first=50 * len(rows))
        split = "train" if len(rows) < 2 else "val"
        rows.append(VideoRow(video_id=name, path=str(path), label=name[:4], split=split))
    write_manifest(rows, tmp_path / "videos.csv")
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    for block in _blocks(DOCS / "python.md"):
        exec(block, values)
    assert values["report"].values["top1"] is not None
    assert len(values["predictions"].predictions) == 2
    assert values["logits"].shape == (1, 2)
    assert "top-1" in capsys.readouterr().out


def test_troubleshooting_has_every_reason_and_quotes_the_messages() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == set(get_args(Reason))
    source = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        for folder in ("manifests", "extract", "temporal", "pipelines")
        for path in (ROOT / folder).rglob("*.py")
    )
    quoted = re.findall(r"^\*\*`([^`]+)`\*\*", text, re.MULTILINE)
    assert len(quoted) > 8
    for message in quoted:
        for part in message.split(" … "):
            assert part in source, message


def test_the_shard_format_is_as_documented(tmp_path: Path) -> None:
    text = (DOCS / "shards.md").read_text()
    table = text[text.index("| column of") :].split("\n\n")[0]
    names = {name for line in table.splitlines()[2:] for name in
             re.findall("`([a-z0-9_]+)`", line.split("|")[1])}  # fmt: skip
    assert names == set(Entry._fields)
    made_up_features(tmp_path / "features", {"train": {"run/a.mp4": "a", "b": "b"}})
    ours, plain = _blocks(DOCS / "shards.md")
    store = open_features(tmp_path / "features")
    code = plain.replace('"features/', f'"{tmp_path}/features/')
    found: dict[str, object] = {}
    exec(code + "\n        assert rows.shape[0] == length\n        last = rows", found)
    np.testing.assert_array_equal(found["last"], store["b"].features)
    exec(ours.replace('"features"', f'"{tmp_path}/features"'), found)


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    """A folder with the modules of your-own.md."""
    for block in _blocks(DOCS / "your-own.md"):
        name = re.search(r"# (my_\w+\.py)", block)
        if name:
            (tmp_path / name[1]).write_text(block)
    return tmp_path


def test_the_factories_of_your_own_md_work(
    factories: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.name for path in factories.glob("*.py")} == {
        *("my_backbones.py", "my_encoders.py", "my_heads.py")
    }
    monkeypatch.syspath_prepend(factories)
    folder = make_folder(factories / "features", "my_backbones:colors")
    rows = [
        VideoRow(video_id=f"{split}-{name}", path=str(path), label=name, split=split)
        for name, path in clips.items()
        for split in ("train", "val")
    ]
    extract_rows(folder, rows)
    assert open_features(folder.root).row_shape == (12,)
    parts = ("--encoder", "my_encoders:gru", "--head", "my_heads:linear", "--epochs", 1)
    run_cli(factories, "train-temporal", "features", "run", *parts)
    assert "top-1" in run_cli(factories, "evaluate", "run", "features").stdout


def test_the_commands_of_segments_md_work(tmp_path: Path) -> None:
    """The first two blocks of commands, on drawn videos and a toy backbone."""
    text = (DOCS / "segments.md").read_text()
    commands = re.findall(r"^ {4}vtnpipe (.*)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        *("manifest", "manifest", "extract", "train-temporal", "evaluate", "report"),
        *("predict", "predict"),
    ]
    for folder in ("videos", "tracks"):
        (tmp_path / folder).mkdir()
    _, segments = draw_event_videos(tmp_path / "videos", 8, seconds=(10.0, 14.0))
    for video_id, of_video in by_video(read_segments(segments)).items():
        write_audacity(of_video, tmp_path / f"tracks/{video_id}.txt")
    shutil.copy(tmp_path / "videos/video000.mp4", tmp_path / "new.mp4")
    for command in commands:
        command = command.replace("vit_base_patch16_224", "toy_backbones:mixer --weights none")
        command = command.replace("--task frames", "--task frames --epochs 2")
        run_cli(tmp_path, *command.split())
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    assert read_segments(tmp_path / "segments.csv") is not None
    assert (tmp_path / "new.txt").exists()
    metrics = (tmp_path / "run/predictions/test.json").read_text()
    for name in re.findall(r"^\| (`frame_.*`|`edit`|`f1.*`|`map.*`) \|", text, re.MULTILINE):
        for part in re.findall(r"`([^`]+)`", name):
            assert f'"{part}"' in metrics
