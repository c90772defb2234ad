"""MkDocs hooks of the documentation site: what is generated from code, and links out of docs/.

The navigation and llms.txt come from docs/README.md; the home page from README.md; the options of
all commands from click; the API reference from `vtnpipe.__all__`; the example pages from a short
run of `vtnpipe demo`.
"""

import atexit
import contextlib
import functools
import inspect
import re
import shutil
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import vtnpipe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from torch import nn
from vtnpipe.pipelines.cli import LazyCommand, cli
from vtnpipe.pipelines.demo import DemoSettings, demo

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOME = "README.md"
EXAMPLES = {  # page → its command, and its title
    "run": ("report demo/run-longformer-0", "A run"),
    "explain": (
        "explain demo/run-longformer-0 demo/videos/growth-001-forwards.mp4",
        "A prediction",
    ),
    "features": ("report demo/features", "A feature folder"),
}
SHORT_DEMO = DemoSettings(events=30, seeds=1, epochs=20, backbone="test_vit")


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> None:
    """Set the navigation, and where mkdocstrings finds the package."""
    # It reads the sources, and looks for a folder of the package's name.
    (_temporary_folder() / "vtnpipe").symlink_to(ROOT)
    handlers = config.plugins["mkdocstrings"].config["handlers"]
    handlers["python"]["paths"] = [str(_temporary_folder())]
    config.nav = [{"Home": HOME}]
    for section, pages in _contents().items():
        config.nav.append({section: [{title: path} for title, path, _ in pages]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Replace the home page by the repository's README, and add the example pages."""
    home = files.get_file_from_path(HOME)
    assert home is not None
    home.content_string = (ROOT / HOME).read_text()
    for name in EXAMPLES:
        path = str(_examples() / f"{name}.html")
        files.append(File.generated(config, f"examples/{name}.html", abs_src_path=path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Append generated reference, and rewrite what GitHub and MkDocs read differently."""
    path = page.file.src_path
    if path == "commands.md":
        markdown += "\n" + "\n".join(_reference(cli, ["vtnpipe"]))
    if path == "api.md":
        markdown += "\n" + "\n".join(_api())
    if path == "examples.md":
        for name, (command, title) in EXAMPLES.items():
            markdown += (
                f"\n## {title}\n\n    vtnpipe {command} -o {name}.html\n\n"
                f"[Open the page alone](examples/{name}.html)\n\n"
                f'<iframe src="{name}.html" title="{title}" loading="lazy"></iframe>\n'
            )
    folder = ROOT if path == HOME else (DOCS / path).parent
    rewrite = functools.partial(_site_link, folder=folder, config=config, files=files)
    markdown = re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", rewrite, markdown)
    return re.sub(r"`[^`\n]*\\\|[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Remove the mark by which the theme's script finds the repository to ask GitHub for stars."""
    return output.replace(' data-md-component="source"', "")


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt (llmstxt.org)."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for section, pages in _contents().items():
        lines += [f"## {section}", ""]
        for title, path, text in pages:
            lines.append(f"- [{title}]({config.site_url}{Path(path).stem}/){text}")
        lines.append("")
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines))


@functools.cache
def _contents() -> dict[str, list[tuple[str, str, str]]]:
    """Return section → (title, page, what follows) of docs/README.md."""
    contents: dict[str, list[tuple[str, str, str]]] = {}
    for line in (DOCS / "README.md").read_text().splitlines():
        if heading := re.fullmatch("## (.*)", line):
            pages = contents[heading[1]] = []
        elif entry := re.fullmatch(r"- \[(.*?)\]\((.*?)\)(.*)", line):
            pages.append((entry[1], entry[2], entry[3]))
    return contents


def _site_link(link: re.Match[str], *, folder: Path, config: MkDocsConfig, files: Files) -> str:
    """Return a link of a page; one that leaves docs/ leads to the repository.

    Raises:
        PluginError: there is no such file.
    """
    path, anchor = (folder / link[1]).resolve(), link[2] or ""
    if path.is_relative_to(DOCS):
        return f"]({path.relative_to(DOCS)}{anchor})"
    if not path.exists():
        raise PluginError(f"{link[0]}: no such file")
    return f"]({config.repo_url}/blob/main/{path.relative_to(ROOT)}{anchor})"


def _reference(command: click.Command, words: list[str]) -> Iterator[str]:
    """Yield lines of Markdown about a command and its sub-commands."""
    if isinstance(command, LazyCommand):
        command = command.load()
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _reference(child, [*words, name])
        return
    context = click.Context(command, info_name=" ".join(words))
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (f"## {' '.join(words)}", "", f"    {' '.join(words)} {usage}", "")
    yield from (_markdown(inspect.cleandoc(command.help or "")), "")
    for option in command.params:
        if isinstance(option, click.Option) and (record := option.get_help_record(context)):
            name, text = record
            yield from (f"`{name}`", f":   {_markdown(text)}", "")


def _markdown(text: str) -> str:
    """Return a help text as Markdown, with options as code."""
    text = re.sub(r"[<*_\[]", r"\\\g<0>", text)
    return re.sub(r"(?<![`\w-])--[a-z][a-z-]*(?!`)", r"`\g<0>`", text)


def _api() -> Iterator[str]:
    """Yield directives of mkdocstrings for the public names, and for other types they return."""
    names = [name for name in vtnpipe.__all__ if name != "__version__"]
    public = [getattr(vtnpipe, name) for name in names]
    results: dict[str, None] = {}
    todo = [*public]
    while todo:
        for result in _returned(todo.pop(0)):
            name = f"{result.__module__}.{result.__qualname__}"
            if result not in public and name not in results:
                results[name] = None
                todo.append(result)
    for title, paths in (("Names", [f"vtnpipe.{n}" for n in names]), ("Results", [*results])):
        yield from (f"## {title}", "")
        yield from (f"::: {path}\n" for path in paths)


def _returned(value: Any) -> Iterator[type]:
    """Yield the result types, without modules, of a function or of a class's public methods."""
    members = vars(value).items() if inspect.isclass(value) else [(value.__name__, value)]
    for name, member in members:
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if inspect.isfunction(function) and (name == "__getitem__" or not name.startswith("_")):
            todo: list[Any] = [typing.get_type_hints(function).get("return")]
            while todo:
                hint = todo.pop()
                todo += typing.get_args(hint)
                is_ours = inspect.isclass(hint) and hint.__module__.startswith("vtnpipe.")
                if is_ours and not issubclass(hint, nn.Module):
                    yield hint


@functools.cache
def _temporary_folder() -> Path:
    """Return a folder that is removed in the end."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root)
    return root


@functools.cache
def _examples() -> Path:
    """Return a folder with the example pages, made by a short demo."""
    root = _temporary_folder()
    with contextlib.chdir(root):
        demo("demo", SHORT_DEMO)
        for name, (command, _) in EXAMPLES.items():
            cli.main([*command.split(), "-o", f"{name}.html", "--quiet"], standalone_mode=False)
    return root
