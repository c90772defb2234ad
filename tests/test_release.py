"""Release files: one version and one list of dependencies, and what `.ci/release` refuses."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
RELEASED = (
    "pyproject.toml",
    "CITATION.cff",
    "CHANGELOG.md",
    ".ci/release",
    ".ci/conda/recipe.yaml",
)
# Package of PyPI → packages of conda-forge, where the names differ.
CONDA_NAMES: dict[str, tuple[str, ...]] = {
    "torch": ("pytorch",),
    "decord2": (),
    "huggingface-hub": ("huggingface_hub",),
    "dask": ("dask-core", "distributed"),
    "matplotlib": ("matplotlib-base",),
}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The recipe for conda-forge."""
    found: dict[str, Any] = yaml.safe_load((ROOT / ".ci/conda/recipe.yaml").read_text())
    return found


def test_the_version_is_the_same_everywhere(
    project: dict[str, Any], recipe: dict[str, Any]
) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == recipe["context"]["version"] == project["version"]


def test_conda_and_pip_install_the_same(project: dict[str, Any], recipe: dict[str, Any]) -> None:
    expected = set()
    for requirement in map(Requirement, project["dependencies"]):
        for name in CONDA_NAMES.get(requirement.name, (requirement.name,)):
            expected.add(f"{name} {requirement.specifier}")
    python, system, *found = recipe["requirements"]["run"]
    assert set(found) == expected
    assert (python, system) == ("python >=${{ python_min }}", "__linux")
    assert project["requires-python"] == f">={recipe['context']['python_min']}"
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert dict([entry.split(" = ")]) == project["scripts"]


def test_python_versions_agree(project: dict[str, Any]) -> None:
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">={versions[0]}"
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["mypy"]["python_version"] == versions[0]
    assert tools["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"
    assert f"Python {versions[0]} or newer" in (ROOT / "README.md").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of the files that a release changes."""
    for name in RELEASED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for command in (
        "git init -q",
        "git config user.name test",
        "git config user.email test@localhost",
        "git add .",
        "git commit -qm start",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ((), "usage"),
        (("0.1.0",), "not a version above"),
        (("0.0.9",), "not a version above"),
        (("v9",), "not a version above"),
        (("new",), "not a version above"),
    ],
)
def test_a_release_refuses_versions(checkout: Path, version: tuple[str, ...], message: str) -> None:
    ran = subprocess.run([".ci/release", *version], cwd=checkout, capture_output=True, text=True)
    assert (ran.returncode, message in ran.stderr) == (2, True), ran.stderr
    assert not subprocess.check_output(["git", "status", "--porcelain"], cwd=checkout)


def test_a_release_refuses_changes(checkout: Path) -> None:
    (checkout / "new.txt").touch()
    ran = subprocess.run([".ci/release", "9.0"], cwd=checkout, capture_output=True, text=True)
    assert (ran.returncode, "has changes" in ran.stderr) == (2, True)
