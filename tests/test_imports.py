"""The rules of who may import whom, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("manifests", "extract", "temporal", "pipelines")
ALLOWED = {
    "manifests": {"manifests"},
    "extract": {"extract", "manifests"},
    "temporal": {"temporal", "manifests"},
    "pipelines": {"pipelines", "extract", "temporal", "manifests"},
}
DOORS = {
    "h5py": {"manifests/shards.py"},
    "decord": {"extract/decode/decord_reader.py"},
    "av": {"extract/decode/container.py", "pipelines/demo.py"},
    "timm": {"extract/create_backbone.py"},
    "dask": {"pipelines/dask_cluster/client.py"},
    "distributed": {"pipelines/dask_cluster/client.py", "pipelines/extraction/scheduler.py"},
    "dask_jobqueue": {"pipelines/dask_cluster/client.py"},
    "transformers": {"temporal/encoders.py"},
    "accelerate": {"temporal/distributed.py"},
    "huggingface_hub": {"pipelines/models/network.py"},
    "jinja2": {"pipelines/html/page.py"},
    "matplotlib": {"pipelines/html/plots.py", "pipelines/html/explain_figure.py"},
    "click": {"pipelines/cli.py", "pipelines/options.py"},
}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of each import statement of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def _files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield package, path


def test_folders_import_downwards_only() -> None:
    for package, path in _files():
        for level, module in _imports(path):
            assert module.partition(".")[0] != "vtnpipe", f"{path.name}: import it as ..{module}"
            depth = len(path.relative_to(ROOT).parts)
            if level == depth:
                assert module.split(".")[0] in ALLOWED[package], f"{path.name} imports {module}"


def test_heavy_libraries_have_few_doors() -> None:
    found: dict[str, set[str]] = {name: set() for name in DOORS}
    for package, path in _files():
        for level, module in _imports(path):
            name = module.split(".")[0]
            if level == 0 and name in DOORS:
                found[name].add(path.relative_to(ROOT).as_posix())
    assert found == DOORS


def test_command_line_starts_without_heavy_libraries() -> None:
    heavy = ["torch", "timm", "transformers", "h5py", "av", "decord", "dask", "distributed"]
    heavy += [
        "huggingface_hub",
        "accelerate",
        "tensorboard",
        "psutil",
        "jinja2",
        "matplotlib",
        "PIL",
    ]
    code = (
        "import sys, vtnpipe, vtnpipe.pipelines.cli\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
