"""Import rules, read from the source: one way, no circles, heavy libraries in few modules."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("manifests", "extract", "temporal", "pipelines")
# Package → packages that it may import. Deeper rules come first.
ALLOWED = {
    "manifests": {"manifests"},
    "extract.decode": {"extract.decode", "manifests"},
    "extract": {"extract", "extract.decode", "manifests"},
    "temporal": {"temporal", "manifests"},
}
# Modules of the command line that its sub-packages may import; all others are commands.
SHARED_BY_COMMANDS = {"pipelines.console", "pipelines.settings", "pipelines.signals"}
DOORS = {
    "h5py": {"manifests/shards.py"},
    "decord": {"extract/decode/decord_reader.py"},
    "av": {"extract/decode/container.py", "extract/decode/packets.py", "pipelines/demo.py"},
    "timm": {"extract/create_backbone.py"},
    "dask": {"pipelines/dask_cluster/client.py"},
    "distributed": {"pipelines/dask_cluster/client.py", "pipelines/extraction/scheduler.py"},
    "dask_jobqueue": {"pipelines/dask_cluster/client.py"},
    "accelerate": {"temporal/distributed.py"},
    "huggingface_hub": {"extract/create_backbone.py", "pipelines/models/network.py"},
    "jinja2": {"pipelines/html/page.py"},
    "matplotlib": {"pipelines/html/plots.py", "pipelines/html/explain_figure.py"},
    "sklearn": {"temporal/baselines.py"},
    "transformers": {"temporal/hf_encoder.py"},
    "yaml": {"pipelines/import_checkpoint.py", "pipelines/options.py"},
}
# Imports inside functions, each with its reason beside it: optional, or slow and rarely needed.
INSIDE_FUNCTIONS = {
    ("extract/create_backbone.py", "timm"),
    ("extract/decode/decord_reader.py", "decord"),
    ("extract/decode/remote.py", "fsspec"),
    ("pipelines/dask_cluster/client.py", "dask_jobqueue"),
    ("manifests/tabular.py", "pandas"),
    ("pipelines/extraction/export_features.py", "pyarrow"),
    ("pipelines/extraction/export_features.py", "pyarrow.parquet"),
    ("pipelines/extraction/import_features.py", "torch"),
    ("pipelines/features.py", "inference.recompute"),
    ("pipelines/training/log.py", "torch.utils.tensorboard"),
    ("temporal/baselines.py", "sklearn.linear_model"),
    ("temporal/baselines.py", "sklearn.model_selection"),
    ("temporal/hf_encoder.py", "transformers"),
}


def _modules() -> dict[str, Path]:
    """Module below the package → its file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def _imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(level, module, whether inside a function) of each import statement of a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, functions)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, id(node) in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", id(node) in inner


def _graph() -> dict[str, set[str]]:
    """Module → modules of this project that it imports."""
    modules = _modules()
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = name.split(".")[:-1]
        graph[name] = {
            ".".join([*package[: len(package) - level + 1], module])
            for level, module, _ in _imports(path)
            if level
        } & modules.keys()
    return graph


def _package(module: str) -> str:
    return next((name for name in (*ALLOWED, *PACKAGES) if module.startswith(f"{name}.")), module)


def test_imports_are_relative_and_point_downwards() -> None:
    for name, path in _modules().items():
        for level, module, _ in _imports(path):
            assert module.partition(".")[0] != "vtnpipe", f"{name}: import it as ..{module}"
            assert level <= len(name.split(".")), f"{name} imports the root"
    for name, imported in _graph().items():
        allowed = ALLOWED.get(_package(name))
        if allowed is not None:
            assert {_package(one) for one in imported} <= allowed, name


def test_sub_packages_never_import_commands() -> None:
    for name, imported in _graph().items():
        if name.startswith("pipelines.") and name.count(".") > 1:
            commands = {
                one for one in imported if one.startswith("pipelines.") and one.count(".") == 1
            }
            assert commands <= SHARED_BY_COMMANDS, name


def test_there_are_no_circles() -> None:
    graph = _graph()
    TopologicalSorter(graph).prepare()  # raises CycleError
    packages: dict[str, set[str]] = {}
    for name, imported in graph.items():
        own = name.rpartition(".")[0]
        packages.setdefault(own, set()).update(
            other for one in imported if (other := one.rpartition(".")[0]) not in (own, "pipelines")
        )
    del packages["pipelines"]  # the commands import every sub-package
    TopologicalSorter(packages).prepare()


def test_modules_import_at_their_top() -> None:
    inner = {
        (path.relative_to(ROOT).as_posix(), module)
        for path in _modules().values()
        for _, module, is_inner in _imports(path)
        if is_inner
    }
    assert inner == INSIDE_FUNCTIONS


def test_heavy_libraries_have_few_doors() -> None:
    found: dict[str, set[str]] = {name: set() for name in DOORS}
    for path in _modules().values():
        for level, module, _ in _imports(path):
            name = module.split(".")[0]
            if level == 0 and name in DOORS:
                found[name].add(path.relative_to(ROOT).as_posix())
    assert found == DOORS


def _loaded(statement: str, libraries: str) -> list[str]:
    """Libraries that a statement loads in a new process."""
    code = f"import sys\n{statement}\nprint(*[n for n in {libraries.split()} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = "torch timm transformers h5py av decord dask distributed huggingface_hub accelerate "
    heavy += "tensorboard psutil jinja2 matplotlib PIL rich"
    assert _loaded("import vtnpipe, vtnpipe.pipelines.cli", heavy) == []


def test_a_decoder_process_needs_no_torch() -> None:
    heavy = "torch timm torchvision h5py dask distributed"
    assert _loaded("import vtnpipe.extract.decode.process", heavy) == []


def test_manifests_and_features_are_read_without_torch() -> None:
    heavy = "torch timm torchvision av decord dask distributed"
    statement = "import vtnpipe; vtnpipe.open_features, vtnpipe.read_manifest"
    assert _loaded(statement, heavy) == []
