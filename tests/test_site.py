"""The documentation site: its links, its reference of commands, and its looks in a browser."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from browser import Browser, browser
from vtnpipe.pipelines.cli import LazyCommand, cli

__all__ = ["browser"]

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
BUILT = "VTNPIPE_SITE"  # the site, if it is built already


class _Page(HTMLParser):
    """Links and ids of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            is_link = name == "href" or (name == "src" and tag != "script")
            if is_link and value is not None and tag != "base":
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    if built := os.environ.get(BUILT):
        return Path(built)
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    build = (sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder)
    subprocess.run(build, cwd=ROOT, check=True)
    return folder


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    pages = {path: _Page(path) for path in site.rglob("*.html")}
    num_links = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids, f"{path}: {link}"
            num_links += 1
    assert num_links > 300


def test_every_option_of_every_command_is_in_the_reference(site: Path) -> None:
    text = (site / "commands/index.html").read_text()
    sections = {section.split('"')[0]: section for section in text.split('<h2 id="vtnpipe-')[1:]}
    groups: list[tuple[tuple[str, ...], click.Group]] = [((), cli)]
    while groups:
        words, group = groups.pop()
        for name, command in group.commands.items():
            loaded = command.load() if isinstance(command, LazyCommand) else command
            if isinstance(loaded, click.Group):
                groups.append(((*words, name), loaded))
                continue
            section = sections.pop("-".join((*words, name)))
            for option in loaded.params:
                if isinstance(option, click.Option) and not option.hidden:
                    for opt in option.opts:
                        assert re.search(rf"[ >]{opt}(?![\w-])", section), (name, opt)
    assert not sections


def test_llms_txt_links_every_page(site: Path) -> None:
    text = (site / "llms.txt").read_text()
    assert text.startswith("# vtnpipe\n\n> ")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"/{page.stem}/)" in text


def test_pages_fit_a_phone_and_load_nothing_from_elsewhere(site: Path, browser: Browser) -> None:
    for page in site.rglob("index.html"):
        browser.open(page, width=390)
        assert browser.overflow == 0, page
        assert browser.faults == [], page
