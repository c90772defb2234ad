"""User modules: where they are found, and what each fault says."""

import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from vtnpipe.manifests.errors import BackboneError, SettingsError
from vtnpipe.manifests.user_module import call_factory, is_factory

MODULE = """
def make(*numbers):
    return dict.fromkeys(numbers)

def leave():
    raise SystemExit("not today")
"""


@pytest.fixture(autouse=True)
def _current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_the_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "module_of_the_user", raising=False)


def _call(name: str, *arguments: int) -> dict[int, None]:
    return call_factory(name, *arguments, returns=dict, role="backbone", error_type=BackboneError)


def test_names_of_factories() -> None:
    assert is_factory("package.module:make")
    assert not is_factory("resnet50")
    assert not is_factory("hf-hub:timm/resnet50")


def test_a_factory_in_the_current_folder_is_called_with_its_arguments() -> None:
    assert _call("module_of_the_user:make", 1, 2) == {1: None, 2: None}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module_of_the_user:leave", "SystemExit: not today"),
        ("module_of_the_user:nothing", "AttributeError"),
        ("module_of_nobody:make", "No module named 'module_of_nobody'"),
        (":make", r"package\.module:function"),
        ("collections:Counter.nothing", "AttributeError"),
        ("builtins:list", "returned a list; it must return a builtins dict"),
    ],
)
def test_each_fault_has_its_error(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        _call(name)
    assert repr(name) in str(caught.value)


def test_the_callers_error_is_raised() -> None:
    with pytest.raises(SettingsError, match="encoder 'builtins:list'"):
        call_factory("builtins:list", returns=OrderedDict, role="encoder", error_type=SettingsError)
