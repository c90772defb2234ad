"""`vtnpipe doctor`: the screen about this machine."""

from importlib.metadata import version

import pytest
from command_line import Vtnpipe
from vtnpipe.pipelines import doctor


def test_the_screen_is_short_and_has_what_matters(vtnpipe: Vtnpipe) -> None:
    ran = vtnpipe("doctor")
    lines = ran.stdout.splitlines()
    assert len(lines) <= 24
    for word in ("torch", "decord2", "PyAV", "cpu", "cuda", "weights cache", "disk", "they match"):
        assert word in ran.stdout
    assert not any(line.startswith("!") for line in lines)


def test_a_missing_package_is_marked_and_exits_with_2(
    vtnpipe: Vtnpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("click", "decord2-missing", "torch-missing"))
    monkeypatch.setattr(doctor, "OPTIONAL", ("decord2-missing",))
    monkeypatch.setattr(doctor, "DEVICES", "raise SystemExit('no devices')")
    fine = doctor.Finding("decoder", "works")
    monkeypatch.setattr(doctor, "_run_python", lambda *_, **__: fine)
    monkeypatch.setattr(doctor, "_devices", lambda: iter([doctor.Finding("cpu", "fails", False)]))
    lines = vtnpipe("doctor", code=2).stdout.splitlines()
    marked = [line.split()[1] for line in lines if line.startswith("!")]
    assert marked == ["torch-missing", "cpu"]
    assert any("decord2-missing" in line and "not installed" in line for line in lines)
    assert any(version("click") in line for line in lines)
